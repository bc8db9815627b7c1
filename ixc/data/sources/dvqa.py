"""DVQA: questions on drawn bar charts. CC BY-NC 4.0; no commercial use.

Native: `{train,val_easy,val_hard}_qa.json`, a list of `{"image", "question", "answer", "question_type",
"question_id"}`, the charts anywhere below the folder. An answer in digits is a value, one in words a count.

Source: https://github.com/kushalkafle/DVQA_dataset, arXiv:1801.08163.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ixc.data.sources import Refused, Row
from ixc.data.sources.answers import asked, short
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import home, take
from ixc.data.sources.tables import Entry, Locate, each, locator

LICENCE = Licence(name="CC BY-NC 4.0", commercial=False)
HINT = "Write a value in digits and a count in words."


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt per question."""
    yield from each(
        path, partial(_rows, locate=locator(home(path), "image", ".png")), "**/*_qa.json"
    )


def _rows(entry: Entry, locate: Locate) -> list[Row]:
    record, chart = entry.record, take(entry.record, "image", str)
    row = Row(
        id=entry.id,
        domain="text_rich",
        prompt=asked(f"{take(record, 'question', str)}\n{HINT}"),
        media=(locate(chart),),
        group=chart,
        meta={"kind": record.get("question_type")},
        **short(take(record, "answer", object)),
    )
    return [row]
