"""The table of what exporting and serving takes, at any size."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from bench import scale
from bench.scale import Export, Served, format_table, main

EXPORT = Export(200.0, 2_100_000_000, 13_000_000_000, 4_000_000_000, 250e6)
SERVED = Served(
    precision="int4",
    target="cpu",
    export=EXPORT,
    first_start_seconds=30.04,
    load_seconds=4.0,
    packed_bytes=7_500_000_000,
    resident_bytes=5_000_000_000,
    prefill_tokens_per_second=12.34,
    decode_seconds=0.4,
    step_bytes=4_000_000_000,
    read_bytes_per_second=20e9,
    token_ids=list(range(32)),
)


def cells(lines):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_table():
    portable = dataclasses.replace(SERVED, precision="fp32", target="portable")
    other = dataclasses.replace(SERVED, token_ids=[*range(7), 99, *range(8, 32)])
    rows = {row[0]: row[1:] for row in cells(format_table([portable, SERVED, other]))}
    assert rows[""] == ["fp32 portable", "int4 cpu", "int4 cpu"]
    assert rows["peak memory of the export MB"][1] == "2100"
    assert rows["written MB/s"][1] == "20"
    assert rows["plain copy MB/s"][1] == "250"
    assert rows["decode ms/token"][1] == "400.0"
    assert rows["share of it"][1] == "50%"
    assert rows["of 32 tokens as portable"] == ["32", "32", "7"]
    (alone,) = [row for row in cells(format_table([SERVED])) if row[0].startswith("of 32")]
    assert alone[1:] == ["not compared"]


@pytest.fixture
def exported(toy_bundle, monkeypatch):
    """Exports take as long as a copy of the toy bundle, and are noted."""
    asked = []

    def export(checkpoint, precision, target, bundle):
        asked.append((precision, target))
        shutil.copytree(toy_bundle, bundle)
        return dataclasses.replace(EXPORT, copy_bytes_per_second=scale._copy_speed(bundle))

    monkeypatch.setattr(scale, "_export", export)
    return asked


@pytest.mark.slow
def test_command(exported, tmp_path, capsys):
    workspace, figures = tmp_path / "workspace", tmp_path / "figures.json"
    workspace.mkdir()
    arguments = ["--checkpoint", f"{tmp_path}", "--workspace", f"{workspace}", "--threads", "1"]
    small = ["--prompt-tokens", "3", "--new-tokens", "2", "--trials", "1", "--json", f"{figures}"]
    assert main([*arguments, *small, "--precisions", "fp32", "--portable", "--no-packed-weights"]) == 0
    assert exported == [("fp32", "portable"), ("fp32", "cpu")]
    assert list(workspace.iterdir()) == []
    rows = {row[0]: row[1:] for row in cells(capsys.readouterr().out.splitlines())}
    assert rows["of 32 tokens as portable"] == ["32", "32"]
    values = json.loads(figures.read_text(encoding="utf-8"))
    first, second = values["results"]
    assert first["token_ids"] == second["token_ids"]
    assert len(first["token_ids"]) == 32
    assert first["export"]["copy_bytes_per_second"] > 0
    assert 0 < first["load_seconds"] < 60
    assert first["packed_bytes"] == 0
    assert first["read_bytes_per_second"] > 1e8
    assert values["settings"]["threads"] == 1


def test_wrong_choices(tmp_path, capsys):
    assert main(["--checkpoint", f"{tmp_path}", "--precisions", "fp32,int2"]) == 2
    assert "--precisions must be among fp32,int8,int4; got int2" in capsys.readouterr().err
    assert main(["--checkpoint", f"{tmp_path / 'none'}"]) == 2
    assert "--checkpoint: there is no folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_failed_export_says_why(tmp_path):
    with pytest.raises(
        ValueError, match=r"exporter\.cli .* failed: opt-export: .* is not a preset folder"
    ):
        scale._export(tmp_path, "fp32", "cpu", tmp_path / "bundle")
