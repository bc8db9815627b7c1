"""The training files of IXC-2.5-Reward: what the official code reads. The licence is what you know of them.

Native: JSON, a list of `{"id", "conversations_a": [{"from", "value"}], "conversations_b", "image": path or [path]}`; a
is the better one. A row of text has no `image`; a video stands there too. The paths start at the folder.

Source: InternLM-XComposer, InternLM-XComposer-2.5-Reward/training.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ixc.data.containers import VIDEO_SUFFIXES
from ixc.data.samples import Domain
from ixc.data.sources import File, Refused, Row
from ixc.data.sources.conversations import pair, place, without_media
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, each, media, several, take
from ixc.data.sources.strangers import refuse_strangers

LICENCE = Licence(name="unknown", commercial=False, note="your own data: set `commercial` for it")
COLUMNS = ("conversations_a", "conversations_b", "image", "id")


def read(origin: Origin, seed: int, domain: Domain = "general") -> Iterator[Row | Refused]:
    """Ready pairs; the files name no domain, so that one is given to all."""
    yield from each(origin, partial(_row, domain=domain))


def _row(entry: Entry, domain: Domain) -> Row:
    record = entry.record
    refuse_strangers(record, COLUMNS)
    better = take(record, "conversations_a", list)
    worse = take(record, "conversations_b", list)
    prompt, chosen, rejected = pair(None, better, worse)
    files = tuple(_file(entry, value) for value in several(record.get("image")))
    return Row(
        id=entry.id,
        domain=domain,
        prompt=place(prompt, files) if files else without_media(prompt),
        media=files,
        chosen=chosen,
        rejected=rejected,
        group="" if files else prompt[0].content,
    )


def _file(entry: Entry, value: object) -> File:
    is_video = isinstance(value, str) and Path(value).suffix.lower() in VIDEO_SUFFIXES
    return media(entry.folder, value, "video" if is_video else "image")
