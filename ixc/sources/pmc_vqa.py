"""PMC-VQA: choices on figures of medical articles. CC BY-SA; treated as closed to commercial use.

Native: `{train,test}*.csv` with `Figure_path`, `Question`, `Choice A` to `Choice D` (`" A:text "`), `Answer`
(letter or text) and in some files `Answer_label` (letter); the figures anywhere below the folder.

Source: https://github.com/xiaoman-zhang/PMC-VQA, arXiv:2305.10415.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ixc.sources import Refused, Row
from ixc.sources.answers import choice, lettered, position
from ixc.sources.licences import Licence
from ixc.sources.native import Record, home, take
from ixc.sources.tables import Entry, Locate, each, locator

LICENCE = Licence(name="CC BY-SA", commercial=False, note="each figure keeps the licence of its article")
_LETTERS = "ABCD"


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A choice per question."""
    locate = locator(home(path), "image", ".jpg", ".jpeg", ".png")
    yield from each(path, partial(_rows, locate=locate), "train*.csv", "test*.csv")


def _rows(entry: Entry, locate: Locate) -> list[Row]:
    record = entry.record
    figure = take(record, "Figure_path", str).strip()
    options = [_option(take(record, f"Choice {letter}", str), letter) for letter in _LETTERS]
    row = Row(
        id=entry.id,
        domain="general",
        prompt=lettered(take(record, "Question", str), options),
        media=(locate(figure),),
        group=figure,
        **choice(options, _right(record, options)),
    )
    return [row]


def _option(text: str, letter: str) -> str:
    """An option without its letter.

    >>> _option(" B:A cyst ", "B")
    'A cyst'
    """
    return re.sub(rf"^\s*{letter}\s*[:.)]\s*", "", text).strip()


def _right(record: Record, options: list[str]) -> int:
    label = str(record.get("Answer_label") or record.get("Answer") or "").strip()
    if len(label) == 1 and label.upper() in _LETTERS:
        return _LETTERS.index(label.upper())
    answer = take(record, "Answer", str)
    return position(options, re.sub(r"^\s*[A-D]\s*:\s*", "", answer))
