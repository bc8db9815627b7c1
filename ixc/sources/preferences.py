"""Your own data, and any preference set in a common form: columns are mapped in `params.yaml`.

JSON, JSON lines, Parquet or Arrow, or a hub id; a record has a `prompt` (a text, or turns `{"role", "content"}`
or `{"from", "value"}`; missing: what the two answers begin with), and either `chosen` and `rejected` (a pair, each
a text, a turn, or a conversation that ends with it) or `answer` (a reference; a prompt whose answers a judge
compares). Optional: `id`, `domain` (of `ixc.samples.Domain`, else `general`), `images` and `videos` (names below
the source's folder, or bytes, one or a list). It is TRL's preference format, implicit prompts included, and sharegpt's.
Where there are several pictures, `<ImageHere>` or `<image>` in the prompt marks the place of each. A set that has none
at all says so, `columns: {images: "", videos: ""}`: then `<image>` in a prompt is a word like any other.

Licence and commercial use are what you know of them: say so in `collect.sources[].commercial`.
"""

import reprlib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from ixc.samples import Domain, Gold
from ixc.sources import File, Refused, Row
from ixc.sources.conversations import Pair, pair, place, turns
from ixc.sources.licences import Licence
from ixc.sources.native import Entry, Origin, Record, Unusable, each, media, several

LICENCE = Licence(name="unknown", commercial=False, note="your own data: set `commercial` for it")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Columns:
    """What the fields of a record are called."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    answer: str = "answer"
    images: str = "images"
    videos: str = "videos"
    id: str = "id"
    """Where there is none, or the name is empty, file and number are the id."""
    domain: str = "domain"


PLAIN = Columns()
TEXTS = Columns(images="", videos="")
"""Of a set without pictures and films."""


def read(origin: Origin, seed: int, columns: Columns = PLAIN, domain: Domain = "general") -> Iterator[Row | Refused]:
    """Pairs and prompts, as each record has it; `domain` is that of records without one."""
    yield from each(origin, lambda entry: [row(entry, columns, domain)])


def row(entry: Entry, columns: Columns, domain: Domain) -> Row:
    """One record by its columns.

    Raises:
        Unusable: a field is missing, or not of a form that is known.
    """
    record, files = entry.record, _media(entry, columns)
    found, answer = _pair(record, columns), record.get(columns.answer) or ""
    if not isinstance(answer, str):
        raise Unusable(f"{columns.answer}: {reprlib.repr(answer)}: expected a text")
    id = record.get(columns.id)
    return Row(
        id=entry.id if id is None else str(id),
        domain=_domain(record.get(columns.domain) or domain),
        prompt=place(found.prompt, files) if columns.images or columns.videos else found.prompt,
        media=files,
        gold=Gold(check="open", value=answer, answer=answer) if answer else None,
        chosen=found.chosen,
        rejected=found.rejected,
        group="" if files else found.prompt[0].content,
    )


def _pair(record: Record, columns: Columns) -> Pair:
    prompt, chosen, rejected = (record.get(name) for name in (columns.prompt, columns.chosen, columns.rejected))
    if chosen is not None and rejected is not None:
        return pair(prompt, chosen, rejected)
    if prompt is None:
        raise Unusable(f"{columns.prompt}: missing; add the field, or map its name in `options.columns`")
    if chosen is not None or rejected is not None:
        missing = columns.rejected if rejected is None else columns.chosen
        raise Unusable(f"{missing}: missing; add the other answer, or map its name in `options.columns`")
    return Pair(turns(prompt), "", "")


def _domain(value: Any) -> Domain:
    if value not in get_args(Domain):
        raise Unusable(f"domain: {reprlib.repr(value)}: not one of {', '.join(get_args(Domain))}")
    return value


def _media(entry: Entry, columns: Columns) -> tuple[File, ...]:
    images = [media(entry.folder, value, "image") for value in several(entry.record.get(columns.images))]
    return (*images, *(media(entry.folder, value, "video") for value in several(entry.record.get(columns.videos))))
