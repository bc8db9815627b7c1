"""AI2D: choices on diagrams of school science. CC BY-SA; commercial use allowed.

Native: `questions/<image>.json`, `{"questions": {<question>: {"questionId", "answerTexts": [4], "correctAnswer":
int, "abcLabel": bool}}}`, images in `images/`; where `abcLabel` is true the options are letters that
stand in the copy of the image in `abc_images/`. Or Parquet, `question`, `options`, `answer` (index), `image`.

Source: arXiv:1603.07396; https://prior.allenai.org/projects/diagram-understanding.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from ixc.data.sources import Refused, Row, tables
from ixc.data.sources.answers import choice, lettered
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, Record, Unusable, each, take, texts

LICENCE = Licence(name="CC BY-SA", commercial=True, note="the pictures were collected from the web")
FILES = ("**/questions/*.json", "**/*.parquet")


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """A choice per question."""
    return each(origin, _row, *FILES, records=tables.one_record, unfold=_questions)


def _questions(record: Record) -> Iterator[tuple[str, Any]]:
    """The questions of a diagram; a row of Parquet is one question."""
    if "image" in record:
        yield "", record
        return
    questions = take(record, "questions", dict)
    # A question's key is its text; its number makes the key unique.
    for number, (text, question) in enumerate(questions.items(), start=1):
        is_object = isinstance(question, dict)
        yield str(number), {**question, "question": text} if is_object else question


def _row(entry: Entry) -> Row:
    return _parquet_row(entry) if "image" in entry.record else _native_row(entry)


def _native_row(entry: Entry) -> Row:
    record = entry.record
    options = texts(record, "answerTexts")
    file = PurePosixPath(entry.file)
    # Where the options are letters, a copy of the diagram has them drawn in.
    folder = "abc_images" if record.get("abcLabel") else "images"
    name = (file.parent.parent / folder / file.stem).as_posix()
    question = take(record, "question", str)
    return Row(
        id=take(record, "questionId", str),
        domain="text_rich",
        prompt=lettered(question, options),
        media=(entry.image(name),),
        group=file.stem,
        **choice(options, take(record, "correctAnswer", int)),
    )


def _parquet_row(entry: Entry) -> Row:
    record = entry.record
    options = texts(record, "options")
    index = str(take(record, "answer", object))
    if not index.isdecimal():
        raise Unusable(f"answer: {index!r}: expected the index of an option; correct it")
    question = take(record, "question", str)
    return Row(
        id=entry.id,
        domain="text_rich",
        prompt=lettered(question, options),
        media=(entry.image(record["image"]),),
        **choice(options, int(index)),
    )
