"""Fine-tune, export, serve: the whole way in one script, in under a minute on two cores.

    python docs/fine_tune_export_serve.py [--preset opt_tiny_en] [--output DIR] [--epochs 40]

It trains a low-rank adapter on a few sentences, exports the model with the adapter merged in, and then
generates from the bundle in a process that loads neither Keras nor TensorFlow.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

# === The text to learn ===

SENTENCES = [
    "The harbour opens at six and the first boat leaves at seven.",
    "The harbour closes at ten and the last boat returns at nine.",
    "The first boat carries letters, and the last boat carries fish.",
] * 8

# === Serving: what a server runs, with the light runtime alone ===

SERVE = """
import sys
from runtime import Generator

generator = Generator.from_bundle(sys.argv[1])
generator.compile(sampler="greedy")
for piece in generator.stream(sys.argv[2], max_length=24):
    print(piece, end="", flush=True)
print()
loaded = {"keras", "tensorflow", "torch", "onnx"} & set(sys.modules)
print(f"deep-learning frameworks loaded: {sorted(loaded) or 'none'}")
"""


def fine_tune(preset, epochs):
    """Trains rank-4 adapters of the attention's query and value projections."""
    from exporter import OPTCausalLM, OPTCausalLMPreprocessor

    preprocessor = OPTCausalLMPreprocessor.from_preset(preset, sequence_length=32)
    model = OPTCausalLM.from_preset(preset, preprocessor=preprocessor)

    import keras  # after the exporter, which sets its backend

    keras.utils.set_random_seed(1)  # the same adapter and the same batches in every run
    model.backbone.enable_lora(rank=4)
    model.compile(optimizer=keras.optimizers.Adam(1e-2), sampler="greedy")
    model.fit(SENTENCES, batch_size=8, epochs=epochs, verbose=2)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", default="opt_tiny_en")
    parser.add_argument("--output", help="where the bundle goes (default: a temporary folder)")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--prompt", default="The harbour opens")
    options = parser.parse_args()

    model = fine_tune(options.preset, options.epochs)
    print(f"Keras:  {model.generate(options.prompt, max_length=24)}")

    from exporter import export_bundle

    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(options.output or folder) / "harbour"
        adapter = Path(folder) / "harbour.lora.h5"
        model.backbone.save_lora_weights(adapter)
        summary = export_bundle(model, bundle, force=True)
        print(
            f"adapter {adapter.stat().st_size / 1e3:.0f} kB, bundle {summary.size_bytes / 1e6:.1f} MB"
        )
        print("Bundle: ", end="", flush=True)
        subprocess.run([sys.executable, "-P", "-c", SERVE, bundle, options.prompt], check=True)


if __name__ == "__main__":
    main()
