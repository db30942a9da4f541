"""The room that a pack is asked for, beside what ONNX Runtime writes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime.bundle import load_bundle
from runtime.session import SessionDecoder
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
    needed = bundle.pack_bytes[graph.name]
    # Beside the tensors there are the graph again, and a list of what there is.
    assert needed < taken < needed + 2 * graph.size
    assert needed > bundle.manifest.weights.size


def test_the_room_is_what_the_graph_needs(
    toy_bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph may need more than usual, if no more than the check allows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=500_000))
    bundle = load_bundle(make_cpu_bundle(toy_bundle_copy))
    (name,) = bundle.pack_bytes
    greedy = replace(bundle, pack_bytes={name: 3_000_000})
    with pytest.warns(RuntimeWarning, match="no pack of 3 MB can be written"):
        SessionDecoder(greedy, threads=1)
    SessionDecoder(bundle, threads=1)
    assert len(packs(bundle.folder / "packed")) == 1
