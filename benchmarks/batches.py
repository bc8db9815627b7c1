"""Tokens computed for nothing: our packed rows against the padded rows of others, on a realistic mix of lengths.

The mix is made up: texts and answers of log-normal length, pictures in the sizes of photographs, screenshots and
charts, cut by the official rule into one to nine tiles, and films. Batches are those that `train_rm`, `ixc score` and
sampling make; what they compute is counted in the tensors that the model is given, what is needed in the rows.

    python -m benchmarks.batches [PAIRS]
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.ways import head, row
from ixc.engine.batching import Plan, microbatches, pack_by_budget
from ixc.models.ixc25.tiles import Partition, num_tokens, partition, strip
from ixc.packing.layout import PrefixGroup, collate
from ixc.serve.bulk import ROWS_AT_ONCE

PAIRS, CANDIDATES, BATCH, MAX_TOKENS_PER_MICROBATCH = 4096, 4, 256, 16384
"""Pairs to train on; answers to score per prompt; pairs of a step (paper); tokens of a pass (default)."""
THEIR_BATCH = 8
"""Pairs of a padded batch: Transformers' default."""
KINDS = {"text": 0.4, "picture": 0.5, "film": 0.1}
PROMPT, ANSWER = (50, 1.0), (200, 0.8)
"""Median of their tokens, and standard deviation of its logarithm."""
LONGEST = 2048
WIDTHS = (640, 480, 500, 1024, 1280, 850, 336, 1920, 1170)
HEIGHTS = (480, 640, 375, 768, 720, 600, 336, 1080, 2532)
"""Of pictures: COCO, Flickr, charts, screens, phones."""
FRAMES = (4, 16)
"""Of films 16:9, each on the official strip 630 high and with a label of 40 and a gap of 10 beneath, at 1120 wide."""
TILE, SIDE = 560, 20
"""Official: pixels and merged tokens of a tile's side."""


class Row(NamedTuple):
    """A prompt with its answers, and the place of its picture or film."""

    prefix: int
    answers: tuple[int, ...]
    place: Partition | None

    def __len__(self) -> int:
        return self.prefix + sum(self.answers)

    def sequences(self) -> list[int]:
        """Tokens of every answer with the whole prompt."""
        return [self.prefix + answer for answer in self.answers]


class Count(NamedTuple):
    """Tokens of some batches."""

    needed: int
    computed: int

    @property
    def padding(self) -> float:
        """Share of those computed that nobody needs."""
        return 1 - self.needed / self.computed


Way = Callable[[Sequence[Row]], Iterable[list[int]]]
"""How rows are cut into batches."""


def mix(count: int, answers: int, seed: int = 0) -> list[Row]:
    """Made-up rows; answers to one prompt are of like length."""
    rng = np.random.default_rng(seed)

    def length(median: float, spread: float) -> int:
        return int(np.clip(rng.lognormal(np.log(median), spread), 4, LONGEST))

    def shown(kind: str) -> Partition | None:
        if kind == "text":
            return None
        if kind == "film":
            return strip(2 * TILE, 680 * int(rng.integers(*FRAMES, endpoint=True)), TILE)
        which = rng.integers(len(WIDTHS))
        return partition(WIDTHS[which], HEIGHTS[which], 9, TILE)

    def made(kind: str) -> Row:
        place, usual = shown(kind), length(*ANSWER)
        image = num_tokens(place.rows, place.columns, SIDE) if place else 0
        return Row(
            image + length(*PROMPT), tuple(length(usual, 0.4) for _ in range(answers)), place
        )

    return [made(str(kind)) for kind in rng.choice(list(KINDS), count, p=list(KINDS.values()))]


def packed(rows: Sequence[Row], batches: Iterable[Sequence[int]]) -> Count:
    """Ours: groups one after another."""
    needed = computed = 0
    for batch in batches:
        groups = [
            PrefixGroup([0] * rows[i].prefix, [[0] * answer for answer in rows[i].answers])
            for i in batch
        ]
        needed += sum(len(rows[i]) for i in batch)
        computed += collate(groups).input_ids.numel()
    return Count(needed, computed)


def padded(lengths: Sequence[int], batches: Iterable[Sequence[int]]) -> Count:
    """Rows as long as the longest of their batch."""
    cut = [[lengths[i] for i in batch] for batch in batches]
    return Count(sum(map(sum, cut)), sum(len(batch) * max(batch) for batch in cut))


def training(rows: Sequence[Row]) -> list[list[int]]:
    """The passes of `train_rm`."""
    lengths, names = list(map(len, rows)), [""] * len(rows)
    plan = Plan(lengths, [1] * len(rows), names, epochs=1.0, batch_size=BATCH)
    return [
        batch
        for step in plan.steps()
        for batch in microbatches(step, lengths, MAX_TOKENS_PER_MICROBATCH)
    ]


def scoring(rows: Sequence[Row]) -> Iterator[list[int]]:
    """The passes of `ixc score`."""
    lengths = list(map(len, rows))
    for some in pack_by_budget(range(len(rows)), [1] * len(rows), ROWS_AT_ONCE):
        yield from microbatches(some, lengths, MAX_TOKENS_PER_MICROBATCH)


def sampling(rows: Sequence[Row], size: int = 64) -> Iterator[list[int]]:
    """Prompts that answers are sampled to together: their keys are kept in padded rows."""
    return pack_by_budget(
        sorted(range(len(rows)), key=lambda i: rows[i].prefix), [1] * len(rows), size
    )


def theirs(rows: Sequence[Row], by_length: bool) -> Count:
    """Every sequence whole, in batches of so many pairs, at random or sorted by length."""
    order = (
        sorted(range(len(rows)), key=lambda i: max(rows[i].sequences()))
        if by_length
        else range(len(rows))
    )
    lengths = [length for i in order for length in rows[i].sequences()]
    return padded(lengths, pack_by_budget(range(len(lengths)), [1] * len(lengths), 2 * THEIR_BATCH))


def white(rows: Sequence[Row]) -> float:
    """Share of the tiles' area that is white because the official geometry fills the last ones up."""
    places = [each.place for each in rows if each.place]
    return 1 - sum(p.width * p.height for p in places) / sum(
        p.rows * p.columns * TILE**2 for p in places
    )


def main() -> None:
    """Both tables, and what the geometry adds."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS
    head(
        "batches",
        "rows",
        "tokens of rows, million",
        "computed, million",
        "padding, %",
        "computed / ours",
    )
    for name, rows, batches in (
        ("training, pairs", mix(count, 2), training),
        (f"scoring, {CANDIDATES} answers", mix(count, CANDIDATES), scoring),
    ):
        ours = packed(rows, batches(rows))
        ways = {
            "ours": ours,
            "padded, at random": theirs(rows, False),
            "padded, by length": theirs(rows, True),
        }
        for way, each in ways.items():
            tokens = f"{each.needed / 1e6:.2f}", f"{each.computed / 1e6:.2f}"
            row(
                name,
                way,
                *tokens,
                f"{100 * each.padding:.1f}",
                f"**{each.computed / ours.computed:.2f}**",
            )
    prompts = padded([each.prefix for each in rows], sampling(rows))
    print(f"\nSampling: {prompts.padding:.1%} of the kept keys of prompts are padding.")
    print(
        f"Pictures: {white(rows):.1%} of their tiles is white by the official geometry, whoever computes them."
    )


if __name__ == "__main__":
    main()
