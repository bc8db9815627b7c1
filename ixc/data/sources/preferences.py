"""Your own data, and any preference or instruction set in a common form: columns are mapped in `params.yaml`.

JSON, JSON lines, Parquet or Arrow, or a hub id. A record has a `prompt` (a text, or turns `{"role", "content"}` or
`{"from", "value"}`; missing: what the two answers begin with), and

- `chosen` and `rejected`: a pair, each a text, a turn, or a conversation that ends with it: TRL's preference format;
- `answer`: a reference, or, with `role: corpus` of the source, the answer to be cleaned; empty ones too;
- neither: a prompt.

In place of the prompt, a conversation `conversations` or `messages`: with `chosen` and `rejected` it is the prompt
(LLaMA-Factory), with `rejected_response` or `rejected_messages` its last turn is the better answer (ms-swift), alone
its last turn is the answer of an instruction set (LLaVA), whose source says `role: corpus` or `role: prompts`.

Optional: `id`, `domain` (of `ixc.data.samples.Domain`, else `general`), `system` (a turn before the others), `images`
and `videos`, or `image` and `video`: names below the source's folder, bytes, data URLs or base64, one or a list; or in
the turns' parts, as TRL and OpenAI write them. Where there are several, `<image>`, `<video>` or `<ImageHere>` in the
prompt marks the place of each. A set that has none at all says so, `columns: {images: "", videos: ""}`: then `<image>`
in a prompt is a word like any other.

Any other column is kept in `meta.columns`. One that could carry media, an answer or a part of the prompt (`audios`,
`rejected_images`, `tools`, ...) is refused by name, unless it is empty, says the same as one that is read, or stands in
`options.ignore`.

Licence and commercial use are what you know of them: say so in `collect.sources[].commercial`.
"""

import reprlib
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any, NamedTuple, get_args

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from ixc.data.samples import Domain, Gold, Turn
from ixc.data.sources import File, Refused, Row
from ixc.data.sources.conversations import (
    Kind,
    ended,
    inline_media,
    ordered,
    pair,
    place,
    turns,
    without_media,
)
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, Record, Unusable, each, media, several
from ixc.data.sources.strangers import others, refuse_unmapped

LICENCE = Licence(name="unknown", commercial=False, note="your own data: set `commercial` for it")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Columns:
    """What the fields of a record are called."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    answer: str = "answer"
    system: str = "system"
    images: str = "images"
    videos: str = "videos"
    id: str = "id"
    """Where there is none, or it is empty, file and number are the id."""
    domain: str = "domain"


PLAIN = Columns()
TEXTS = Columns(images="", videos="")
"""Of a set without images and videos."""
KINDS: tuple[Kind, ...] = ("image", "video")
_CONVERSATIONS = ("conversations", "messages")
_REJECTED = ("rejected_response", "rejected_messages")


class _Messages(NamedTuple):
    """The messages of a record, whatever its form."""

    prompt: tuple[Turn, ...]
    chosen: str = ""
    rejected: str = ""
    answer: str | None = None
    read: tuple[str, ...] = ()
    """The columns that they stood in."""
    media: tuple[tuple[Kind, Any], ...] = ()
    """Images and videos in the turns themselves."""


def read(
    origin: Origin,
    seed: int,
    columns: Columns = PLAIN,
    domain: Domain = "general",
    ignore: tuple[str, ...] = (),
) -> Iterator[Row | Refused]:
    """Pairs, prompts and answers, as each record has it.

    Args:
        domain: of records without one.
        ignore: columns that could carry media or texts, and may be lost.
    """
    yield from each(origin, partial(row, columns=columns, domain=domain, ignore=ignore))


def row(
    entry: Entry,
    columns: Columns,
    domain: Domain,
    ignore: Collection[str] = (),
) -> Row:
    """One record by its columns.

    Raises:
        Unusable: a field is missing, not of a form that is known, or could carry something and is not read.
    """
    record = entry.record
    messages = _messages(record, columns)
    media_columns = _media_columns(record, columns)
    read = (*messages.read, columns.id, columns.domain, columns.system, *media_columns.values())
    refuse_unmapped(record, read, ignore)

    # The media, in the order of their marks.
    prompt = (*_system(record.get(columns.system)), *messages.prompt)
    files = ordered(prompt, _files(entry, media_columns, messages.media))
    has_media_columns = columns.images or columns.videos
    prompt = place(prompt, files) if has_media_columns else without_media(prompt)

    id = record.get(columns.id)
    unread = others(record, read)
    return Row(
        id=entry.id if id is None or id == "" else str(id),
        domain=_domain(record.get(columns.domain) or domain),
        prompt=prompt,
        media=files,
        gold=_reference(messages, columns),
        chosen=messages.chosen,
        rejected=messages.rejected,
        answer=messages.answer,
        group="" if files else messages.prompt[0].content,
        meta={"columns": unread} if unread else {},
    )


def _reference(messages: _Messages, columns: Columns) -> Gold | None:
    """An answer that stands beside its prompt; the last turn of a conversation may be as bad as it likes."""
    if not messages.answer or columns.answer not in messages.read:
        return None
    return Gold(check="open", value=messages.answer, answer=messages.answer)


# The forms of a record


def _messages(record: Record, columns: Columns) -> _Messages:
    prompt = record.get(columns.prompt)
    chosen = record.get(columns.chosen)
    rejected = record.get(columns.rejected)
    read: tuple[str, ...] = (columns.prompt, columns.chosen, columns.rejected)

    # Without a prompt, a conversation is the prompt of two answers, or holds its own answer.
    has_chosen_alone = chosen is not None and rejected is None
    may_be_conversation = prompt is None and columns.prompt == PLAIN.prompt and not has_chosen_alone
    name = _conversation_column(record) if may_be_conversation else ""
    if name and chosen is None and rejected is None:
        return _conversation(record, name)
    if name:
        prompt = record[name]
        read = (*read, name)

    # A pair, perhaps with a reference beside it.
    answer = record.get(columns.answer)
    if chosen is not None and rejected is not None:
        messages = _pair(prompt, chosen, rejected, read)
        reference = _text(answer, columns.answer) if answer else None
        return messages._replace(answer=reference, read=(*read, columns.answer))

    # A prompt, perhaps with an answer.
    if prompt is None:
        raise Unusable(
            f"{columns.prompt}: missing; add the field, or map its name in `options.columns`"
        )
    if chosen is not None or rejected is not None:
        missing = columns.rejected if rejected is None else columns.chosen
        raise Unusable(
            f"{missing}: missing; add the other answer, or map its name in `options.columns`"
        )
    return _Messages(
        turns(prompt),
        answer=None if answer is None else _text(answer, columns.answer),
        read=(*read, columns.answer),
        media=tuple(inline_media(prompt)),
    )


def _conversation_column(record: Record) -> str:
    """The column of a record's conversation; empty if it has none."""
    names = [name for name in _CONVERSATIONS if record.get(name) is not None]
    if len(names) > 1:
        raise Unusable(
            "two conversations, `conversations` and `messages`; map the right one in `options.columns`"
        )
    return names[0] if names else ""


def _conversation(record: Record, name: str) -> _Messages:
    """A conversation that holds its own answer, and perhaps a worse one beside it."""
    conversation = record[name]
    media = tuple(inline_media(conversation))
    rejected_columns = [column for column in _REJECTED if record.get(column) is not None]
    messages = turns(conversation)
    if messages[-1].role == "user" and not rejected_columns:  # nothing but a prompt
        return _Messages(messages, read=(name,), media=media)

    prompt, answer = ended(conversation)
    if not prompt:
        raise Unusable(f"{name}: no turn before the answer; add the question or remove the row")
    if not rejected_columns:
        return _Messages(prompt, answer=answer, read=(name,), media=media)

    if len(rejected_columns) > 1:
        raise Unusable(f"two worse answers, {' and '.join(rejected_columns)}; remove one")
    read = (name, rejected_columns[0])
    rejected = record[rejected_columns[0]]
    # The worse answer alone, or its whole conversation.
    if isinstance(rejected, str) or len(rejected) == 1:
        return _pair(conversation[:-1], [conversation[-1]], rejected, read)
    return _pair(None, conversation, rejected, read)


def _pair(
    prompt: Any,
    chosen: Any,
    rejected: Any,
    read: tuple[str, ...],
) -> _Messages:
    messages = pair(prompt, chosen, rejected)
    media: list[tuple[Kind, Any]] = []
    for conversation in (prompt, chosen, rejected):
        own_media = inline_media(conversation)
        if media and own_media and own_media != media:
            raise Unusable(
                "prompt and answers show other pictures; a pair shows the same with both: remove the row"
            )
        media = media or own_media
    return _Messages(*messages, read=read, media=tuple(media))


def _text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    before, answer = ended(value)
    if before:
        raise Unusable(f"{name}: {reprlib.repr(value)}: expected a text, or one turn")
    return answer


def _system(value: Any) -> tuple[Turn, ...]:
    if value is None or value == "":
        return ()
    if not isinstance(value, str):
        raise Unusable(f"system: {reprlib.repr(value)}: expected a text")
    return (Turn(role="system", content=value),)


def _domain(value: Any) -> Domain:
    if value not in get_args(Domain):
        raise Unusable(f"domain: {reprlib.repr(value)}: not one of {', '.join(get_args(Domain))}")
    return value


# Media


def _media_columns(record: Record, columns: Columns) -> dict[Kind, str]:
    """The columns of images and of videos, where the set has them: `images`, or, where that is not there, `image`."""
    names: dict[Kind, str] = {}
    for kind, name in zip(KINDS, (columns.images, columns.videos), strict=True):
        is_missing = name == f"{kind}s" and record.get(name) is None
        if is_missing and record.get(kind) is not None:
            names[kind] = kind
        elif name:
            names[kind] = name
    return names


def _files(
    entry: Entry,
    columns: dict[Kind, str],
    in_turns: tuple[tuple[Kind, Any], ...],
) -> tuple[File, ...]:
    in_columns: list[tuple[Kind, Any]] = []
    for kind, name in columns.items():
        for value in several(entry.record.get(name)):
            in_columns.append((kind, value))
    if in_columns and in_turns:
        names = " and ".join(columns.values())
        raise Unusable(f"pictures or films both in the turns and in {names}; remove one of the two")
    return tuple(media(entry.folder, value, kind) for kind, value in in_columns or in_turns)
