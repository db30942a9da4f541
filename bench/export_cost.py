"""What an export costs: `python -m bench.export_cost trace PRESET` or `... export FOLDER`.

`trace` traces both graphs of a built-in preset's shape, without weights. `export` exports a preset
folder into a temporary bundle. Both print JSON: seconds, and peak memory beside what importing the
exporter takes by itself.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from exporter.export import export_bundle
from exporter.presets.table import BUILTIN_PRESETS
from exporter.tracing import build_weightless_backbone, trace
from graphs.contract import Phase
from graphs.passes import rewrite
from runtime.command import CommandParser
from runtime.system.memory import peak_memory_bytes

MEGABYTE = 1e6


def trace_cost(preset: str) -> dict[str, object]:
    """Traces both graphs of a preset's shape."""
    config = BUILTIN_PRESETS[preset].config
    started = time.perf_counter()
    backbone = build_weightless_backbone(config)
    nodes = {}
    for phase in Phase:
        program = trace(backbone, phase)
        rewrite(program)
        nodes[str(phase)] = sum(1 for _ in program.graph)
    seconds = time.perf_counter() - started
    return {"preset": preset, "parameters": config.num_parameters, "seconds": seconds, "nodes": nodes}


def export_cost(folder: str, verify: str | None) -> dict[str, object]:
    """Exports a preset folder into a temporary bundle."""
    with tempfile.TemporaryDirectory() as workspace:
        summary = export_bundle(folder, Path(workspace, "bundle"), verify=verify)
    compared = summary.comparison
    return {
        "bundle_megabytes": summary.size_bytes / MEGABYTE,
        "seconds": summary.seconds,
        "verifier_peak_megabytes": compared.peak_memory_bytes / MEGABYTE if compared else None,
    }


def main() -> None:
    """The command."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("what", choices=("trace", "export"))
    parser.add_argument("subject", help="a built-in preset for trace, a preset folder for export")
    parser.add_argument("--verify", choices=("full", "graph", "none"), help="as in opt-export")
    options = parser.parse_args()
    idle = peak_memory_bytes() / MEGABYTE
    if options.what == "trace":
        result = trace_cost(options.subject)
    else:
        result = export_cost(options.subject, options.verify)
    peak = peak_memory_bytes() / MEGABYTE
    memory = {"idle_megabytes": idle, "peak_megabytes": peak, "above_idle_megabytes": peak - idle}
    print(json.dumps({**result, **memory}, indent=2))


if __name__ == "__main__":
    main()
