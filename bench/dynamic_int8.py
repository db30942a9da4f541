"""`python -m bench.dynamic_int8`: a bundle by ONNX Runtime's own dynamic quantization, for contrast.

What `onnxruntime.quantization.quantize_dynamic` makes of the portable graphs with its defaults: one
scale for each matrix, one for each activation as it comes, no calibration. It runs as any bundle does.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from exporter.bundle_folder import atomic_folder, check_target
from graphs.manifest import FileEntry, Manifest, read_manifest
from runtime.command import CommandParser, run_command

WEIGHTS_FILE = "weights.bin"
INLINE_BYTES = 1024  # smaller tensors stay in the graph file
ALIGNMENT = 4096  # so that tensors can be mapped


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = CommandParser(
        prog="python -m bench.dynamic_int8",
        description="Quantize a float32 bundle with --target portable by ONNX Runtime's dynamic int8.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="made by opt-export --target portable")
    parser.add_argument("output", metavar="DIR", help="bundle folder to make")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 on an error and 130 on Ctrl-C."""
    return run_command("dynamic_int8", _run, build_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    target = Path(options.output)
    made = quantize_bundle(Path(options.bundle), target)
    print(f"{target}: {made.total_bytes / 1e6:.1f} MB")


def quantize_bundle(source: Path, target: Path) -> Manifest:
    """Writes the bundle; the folder is whole or not there.

    Args:
        source: a float32 bundle for any runtime, whose matrices are plain ones.
        target: must not exist.

    Raises:
        ValueError: if the source is another kind of bundle.
        ExportError: if the target exists.
    """
    manifest = read_manifest(source)
    if (manifest.precision, manifest.target) != ("fp32", "portable"):
        raise ValueError(
            f"{source} is {manifest.precision} for {manifest.target}; make a bundle with: "
            "opt-export --precision fp32 --target portable"
        )
    check_target(target, force=False)
    with atomic_folder(target) as folder:
        weights = _WeightsFile(folder / WEIGHTS_FILE)
        entries = {}
        for phase, graph in manifest.graphs.items():
            model = _quantized(source / graph.name)
            weights.take(model)
            onnx.save(model, folder / graph.name)
            entries[phase] = FileEntry.of(folder / graph.name)
        for tokenizer_file in manifest.tokenizer:
            shutil.copyfile(source / tokenizer_file.name, folder / tokenizer_file.name)
        made = replace(
            manifest,
            precision="int8",
            graphs=entries,
            weights=FileEntry.of(folder / WEIGHTS_FILE),
            probe=None,  # the result of a run with the weights as they were
            source={**manifest.source, "quantization": "onnxruntime.quantization.quantize_dynamic"},
        )
        made.write(folder)
    return made


def _quantized(graph: Path) -> onnx.ModelProto:
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="opt-dynamic-") as temporary:
        path = Path(temporary, graph.name)
        quantize_dynamic(graph, path, use_external_data_format=True)
        model = onnx.load(path)
    del model.metadata_props[:]  # which only says what quantized it
    return model


class _WeightsFile:
    """The file that both graphs point into; equal tensors are written once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[bytes, int] = {}
        path.touch()

    def take(self, model: onnx.ModelProto) -> None:
        """Moves a model's larger tensors into the file."""
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) < INLINE_BYTES:
                continue
            values = {
                "location": self._path.name,
                "offset": str(self._place(tensor.raw_data)),
                "length": str(len(tensor.raw_data)),
            }
            del tensor.external_data[:]
            for key, value in values.items():
                tensor.external_data.add(key=key, value=value)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.ClearField("raw_data")

    def _place(self, content: bytes) -> int:
        digest = hashlib.sha256(content).digest()
        if digest not in self._places:
            start = -(-self._path.stat().st_size // ALIGNMENT) * ALIGNMENT
            with self._path.open("r+b") as file:
                file.seek(start)
                file.write(content)
            self._places[digest] = start
        return self._places[digest]


if __name__ == "__main__":
    sys.exit(main())
