"""The embedded corpus: prompts, images and videos made by code from a seed, every gold answer exact.

Five domains (instruction following, general scenes, text-rich, reasoning, video) in three modalities. Validation asks
about combinations that no training row holds: a thing in a corner of a canvas, in a number, in an event; a value with a
colour in a place; the terms of a sum in a wording; the words of a request.

Licence: this repository's, Apache-2.0; commercial use allowed.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from ixc.data.sources import Refused, Row
from ixc.data.sources.embedded import documents, instructions, scenes, sums, videos
from ixc.data.sources.licences import Licence

LICENCE = Licence(name="Apache-2.0", commercial=True)

_MAKERS = {
    "scene": (scenes.scene, 2600, 0.25),
    "count": (scenes.count, 1000, 0.5),
    "chart": (documents.chart, 1600, 0.5),
    "table": (documents.table, 2000, 0.5),
    "receipt": (documents.receipt, 900, 0.5),
    "film": (videos.video, 600, 0.5),
    "instruction": (instructions.instruction, 4000, 1.0),
    "sum": (sums.exercise, 2000, 1.0),
}
"""What makes the rows of one image, video or text; how many of them; the share of questions with ready pairs."""


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """The corpus of `seed`, shuffled so that its first rows are a fair sample; `path` is not used."""
    groups: list[tuple[str, int]] = []
    for kind, (_, count, _) in _MAKERS.items():
        groups += [(kind, number) for number in range(count)]
    random.Random(seed).shuffle(groups)
    return chain.from_iterable(_group(kind, number, seed) for kind, number in groups)


def _group(kind: str, number: int, seed: int) -> list[Row]:
    """The rows about one image, video or text."""
    make, _, pair_share = _MAKERS[kind]
    rng = random.Random(f"{seed}/{kind}/{number}")
    validation = number % 10 == 0
    split = "val" if validation else "train"
    rows = make(rng, validation)

    # Ready pairs of a share of the questions, behind all of them.
    pairs: list[Row] = []
    for row in rows:
        if rng.random() < pair_share:
            pairs += _ready_pairs(row)
    rows += pairs

    name = f"{kind}-{number}"
    return [replace(row, id=f"{name}-{i}", group=name, split=split) for i, row in enumerate(rows)]


def _ready_pairs(row: Row) -> list[Row]:
    """The reference answer against each wrong one, as in the public preference sets."""
    if row.gold is None:
        return []
    pair = replace(row, gold=None, chosen=row.gold.answer, wrong=())
    return [replace(pair, rejected=wrong) for wrong in row.wrong]
