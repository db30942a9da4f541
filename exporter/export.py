"""The export: a preset or a live model in, a bundle out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from exporter.adapters.opening import AdapterChoice
from exporter.binding import (
    needed_weights,
    plan_weights,
    planned_bytes,
    write_bound_graph,
    write_weights,
)
from exporter.bundle_folder import atomic_folder, check_space, check_target
from exporter.errors import ExportError, full_name
from exporter.export_choices import check_choice, check_choices, check_sizes
from exporter.model_weights import LiveWeights
from exporter.opt.causal_lm import CausalLM
from exporter.opt.tokenizer import OPTTokenizer
from exporter.presets.adapted import merged, open_preset
from exporter.presets.folder import PresetFolder, read_tokenizer
from exporter.presets.generation_defaults import WritingDefaults, carried_options
from exporter.presets.handles import preset_name
from exporter.progress import Progress
from exporter.quantization.calibration import calibration_tokens
from exporter.quantization.preparation import prepare_weights
from exporter.quantization.recipes import plan_recipes, scheme_tensors
from exporter.text_check import check_ids, describe_tokenizer, end_notices, verify_text
from exporter.tracing import build_weightless_backbone, trace
from exporter.verification import (
    SMALL_ENOUGH_BYTES,
    LogitsComparison,
    Verify,
    run_probe,
    verify_graphs,
    verify_logits,
)
from exporter.weight_names import head_table
from exporter.weights import CheckpointWeights, CountedWeights, WeightSource, float_bytes
from graphs.contract import ModelConfig, Phase
from graphs.manifest import (
    FileEntry,
    GenerationDefaults,
    Manifest,
    Probe,
    target_cache_dtype,
    target_revision,
)
from graphs.native_path import path_text
from graphs.passes import expected_counts, rewrite
from graphs.program import Program
from graphs.quantization import Scheme
from graphs.versions import package_versions
from runtime import samplers
from runtime.samplers import Sampler
from runtime.system.memory import peak_memory_bytes
from runtime.tokenization.tokenizer import Tokenizer

WEIGHTS_FILE = "weights.bin"
GRAPH_BYTES_PER_LAYER = 40_000  # both graphs together, generously
PACKAGES = ("opt-onnx", "keras", "tensorflow", "tf2onnx", "onnx", "onnx-ir", "onnxruntime")


@dataclass(frozen=True)
class ExportSummary:
    """What an export did.

    Attributes:
        bundle: where the bundle is.
        size_bytes: of all its files.
        seconds: from start to the finished bundle.
        peak_memory_bytes: of this process.
        rewrites: how often each pass matched, by graph file.
        comparison: with Keras's logits; `None` if they were not compared.
        tokenizer: the bundle's, in a line.
        generation: the sampler and the options that the model's files ask for, in a line; `None` if
            they ask for none.
        notices: what a user should know of the model's files, a sentence each.
        base: the folder of the weights that adapters were merged into; `None` without any.
        adapters: what was merged, a line each.
    """

    bundle: Path
    size_bytes: int
    seconds: float
    peak_memory_bytes: int
    rewrites: dict[str, dict[str, int]]
    comparison: LogitsComparison | None
    tokenizer: str
    notices: tuple[str, ...]
    base: Path | None = None
    adapters: tuple[str, ...] = ()
    generation: str | None = None


@dataclass(frozen=True)
class _Subject:
    """What is exported: sizes, text handling and where the weights come from."""

    name: str
    config: ModelConfig
    tokenizer: Tokenizer | None
    max_length: int
    sampler: Sampler
    source: dict[str, str]
    weights: WeightSource
    end_token_ids: tuple[int, ...] | None
    writing: WritingDefaults
    notices: tuple[str, ...] = ()
    tokenizer_notices: tuple[str, ...] = ()
    base: Path | None = None
    adapters: tuple[str, ...] = ()

    @property
    def ends(self) -> tuple[int, ...] | None:
        """What ends a text; `None` where nothing says it."""
        if self.end_token_ids is not None or self.tokenizer is None:
            return self.end_token_ids
        return (self.tokenizer.end_token_id,)


def export_bundle(
    model: str | Path | CausalLM,
    output: str | Path | None = None,
    *,
    precision: str | None = None,
    target: str = "cpu",
    prefill_precision: str | None = None,
    calibration: str | None = None,
    tokenizer: str | Path | None = None,
    adapters: Sequence[AdapterChoice] = (),
    force: bool = False,
    verify: str | None = None,
    progress: Progress | None = None,
) -> ExportSummary:
    """Exports a model into a bundle folder.

    The weights stream from the checkpoint to the bundle one tensor at a time: peak memory does not
    grow with the number of layers.

    Args:
        model: a preset (built-in name, handle or folder) or a live `OPTCausalLM`.
        output: the folder to make; by default the preset's name in the current folder.
        precision: of the weights. `"fp32"`, the default for CPUs, `"int8"` or `"int4"`; for CUDA
            `"fp16"`, the default there, `"bf16"`, `"int8"` or `"int4"`, whose activations are float16.
        target: `"cpu"`, ONNX Runtime's fused operators; `"cuda"`, those of NVIDIA GPUs; or
            `"portable"`, plain ONNX, fp32 only.
        prefill_precision: `"int8"` gives an int4 bundle a second copy of the layers in int8, with which
            prompts are read two to three times as fast; by default both phases share one.
        calibration: a text to find the ranges of activations with, for int8 and int4; some hundred
            words like those the model will read. By default one that comes with the package.
        tokenizer: a folder with a tokenizer's files, as Keras or Hugging Face writes them, to be used
            in place of the model's own.
        adapters: LoRA adapters to merge into a preset's weights: folders that `peft` saved, their `hf://`
            handles, or `.lora.h5` files; each alone or with a weight, `("folder", 0.5)`. Their products
            are added in float32, scaled by the weights, as by `peft`'s `add_weighted_adapter` of type
            `"cat"`.
        force: whether to replace a bundle that is there.
        verify: `"full"` compares logits with Keras's, `"run"` runs the bundle, both for a later check
            to repeat, in a process of its own that maps the weights; `"graph"` checks graphs and
            hashes, `"none"` nothing. By default full where the weights take up to 2 GiB, else graph.
        progress: shows phases and bytes; silent by default.

    Raises:
        PresetError: if the preset is unknown, incomplete or no OPT model.
        CheckpointError: if its tensors do not fit; all of them are named.
        ExportError: if the output exists, the disk is too small, the calibration text is too short or
            verification failed.
        ValueError: if the choices do not fit each other or the model, or this is no model.
    """
    started = time.perf_counter()
    progress = progress or Progress(quiet=True)
    precision, schemes = check_choices(precision, target, prefill_precision, calibration)
    verify_as = None if verify is None else Verify(check_choice("verify", verify, tuple(Verify)))
    if precision == "bf16" and verify_as in (Verify.FULL, Verify.RUN):
        raise ValueError(
            f"verify={verify!r} runs the bundle on the CPU, which ONNX Runtime cannot do in bf16; use "
            "'graph' or 'none', or export fp16"
        )
    preset = None
    if isinstance(model, CausalLM):
        if adapters:
            raise ValueError("adapters are merged into a preset; a live model has load_lora_weights()")
        subject = _live_subject(model)
    elif not isinstance(model, (str, Path)):
        raise ValueError(
            "export_bundle takes a preset's name, handle or folder, or an exporter.OPTCausalLM; got a "
            f"{full_name(type(model))}. A backbone goes into OPTCausalLM(backbone), and of a model of "
            "keras-hub's the folder that its save_to_preset(folder) writes is exported"
        )
    else:
        progress.phase(f"Reading preset {model}")
        preset = open_preset(model, adapters)
        subject = _preset_subject(str(model), preset)
    if tokenizer is not None:
        subject = _with_tokenizer(subject, Path(tokenizer))
    config = subject.config
    check_sizes(config, target, precision)
    if subject.tokenizer is not None:
        check_ids(subject.tokenizer, config.vocabulary_size, subject.name)
    folder = Path(output) if output is not None else Path(subject.name)
    check_target(folder, force=force, source=preset.folder if preset else None)

    with (
        contextlib.closing(subject.weights) as source,
        contextlib.closing(progress),
        atomic_folder(folder) as temporary,  # from here on: no other export writes there
    ):
        # === What is quick to tell, before minutes of tracing ===
        check_target(folder, force=force)
        check_space(temporary.parent, _expected_bytes(config, source, schemes.values()))
        token_ids = None
        if any(scheme.calibrated for scheme in schemes.values()):
            token_ids = calibration_tokens(subject.tokenizer, calibration, config)

        # === The graphs and what they need ===
        graphs = _build_graphs(config, target, schemes, progress)
        needed = needed_weights(graphs.programs.values())
        extents = plan_weights(plan_recipes(config, source, needed))
        size = planned_bytes(extents)

        # === The files ===
        stored, activations = prepare_weights(config, source, schemes.values(), token_ids, progress)
        progress.phase("Writing weights", size)
        recipes = plan_recipes(config, stored, needed, activations)
        weights = write_weights(recipes, extents, temporary / WEIGHTS_FILE, progress)
        progress.phase("Writing graphs")
        entries = {
            name: write_bound_graph(program, extents, WEIGHTS_FILE, temporary / f"{name}.onnx")
            for name, program in graphs.programs.items()
        }
        files = {phase: entries[name] for phase, name in graphs.names.items()}
        manifest = _manifest(subject, precision, target, files, weights, temporary)
        manifest.write(temporary)

        # === Verification ===
        if verify_as is None:
            runs = size <= SMALL_ENOUGH_BYTES and precision != "bf16"
            verify_as = Verify.FULL if runs else Verify.GRAPH
        probe, comparison = _verify(verify_as, temporary, subject, precision, progress)
        manifest = replace(manifest, probe=probe)
        manifest.write(temporary)
        progress.phase("Finishing")
        check_target(folder, force=force)  # nobody else should have written there; if so, it stays
    return ExportSummary(
        bundle=folder,
        size_bytes=manifest.total_bytes,
        seconds=time.perf_counter() - started,
        peak_memory_bytes=peak_memory_bytes(),
        rewrites=graphs.rewrites,
        comparison=comparison,
        tokenizer=describe_tokenizer(subject.tokenizer, subject.ends),
        notices=(
            *subject.tokenizer_notices,
            *subject.notices,
            *end_notices(subject.tokenizer, subject.ends),
        ),
        base=subject.base,
        adapters=subject.adapters,
        generation=subject.writing.describe(),
    )


def _expected_bytes(config: ModelConfig, source: WeightSource, schemes: Collection[Scheme]) -> int:
    """Size of the bundle, before there are graphs to tell what they need."""
    recipes = plan_recipes(config, source, scheme_tensors(source, schemes))
    return planned_bytes(plan_weights(recipes)) + GRAPH_BYTES_PER_LAYER * config.num_layers


def _verify(
    verify_as: Verify,
    folder: Path,
    subject: _Subject,
    precision: str,
    progress: Progress,
) -> tuple[Probe | None, LogitsComparison | None]:
    """Verifies what was written; the run to store and what was compared, where that was asked for."""
    if verify_as is not Verify.NONE:
        progress.phase("Verifying graphs and text")
        verify_graphs(folder)
        if subject.tokenizer is not None:
            verify_text(folder, subject.tokenizer)
    if verify_as is Verify.RUN:
        progress.phase("Running the bundle")
        return run_probe(folder), None
    if verify_as is Verify.FULL:
        config, source = subject.config, subject.weights
        progress.phase("Comparing logits with Keras", _compared_bytes(config, source))
        comparison = verify_logits(folder, config, CountedWeights(source, progress), precision)
        return comparison.probe, comparison
    return None, None


def _compared_bytes(config: ModelConfig, source: WeightSource) -> int:
    """What Keras's logits read: all weights once, and a tied head's table a second time."""
    head = [head_table(config)] if config.tied_head else []
    return float_bytes(source, [*source.shapes, *head])


@dataclass(frozen=True)
class _Graphs:
    """Rewritten graphs by name, the name of each phase's, and how often each pass matched."""

    programs: dict[str, Program]
    names: dict[Phase, str]
    rewrites: dict[str, dict[str, int]]


def _build_graphs(
    config: ModelConfig, target: str, schemes: dict[Phase, Scheme], progress: Progress
) -> _Graphs:
    """Traces and rewrites: one graph where both phases want the same kernels, else one each."""
    backbone = build_weightless_backbone(config)
    # The fused graph of any number of tokens is as fast with one, and so serves both phases.
    one = target != "portable" and len(set(schemes.values())) == 1
    names = {phase: "model" if one else str(phase) for phase in Phase}
    programs: dict[str, Program] = {}
    rewrites = {}
    for phase, name in names.items():
        if name in programs:
            continue
        progress.phase(f"Tracing the {name} graph ({config.num_layers} layers)")
        programs[name] = trace(backbone, phase)
        rewrites[name] = rewrite(programs[name], target, schemes[phase])
        _check_rewrites(name, rewrites[name], expected_counts(config, target, schemes[phase]))
    return _Graphs(programs, names, rewrites)


def _preset_subject(name: str, preset: PresetFolder) -> _Subject:
    tokenizer = None
    if preset.tokenizer_files is not None:
        tokenizer = OPTTokenizer.from_files(preset.tokenizer_files, **preset.tokenizer_options)
    adapters = tuple(f"{a.origin} ({a.kind}), weight {a.weight:g}" for a in preset.adapters)
    noted = {"adapters": "; ".join(adapters)} if adapters else {}
    return _Subject(
        name=preset_name(name),
        config=preset.config,
        tokenizer=tokenizer,
        max_length=min(preset.sequence_length, preset.config.max_sequence_length),
        sampler=preset.generation.writing.sampler or samplers.get("top_k"),
        source={"preset": path_text(preset_name(name)), "format": preset.format, **noted},
        weights=merged(CheckpointWeights(preset), preset),
        end_token_ids=preset.generation.end_token_ids,
        writing=preset.generation.writing,
        notices=preset.generation.notices,
        tokenizer_notices=preset.notices,
        base=preset.folder if adapters else None,
        adapters=adapters,
    )


def _with_tokenizer(subject: _Subject, folder: Path) -> _Subject:
    text = read_tokenizer(folder)
    made = OPTTokenizer.from_files(text.tokenizer_files or {}, **text.tokenizer_options)
    return replace(subject, tokenizer=made, tokenizer_notices=text.notices)


def _live_subject(model: CausalLM) -> _Subject:
    try:
        sampler = samplers.deserialize(samplers.serialize(model.sampler))
    except ValueError as error:
        raise ExportError(
            f"a bundle cannot hold this model's sampler: {error}. Compile the model with a built-in "
            "one before exporting, and the loaded generator with your own"
        ) from None
    config = model.backbone.model_config
    try:
        options = carried_options(model.default_options, config.vocabulary_size)
    except ValueError as error:
        raise ExportError(f"a bundle cannot hold this model's default_options: {error}") from None
    positions = config.max_sequence_length
    preprocessor = model.text_preprocessor
    length = preprocessor.sequence_length if preprocessor else positions
    return _Subject(
        name=model.name,
        config=config,
        tokenizer=preprocessor.tokenizer if preprocessor else None,
        max_length=min(length, positions),
        sampler=sampler,
        source={"preset": model.name, "format": "live"},
        weights=LiveWeights(model.backbone),
        end_token_ids=model.end_token_ids,
        writing=WritingDefaults(options=options),
    )


def _manifest(
    subject: _Subject,
    precision: str,
    target: str,
    graphs: dict[Phase, FileEntry],
    weights: FileEntry,
    folder: Path,
) -> Manifest:
    names = subject.tokenizer.save(folder) if subject.tokenizer is not None else []
    return Manifest(
        model=subject.config,
        precision=precision,
        target=target,
        cache_dtype=target_cache_dtype(target, precision),
        graphs=graphs,
        weights=weights,
        tokenizer=tuple(FileEntry.of(folder / name) for name in names),
        generation=GenerationDefaults(
            subject.max_length,
            samplers.serialize(subject.sampler),
            subject.ends,
            dict(subject.writing.options) or None,
        ),
        source=subject.source,
        versions=package_versions(PACKAGES),
        contract_revision=target_revision(target),
    )


def _check_rewrites(name: str, counts: dict[str, int], expected: dict[str, int]) -> None:
    if counts != expected:
        raise ExportError(
            f"the {name} graph was rewritten as {counts}, not as {expected}: this Keras or tf2onnx "
            "version traces differently; install the versions that pyproject.toml names"
        )
