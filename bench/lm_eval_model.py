"""A bundle as a model of EleutherAI's lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

Needs the extra `eval`, and neither torch nor transformers. What is asked of the model, and so the
metrics, are those of the harness's `HFLM` on the same weights: the same tokens of contexts and
continuations, windows, truncation from the left, and ends of generated texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

from graphs.shown import shown
from runtime.bundle import load_bundle
from runtime.generation_options import SAMPLING, GenerationOptions
from runtime.generator import Generator
from runtime.numbers import whole_number
from runtime.tokenization.tokenizer import Tokenizer

# What the harness passes where its caller said nothing; its command line tells no more.
HARNESS_DEFAULTS = {"batch_size": 1, "device": "cuda:0"}

_Request = TypeVar("_Request")
_Encoded = tuple[Any, list[int], list[int]]  # what the cache knows it by, context, continuation
_Prompt = tuple[tuple[str, dict[str, Any]], list[int], GenerationOptions, list[str]]


class OptOnnxLM(TemplateLM):
    """Scores and continues texts by `runtime.Generator`.

    Requests are given to the engine many at a time, which decides how many of them a step serves; how
    many those are changes no text, and log-probabilities by rounding at most.

    Args:
        bundle: path of the bundle's folder.
        device, threads, independent_rows, packed_weights: see `Generator.from_bundle`.
        batch_size: requests that are given to the engine at a time, or `"auto"` for `max_batch_size`.
            Their KV caches wait for one another where memory is short.
        max_batch_size: of `batch_size="auto"`, and of the harness's `"auto:N"`, which is the same here.
        max_length: tokens that the model reads at most; by default its positions.
        max_gen_toks: new tokens of a task that does not say how many.
        prefix_token_id: stands before a text that follows nothing; by default the start token, or
            the end token where there is none.

    Raises:
        ValueError: for another argument, or a value that is not valid.
        BundleError: if the folder is no bundle.
    """

    def __init__(
        self,
        bundle: str | None = None,
        device: str = "auto",
        threads: int | None = None,
        batch_size: int | str = "auto",
        max_batch_size: int = 64,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        prefix_token_id: int | None = None,
        independent_rows: bool = True,
        packed_weights: bool = True,
        **unknown: object,
    ) -> None:
        super().__init__()
        if unknown:
            known = sorted(OptOnnxLM.__init__.__annotations__.keys() - {"unknown", "return"})
            raise ValueError(
                f"there is no model argument {shown(next(iter(unknown)))}; there are {', '.join(known)}"
            )
        if bundle is None:
            raise ValueError("bundle is missing: --model_args bundle=FOLDER, one that opt-export made")
        folder = str(bundle)
        self.manifest = load_bundle(folder).manifest
        self._generator = Generator.from_bundle(
            folder,
            device,
            threads,
            independent_rows=independent_rows,
            packed_weights=packed_weights,
        )
        if self._generator.tokenizer is None:
            raise ValueError(f"{folder} has no tokenizer, which text needs")
        self.tokenizer: Tokenizer = self._generator.tokenizer
        self._generator.compile("greedy")
        self.batch_size = _read_batch_size(batch_size, max_batch_size)
        positions = self._generator.config.max_sequence_length
        self.max_length = positions if max_length is None else whole_number("max_length", max_length)
        if self.max_length > positions:
            raise ValueError(f"max_length is {max_length}, more than the model's {positions} positions")
        self.max_gen_toks = whole_number("max_gen_toks", max_gen_toks)
        start, end = self.tokenizer.start_token_id, self.tokenizer.end_token_id
        usual = end if start is None else start
        self._prefix_token_id = usual if prefix_token_id is None else prefix_token_id
        self._prefix = self.tokenizer.id_to_token(self._prefix_token_id)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> OptOnnxLM:
        """One by `"bundle=FOLDER,threads=2"`; see `create_from_arg_obj`."""
        return cls.create_from_arg_obj(utils.simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> OptOnnxLM:
        """One by its arguments, which go before what the harness's own options say.

        Args:
            arg_dict: `--model_args`.
            additional_config: `batch_size`, `max_batch_size` and `device`; where they are the harness's
                own defaults they are taken as not given.
        """
        given = {
            name: value
            for name, value in (additional_config or {}).items()
            if value is not None and str(value) != str(HARNESS_DEFAULTS.get(name))
        }
        return cls(**{**given, **arg_dict})

    # === Tokens ===

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.end_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that follows nothing."""
        return self._prefix_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Token ids of a text.

        Args:
            string: the text.
            add_special_tokens: whether the start token stands first; by default unless the text itself
                begins with the token of `prefix_token_id`.
        """
        start = self.tokenizer.start_token_id
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self._prefix)
        ids = self.tokenizer.encode(string)
        return [start, *ids] if add_special_tokens and start is not None else ids

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """`None`; `ValueError` if one is asked for."""
        if chat_template:
            raise ValueError("OPT's models have no chat template: leave --apply_chat_template out")
        return None

    # === Scoring ===

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probabilities of whole texts, each token of which is scored once.

        Args:
            requests: the harness's instances of one text each.
            disable_tqdm: whether to show no progress.

        Returns:
            One for each, natural logarithms.
        """
        texts = [request.args[0] for request in requests]
        windows: list[_Encoded] = []
        owners: list[int] = []
        for number, text in enumerate(texts):
            rolling = utils.get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
            )
            pairs = list(map(utils.make_disjoint_window, rolling))
            windows += [(None, before, scored) for before, scored in pairs]
            owners += [number] * len(pairs)
        totals = [0.0] * len(texts)
        found = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for number, (total, _) in zip(owners, found, strict=True):
            totals[number] += total
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[_Encoded], disable_tqdm: bool = False, **_: object
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether greedy search would give it.

        Args:
            requests: context and continuation as token ids, after what the cache knows them by.
            disable_tqdm: whether to show no progress.

        Raises:
            ValueError: if a continuation has no token, or more than the model reads.
        """
        for _, before, scored in requests:
            if not before or not 0 < len(scored) <= self.max_length:
                raise ValueError(
                    f"a continuation of {len(scored)} tokens after {len(before)} cannot be scored: it "
                    f"must have 1 to {self.max_length}, and one at least before it"
                )

        def score(batch: Sequence[_Encoded]) -> list[tuple[float, bool]]:
            # The last token is not read, so one more than that has its place.
            room = [self.max_length + 1 - len(scored) for _, _, scored in batch]
            scores = self._generator.score(
                [scored for _, _, scored in batch],
                [before[-most:] for (_, before, _), most in zip(batch, room, strict=True)],
            )
            answers = [(found.total, all(found.greedy)) for found in scores]
            for (key, _, _), answer in zip(batch, answers, strict=True):
                if key is not None:
                    self.cache_hook.add_partial("loglikelihood", key, answer)
            return answers

        # Contexts that are the same stand together, so that what was read of one serves the next.
        return self._in_batches(
            requests, lambda request: (-len(request[1]), request[1]), score, "Scoring", disable_tqdm
        )

    # === Generating ===

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations of contexts, each cut before the first of its stop strings.

        Args:
            requests: the harness's instances of a context and `generation_kwargs` each: `until`,
                `max_gen_toks`, `do_sample`, and any of `runtime.GenerationOptions`. Without `do_sample`
                and a temperature above 0 the most probable tokens are taken.
            disable_tqdm: whether to show no progress.

        Raises:
            ValueError: for another argument, or if it leaves a context no room.
        """
        end = self.tokenizer.id_to_token(self.eot_token_id)

        def generate(batch: Sequence[_Prompt]) -> list[str]:
            token_ids = np.zeros((len(batch), self.max_length), np.int64)
            for row, (_, ids, _, _) in zip(token_ids, batch, strict=True):
                row[: len(ids)] = ids
            lengths = np.array([[len(ids)] for _, ids, _, _ in batch])
            results = self._generator.generate_results(
                {"token_ids": token_ids, "padding_mask": np.arange(self.max_length) < lengths},
                options=[options for _, _, options, _ in batch],
            )
            texts = []
            for (arguments, _, _, until), result in zip(batch, results, strict=True):
                text = self.tokenizer.decode(result.token_ids, skip_special_tokens=True)
                # A token may complete several strings: the harness's rule says where the text ends.
                texts.append(postprocess_generated_text(text, until, None))
                self.cache_hook.add_partial("generate_until", arguments, texts[-1])
            return texts

        prompts = [self._prompt(request.args, end) for request in requests]
        return self._in_batches(
            prompts, lambda prompt: (-len(prompt[1]), prompt[1]), generate, "Generating", disable_tqdm
        )

    def _prompt(self, arguments: tuple[str, dict[str, Any]], end: str) -> _Prompt:
        """A request of `generate_until` brought to tokens and options; `end` is written in `until`."""
        context, generation = arguments
        values = normalize_gen_kwargs(generation, self.max_gen_toks)
        until = [stop for stop in values.pop("until") if stop and stop != end]
        new_tokens = values.pop("max_gen_toks")
        room = self.max_length - new_tokens
        if room < 1:
            raise ValueError(
                f"max_gen_toks is {new_tokens}, and must be below the {self.max_length} tokens that "
                "the model reads"
            )
        options = _options({**values, "stop": until, "max_new_tokens": new_tokens})
        return arguments, self.tok_encode(context)[-room:], options, until

    def _in_batches(
        self,
        requests: Sequence[_Request],
        order: Callable[[_Request], Any],
        answer: Callable[[Sequence[_Request]], list[Any]],
        title: str,
        disable_tqdm: bool,
    ) -> list[Any]:
        """What `answer` gives for each request, asked in an order and batch by batch."""
        places = sorted(range(len(requests)), key=lambda place: order(requests[place]))
        answers: list[Any] = [None] * len(requests)
        with tqdm(total=len(requests), desc=title, disable=disable_tqdm) as progress:
            for batch in _chunks(places, self.batch_size):
                for place, found in zip(batch, answer([requests[i] for i in batch]), strict=True):
                    answers[place] = found
                progress.update(len(batch))
        return answers

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        return {
            "model_dtype": self.manifest.precision,
            "model_sha": self.manifest.weights.sha256,
            "model_source": dict(self.manifest.source),
            "model_device": self._generator.device,
        }


def _chunks(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]


def _read_batch_size(batch_size: int | str, max_batch_size: int) -> int:
    """Requests that are given to the engine at a time."""
    most = whole_number("max_batch_size", max_batch_size)
    text = str(batch_size)
    if re.fullmatch(r"auto(:\d+)?", text):
        return most
    return whole_number("batch_size", int(text) if text.isdecimal() else batch_size)


def _options(values: dict[str, Any]) -> GenerationOptions:
    """`generation_kwargs` as options; the names of both are transformers'.

    NumPy's generator, which the harness's `--seed` sets, gives a seed to each text that is drawn.
    """
    drawn = values.pop("do_sample") and values.get("temperature") != 0
    if values.get("num_beams") == 1:
        del values["num_beams"]
    if drawn:
        defaults = {"temperature": 1.0, "seed": int(np.random.randint(2**31))}
        return GenerationOptions.from_dict({**defaults, **values})
    kept = {name: value for name, value in values.items() if name not in SAMPLING}
    return GenerationOptions.from_dict({**kept, "temperature": 0})
