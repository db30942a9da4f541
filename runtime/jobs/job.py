"""A job: every line of the input becomes a record, in batches, whatever becomes of single lines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphs.shown import shown
from runtime.errors import BundleError, ForkedProcessError
from runtime.generator import Generator
from runtime.jobs.records import error_record, result_record
from runtime.jobs.requests import OPTIONS, Request
from runtime.option_arguments import as_options
from runtime.results import GenerationResult
from runtime.sentences import is_expected, sentence

# What is no prompt's fault: every other one would meet it too.
_FATAL = (BundleError, ForkedProcessError, ImportError)


@dataclass
class Tally:
    """How many records there are, and how many of them tell of an error."""

    records: int = 0
    errors: int = 0


class BadLineError(ValueError):
    """A line that a strict job ends at."""


@dataclass(frozen=True)
class Job:
    """How lines become records.

    Attributes:
        generator: writes the texts.
        settings: arguments of its `generate_results`, of all lines.
        batch_size: lines that are done together.
        strict: whether the job ends at the first line that would be a record of an error.
        name: of the input, for messages.
        options: `GenerationOptions` of all lines as plain values; a line's own go before them.
    """

    generator: Generator
    settings: Mapping[str, Any]
    batch_size: int
    strict: bool
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(
        self, requests: Iterator[Request], write: Callable[[dict[str, Any]], None], tally: Tally
    ) -> None:
        """Writes a record for each request, in their order, those of a batch when it is done.

        Args:
            requests: from `read_requests`.
            write: takes records.
            tally: counts them.

        Raises:
            BadLineError: of a strict job; the records of all lines before are written.
            BundleError: if the bundle cannot be used.
        """
        while batch := list(itertools.islice(requests, self.batch_size)):
            for request, outcome in self._outcomes(batch):
                if isinstance(outcome, GenerationResult):
                    record = result_record(request, outcome)
                elif self.strict:
                    raise BadLineError(f"{self.name}, {outcome}")
                else:
                    record = error_record(request, outcome)
                    tally.errors += 1
                write(record)
                tally.records += 1

    def _outcomes(self, batch: Sequence[Request]) -> Iterator[tuple[Request, GenerationResult | str]]:
        """What becomes of each line: a result, or a sentence on why there is none."""
        bad = next((i for i, request in enumerate(batch) if request.problem is not None), len(batch))
        if self.strict:
            batch = batch[: bad + 1]
        good = [request for request in batch if request.problem is None]
        outcomes = dict(zip((r.line for r in good), self._generate(good), strict=True))
        for request in batch:
            yield request, outcomes.get(request.line, f"line {request.line} {request.problem}")

    def _options(self, batch: Sequence[Request]) -> Any:
        """What is asked of some lines' texts: one set of options for all, where none has its own."""
        own = [request.fields.get(OPTIONS) for request in batch]
        if all(values is None for values in own):
            return as_options(self.options)
        from runtime.generation_options import STRUCTURES, GenerationOptions

        for values in own:
            if values is not None and not isinstance(values, dict):
                raise ValueError(f'"{OPTIONS}" must be an object of options, got {shown(values)}')
        free = {name: value for name, value in self.options.items() if name not in STRUCTURES}
        found = []
        for values in own:
            values = values or {}
            base = self.options if values.keys().isdisjoint(STRUCTURES) else free
            found.append(GenerationOptions.from_dict({**base, **values}))
        return found

    def _generate(self, batch: Sequence[Request]) -> list[GenerationResult | str]:
        """Results of a batch; where one is refused, in smaller ones until it is known which."""
        if not batch:
            return []
        try:
            options = self._options(batch)
            prompts = [request.prompt for request in batch]
            return [*self.generator.generate_results(prompts, options=options, **self.settings)]
        except Exception as error:
            system = isinstance(error, OSError) and not isinstance(error, TimeoutError)
            if not is_expected(error) or isinstance(error, _FATAL) or system:
                raise
            if len(batch) == 1:
                return [f"line {batch[0].line}: {sentence(error)}"]
        half = len(batch) // 2
        return [*self._generate(batch[:half]), *self._generate(batch[half:])]
