"""The embedded corpus: prompts, pictures and films made by code from a seed, every gold answer exact.

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
"""What makes the rows of one picture, film or text; how many of them; the share of questions with ready pairs."""


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """The corpus of `seed`, shuffled so that its first rows are a fair sample; `path` is not used."""
    groups = [(kind, number) for kind, (_, count, _) in _MAKERS.items() for number in range(count)]
    random.Random(seed).shuffle(groups)
    return chain.from_iterable(_group(kind, number, seed) for kind, number in groups)


def _group(kind: str, number: int, seed: int) -> list[Row]:
    """The rows about one picture, film or text."""
    make, _, ready = _MAKERS[kind]
    rng = random.Random(f"{seed}/{kind}/{number}")
    validation = number % 10 == 0
    name, split = f"{kind}-{number}", "val" if validation else "train"
    rows = make(rng, validation)
    rows += [pair for row in rows if rng.random() < ready for pair in _ready_pairs(row)]
    return [replace(row, id=f"{name}-{i}", group=name, split=split) for i, row in enumerate(rows)]


def _ready_pairs(row: Row) -> list[Row]:
    """The reference answer against each wrong one, as in the public preference sets."""
    if row.gold is None:
        return []
    return [
        replace(row, gold=None, chosen=row.gold.answer, rejected=wrong, wrong=())
        for wrong in row.wrong
    ]
