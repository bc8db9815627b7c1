"""DVQA: questions on drawn bar charts. CC BY-NC 4.0; no commercial use.

Native: `{train,val_easy,val_hard}_qa.json`, a list of `{"image", "question", "answer", "question_type",
"question_id"}`, the charts anywhere below the folder. An answer in digits is a value, one in words a count.

Source: https://github.com/kushalkafle/DVQA_dataset, arXiv:1801.08163.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ixc.data.sources import Refused, Row, tables
from ixc.data.sources.answers import short, user_prompt
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Locate, each, home, locator, take

LICENCE = Licence(name="CC BY-NC 4.0", commercial=False)
HINT = "Write a value in digits and a count in words."


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt per question."""
    locate = locator(home(path), "image", ".png")
    yield from each(path, partial(_row, locate=locate), "**/*_qa.json", records=tables.records)


def _row(entry: Entry, locate: Locate) -> Row:
    record = entry.record
    chart = take(record, "image", str)
    question = take(record, "question", str)
    return Row(
        id=entry.id,
        domain="text_rich",
        prompt=user_prompt(f"{question}\n{HINT}"),
        media=(locate(chart),),
        group=chart,
        meta={"kind": record.get("question_type")},
        **short(take(record, "answer", object)),
    )
