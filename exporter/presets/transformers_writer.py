"""Writes folders that transformers reads: the work behind every `export_to_transformers`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.checkpoints.formats import HUGGING_FACE
from exporter.checkpoints.writers import WRITTEN_FILES
from exporter.opt.backbone import OPTBackbone
from exporter.opt.tokenizer import OPTTokenizer
from exporter.presets.generation_config import GENERATION_FILE, generation_values
from exporter.presets.hugging_face_config import write_hugging_face_config
from exporter.presets.live_weights import check_shard_size, write_live_weights
from exporter.presets.pipeline_json import start_template
from exporter.presets.staging import check_format, staged_files
from runtime.tokenization.tokenizer import Tokenizer
from runtime.tokenization.tokenizer_json import TOKENIZER_FILE

MODEL_FILES = (*WRITTEN_FILES["huggingface"], GENERATION_FILE)
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def export_model(
    backbone: OPTBackbone,
    tokenizer: OPTTokenizer | None,
    folder: str | Path,
    max_shard_size: float | None,
    end_token_ids: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Writes transformers' `OPTForCausalLM`, and its tokenizer if there is one.

    Args:
        backbone: the model; its weights are stored in the dtypes of its variables.
        tokenizer: gives the configuration its special ids, too.
        folder: created where it does not exist; other files in it stay.
        max_shard_size: most GB (2**30 bytes) of one weights file; `None` for a single one.
        end_token_ids: what ends texts, where that is not the tokenizer's end token alone.
        options: what else `generation_config.json` says; see `carried_options`.

    Raises:
        ValueError: if the folder holds a Keras preset, for a size that is not positive, or if
            transformers has no such model or tokenizer.
    """
    check_shard_size(max_shard_size)
    check_format(Path(folder), "huggingface")
    special: dict[str, Any] = {} if tokenizer is None else _special_ids(tokenizer)
    special |= generation_values(end_token_ids, {})
    dtype = backbone.token_embedding.embeddings.dtype
    config = write_hugging_face_config(backbone.model_config, dtype, backbone.dropout) | special
    replaced = MODEL_FILES if tokenizer is None else MODEL_FILES + TOKENIZER_FILES
    with staged_files(Path(folder), replaced) as stage:
        _write_json(stage / "config.json", config)
        if options:
            _write_json(stage / GENERATION_FILE, {**special, **options})
        elif special:
            _write_json(stage / GENERATION_FILE, {"_from_model_config": True, **special})
        if tokenizer is not None:
            _write_tokenizer(tokenizer, stage)
        write_live_weights(backbone, stage, "huggingface", HUGGING_FACE, max_shard_size)


def export_tokenizer(tokenizer: OPTTokenizer, folder: str | Path) -> None:
    """Writes the tokenizer alone; a model in the folder stays.

    Raises:
        ValueError: if the folder holds a Keras preset, or transformers has no such tokenizer.
    """
    check_format(Path(folder), "huggingface")
    with staged_files(Path(folder), TOKENIZER_FILES) as stage:
        _write_tokenizer(tokenizer, stage)


def _special_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    return {
        "bos_token_id": tokenizer.start_token_id,
        "eos_token_id": tokenizer.end_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _write_tokenizer(tokenizer: OPTTokenizer, folder: Path) -> None:
    ids = {"bos_token": tokenizer.start_token_id, "eos_token": tokenizer.end_token_id}
    ids |= {"pad_token": tokenizer.pad_token_id}
    # transformers makes whatever has a name special.
    special = set(tokenizer.special_token_ids)
    tokens = {
        name: tokenizer.id_to_token(i) for name, i in ids.items() if i is not None and i in special
    }
    options: dict[str, Any] = {"clean_up_tokenization_spaces": False, **tokens}
    if tokenizer.is_plain:
        _check_merges(tokenizer)
        _write_json(folder / "vocab.json", tokenizer.vocabulary, indent=None)
        rules = "".join(f"{rule}\n" for rule in tokenizer.merges)
        (folder / "merges.txt").write_text(f"#version: 0.2\n{rules}", encoding="utf-8")
        # OPT's own: GPT-2's tokenizer with a start token, and `</s>` also for the unknown.
        options |= {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "errors": "replace"}
        options |= {"add_prefix_space": False, "unk_token": tokenizer.end_token}
        tokens["unk_token"] = tokenizer.end_token
    else:
        _write_json(folder / "tokenizer.json", _pipeline(tokenizer))
        options["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write_json(folder / "tokenizer_config.json", options)
    _write_json(folder / "special_tokens_map.json", tokens)


def _check_merges(tokenizer: OPTTokenizer) -> None:
    """transformers builds no tokenizer of merges that pass through tokens without an id."""
    vocabulary = tokenizer.vocabulary
    for rule in tokenizer.merges:
        first, second = rule.split(" ")
        for token in (first, second, first + second):
            if token not in vocabulary:
                raise ValueError(
                    f"transformers needs every token of the merges in the vocabulary, and {token!r} of "
                    f"the rule {rule!r} is not; add it"
                )


def _pipeline(tokenizer: OPTTokenizer) -> dict[str, Any]:
    """`tokenizer.json`: as it was read, or else with the start token that OPT's own puts first."""
    values: dict[str, Any] = json.loads(tokenizer.files()[TOKENIZER_FILE])
    if tokenizer.is_own_file:
        return values
    if tokenizer.start_token is not None and tokenizer.start_token_id is not None:
        values["post_processor"] = start_template(tokenizer.start_token, tokenizer.start_token_id)
    return values


def _write_json(path: Path, value: Mapping[str, Any], indent: int | None = 2) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
