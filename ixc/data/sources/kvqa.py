"""KVQA: questions about the people in news images, by world knowledge. Licence not stated; no commercial use.

Native: `dataset.json`, `{<image>: {"imgPath", "Questions": [str], "Answers": [str | int], "Type of Question",
"split": [int]}}`, images by `imgPath`. Of its five ways to split the set the first is followed; a 1 is for training.

Source: S. Shah, A. Mishra, N. Yadati, P. P. Talukdar, AAAI 2019; https://malllabiisc.github.io/resources/kvqa.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ixc.data.sources import Refused, Row, tables
from ixc.data.sources.answers import short, user_prompt
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Record, Unusable, each, take

LICENCE = Licence(name="not stated", commercial=False, note="ask the authors")


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt per question."""
    return each(path, _row, "dataset.json", records=tables.records, unfold=_questions)


def _questions(record: Record) -> Iterator[tuple[str, Any]]:
    """The questions about an image, each with what holds for all of them."""
    questions = take(record, "Questions", list)
    answers = take(record, "Answers", list)
    if len(questions) != len(answers):
        raise Unusable(f"{len(questions)} questions, {len(answers)} answers; one answer for each")
    kinds = record.get("Type of Question")
    kinds = kinds if isinstance(kinds, list) else []
    for i, question in enumerate(questions):
        inner = {
            "imgPath": record.get("imgPath"),
            "split": record.get("split"),
            "question": question,
            "answer": answers[i],
            "kinds": kinds[i] if i < len(kinds) else None,
        }
        yield str(i + 1), inner


def _row(entry: Entry) -> Row:
    record = entry.record
    name = take(record, "imgPath", str)
    question = take(record, "question", str)
    return Row(
        id=entry.key,
        domain="general",
        prompt=user_prompt(question),
        media=(entry.image(name),),
        split=_held_out(record["split"]),
        group=name,
        meta={"kinds": record["kinds"]},
        **short(take(record, "answer", object)),
    )


def _held_out(splits: Any) -> Literal["val"] | None:
    """By the first of the set's five ways to split it; a 1 is for training."""
    if isinstance(splits, list) and splits and splits[0] != 1:
        return "val"
    return None
