"""AI2D: choices on diagrams of school science. CC BY-SA; commercial use allowed.

Native: `questions/<picture>.json`, `{"questions": {<question>: {"questionId", "answerTexts": [4], "correctAnswer":
int, "abcLabel": bool}}}`, pictures in `images/`; where `abcLabel` is true the options are letters that
stand in the copy of the picture in `abc_images/`. Or Parquet, `question`, `options`, `answer` (index), `image`.

Source: arXiv:1603.07396; https://prior.allenai.org/projects/diagram-understanding.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from ixc.data.sources import Refused, Row
from ixc.data.sources.answers import choice, lettered
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Origin, Record, Unusable, media, take
from ixc.data.sources.tables import Entry, each, texts

LICENCE = Licence(name="CC BY-SA", commercial=True, note="the pictures were collected from the web")


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """A choice per question."""
    return each(
        origin, _rows, "**/questions/*.json", "**/*.parquet", unfold=_questions, single=True
    )


def _questions(record: Record) -> Iterator[tuple[str, Any]]:
    """The questions of a diagram; a row of Parquet is one question."""
    if "image" in record:
        yield "", record
        return
    for number, (question, value) in enumerate(take(record, "questions", dict).items(), start=1):
        yield str(number), {**value, "question": question} if isinstance(value, dict) else value


def _rows(entry: Entry) -> list[Row]:
    row = _stored(entry) if "image" in entry.record else _native(entry)
    return [row]


def _native(entry: Entry) -> Row:
    record, file = entry.record, PurePosixPath(entry.file)
    options = texts(record, "answerTexts")
    folder = "abc_images" if record.get("abcLabel") else "images"
    name = (file.parent.parent / folder / file.stem).as_posix()
    return Row(
        id=take(record, "questionId", str),
        domain="text_rich",
        prompt=lettered(take(record, "question", str), options),
        media=(media(entry.folder, name, "image"),),
        group=file.stem,
        **choice(options, take(record, "correctAnswer", int)),
    )


def _stored(entry: Entry) -> Row:
    record, options = entry.record, texts(entry.record, "options")
    index = str(take(record, "answer", object))
    if not index.isdecimal():
        raise Unusable(f"answer: {index!r}: expected the index of an option; correct it")
    return Row(
        id=entry.id,
        domain="text_rich",
        prompt=lettered(take(record, "question", str), options),
        media=(media(entry.folder, record["image"], "image"),),
        **choice(options, int(index)),
    )
