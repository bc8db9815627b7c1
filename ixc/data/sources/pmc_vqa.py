"""PMC-VQA: choices on figures of medical articles. CC BY-SA; treated as closed to commercial use.

Native: `{train,test}*.csv` with `Figure_path`, `Question`, `Choice A` to `Choice D` (`" A:text "`), `Answer`
(letter or text) and in some files `Answer_label` (letter); the figures anywhere below the folder. `test_clean.csv` is a
part of `test.csv` and read only without it. Or a table of the hub with the same columns and the figure in `image`.

Source: https://github.com/xiaoman-zhang/PMC-VQA, arXiv:2305.10415.
"""

import re
from collections.abc import Iterator

from ixc.data.sources import File, Refused, Row, tables
from ixc.data.sources.answers import choice, lettered, position
from ixc.data.sources.hub import Hub
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, Record, each, home, locator, media, take

LICENCE = Licence(
    name="CC BY-SA", commercial=False, note="each figure keeps the licence of its article"
)
_LETTERS = "ABCD"


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """A choice per question."""
    if isinstance(origin, Hub):
        yield from each(origin, _hub_row)
        return
    folder = home(origin)
    locate = locator(folder, "image", ".jpg", ".jpeg", ".png")
    # `test_clean.csv` is a part of `test.csv`: read both, and its rows would come twice.
    has_whole_test = (folder / "test.csv").is_file()
    tests = ("test.csv", "test_[!c]*.csv") if has_whole_test else ("test*.csv",)

    def row(entry: Entry) -> Row:
        name = take(entry.record, "Figure_path", str)
        return _row(entry, locate(name.strip()))

    yield from each(origin, row, "train*.csv", *tests, records=tables.records)


def _hub_row(entry: Entry) -> Row:
    return _row(entry, media(None, entry.record.get("image"), "image"))


def _row(entry: Entry, figure: File) -> Row:
    record = entry.record
    question = take(record, "Question", str)
    options = []
    for letter in _LETTERS:
        text = take(record, f"Choice {letter}", str)
        options.append(_option(text, letter))
    return Row(
        id=entry.id,
        domain="general",
        prompt=lettered(question, options),
        media=(figure,),
        **choice(options, _right(record, options)),
    )


def _option(text: str, letter: str) -> str:
    """An option without its letter.

    >>> _option(" B:A cyst ", "B")
    'A cyst'
    """
    return re.sub(rf"^\s*{letter}\s*[:.)]\s*", "", text).strip()


def _right(record: Record, options: list[str]) -> int:
    """The index of the right option, by its letter or else by its text."""
    label = str(record.get("Answer_label") or record.get("Answer") or "").strip()
    if len(label) == 1 and label.upper() in _LETTERS:
        return _LETTERS.index(label.upper())
    answer = take(record, "Answer", str)
    return position(options, re.sub(r"^\s*[A-D]\s*:\s*", "", answer))
