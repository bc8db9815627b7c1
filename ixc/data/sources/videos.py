"""Short videos with a true caption of one line. CC0, NASA, CC BY 3.0, row by row.

Native: `captions.jsonl`, `{"video", "caption", "licence", ...}`; names are relative to the folder. The format
is this project's own: describe your own videos in it. Commercial use: as far as each row's `licence` goes.
"""

from collections.abc import Iterator
from pathlib import Path

from ixc.data.samples import Gold, user_message
from ixc.data.sources import Refused, Row
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Record, attempt, find, home, lines, media, take
from ixc.data.sources.phrases import sentence

LICENCE = Licence(name="CC0, CC-BY-3.0", commercial=True, note="each row has its own")

DESCRIBE = user_message("Describe the film.")


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt per video, and its caption against the next video's."""
    folder = home(path)
    for file in find(path, "captions.jsonl"):
        records: dict[int, Record] = {}
        for item in lines(file):
            if isinstance(item, Refused):
                yield item
            else:
                number, record = item
                records[number] = record
        yield from _file_rows(records, folder, file.name)


def _file_rows(records: dict[int, Record], folder: Path, name: str) -> Iterator[Row | Refused]:
    """The rows of the records of a file, by their lines."""
    # The next video's caption is true of that video, and hardly of this one.
    captions = [str(record.get("caption") or "") for record in records.values()]
    next_captions = captions[1:] + captions[:1]
    others = dict(zip(records, next_captions, strict=True))

    def rows(record: Record, number: int) -> Iterator[Row]:
        return _rows(record, folder, others[number])

    for number, record in records.items():
        yield from attempt(rows, record, number, name)


def _rows(record: Record, folder: Path, other: str) -> Iterator[Row]:
    name = take(record, "video", str)
    caption = sentence(take(record, "caption", str))
    rejected = sentence(other) if other and sentence(other) != caption else ""
    common = {
        "domain": "video",
        "prompt": DESCRIBE,
        "media": (media(folder, name, "video"),),
        "group": name,
        "meta": {"licence": record.get("licence")},
    }

    gold = Gold(check="open", value=caption, answer=caption)
    wrong = (rejected,) if rejected else ()
    yield Row(id=f"{name}/caption", gold=gold, wrong=wrong, **common)
    if rejected:
        yield Row(id=f"{name}/pair", chosen=caption, rejected=rejected, **common)
