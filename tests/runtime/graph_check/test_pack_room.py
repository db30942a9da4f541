"""The room that a pack is asked for, beside what ONNX Runtime writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.bundle import load_bundle
from tests.runtime.packs.packing import make_cpu_bundle, open_decoder, packs


def test_a_pack_takes_no_more_than_the_room_it_is_asked_for(
    toy_bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = make_cpu_bundle(toy_bundle_copy)
    bundle = load_bundle(folder)
    (graph,) = set(bundle.manifest.graphs.values())
    open_decoder(folder)
    (pack,) = packs(folder / "packed").values()
    taken = sum(path.stat().st_size for path in pack.iterdir())
    room = bundle.pack_bytes[graph.name] + graph.size
    assert bundle.manifest.weights.size < taken <= room + 4096 * 64  # each tensor begins on a page
    assert room < 1.5 * taken
