"""PuzzleVQA and AlgoPuzzleVQA: choices on drawn patterns, calendars, chains and boards. MIT; commercial use allowed.

Native: `<kind>.json`, one JSON object a line, `{"image", "question", "options", "answer"}`, the answer one of the
options, though a number may stand in one as a number and in the other as a text; PuzzleVQA's have a `deduction` too.

Source: https://github.com/declare-lab/LLM-PuzzleTest; arXiv:2403.13315, arXiv:2403.03864.
"""

from collections.abc import Iterator
from pathlib import Path

from ixc.data.sources import Refused, Row
from ixc.data.sources.answers import choice, lettered, position
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, each, take, texts

LICENCE = Licence(name="MIT", commercial=True)


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt per puzzle."""
    yield from each(path, _row, "*.json")


def _row(entry: Entry) -> Row:
    record = entry.record
    options = texts(record, "options")
    image = take(record, "image", str)
    question = take(record, "question", str)
    # A number may be a number among the options and a text here, or the other way round.
    answer = str(take(record, "answer", object))
    reason = record.get("deduction") or ""
    return Row(
        id=entry.id,
        domain="reasoning",
        prompt=lettered(question, options),
        media=(entry.image(image),),
        group=image,
        meta={"kind": entry.id.partition("/")[0]},
        **choice(options, position(options, answer), reason),
    )
