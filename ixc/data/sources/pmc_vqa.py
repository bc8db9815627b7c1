"""PMC-VQA: choices on figures of medical articles. CC BY-SA; treated as closed to commercial use.

Native: `{train,test}*.csv` with `Figure_path`, `Question`, `Choice A` to `Choice D` (`" A:text "`), `Answer`
(letter or text) and in some files `Answer_label` (letter); the figures anywhere below the folder. `test_clean.csv` is a
part of `test.csv` and read only without it. Or a table of the hub with the same columns and the figure in `image`.

Source: https://github.com/xiaoman-zhang/PMC-VQA, arXiv:2305.10415.
"""

import re
from collections.abc import Iterator

from ixc.data.sources import File, Refused, Row
from ixc.data.sources.answers import choice, lettered, position
from ixc.data.sources.hub import Hub
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Origin, Record, home, media, take
from ixc.data.sources.tables import Entry, each, locator

LICENCE = Licence(
    name="CC BY-SA", commercial=False, note="each figure keeps the licence of its article"
)
_LETTERS = "ABCD"


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """A choice per question."""
    if isinstance(origin, Hub):
        yield from each(
            origin, lambda entry: _rows(entry, media(None, entry.record.get("image"), "image"))
        )
        return
    locate, whole = (
        locator(home(origin), "image", ".jpg", ".jpeg", ".png"),
        (home(origin) / "test.csv").is_file(),
    )
    tests = ("test.csv", "test_[!c]*.csv") if whole else ("test*.csv",)
    yield from each(
        origin, lambda entry: _rows(entry, locate(_figure(entry))), "train*.csv", *tests
    )


def _figure(entry: Entry) -> str:
    return take(entry.record, "Figure_path", str).strip()


def _rows(entry: Entry, figure: File) -> list[Row]:
    record = entry.record
    options = [_option(take(record, f"Choice {letter}", str), letter) for letter in _LETTERS]
    row = Row(
        id=entry.id,
        domain="general",
        prompt=lettered(take(record, "Question", str), options),
        media=(figure,),
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
