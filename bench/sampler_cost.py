"""What choosing a token costs: `python -m bench.sampler_cost`.

Prints a Markdown table of microseconds per row, the median over many trials, of every sampler's own
part, without the model: of beam search the step that chooses the best continuations of 5 beams, of
contrastive search the one that proposes 5 candidates and chooses among them after 512 tokens.
Logits are random; `--spread` is their standard deviation. At 5 the most probable of 50,272 tokens
has a probability of about a third, as with a language model on text; at 3 of about 5 %, and top-p,
whose cost alone depends on it, keeps thousands of tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bench.command import check_counts
from bench.measure import Spread
from runtime.command import CommandParser
from runtime.engine.search.beam import continuations
from runtime.engine.search.contrastive import History, candidates, choose
from runtime.engine.search.sampling import row_generators
from runtime.samplers import GreedySampler, RandomSampler, Sampler, TopKSampler, TopPSampler

SAMPLERS: dict[str, Sampler] = {
    "greedy": GreedySampler(),
    "random": RandomSampler(),
    "random, temperature 0.7": RandomSampler(temperature=0.7),
    "top_k, k=5": TopKSampler(),
    "top_k, k=50": TopKSampler(k=50),
    "top_p, p=0.1": TopPSampler(),
    "top_p, p=0.95": TopPSampler(p=0.95),
    "top_p, p=0.95, k=50": TopPSampler(p=0.95, k=50),
}
BEAMS, HIDDEN, HISTORY, ALPHA = 5, 768, 512, 0.6

Logits = NDArray[np.float32]


def draw_step(sampler: Sampler) -> Callable[[Logits], object]:
    """A step of a sampler that draws row by row."""
    generators = row_generators(0, [(i,) for i in range(1024)])
    return lambda logits: sampler.sample(logits, generators[: len(logits)])


def beam_step(logits: Logits) -> object:
    """Chooses the best continuations of each row's beams, whose logits are variations of its own."""
    scores = [-float(i) for i in range(BEAMS)]
    return [
        continuations(np.broadcast_to(row, (BEAMS, len(row))), scores, BEAMS, 1.0) for row in logits
    ]


def contrastive_step(generator: np.random.Generator) -> Callable[[Logits], object]:
    """Proposes candidates for each row and chooses among them."""
    history = History(HISTORY, HIDDEN)
    history.append(generator.standard_normal((HISTORY, HIDDEN)).astype(np.float32))
    states = generator.standard_normal((BEAMS, HIDDEN)).astype(np.float32)

    def choose_one(row: Logits) -> int:
        token_ids, probabilities = candidates(row, BEAMS, 1.0)
        return int(token_ids[choose(probabilities, history.similarities(states), ALPHA)])

    return lambda logits: [choose_one(row) for row in logits]


def measure(
    step: Callable[[Logits], object],
    rows: int,
    pool: Logits,
    generator: np.random.Generator,
    trials: int,
) -> Spread:
    """Microseconds per row of a step, over logits that change from trial to trial."""
    seconds = []
    for _ in range(trials + 3):
        logits = pool[generator.integers(0, len(pool), rows)]
        started = time.perf_counter()
        step(logits)
        seconds.append(time.perf_counter() - started)
    return Spread.of(1e6 * value / rows for value in seconds[3:])


def main() -> None:
    """The command."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--vocabulary", type=int, default=50_272)
    parser.add_argument("--spread", type=float, default=5.0, help="of the logits (default: 5)")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    check_counts(options, vocabulary=100, trials=1, seed=0)
    generator = np.random.default_rng(options.seed)
    pool = generator.standard_normal((32, options.vocabulary), np.float32) * np.float32(options.spread)
    steps = {name: draw_step(sampler) for name, sampler in SAMPLERS.items()}
    steps[f"beam, choice among {BEAMS} beams"] = beam_step
    steps[f"contrastive, choice among {BEAMS}"] = contrastive_step(generator)

    print(f"µs per row, vocabulary {options.vocabulary:,}, median of {options.trials} (least)\n")
    print("| sampler | batch 1 | batch 8 |\n|---|---|---|")
    for name, step in steps.items():
        found = [measure(step, rows, pool, generator, options.trials) for rows in (1, 8)]
        cells = " | ".join(f"{spread.median:.0f} ({spread.minimum:.0f})" for spread in found)
        print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
