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
from typing import Any, Literal, NamedTuple, get_args

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from ixc.data.samples import Domain, Gold, Turn
from ixc.data.sources import File, Refused, Row
from ixc.data.sources.conversations import carried, ended, ordered, pair, place, turns, unshown
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
"""Of a set without pictures and films."""
Kind = Literal["image", "video"]
KINDS: tuple[Kind, ...] = ("image", "video")
_CONVERSATIONS = ("conversations", "messages")
_WORSE = ("rejected_response", "rejected_messages")


class _Parts(NamedTuple):
    """What a record says, whatever its form."""

    prompt: tuple[Turn, ...]
    chosen: str = ""
    rejected: str = ""
    answer: str | None = None
    read: tuple[str, ...] = ()
    """The columns that it stood in."""
    carried: tuple[tuple[Kind, Any], ...] = ()
    """Media in the turns themselves."""


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
    yield from each(origin, lambda entry: [row(entry, columns, domain, ignore)])


def row(entry: Entry, columns: Columns, domain: Domain, ignore: Collection[str] = ()) -> Row:
    """One record by its columns.

    Raises:
        Unusable: a field is missing, not of a form that is known, or could carry something and is not read.
    """
    record, found = entry.record, _parts(entry.record, columns)
    shown: list[tuple[Kind, str]] = [
        (kind, name) for kind in KINDS if (name := _media_column(record, columns, kind))
    ]
    read = (*found.read, columns.id, columns.domain, columns.system, *(name for _, name in shown))
    refuse_unmapped(record, read, ignore)

    files = _files(entry, shown, found.carried)
    prompt = (*_system(record.get(columns.system)), *found.prompt)
    files = ordered(prompt, files)
    id, kept = record.get(columns.id), others(record, read)
    return Row(
        id=entry.id if id is None or id == "" else str(id),
        domain=_domain(record.get(columns.domain) or domain),
        prompt=place(prompt, files) if columns.images or columns.videos else unshown(prompt),
        media=files,
        gold=_reference(found, columns),
        chosen=found.chosen,
        rejected=found.rejected,
        answer=found.answer,
        group="" if files else found.prompt[0].content,
        meta={"columns": kept} if kept else {},
    )


def _reference(found: _Parts, columns: Columns) -> Gold | None:
    """An answer that stands beside its prompt; the last turn of a conversation may be as bad as it likes."""
    if not found.answer or columns.answer not in found.read:
        return None
    return Gold(check="open", value=found.answer, answer=found.answer)


# The forms of a record


def _parts(record: Record, columns: Columns) -> _Parts:
    prompt, chosen, rejected = (
        record.get(name) for name in (columns.prompt, columns.chosen, columns.rejected)
    )
    said = [name for name in _CONVERSATIONS if record.get(name) is not None]
    read: tuple[str, ...] = (columns.prompt, columns.chosen, columns.rejected)
    if (
        prompt is None
        and said
        and columns.prompt == PLAIN.prompt
        and not (chosen is not None and rejected is None)
    ):
        if len(said) > 1:
            raise Unusable(
                "two conversations, `conversations` and `messages`; map the right one in `options.columns`"
            )
        if chosen is None and rejected is None:
            return _conversation(record, said[0])
        prompt, read = record[said[0]], (*read, said[0])
    answer = record.get(columns.answer)
    if chosen is not None and rejected is not None:
        return _pair(prompt, chosen, rejected, read)._replace(
            answer=_text(answer, columns.answer) if answer else None, read=(*read, columns.answer)
        )
    if prompt is None:
        raise Unusable(
            f"{columns.prompt}: missing; add the field, or map its name in `options.columns`"
        )
    if chosen is not None or rejected is not None:
        missing = columns.rejected if rejected is None else columns.chosen
        raise Unusable(
            f"{missing}: missing; add the other answer, or map its name in `options.columns`"
        )
    answer = None if answer is None else _text(answer, columns.answer)
    return _Parts(
        turns(prompt), answer=answer, read=(*read, columns.answer), carried=tuple(carried(prompt))
    )


def _conversation(record: Record, name: str) -> _Parts:
    """A conversation that holds its own answer, and perhaps a worse one beside it."""
    said, worse = record[name], [column for column in _WORSE if record.get(column) is not None]
    if turns(said)[-1].role == "user" and not worse:  # nothing but a prompt
        return _Parts(turns(said), read=(name,), carried=tuple(carried(said)))
    before, answer = ended(said)
    if not before:
        raise Unusable(f"{name}: no turn before the answer; add the question or remove the row")
    if not worse:
        return _Parts(before, answer=answer, read=(name,), carried=tuple(carried(said)))
    if len(worse) > 1:
        raise Unusable(f"two worse answers, {' and '.join(worse)}; remove one")
    rejected = record[worse[0]]
    if isinstance(rejected, str) or len(rejected) == 1:  # the answer alone
        return _pair(said[:-1], [said[-1]], rejected, (name, worse[0]))
    return _pair(None, said, rejected, (name, worse[0]))


def _pair(prompt: Any, chosen: Any, rejected: Any, read: tuple[str, ...]) -> _Parts:
    found = pair(prompt, chosen, rejected)
    shown = list(filter(None, (carried(prompt), carried(chosen), carried(rejected))))
    if any(media != shown[0] for media in shown):
        raise Unusable(
            "prompt and answers show other pictures; a pair shows the same with both: remove the row"
        )
    return _Parts(*found, read=read, carried=tuple(shown[0]) if shown else ())


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


def _media_column(record: Record, columns: Columns, kind: Kind) -> str:
    """The column of pictures or films: `images`, or, where that is not there, `image`; empty where there is none."""
    name = columns.images if kind == "image" else columns.videos
    return (
        kind
        if name == f"{kind}s" and record.get(name) is None and record.get(kind) is not None
        else name
    )


def _files(
    entry: Entry,
    shown: list[tuple[Kind, str]],
    in_turns: tuple[tuple[Kind, Any], ...],
) -> tuple[File, ...]:
    in_columns: list[tuple[Kind, Any]] = [
        (kind, value) for kind, name in shown for value in several(entry.record.get(name))
    ]
    if in_columns and in_turns:
        names = " and ".join(name for _, name in shown)
        raise Unusable(f"pictures or films both in the turns and in {names}; remove one of the two")
    return tuple(media(entry.folder, value, kind) for kind, value in in_columns or in_turns)
