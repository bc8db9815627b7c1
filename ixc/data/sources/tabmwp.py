"""TabMWP: word problems on pictures of tables, with solutions. CC BY-NC-SA 4.0; no commercial use.

Native: `problems_<split>.json`, `{<pid>: {"question", "choices": [str] | null, "answer", "unit", "solution",
"split"}}`, the tables in `tables/<pid>.png`.

Source: https://github.com/lupantech/PromptPG, arXiv:2209.14610.
"""

from collections.abc import Iterator
from pathlib import Path

from ixc.data.sources import Refused, Row
from ixc.data.sources.answers import asked, choice, lettered, position, short
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import media, take
from ixc.data.sources.splits import held_out
from ixc.data.sources.tables import Entry, each, texts

LICENCE = Licence(name="CC BY-NC-SA 4.0", commercial=False)


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt per problem; the solution opens the reference answer."""
    return each(path, _rows, "problems_*.json")


def _rows(entry: Entry) -> list[Row]:
    record = entry.record
    question, value = take(record, "question", str), take(record, "answer", str)
    reason = str(record.get("solution") or "")
    if record.get("choices"):
        options = texts(record, "choices")
        prompt, answer = (
            lettered(question, options),
            choice(options, position(options, value), reason),
        )
    else:
        unit = f" (unit: {record['unit']})" if record.get("unit") else ""
        prompt, answer = asked(question + unit), short(value, reason)
    row = Row(
        id=entry.key,
        domain="reasoning",
        prompt=prompt,
        media=(media(entry.folder, f"tables/{entry.key}.png", "image"),),
        group=entry.key,
        split=held_out(take(record, "split", str)),
        meta={"unit": record.get("unit")},
        **answer,
    )
    return [row]
