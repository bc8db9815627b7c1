"""TabMWP: word problems on images of tables, with solutions. CC BY-NC-SA 4.0; no commercial use.

Native: `problems_<split>.json`, `{<pid>: {"question", "choices": [str] | null, "answer", "unit", "solution",
"split"}}`, the tables in `tables/<pid>.png`.

Source: https://github.com/lupantech/PromptPG, arXiv:2209.14610.
"""

from collections.abc import Iterator
from pathlib import Path

from ixc.data.sources import Refused, Row, tables
from ixc.data.sources.answers import choice, lettered, position, short, user_prompt
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, each, take, texts
from ixc.data.sources.splits import held_out

LICENCE = Licence(name="CC BY-NC-SA 4.0", commercial=False)


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt per problem; the solution opens the reference answer."""
    return each(path, _row, "problems_*.json", records=tables.records)


def _row(entry: Entry) -> Row:
    record = entry.record
    question = take(record, "question", str)
    value = take(record, "answer", str)
    reason = str(record.get("solution") or "")
    if record.get("choices"):
        options = texts(record, "choices")
        prompt = lettered(question, options)
        answer = choice(options, position(options, value), reason)
    else:
        # A free answer is in a unit, which the question has to name.
        unit = f" (unit: {record['unit']})" if record.get("unit") else ""
        prompt = user_prompt(question + unit)
        answer = short(value, reason)
    return Row(
        id=entry.key,
        domain="reasoning",
        prompt=prompt,
        media=(entry.image(f"tables/{entry.key}.png"),),
        group=entry.key,
        split=held_out(take(record, "split", str)),
        meta={"unit": record.get("unit")},
        **answer,
    )
