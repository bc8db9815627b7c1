"""Which rows go through the model together: rows of like length, within a budget, the same again from a seed."""

import math
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import TypeVar

from ixc.engine import distributed

WINDOW = 64
"""Batches' worth of rows, drawn at random, that are sorted by length before they are cut into batches."""
T = TypeVar("T")
U = TypeVar("U")


class OverBudget(ValueError):
    """A row that does not fit into any batch: which, how long, and what to change."""


def pack_by_budget(order: Iterable[int], sizes: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Rows of `order` in batches whose sizes, tokens or pairs, come to at most `budget`.

    >>> list(pack_by_budget([0, 1, 2, 3], [1, 1, 3, 1], budget=3))
    [[0, 1], [2], [3]]
    """
    batch: list[int] = []
    held = 0
    for row in order:
        if batch and held + sizes[row] > budget:
            yield batch
            batch, held = [], 0
        batch.append(row)
        held += sizes[row]
    if batch:
        yield batch


def refuse_larger(
    sizes: Sequence[int], names: Sequence[str], budget: int, unit: str, key: str
) -> None:
    """Check that every row fits.

    Raises:
        OverBudget: one does not.
    """
    large = [row for row, size in enumerate(sizes) if size > budget]
    if large:
        first, others = large[0], f" (and {len(large) - 1:,} more)" if len(large) > 1 else ""
        raise OverBudget(
            f"{names[first]}{others}: {sizes[first]:,} {unit}, more than {key} {budget:,}; raise it to "
            f"{max(sizes[row] for row in large):,}, or remove what is longer"
        )


def batched(
    prompts: Sequence[int],
    tokens: Sequence[int],
    names: Sequence[str],
    size: int,
    max_tokens_per_microbatch: int,
) -> list[list[int]]:
    """Rows in batches of like prompt length, of `size` rows and `max_tokens_per_microbatch` tokens at most.

    Args:
        prompts: tokens of each row's prompt.
        tokens: of the whole row.
        names: what each row is called in an error.

    Raises:
        OverBudget: a row has more tokens than a pass may.
    """
    refuse_larger(tokens, names, max_tokens_per_microbatch, "tokens", "max_tokens_per_microbatch")
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    batches = (order[i : i + size] for i in range(0, len(order), size))
    return [
        part
        for batch in batches
        for part in pack_by_budget(batch, tokens, max_tokens_per_microbatch)
    ]


class Plan:
    """The optimizer steps of a training run, each a list of rows.

    An epoch has every row once, and follows from seed and number: a run resumes at any step, on any number of
    processes.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        pairs: Sequence[int],
        names: Sequence[str],
        *,
        epochs: float,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        """Either `batch_size` or `batch_tokens` is given.

        Args:
            lengths: tokens of each row.
            pairs: pairs of each row.
            names: what each row is called in an error.
            batch_size: pairs of one step at most.
            batch_tokens: tokens of one step at most.

        Raises:
            OverBudget: a row fits into no step.
        """
        self.lengths, self.seed, self.epochs = lengths, seed, epochs
        if batch_tokens is not None:
            self.sizes, self.budget = lengths, batch_tokens
            refuse_larger(lengths, names, batch_tokens, "tokens", "batch_tokens")
        else:
            assert batch_size is not None
            self.sizes, self.budget = pairs, batch_size
            refuse_larger(pairs, names, batch_size, "pairs", "batch_size")
        self.epoch = lru_cache(maxsize=1)(self._epoch)

    def __len__(self) -> int:
        """Steps."""
        return self._ends[-1]

    @cached_property
    def _ends(self) -> list[int]:
        """Steps done at the end of each epoch; of a broken last one, its share."""
        sizes = [len(self.epoch(number)) for number in range(math.ceil(self.epochs))]
        sizes[-1] = math.ceil((self.epochs - len(sizes) + 1) * sizes[-1])
        return list(accumulate(sizes))

    def steps(self, start: int = 0) -> Iterator[list[int]]:
        """The rows of each step, from the one of that number on."""
        for step in range(start, len(self)):
            number = bisect_right(self._ends, step)
            yield self.epoch(number)[step - (self._ends[number - 1] if number else 0)]

    def _epoch(self, number: int) -> list[list[int]]:
        rng = random.Random(f"{self.seed}/{number}")
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        window = WINDOW * max(1, self.budget * len(order) // max(1, sum(self.sizes)))
        starts = range(0, len(order), window)
        alike = [
            sorted(order[start : start + window], key=self.lengths.__getitem__) for start in starts
        ]
        steps = [step for rows in alike for step in pack_by_budget(rows, self.sizes, self.budget)]
        rng.shuffle(steps)
        return steps


def microbatches(
    rows: Iterable[int], lengths: Sequence[int], budget: int, rank: int = 0, world_size: int = 1
) -> list[list[int]]:
    """What one process does of some rows: every so-manieth by length, so that all have as much to do.

    >>> microbatches(range(4), [4, 1, 3, 2], budget=6), microbatches(range(4), [4, 1, 3, 2], 6, rank=1, world_size=2)
    ([[1, 3, 2], [0]], [[3, 0]])
    """
    return list(
        pack_by_budget(sorted(rows, key=lengths.__getitem__)[rank::world_size], lengths, budget)
    )


def shared_out(costs: Sequence[int], world_size: int) -> list[int]:
    """Which process does each piece of work, so that all have about as much to do: the dearest first, to the idlest.

    >>> shared_out([1, 5, 3, 2], 2)
    [0, 0, 1, 1]
    """
    busy, owners = [0] * world_size, [0] * len(costs)
    for place in sorted(range(len(costs)), key=costs.__getitem__, reverse=True):
        owners[place] = min(range(world_size), key=busy.__getitem__)
        busy[owners[place]] += costs[place]
    return owners


def my_share(costs: Sequence[int]) -> list[int]:
    """The pieces of work that fall to this process; all of them, where it works alone."""
    if not distributed.is_distributed():
        return list(range(len(costs)))
    owners = shared_out(costs, distributed.world_size())
    return [place for place, owner in enumerate(owners) if owner == distributed.rank()]


def prefetch(
    items: Iterable[T], make: Callable[[T], U], depth: int = 2, threads: int = 1
) -> Iterator[U]:
    """`make` of each item, in order; threads make the next `depth` while the caller works on this one."""
    pool = ThreadPoolExecutor(threads, "prefetch")
    waiting: deque[Future[U]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
