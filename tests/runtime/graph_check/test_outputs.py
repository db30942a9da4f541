"""Wanted outputs: what a graph may look up by them, and that nothing else has their place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from graphs.contract import Phase
from runtime.graph_check.graph_file import check_graph_file
from tests.runtime.graph_check.graph_bytes import INITIALIZER, NODE, node, tensor, with_fields
from tests.runtime.graph_check.toy_graph import LIMITS, refused

HIDDEN = "layer_norm_1/add_2:0"  # [batch*sequence, 32]


@pytest.mark.parametrize("phase", Phase)
def test_wanted_outputs_are_among_the_new_tokens(toy_bundle: Path, phase: Phase) -> None:
    data = (toy_bundle / f"{phase}.onnx").read_bytes()
    limits = replace(LIMITS, phase=phase)
    tokens = {Phase.PREFILL: r"batch\*sequence", Phase.DECODE: "batch"}[phase]

    def lookup(indices: str, table: str = HIDDEN, *before: bytes) -> bytes:
        made = node("Gather", [table, indices], ["x"], axis=0)
        one = (INITIALIZER, tensor("one", "int64", [1], [1]))
        return with_fields(data, one, *[(NODE, each) for each in before], (NODE, made))

    check_graph_file(lookup("output_positions"), limits)
    for kind, low, high in (("Add", 1, tokens), ("Sub", -1, f"(-2 [+] {tokens}|{tokens} [+] -2)")):
        moved = node(kind, ["output_positions", "one"], ["moved"])
        refused(lookup("moved", HIDDEN, moved), f"of {low} to {high} may lie beyond {tokens}", limits)
    for other in ("input_ids", "past_lengths", "new_lengths"):
        refused(lookup(other), f"may lie beyond {tokens} places", limits)
    # What has a place for each row, or for each output, has none for each token.
    for table in ("logits", *(["past_lengths"] if phase is Phase.PREFILL else [])):
        refused(lookup("output_positions", table), "may lie beyond (batch|outputs) places", limits)
