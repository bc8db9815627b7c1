"""Short films with a true caption of one line. CC0, NASA, CC BY 3.0, row by row.

Native: `captions.jsonl`, `{"video", "caption", "licence", ...}`; names are relative to the folder. The format
is this project's own: describe your own films in it. Commercial use: as far as each row's `licence` goes.
"""

from collections.abc import Iterator
from pathlib import Path

from ixc.data.samples import Gold, Turn
from ixc.data.sources import Refused, Row
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Record, attempt, find, home, lines, media, take
from ixc.data.sources.phrases import sentence

LICENCE = Licence(name="CC0, CC-BY-3.0", commercial=True, note="each row has its own")

DESCRIBE = (Turn(role="user", content="Describe the film."),)


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt per film, and its caption against the next film's."""
    for file in find(path, "captions.jsonl"):
        items = list(lines(file))
        yield from [item for item in items if isinstance(item, Refused)]
        records = [item for item in items if not isinstance(item, Refused)]
        captions = [str(record.get("caption") or "") for _, record in records]
        following = dict(
            zip((number for number, _ in records), captions[1:] + captions[:1], strict=True)
        )
        for number, record in records:
            yield from attempt(
                lambda r, n, f=following: _rows(r, home(path), f[n]), record, number, file.name
            )


def _rows(record: Record, folder: Path, other: str) -> Iterator[Row]:
    name, caption = take(record, "video", str), sentence(take(record, "caption", str))
    false = sentence(other) if other and sentence(other) != caption else ""
    meta = {"licence": record.get("licence")}
    common = {
        "domain": "video",
        "prompt": DESCRIBE,
        "media": (media(folder, name, "video"),),
        "group": name,
        "meta": meta,
    }

    gold = Gold(check="open", value=caption, answer=caption)
    yield Row(id=f"{name}/caption", gold=gold, wrong=(false,) if false else (), **common)
    if false:
        yield Row(id=f"{name}/pair", chosen=caption, rejected=false, **common)
