"""`Generator`: text from prompts, over any decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime import samplers
from runtime.arguments import (
    StopTokenIds,
    check_length,
    check_prompts,
    encode_prompts,
    read_stop_ids,
)
from runtime.decoder import Decoder
from runtime.generation import Row, RowRequest, Run
from runtime.inputs import (
    Batch,
    TextBatch,
    TokenBatch,
    is_stream_of_batches,
    iterate_batches,
    read_batch,
)
from runtime.outputs import give_texts, give_tokens, join
from runtime.results import Beam, GenerationResult
from runtime.samplers import Sampler
from runtime.tokenizer import StreamDecoder, Tokenizer


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
        length = self.config.max_sequence_length if max_length is None else max_length
        self.max_length = check_length(length, "max_length", self.config)
        self.compile(sampler)

    @classmethod
    def from_bundle(
        cls,
        bundle: str | Path,
        device: str = "auto",
        threads: int | None = None,
        *,
        verify: bool = False,
        packed_weights: bool = True,
    ) -> Generator:
        """Loads an exported bundle.

        Args:
            bundle: path of the bundle's folder.
            device: `"cpu"`, `"cuda"`, or `"auto"` for what the installed ONNX Runtime offers.
            threads: CPU threads of a step; by default one for each physical core that this process
                may use.
            verify: whether to check the hash of the weights too, which reads the whole file. Sizes
                and the hashes of all other files are always checked.
            packed_weights: whether a bundle for CPUs may keep its weights packed for this CPU in a
                folder `packed` beside them, or in the user's cache folder: about twice their size,
                written once, then mapped and shared by all processes. `False` packs them in memory at
                every start: for a bundle that is run once, or where disk is scarce.

        Warns:
            RuntimeWarning: if they cannot be kept so; they are packed in memory then.

        Raises:
            BundleError: if the folder is no bundle, is incomplete, altered or of another revision.
            RuntimeMissingError: if ONNX Runtime is not installed or lacks the device.
        """
        from runtime.bundle import load_bundle
        from runtime.session import SessionDecoder

        loaded = load_bundle(bundle, verify=verify)
        decoder = SessionDecoder(loaded, device=device, threads=threads, packed_weights=packed_weights)
        return cls(
            decoder,
            loaded.tokenizer,
            sampler=loaded.manifest.generation.sampler,
            max_length=loaded.manifest.generation.max_length,
        )

    def compile(self, sampler: str | Sampler | Mapping[str, object] = "top_k") -> None:
        """Sets the sampler.

        Args:
            sampler: `"greedy"`, `"random"`, `"top_k"`, `"top_p"`, `"beam"`, `"contrastive"`, a
                `Sampler` (see there for writing one's own), or a serialized configuration, also
                one of Keras's.
        """
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
            the stop token; tokens beyond it are as they were given. With
            `BeamSampler(return_all_beams=True)` all beams and their scores; see there.

        Raises:
            ValueError: if a prompt is longer than `max_length`, `max_length` than the model's
                positions, a token id is not in the vocabulary, the sampler asks for more tokens
                than there are, or the input is of another kind.
        """
        if is_stream_of_batches(inputs):
            return join(
                self._generate_batch(batch, max_length, stop_token_ids, strip_prompt)
                for batch in iterate_batches(inputs)
            )
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
        and errors are `generate`'s; errors in them raise at the call, before the first piece. Beam
        search gives the best beam, each piece as soon as no other beam can change it.
        """
        batch = read_batch(prompt)
        if not isinstance(batch, TextBatch) or not batch.single:
            raise ValueError(f"stream() takes one string, got {prompt!r}")
        run = self._start(batch, max_length, stop_token_ids)
        return self._stream_text(run, strip_prompt)

    def _stream_text(self, run: Run, strip_prompt: bool) -> Iterator[str]:
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
            return give_texts(results, batch.single)
        return give_tokens(batch, self._finish(batch, None, stop_token_ids).rows, strip_prompt)

    def _results(
        self, batch: Batch, max_length: int | None, stop_token_ids: StopTokenIds, strip_prompt: bool
    ) -> list[GenerationResult]:
        run = self._finish(batch, max_length, stop_token_ids)
        return [
            GenerationResult(
                text=self._text(row, row.token_ids, strip_prompt),
                prompt_token_ids=row.request.prompt,
                token_ids=tuple(row.token_ids),
                finish_reason=row.finish_reason or "length",
                prefill_seconds=run.prefill_seconds,
                decode_seconds=run.decode_seconds,
                beams=self._beams(row, strip_prompt),
            )
            for row in run.rows
        ]

    def _beams(self, row: Row, strip_prompt: bool) -> tuple[Beam, ...] | None:
        if row.hypotheses is None:
            return None
        return tuple(
            Beam(self._text(row, h.token_ids, strip_prompt), h.token_ids, h.score, h.finish_reason)
            for h in row.hypotheses
        )

    def _text(self, row: Row, answer: Sequence[int], strip_prompt: bool) -> str | None:
        if self.tokenizer is None:
            return None
        prompt = () if strip_prompt else row.request.prompt
        return self.tokenizer.decode([*prompt, *answer], skip_special_tokens=True)

    def _finish(self, batch: Batch, max_length: int | None, stop_token_ids: StopTokenIds) -> Run:
        run = self._start(batch, max_length, stop_token_ids)
        for _ in run.steps():
            pass
        return run

    def _start(self, batch: Batch, max_length: int | None, stop_token_ids: StopTokenIds) -> Run:
        """Checks everything that the caller gave and sets up the run."""
        if isinstance(batch, TokenBatch):
            prompts = [
                tuple(row[:n].tolist()) for row, n in zip(batch.token_ids, batch.lengths, strict=True)
            ]
            limit = check_length(batch.token_ids.shape[1], "the length of token_ids", self.config)
        else:
            length = self.max_length if max_length is None else max_length
            limit = check_length(length, "max_length", self.config)
            prompts = encode_prompts(batch.texts, self.tokenizer, limit, self.config)
        check_prompts(prompts, self.config)
        stops = read_stop_ids(stop_token_ids, self.tokenizer, self.config)
        return self.sampler.start(self._decoder, [RowRequest(p, limit, stops) for p in prompts])


def _push(decoder: StreamDecoder, token_ids: Sequence[int]) -> str:
    return "".join(decoder.push(token) for token in token_ids)
