"""`Generator`: text from prompts, over any decoder."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from runtime import samplers
from runtime.decoder import Decoder
from runtime.generation import GenerationRun, Row, RowRequest
from runtime.inputs import (
    PADDING_MASK,
    TOKEN_IDS,
    Batch,
    TextBatch,
    TokenBatch,
    is_stream_of_batches,
    iterate_batches,
    read_batch,
)
from runtime.results import GenerationResult
from runtime.samplers import Sampler
from runtime.tokenizer import StreamDecoder, Tokenizer

StopTokenIds = Literal["auto"] | Sequence[int] | None


class Generator:
    """Writes text with an OPT model; the interface of Keras's `OPTCausalLM.generate`.

    Usually made by `Generator.from_bundle`.

    Args:
        decoder: the model.
        tokenizer: turns text into its tokens; `None` to work on token dictionaries only.
        sampler: a name, a `Sampler` or its serialized configuration; see `compile`.
        max_length: the default of `generate`'s; at most the model's positions.

    Example::

        from runtime import Generator

        generator = Generator.from_bundle("opt_tiny_en")
        generator.compile(sampler="greedy")
        print(generator.generate("The import statement", max_length=40))
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer | None,
        sampler: str | Sampler | Mapping[str, object] = "top_k",
        max_length: int | None = None,
    ) -> None:
        self._decoder = decoder
        self.tokenizer = tokenizer
        self.config = decoder.config
        self.max_length = decoder.config.max_sequence_length
        self.max_length = self._limit(max_length, "max_length")
        self.compile(sampler)

    @classmethod
    def from_bundle(
        cls,
        bundle: str | Path,
        device: str = "auto",
        threads: int | None = None,
        *,
        verify: bool = False,
    ) -> Generator:
        """Loads an exported bundle.

        Args:
            bundle: path of the bundle's folder.
            device: `"cpu"`, `"cuda"`, or `"auto"` for what the installed ONNX Runtime offers.
            threads: CPU threads of a step; by default one for each physical core.
            verify: whether to check the hash of the weights too, which reads the whole file. Sizes
                and the hashes of all other files are always checked.

        Raises:
            BundleError: if the folder is no bundle, is incomplete, altered or of another revision.
            RuntimeMissingError: if ONNX Runtime is not installed or lacks the device.
        """
        from runtime.bundle import load_bundle
        from runtime.session import SessionDecoder

        loaded = load_bundle(bundle, verify=verify)
        decoder = SessionDecoder(loaded, device=device, threads=threads)
        return cls(
            decoder,
            loaded.tokenizer,
            sampler=loaded.manifest.generation.sampler,
            max_length=loaded.manifest.generation.max_length,
        )

    def compile(self, sampler: str | Sampler | Mapping[str, object] = "top_k") -> None:
        """Sets the sampler: `"greedy"`, `"top_k"`, a `Sampler`, or a serialized configuration."""
        self.sampler = samplers.get(sampler)

    def generate(
        self,
        inputs: Any,
        max_length: int | None = None,
        stop_token_ids: StopTokenIds = "auto",
        strip_prompt: bool = False,
    ) -> Any:
        """Continues prompts.

        Args:
            inputs: a string; a list or array of strings; a dictionary of `token_ids` int
                [batch, length] and `padding_mask` [batch, length], padded on the right to the length
                to generate; or an iterable or `tf.data.Dataset` of batches of these, whose results
                are joined. An empty string generates from the start token.
            max_length: tokens of prompt and answer together, the start token counted. By default
                the preset's sequence length. Not used with token dictionaries, whose own length
                counts.
            stop_token_ids: tokens that end a row. `"auto"` is the tokenizer's end token; `None`
                generates until `max_length`.
            strip_prompt: whether to leave the prompt out of the result.

        Returns:
            A string for a string, a list of strings for several, a dictionary for a dictionary: there
            `token_ids` int32 and `padding_mask` bool [batch, length], the mask true up to and with
            the stop token; tokens beyond it are as they were given.

        Raises:
            ValueError: if a prompt is longer than `max_length`, `max_length` than the model's
                positions, a token id is not in the vocabulary, or the input is of another kind.
        """
        if is_stream_of_batches(inputs):
            parts = [
                self._generate_batch(batch, max_length, stop_token_ids, strip_prompt)
                for batch in iterate_batches(inputs)
            ]
            return _join(parts)
        return self._generate_batch(read_batch(inputs), max_length, stop_token_ids, strip_prompt)

    def generate_results(
        self,
        inputs: Any,
        max_length: int | None = None,
        stop_token_ids: StopTokenIds = "auto",
        strip_prompt: bool = False,
    ) -> list[GenerationResult]:
        """As `generate`, but with token counts, speeds and finish reason: one result a prompt."""
        source = iterate_batches(inputs) if is_stream_of_batches(inputs) else [read_batch(inputs)]
        return [
            result
            for batch in source
            for result in self._results(batch, max_length, stop_token_ids, strip_prompt)
        ]

    def stream(
        self,
        prompt: str,
        max_length: int | None = None,
        stop_token_ids: StopTokenIds = "auto",
        strip_prompt: bool = False,
    ) -> Iterator[str]:
        """Yields the text of one prompt as it comes; joined, the pieces are `generate`'s result.

        Every piece is whole characters: bytes are held back until a character is complete. Arguments
        and errors are `generate`'s; errors in them raise at the call, before the first piece.
        """
        batch = read_batch(prompt)
        if not isinstance(batch, TextBatch) or not batch.single:
            raise ValueError(f"stream() takes one string, got {prompt!r}")
        run = self._start(batch, max_length, stop_token_ids)
        return self._stream_text(run, strip_prompt)

    def _stream_text(self, run: GenerationRun, strip_prompt: bool) -> Iterator[str]:
        assert self.tokenizer is not None
        decoder = StreamDecoder(self.tokenizer, skip_special_tokens=True)
        if not strip_prompt and (piece := _push(decoder, run.rows[0].request.prompt)):
            yield piece
        for drawn in run.steps():
            if piece := decoder.push(drawn[0]):
                yield piece
        if piece := decoder.finish():
            yield piece

    def _generate_batch(
        self, batch: Batch, max_length: int | None, stop_token_ids: StopTokenIds, strip_prompt: bool
    ) -> Any:
        if isinstance(batch, TextBatch):
            results = self._results(batch, max_length, stop_token_ids, strip_prompt)
            texts = [result.text for result in results]
            return texts[0] if batch.single else texts
        return self._fill(batch, self._finish(batch, None, stop_token_ids).rows, strip_prompt)

    def _results(
        self, batch: Batch, max_length: int | None, stop_token_ids: StopTokenIds, strip_prompt: bool
    ) -> list[GenerationResult]:
        run = self._finish(batch, max_length, stop_token_ids)
        return [
            GenerationResult(
                text=self._text(row, strip_prompt),
                prompt_token_ids=row.request.prompt,
                token_ids=tuple(row.token_ids),
                finish_reason=row.finish_reason or "length",
                prefill_seconds=run.prefill_seconds,
                decode_seconds=run.decode_seconds,
            )
            for row in run.rows
        ]

    def _text(self, row: Row, strip_prompt: bool) -> str | None:
        if self.tokenizer is None:
            return None
        prompt = () if strip_prompt else row.request.prompt
        return self.tokenizer.decode([*prompt, *row.token_ids], skip_special_tokens=True)

    def _finish(
        self, batch: Batch, max_length: int | None, stop_token_ids: StopTokenIds
    ) -> GenerationRun:
        run = self._start(batch, max_length, stop_token_ids)
        for _ in run.steps():
            pass
        return run

    def _start(
        self, batch: Batch, max_length: int | None, stop_token_ids: StopTokenIds
    ) -> GenerationRun:
        """Checks everything that the caller gave and sets up the run."""
        if isinstance(batch, TokenBatch):
            prompts = [
                tuple(row[:n].tolist()) for row, n in zip(batch.token_ids, batch.lengths, strict=True)
            ]
            limit = self._limit(batch.token_ids.shape[1], "the length of token_ids")
        else:
            limit = self._limit(max_length, "max_length")
            prompts = self._encode(batch.texts, limit)
        self._check_ids(prompts)
        stops = self._stops(stop_token_ids)
        return GenerationRun(
            self._decoder, [RowRequest(p, limit, stops) for p in prompts], self.sampler
        )

    def _encode(self, texts: Sequence[str], limit: int) -> list[tuple[int, ...]]:
        if self.tokenizer is None:
            raise ValueError(
                "text needs a tokenizer and this model has none; give a dictionary of "
                "'token_ids' and 'padding_mask'"
            )
        start = self.tokenizer.start_token_id
        prompts = [(start, *ids) for ids in self.tokenizer.encode_batch(texts)]
        longest = max(prompts, key=len)
        if len(longest) > limit:
            positions = self.config.max_sequence_length
            remedy = (
                f"raise max_length (the model has {positions} positions) or shorten the prompt"
                if len(longest) < positions
                else f"shorten the prompt to below the model's {positions} positions"
            )
            raise ValueError(
                f"a prompt has {len(longest)} tokens with the start token, more than "
                f"max_length={limit}; {remedy}"
            )
        return prompts

    def _limit(self, length: int | None, name: str) -> int:
        if length is None:
            return self.max_length
        if not isinstance(length, (int, np.integer)) or isinstance(length, bool) or length < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {length!r}")
        positions = self.config.max_sequence_length
        if length > positions:
            raise ValueError(f"{name} is {length}, more than the model's {positions} positions")
        return int(length)

    def _check_ids(self, prompts: Sequence[tuple[int, ...]]) -> None:
        size = self.config.vocabulary_size
        for i, prompt in enumerate(prompts):
            bad = next((token for token in prompt if not 0 <= token < size), None)
            if bad is not None:
                raise ValueError(
                    f"token id {bad} of prompt {i} is not in the model's vocabulary "
                    f"(ids 0 to {size - 1})"
                )

    def _stops(self, stop_token_ids: StopTokenIds) -> frozenset[int]:
        if stop_token_ids is None:
            return frozenset()
        if isinstance(stop_token_ids, str):
            if stop_token_ids != "auto":
                raise ValueError(
                    f"stop_token_ids must be 'auto', None or token ids, got {stop_token_ids!r}"
                )
            if self.tokenizer is None:
                raise ValueError(
                    "stop_token_ids='auto' takes the tokenizer's end token, and this model has no "
                    "tokenizer: give stop_token_ids=None to generate until max_length, or a tuple "
                    "of the token ids to stop at"
                )
            return frozenset({self.tokenizer.end_token_id})
        try:
            stops = frozenset(operator.index(token) for token in stop_token_ids)
        except TypeError:
            raise ValueError(
                f"stop_token_ids must be 'auto', None or token ids, got {stop_token_ids!r}"
            ) from None
        size = self.config.vocabulary_size
        if any(not 0 <= token < size for token in stops):
            raise ValueError(f"stop_token_ids must be ids from 0 to {size - 1}, got {stop_token_ids}")
        return stops

    @staticmethod
    def _fill(batch: TokenBatch, rows: Sequence[Row], strip_prompt: bool) -> dict[str, Any]:
        """The rows written into arrays of the input's shape."""
        token_ids = batch.token_ids.astype(np.int32)
        mask = batch.padding_mask.copy()
        for i, row in enumerate(rows):
            start = len(row.request.prompt)
            if strip_prompt:
                start, mask[i] = 0, False
            end = start + len(row.token_ids)
            token_ids[i, start:end] = row.token_ids
            mask[i, start:end] = True
        if batch.single:
            return {TOKEN_IDS: token_ids[0], PADDING_MASK: mask[0]}
        return {TOKEN_IDS: token_ids, PADDING_MASK: mask}


def _push(decoder: StreamDecoder, token_ids: Sequence[int]) -> str:
    return "".join(decoder.push(token) for token in token_ids)


def _join(parts: Sequence[Any]) -> Any:
    """The results of several batches as one: lists end to end, arrays by row."""
    if parts and isinstance(parts[0], dict):
        joined: dict[str, NDArray[Any]] = {
            name: np.concatenate([np.atleast_2d(part[name]) for part in parts]) for name in parts[0]
        }
        return joined
    return [text for part in parts for text in part]
