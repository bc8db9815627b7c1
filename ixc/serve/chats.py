"""The one record of a chat: whatever form it comes in, what the model reads is the same.

A chat is a list of messages, or an object that holds them beside its images and videos. API, command line, JSONL and
Parquet all go through `read_chat`, which knows the names that the field uses:

- messages: `messages` (OpenAI, Transformers), `conversations` (LLaVA, ShareGPT), `prompt` with `completion` (TRL);
- media beside them: `media` (ours), `images`, `image`, `videos`, `video` (TRL, LLaVA), placed by `<image>`, `<video>`
  and `<ImageHere>` in the texts, by empty parts, or at the start;
- media in them: content parts of OpenAI, Transformers and Anthropic, or `images` of a message (Ollama).

A key that is not known is refused, never skipped: it might hold an image. A key whose value is null is absent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ixc.data.samples import Turn
from ixc.models.base import ROLES, BadConversation, Kind
from ixc.serve.chat_media import Medium, medium_key, read_medium
from ixc.serve.chat_places import Pieces, Place, Spoken, fill_places, fill_text

_ALIASES = {"human": "user", "gpt": "assistant", "bot": "assistant", "developer": "system"}
_MESSAGES = ("messages", "conversations", "conversation")
_IMAGES, _VIDEOS = ("images", "image"), ("videos", "video")
_NOTES = ("id", "meta")
"""Keys that the model does not read."""
_KEYS = (*_MESSAGES, "prompt", "completion", "system", *_IMAGES, *_VIDEOS, "media", *_NOTES)
_PAIRS = ("chosen", "rejected", "candidates")
_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA_PARTS = ("image", "image_url", "input_image", "video", "video_url", "input_video")
_SOURCES = ("image", "video", "image_url", "video_url", "url", "path", "base64", "source", "bytes")
_FORM = '{"messages": [{"role": ..., "content": ...}, ...], "images": [...], "videos": [...]}'


@dataclass(frozen=True)
class ChatRecord:
    """A chat as the processor takes it."""

    messages: Sequence[Mapping[str, Any]]
    """`{"role", "content"}`; the content is a text, or parts: `{"type": "text", "text"}`, `{"type": "image"}`,
    `{"type": "video"}`."""
    media: tuple[Medium, ...] = ()
    """Those of a kind in the order of their places."""

    def answer_shows(self) -> bool:
        """Whether the last message has a place for an image or video."""
        content = self.messages[-1]["content"]
        return not isinstance(content, str) and any(part["type"] != "text" for part in content)

    def media_keys(self) -> tuple[Any, ...]:
        """What tells these media from others."""
        return tuple(map(medium_key, self.media))


def read_chat(given: Any, media: Any = (), base: Path | None = None) -> ChatRecord:
    """A chat in any of the forms above.

    Args:
        given: its messages, or the object that holds them.
        media: images and videos that the caller gives beside it; one alone needs no list.
        base: the folder where relative paths start; none: the working directory.

    Raises:
        BadConversation: another form, an unknown key, or media that do not fit their places.
        BadMedia: an image or video given as an address or in no known form.
    """
    if isinstance(given, ChatRecord):
        return given
    record = given if isinstance(given, Mapping) else {"messages": given}
    record = _without_nulls(record)
    _check_keys(record)
    messages = _messages(record)
    spoken = [_message(message, f"message {i}", base) for i, message in enumerate(messages)]
    if not spoken:
        raise BadConversation('no message; give at least {"role": "user", "content": "..."}')
    beside, unmarked_first = _beside(record, media, base)
    filled, media = fill_places(spoken, beside, unmarked_first)
    # the caller's own messages where nothing had to be changed: of ten thousand chats no copies are made
    read = [own if own == new else new for own, new in zip(messages, filled, strict=True)]
    return ChatRecord(read, tuple(media))


def _is_empty(value: Any) -> bool:
    """Null, or without elements: what OpenAI's messages and unions of columns have where nothing was said."""
    return value is None or (isinstance(value, list | tuple | dict) and not value)


def _without_nulls(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if value is not None}


# The keys of a record


def _check_keys(record: Mapping[str, Any]) -> None:
    if record.keys() & {"role", "from"}:
        raise BadConversation(f"{record!r:.80}: no list of messages; give a list of such lists")
    unknown = [key for key in record if key not in _KEYS]
    if not unknown:
        return
    key = unknown[0]
    if key in _PAIRS:
        form = "a pair, not one chat; give a chat per answer, or a Parquet table of samples to `ixc score --in`"
        raise BadConversation(f"{key}: {form}")
    near = get_close_matches(str(key), _KEYS, 1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    known = f"known are {', '.join(_KEYS)}; what the model shall not read goes under meta"
    raise BadConversation(f"unknown key {key!r}: {record[key]!r:.40}; {meant}{known}")


def _messages(record: Mapping[str, Any]) -> list[Any]:
    """The list of messages, wherever the record has it."""
    names = [name for name in (*_MESSAGES, "prompt") if name in record]
    if len(names) != 1:
        present = " and ".join(names) or "no messages"
        raise BadConversation(f"{present}: a chat is {_FORM}")
    name = names[0]
    if (name == "prompt") != ("completion" in record):
        raise BadConversation(f"{name}: prompt and completion go together; a chat is {_FORM}")
    if name == "prompt":
        messages = [*_turns(record, "prompt", "user"), *_turns(record, "completion", "assistant")]
    else:
        messages = record[name]
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise BadConversation(f"{messages!r:.80}: no list of messages; give a list of such lists")
    system = record.get("system")
    if system and not isinstance(system, str):
        raise BadConversation(f"system: {system!r:.80}: no text")
    return [*([{"role": "system", "content": system}] if system else []), *messages]


def _turns(record: Mapping[str, Any], key: str, role: str) -> list[Any]:
    value = record[key]
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list | tuple):
        raise BadConversation(f"{key}: {value!r:.80}: neither a text nor a list of messages")
    return list(value)


def _beside(record: Mapping[str, Any], media: Any, base: Path | None) -> tuple[list[Medium], bool]:
    """Media beside the messages, and whether several without marks may stand at the start.

    They may where TRL's keys hold them, as TRL puts them there; our own `media` wants each place named.
    """
    given = [read_medium(source, None, base) for source in several(media)]
    own = [read_medium(source, None, base) for source in several(record.get("media"))]
    images = [read_medium(source, "image", base) for source in several(_either(record, _IMAGES))]
    videos = [read_medium(source, "video", base) for source in several(_either(record, _VIDEOS))]
    if sum(map(bool, (given, own, [*images, *videos]))) > 1:
        raise BadConversation(
            "media in two places (media, images or videos, the argument): give them in one"
        )
    return given or own or [*images, *videos], bool(images or videos)


def several(value: Any) -> list[Any]:
    """A list, a single one or nothing as a list.

    >>> several("a.png"), several(None)
    (['a.png'], [])
    """
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _either(record: Mapping[str, Any], names: tuple[str, str]) -> Any:
    held = [name for name in names if several(record.get(name))]
    if len(held) > 1:
        raise BadConversation(f"both {' and '.join(held)}: give one of them")
    return record[held[0]] if held else None


# Messages and their parts


def _message(given: Any, where: str, base: Path | None) -> Spoken:
    """Role, and a text or pieces: texts and the places of media between them."""
    if isinstance(given, Turn):
        return given.role, given.content
    if not isinstance(given, Mapping):
        raise BadConversation(f'{where}: {given!r:.80}: give {{"role": ..., "content": ...}}')
    message = {key: value for key, value in given.items() if not _is_empty(value)}
    role, content = (
        message.pop("role", message.pop("from", None)),
        given.get("content", given.get("value")),
    )
    if role is None or not ("content" in given or "value" in given):
        raise BadConversation(f'{where}: {given!r:.80}: give {{"role": ..., "content": ...}}')
    role = _ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise BadConversation(f"{where}: role {role!r}: one of {', '.join((*ROLES, *_ALIASES))}")
    own = _own_media(message, base)
    if unknown := [
        key for key in message if key not in ("content", "value", *_IMAGES, *_VIDEOS, "media")
    ]:
        key = unknown[0]
        raise BadConversation(
            f"{where}: unknown key {key!r}: {message[key]!r:.40}; remove it, or put it into the text"
        )
    pieces = _pieces(content, where, base)
    if not own:
        return role, pieces
    if isinstance(pieces, str):
        return role, fill_text(pieces, own)
    return role, [*(Place(medium.kind, medium) for medium in own), *pieces]


def _own_media(message: Mapping[str, Any], base: Path | None) -> list[Medium]:
    """Media that stand in a message beside its text, as Ollama has them."""
    images = [read_medium(source, "image", base) for source in several(_either(message, _IMAGES))]
    videos = [read_medium(source, "video", base) for source in several(_either(message, _VIDEOS))]
    return [
        *images,
        *videos,
        *(read_medium(source, None, base) for source in several(message.get("media"))),
    ]


def _pieces(content: Any, where: str, base: Path | None) -> Pieces:
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list | tuple):
        raise BadConversation(
            f"{where}: content of type {type(content).__name__}: give a string or a list of parts"
        )
    return [_piece(part, f"{where}, part {i}", base) for i, part in enumerate(content)]


def _piece(given: Any, where: str, base: Path | None) -> str | Place:
    """A text or a place; see the module's head for the forms."""
    form = '{"type": "text", "text": ...}, {"type": "image", "image": ...} or {"type": "video", "video": ...}'
    if isinstance(given, str):
        return given
    if not isinstance(given, Mapping):
        raise BadConversation(f"{where}: {given!r:.80}: give {form}")
    part = _without_nulls(given)
    kind = part.pop("type", None) or next(
        (name for name in ("text", *_MEDIA_PARTS) if name in part), None
    )
    if kind in _TEXT_PARTS:
        return _only_text(part, where)
    if kind not in _MEDIA_PARTS:
        raise BadConversation(f"{where}: {given!r:.80}: give {form}")
    part.pop("detail", None)  # how finely a server shall look; here image_budget says it
    sources = [name for name in _SOURCES if name in part]
    if unknown := [key for key in part if key not in sources]:
        raise BadConversation(
            f"{where}: unknown key {unknown[0]!r}: {part[unknown[0]]!r:.40}; remove it"
        )
    if len(sources) > 1:
        raise BadConversation(f"{where}: {' and '.join(sources)}: give one of them")
    if not sources:
        return Place(_kind_of(kind), None)
    value = part[sources[0]]
    encoded = {"base64": value} if sources[0] == "base64" else value
    medium = read_medium(encoded, _kind_of(kind), base)
    return Place(medium.kind, medium)


def _kind_of(part_type: str) -> Kind:
    return "video" if "video" in part_type else "image"


def _only_text(part: dict[str, Any], where: str) -> str:
    text = part.pop("text", None)
    unknown = [key for key, value in part.items() if not _is_empty(value)]
    if not isinstance(text, str) or unknown:
        at_fault = f"unknown key {unknown[0]!r}" if unknown else f"text: {text!r:.80}: no text"
        raise BadConversation(f'{where}: {at_fault}; give {{"type": "text", "text": ...}}')
    return text
