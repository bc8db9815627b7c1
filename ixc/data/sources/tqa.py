"""TQA: choices on the diagrams of school textbooks. CC BY-NC 3.0; no commercial use.

Native: `{train,val,test}/tqa_v*_<split>.json`, a list of lessons, `{"globalID", "questions": {"diagramQuestions":
{<id>: {"beingAsked", "answerChoices": {<letter>: ...}, "correctAnswer", "imagePath"}}}}`, each text in
`{"processedText"}`, the right letter too; `imagePath` is relative to the file. Questions without a diagram
are left out: they ask about chapters that are no part of the question.

Source: A. Kembhavi et al., CVPR 2017; https://prior.allenai.org/projects/tqa.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ixc.data.sources import Refused, Row, tables
from ixc.data.sources.answers import choice, lettered, position
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Record, each, take

LICENCE = Licence(name="CC BY-NC 3.0", commercial=False)


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A choice per question on a diagram."""
    return each(path, _row, "**/tqa_v*.json", records=tables.records, unfold=_questions)


def _questions(lesson: Record) -> Iterator[tuple[str, Any]]:
    questions = take(lesson, "questions", dict)
    yield from take(questions, "diagramQuestions", dict).items()


def _row(entry: Entry) -> Row:
    record = entry.record
    name = take(record, "imagePath", str)
    # The letters decide the order.
    choices = sorted(take(record, "answerChoices", dict).items())
    letters = [letter for letter, _ in choices]
    options = [take(option, "processedText", str) for _, option in choices]
    right = position(letters, _text(record, "correctAnswer"))
    folder = PurePosixPath(entry.file).parent
    return Row(
        id=entry.key.partition("/")[2],
        domain="text_rich",
        prompt=lettered(_text(record, "beingAsked"), options),
        media=(entry.image(f"{folder}/{name}"),),
        group=name,
        **choice(options, right),
    )


def _text(record: Record, name: str) -> str:
    field = take(record, name, dict)
    return take(field, "processedText", str)
