"""KVQA: questions about the people in news pictures, by world knowledge. Licence not stated; no commercial use.

Native: `dataset.json`, `{<image>: {"imgPath", "Questions": [str], "Answers": [str | int], "Type of Question",
"split": [int]}}`, pictures by `imgPath`. Of its five ways to split the set the first is followed; a 1 is for training.

Source: S. Shah, A. Mishra, N. Yadati, P. P. Talukdar, AAAI 2019; https://malllabiisc.github.io/resources/kvqa.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ixc.data.sources import Refused, Row
from ixc.data.sources.answers import asked, short
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Record, Unusable, media, take
from ixc.data.sources.tables import Entry, each

LICENCE = Licence(name="not stated", commercial=False, note="ask the authors")


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt per question."""
    return each(path, _row, "dataset.json", unfold=_questions)


def _questions(record: Record) -> Iterator[tuple[str, Any]]:
    questions, answers = take(record, "Questions", list), take(record, "Answers", list)
    if len(questions) != len(answers):
        raise Unusable(f"{len(questions)} questions, {len(answers)} answers; one answer for each")
    kinds = record.get("Type of Question")
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        part = {name: record.get(name) for name in ("imgPath", "split")} | {
            "question": question,
            "answer": answer,
        }
        yield (
            str(i + 1),
            {**part, "kinds": kinds[i] if isinstance(kinds, list) and i < len(kinds) else None},
        )


def _row(entry: Entry) -> list[Row]:
    record = entry.record
    name = take(record, "imgPath", str)
    row = Row(
        id=entry.key,
        domain="general",
        prompt=asked(take(record, "question", str)),
        media=(media(entry.folder, name, "image"),),
        split=_held_out(record["split"]),
        group=name,
        meta={"kinds": record["kinds"]},
        **short(take(record, "answer", object)),
    )
    return [row]


def _held_out(ways: Any) -> Literal["val"] | None:
    return "val" if isinstance(ways, list) and ways and ways[0] != 1 else None
