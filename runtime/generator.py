"""`Generator`: text from prompts, over any decoder."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphs.shown import shown
from runtime import samplers
from runtime.arguments import (
    StopTokenIds,
    check_length,
    encode_prompts,
    read_stop_ids,
)
from runtime.call_limits import CallLimits, CancelEvent
from runtime.decoder import Decoder
from runtime.engine.call import Call
from runtime.engine.engine import Engine
from runtime.engine.turns import Turns
from runtime.generation_calls import GenerationArguments, generation_call
from runtime.inputs import (
    Batch,
    TextBatch,
    TokenBatch,
    is_stream_of_batches,
    iterate_batches,
    read_batch,
)
from runtime.numbers import is_iterable
from runtime.outputs import begin_text, give_results, give_texts, give_tokens, join
from runtime.results import GenerationResult
from runtime.samplers import Sampler
from runtime.scored_texts import read_scored
from runtime.system.forked_process import check_process
from runtime.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from runtime.async_calls import AsyncCalls
    from runtime.generation_options import GenerationOptions
    from runtime.structured.grammar import Grammar, GrammarCompiler

    Options = GenerationOptions | Sequence[GenerationOptions] | None


@dataclass(frozen=True)
class BundleSource:
    """The arguments of `Generator.from_bundle`: what another process needs to make the same one."""

    bundle: str
    device: str
    threads: int | None
    verify: bool
    packed_weights: bool
    independent_rows: bool
    max_cache_bytes: int | None
    max_prefix_bytes: int | None
    cuda_graphs: bool
    allow_cpu_nodes: bool
    max_arena_bytes: int | None


class Generator:
    """Writes text with an OPT model; the interface of Keras's `OPTCausalLM.generate`.

    Usually made by `Generator.from_bundle`.

    Any number of threads may use one generator at once; each call gets what it would get alone. One run
    of the model takes a step of all of them, see `runtime.engine`. A call uses the sampler that was set
    when it began, whatever `compile` sets meanwhile. A sampler of one's own is called for the rows of
    one call at a time, in the thread that steps the engine; one that keeps state must expect the steps
    of several calls to take turns, and what it raises ends the call alone whose rows it had.

    The same bundle, prompt, seed and number of threads give the same text, alone or in any batch, in
    any process on the same kind of CPU.

    One made by `from_bundle` can be pickled, and so passed to a process that multiprocessing starts
    by `"spawn"` or `"forkserver"`, which then opens the bundle itself. In a process forked from the
    one that made it, it raises `ForkedProcessError`: ONNX Runtime's threads do not live on there.

    Args:
        decoder: the model.
        tokenizer: turns text into its tokens; `None` to work on token dictionaries only.
        sampler: a name, a `Sampler` or its serialized configuration; see `compile`.
        max_length: the default of `generate`'s; at most the model's positions.
        max_cache_bytes: most that the KV caches of all calls in flight may take together. What does not
            fit beside the others waits for them; a prompt that could not be served alone raises
            `CacheMemoryError`, as does, limit or not, one whose cache does not fit the memory that the
            machine and the process's control groups have left.
        end_token_ids: each ends a text; by default the tokenizer's end token.
        max_prefix_bytes: most that is kept of prompts that were read, for later ones that begin alike;
            by default a tenth of the free memory, at most 2 GiB; 0 keeps nothing. It changes no text.

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
        max_cache_bytes: int | None = None,
        end_token_ids: Sequence[int] | None = None,
        max_prefix_bytes: int | None = None,
    ) -> None:
        self._decoder = decoder
        self._engine = Engine(decoder, max_cache_bytes, max_prefix_bytes)
        self._turns = Turns(self._engine)
        self._async_calls: AsyncCalls | None = None
        self._grammars: GrammarCompiler | None = None
        self._process = os.getpid()
        self._source: BundleSource | None = None
        self.tokenizer = tokenizer
        self.config = decoder.config
        length = self.config.max_sequence_length if max_length is None else max_length
        self.max_length = check_length(length, "max_length", self.config)
        if is_iterable(end_token_ids) and not isinstance(end_token_ids, str):
            end_token_ids = tuple(end_token_ids)  # of an iterator, too
        read_stop_ids(end_token_ids, self.config)
        self.end_token_ids = end_token_ids
        self.default_options: GenerationOptions | None = None
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
        independent_rows: bool = True,
        max_cache_bytes: int | None = None,
        max_prefix_bytes: int | None = None,
        cuda_graphs: bool = True,
        allow_cpu_nodes: bool = False,
        max_arena_bytes: int | None = None,
    ) -> Generator:
        """Loads an exported bundle.

        Args:
            bundle: path of the bundle's folder.
            device: `"cpu"`; `"cuda"`, which is `"cuda:0"`, or another GPU's number; `"auto"` for a GPU
                if the bundle was exported for one and it can be used, else the CPU. What was taken is
                in the attribute `device`.
            threads: CPU threads of a step; by default one for each physical core that this process
                may use.
            verify: whether to check the hash of the weights too, which reads the whole file. Sizes
                and the hashes of all other files are always checked.
            packed_weights: whether a bundle for CPUs may keep its weights packed for this CPU in a
                folder `packed` beside them, or in the user's cache folder: about twice their size,
                written once, then mapped and shared by all processes. `False` packs them in memory at
                every start: for a bundle that is run once, or where disk is scarce.
            independent_rows: whether a prompt gives the same text in a batch as alone from an int4
                bundle too, whose kernels round differently by the number of rows, so that each row
                takes its steps alone. `False` makes batches faster: a step of 8 rows takes a third of
                the time.
            max_cache_bytes: most that the KV caches of all calls in flight may take; see `Generator`.
            max_prefix_bytes: most that is kept of prompts that were read; see `Generator`.
            cuda_graphs: whether a GPU's decode steps are recorded as CUDA graphs and replayed, one for
                each number of rows and capacity.
            allow_cpu_nodes: whether the CPU may run operators of the graphs that ONNX Runtime has no
                CUDA kernel for; a portable bundle needs it on a GPU.
            max_arena_bytes: of a GPU's memory, the most that ONNX Runtime may take for weights and what
                lies between layers.

        Warns:
            RuntimeWarning: if weights cannot be kept packed, which are packed in memory then; if
                `device="auto"` takes the CPU for a bundle that was exported for GPUs.

        Raises:
            BundleError: if the folder is no bundle, is incomplete, altered or of another revision.
            ValueError: if the bundle does not run on the device.
            RuntimeMissingError: if ONNX Runtime is not installed, or the device cannot be used: says
                what is missing and how to get it.
            DeviceMemoryError: if the weights do not fit in the GPU's memory.
        """
        from runtime.bundle import open_bundle
        from runtime.open_decoder import open_decoder

        loaded, decoder = open_bundle(
            bundle,
            lambda found: open_decoder(
                found,
                device,
                threads,
                packed_weights=packed_weights,
                independent_rows=independent_rows,
                cuda_graphs=cuda_graphs,
                allow_cpu_nodes=allow_cpu_nodes,
                max_arena_bytes=max_arena_bytes,
            ),
            verify=verify,
        )
        generator = cls(
            decoder,
            loaded.tokenizer,
            sampler=loaded.manifest.generation.sampler,
            max_length=loaded.manifest.generation.max_length,
            max_cache_bytes=max_cache_bytes,
            end_token_ids=loaded.manifest.generation.end_token_ids,
            max_prefix_bytes=max_prefix_bytes,
        )
        generator.default_options = loaded.options
        generator._source = BundleSource(
            os.path.abspath(bundle),
            device,
            threads,
            verify,
            packed_weights,
            independent_rows,
            max_cache_bytes,
            max_prefix_bytes,
            cuda_graphs,
            allow_cpu_nodes,
            max_arena_bytes,
        )
        return generator

    def __reduce__(self) -> tuple[Callable[..., Generator], tuple[object, ...]]:
        if self._source is None:
            raise TypeError(
                "only a Generator that Generator.from_bundle made can be pickled or passed to another "
                "process: this one was made from a decoder. Make one in each process from a bundle"
            )
        own = (self.sampler, self.max_length, self.default_options)
        return _reopen, (type(self), self._source, *own)

    @property
    def device(self) -> str | None:
        """Where the model runs, `"cpu"` or `"cuda:0"`; `None` if its decoder does not tell."""
        return getattr(self._decoder, "device", None)

    @property
    def cache_bytes_in_use(self) -> int:
        """Bytes of the KV caches of all calls in flight."""
        return self._engine.memory.bytes_in_use

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
        *,
        options: Options = None,
        timeout: float | None = None,
        cancel: CancelEvent | None = None,
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
            stop_token_ids: tokens that end a row. `"auto"` is what ends the model's texts, one token
                or several (`end_token_ids`); `None` generates until `max_length`.
            strip_prompt: whether to leave the prompt out of the result.
            options: what else is asked of the texts; see `runtime.GenerationOptions`. One for all
                prompts, or a sequence with one for each. What they leave as it is, is as
                `default_options` have it, the bundle's own.
            timeout: seconds from the call after which it ends, also in the middle of a long prompt.
            cancel: a `threading.Event`; the call ends soon after any thread sets it.

        Returns:
            A string for a string, a list of strings for several, a dictionary for a dictionary: there
            `token_ids` int32 and `padding_mask` bool [batch, length], the mask true up to and with
            the stop token; tokens beyond it are as they were given. With
            `BeamSampler(return_all_beams=True)` all beams and their scores; see there. With an `n` of
            the options above 1 a list of the prompt's texts stands in place of each string.

        Raises:
            ValueError: if a prompt is longer than `max_length`, `max_length` than the model's
                positions, a token id is not in the vocabulary, the sampler asks for more tokens
                than there are, the options do not fit the model or the sampler, or the input is of
                another kind.
            GenerationTimeoutError, GenerationCancelledError: if the timeout or `cancel` ended the call
                before its texts were complete; `generate_results` gives what there was until then.
            CacheMemoryError: if the KV cache would not fit; see `Generator`.
            DeviceMemoryError: if another process took a GPU's memory in the meantime.
            LogitsError: if the model gave logits that are NaN or infinite.
            ForkedProcessError: in a process forked from the one that made the generator.
        """
        arguments = self._arguments(max_length, stop_token_ids, timeout, cancel, options)

        def generate(batch: Batch) -> Any:
            call = self._prepare(batch, arguments)
            if isinstance(batch, TokenBatch) and len(call.sequences) > len(batch.token_ids):
                raise ValueError(
                    "several texts of a prompt (n above 1) have no room in a dictionary of arrays; "
                    "generate_results gives them"
                )
            return self._give(self._complete(call), batch, strip_prompt)

        if is_stream_of_batches(inputs):
            return join(map(generate, iterate_batches(inputs)))
        return generate(read_batch(inputs))

    def generate_results(
        self,
        inputs: Any,
        max_length: int | None = None,
        stop_token_ids: StopTokenIds = "auto",
        strip_prompt: bool = False,
        *,
        options: Options = None,
        timeout: float | None = None,
        cancel: CancelEvent | None = None,
    ) -> list[GenerationResult]:
        """As `generate`, but with token counts, speeds and finish reason: one result a prompt.

        Where the timeout or `cancel` ends the call, rows that were not complete have what there is
        of them, and the finish reason `"timeout"` or `"cancelled"`; where it does while prompts become
        tokens, that is nothing, not even of the prompt. Of an iterable of batches, those
        after the one that was cut have no results.
        """
        arguments = self._arguments(max_length, stop_token_ids, timeout, cancel, options)
        source = iterate_batches(inputs) if is_stream_of_batches(inputs) else [read_batch(inputs)]
        results: list[GenerationResult] = []
        for batch in source:
            call = self._complete(self._prepare(batch, arguments))
            call.check_error()
            results += give_results(call, self.tokenizer, strip_prompt)
            if call.cut_reason is not None:
                break
        return results

    def stream(
        self,
        prompt: str,
        max_length: int | None = None,
        stop_token_ids: StopTokenIds = "auto",
        strip_prompt: bool = False,
        *,
        options: Options = None,
        timeout: float | None = None,
        cancel: CancelEvent | None = None,
    ) -> Iterator[str]:
        """Yields the text of one prompt as it comes; joined, the pieces are `generate`'s result.

        Every piece is whole characters: bytes are held back until a character is complete. Arguments
        and errors are `generate`'s; errors in them raise at the call, before the first piece. Beam
        search gives the best beam, each piece as soon as no other beam can change it.

        The KV cache is taken when the first piece is asked for, and freed at the end, or as soon as
        the iterator is closed or deleted. The time of `timeout` begins with the call.
        """
        arguments = self._arguments(max_length, stop_token_ids, timeout, cancel, options)
        batch = read_batch(prompt)
        if not isinstance(batch, TextBatch) or not batch.single:
            raise ValueError(f"stream() takes one string, got {shown(prompt)}")
        call = self._prepare(batch, arguments)
        if len(call.sequences) > 1:
            raise ValueError(
                f"stream() gives one text of a prompt; the options ask for {len(call.sequences)}"
            )
        return self._stream_text(call, strip_prompt)

    def score(
        self,
        inputs: Any,
        context: Any = None,
        *,
        timeout: float | None = None,
        cancel: CancelEvent | None = None,
    ) -> Any:
        """How probable the model finds texts, token by token.

        Reads them in parts and writes nothing: memory is that of a part's logits, however long the
        text is. Calls that generate meanwhile go on between the parts.

        Args:
            inputs: a string or a list of strings; or token ids of one text, a list or array of whole
                numbers, or a list of these.
            context: of the same kind, what stands before each of the texts and is not scored itself.
                Text and context are brought to tokens together; a token across their border counts as
                the text's. Without one a string follows the start token, and of token ids the first is
                not scored.
            timeout: seconds from the call after which it ends.
            cancel: a `threading.Event`; the call ends soon after any thread sets it.

        Returns:
            A `runtime.results.Score`, or a list of them for a list of texts.

        Raises:
            ValueError: if there is nothing to score, a text and its context have more tokens than the
                model has positions, a token id is not in the vocabulary, or the inputs are of no such
                kind.
            GenerationTimeoutError, GenerationCancelledError: if the timeout or `cancel` ended the call.
            CacheMemoryError, LogitsError, ForkedProcessError: see `generate`.
        """
        check_process(self._process)
        limits = CallLimits(timeout, cancel)
        texts = read_scored(inputs, context, self.tokenizer, self.config, limits)
        call = self._complete(texts.call(limits))
        call.check_complete()
        return texts.results(call)

    async def agenerate(
        self,
        inputs: Any,
        max_length: int | None = None,
        stop_token_ids: StopTokenIds = "auto",
        strip_prompt: bool = False,
        *,
        options: Options = None,
        timeout: float | None = None,
        cancel: CancelEvent | None = None,
    ) -> Any:
        """`generate` for an event loop, which goes on meanwhile; it ends when its task is cancelled.

        Calls that are awaited at the same time share steps, as those of threads do.
        """
        return await self._calls_of_loop().call(
            lambda left: self.generate(
                inputs,
                max_length,
                stop_token_ids,
                strip_prompt,
                options=options,
                timeout=timeout,
                cancel=left,
            ),
            cancel,
        )

    async def astream(
        self,
        prompt: str,
        max_length: int | None = None,
        stop_token_ids: StopTokenIds = "auto",
        strip_prompt: bool = False,
        *,
        options: Options = None,
        timeout: float | None = None,
        cancel: CancelEvent | None = None,
    ) -> AsyncIterator[str]:
        """`stream` for an event loop: `async for piece in generator.astream("...")`.

        It ends when its task is cancelled or the iterator is closed. Errors in the arguments raise
        where the first piece is awaited.
        """
        pieces = self._calls_of_loop().stream(
            lambda left: self.stream(
                prompt,
                max_length,
                stop_token_ids,
                strip_prompt,
                options=options,
                timeout=timeout,
                cancel=left,
            ),
            cancel,
        )
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece

    def check_options(
        self,
        max_length: int | None = None,
        stop_token_ids: StopTokenIds = "auto",
        timeout: float | None = None,
        options: GenerationOptions | None = None,
    ) -> None:
        """Checks what every call with these arguments needs, before there is a prompt.

        Raises:
            ValueError: see `generate`; also if there is no tokenizer to read prompts with.
            BundleError: if the bundle's tokenizer is not valid.
        """
        length = self.max_length if max_length is None else max_length
        limit = check_length(length, "max_length", self.config)
        if self.tokenizer is None:
            encode_prompts((), None, limit, self.config)
        else:
            self.tokenizer.vocabulary_size()  # which has its files parsed
        row = np.zeros((1, limit), np.int64)
        batch = TokenBatch(row, np.arange(limit)[None] < 1, single=True)
        self._prepare(batch, self._arguments(max_length, stop_token_ids, timeout, None, options))

    def _calls_of_loop(self) -> AsyncCalls:
        check_process(self._process)  # a forked one has the pool without its threads, and would wait
        # asyncio takes tens of milliseconds of a start that may not need it.
        from runtime.async_calls import AsyncCalls

        if self._async_calls is None:
            self._async_calls = AsyncCalls()
        return self._async_calls

    def _stream_text(self, call: Call, strip_prompt: bool) -> Iterator[str]:
        assert self.tokenizer is not None
        (sequence,) = call.sequences
        text = begin_text(sequence.request, self.tokenizer, strip_prompt)
        if piece := text.take():
            yield piece
        given, token_ids = 0, sequence.token_ids
        try:
            self._begin(call)
            while True:
                check_process(self._process)  # it may have forked since the last piece
                self._turns.run(functools.partial(_has_more, call, given))
                if len(token_ids) == given:
                    break
                text.push(token_ids[given])
                given += 1
                if piece := text.take():
                    yield piece
        finally:
            self._turns.leave(call)
        call.check_complete()
        text.finish()
        if piece := text.take():
            yield piece

    def _arguments(
        self,
        max_length: int | None,
        stop_token_ids: StopTokenIds,
        timeout: float | None,
        cancel: CancelEvent | None,
        options: Options = None,
    ) -> GenerationArguments:
        limits = CallLimits(timeout, cancel)
        stops = read_stop_ids(stop_token_ids, self.config)
        lengths = max_length, self.max_length
        return GenerationArguments(self.sampler, *lengths, stops, limits, options, self.default_options)

    def _give(self, call: Call, batch: Batch, strip_prompt: bool) -> Any:
        """What `generate` gives back for a batch."""
        call.check_complete()
        rows = call.search.rows
        if isinstance(batch, TextBatch):
            return give_texts(give_results(call, self.tokenizer, strip_prompt), batch.single, rows)
        return give_tokens(batch, call.sequences, strip_prompt, rows)

    def _complete(self, call: Call) -> Call:
        """Has a call done, from its first step to its end."""
        try:
            self._begin(call)
            self._turns.run(lambda: call.ended)
        finally:
            self._turns.leave(call)
        return call

    def _begin(self, call: Call) -> None:
        """Gives the engine a call, if there is anything to do."""
        check_process(self._process)
        if not call.ended:
            self._turns.add(call)

    def _prepare(self, batch: Batch, arguments: GenerationArguments) -> Call:
        check_process(self._process)
        return generation_call(
            batch,
            arguments,
            self.config,
            self.tokenizer,
            self.end_token_ids,
            self._compile_structure,
        )

    def _compile_structure(self, structure: Mapping[str, Any]) -> Grammar:
        from runtime.structured.description import StructuredOutput
        from runtime.structured.grammar import GrammarCompiler

        if self.tokenizer is None:
            raise ValueError(f"{' '.join(structure)} is about text, and this model has no tokenizer")
        if self._grammars is None:
            self._grammars = GrammarCompiler(self.tokenizer, self.config.vocabulary_size)
        return self._grammars.compile(StructuredOutput(**structure))


def _reopen(
    cls: type[Generator],
    source: BundleSource,
    sampler: Sampler,
    max_length: int,
    default_options: GenerationOptions | None,
) -> Generator:
    """What unpickling calls."""
    generator = cls.from_bundle(**asdict(source))
    generator.max_length = max_length
    generator.default_options = default_options
    generator.compile(sampler)
    return generator


def _has_more(call: Call, given: int) -> bool:
    """Whether a call of one sequence has more tokens than were given out, or no more to come."""
    return len(call.sequences[0].token_ids) > given or call.ended
