"""Conversations as blocks of ids with places for images: the official template, built from ids.

Because every text is encoded on its own, with control tokens only between texts, no text can become a control token.

TEXT THAT STRANGERS WROTE belongs into a content of parts, `[{"type": "image"}, {"type": "text", "text": ...}]`: places
are then where the parts say, and `<ImageHere>` is text everywhere in the conversation, in its plain strings too. In a
conversation of plain strings alone, `<ImageHere>` in a user's or a system's is an image's place: that is the official
form, which stored data has, so that "What does <ImageHere> mean?" beside one image shows it there. As many places as
images are needed, or the conversation is refused. An assistant's string never holds a place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from ixc.data.samples import PLACEHOLDER, Turn
from ixc.models.base import ROLES, BadConversation

Message = Turn | Mapping[str, Any]
"""`{"role": ..., "content": ...}`; the content is a string, or a list of parts."""


class Slot(NamedTuple):
    """An image's place in a message."""

    kind: Literal["any", "image", "video"] = "any"


class ParsedMessage(NamedTuple):
    """A message: its texts, and the places of images between them."""

    role: str
    parts: tuple[str | Slot, ...]


def parse(messages: Sequence[Message], strip: bool = False) -> list[ParsedMessage]:
    """Read the messages of one conversation.

    `<ImageHere>` in a string is a place only where no content is given as parts.

    Args:
        strip: take white space off both ends of every message, as the official training code does.

    Raises:
        BadConversation: a message has no such role, or a content of another form.
    """
    if not messages:
        raise BadConversation('no message; give at least {"role": "user", "content": "..."}')
    places = not any(
        isinstance(m, Mapping) and isinstance(m.get("content"), list | tuple) for m in messages
    )
    parsed = [_parse(message, f"message {i}", places) for i, message in enumerate(messages)]
    return [_stripped(one) for one in parsed] if strip else parsed


def _parse(message: Message, where: str, places: bool) -> ParsedMessage:
    if isinstance(message, Turn):
        message = {"role": message.role, "content": message.content}
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise BadConversation(f'{where}: {message!r:.80}: give {{"role": ..., "content": ...}}')
    if unknown := [
        key for key, value in message.items() if key not in ("role", "content") and value
    ]:
        form = "it would not be read; images and videos go beside the messages, or into the content as parts"
        raise BadConversation(f"{where}: unknown key {unknown[0]!r}: {form}")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise BadConversation(f"{where}: role {role!r}: one of {', '.join(ROLES)}")
    if isinstance(content, str):
        return ParsedMessage(
            role, _split(content) if places and role != "assistant" else (content,)
        )
    if isinstance(content, list | tuple):
        return ParsedMessage(
            role, tuple(_part(part, f"{where}, part {i}") for i, part in enumerate(content))
        )
    raise BadConversation(
        f"{where}: content of type {type(content).__name__}: give a string or a list of parts"
    )


def media_apart(messages: Sequence[Message]) -> tuple[list[Message], dict[str, list[Any]]]:
    """Parts as Transformers' chat templates take them, `{"type": "image", "image": ...}` or with `path` or `url`, as
    ours: places in the messages, and beside them the images and videos in reading order."""
    got: dict[str, list[Any]] = {"image": [], "video": []}

    def place(part: Any) -> Any:
        kind = str(part.get("type")) if isinstance(part, Mapping) else ""
        named = (
            [name for name in (kind, "path", "url") if name in part]
            if kind in ("image", "video")
            else []
        )
        if len(named) != 1 or len(part) != 2:
            return part
        got[kind].append(part[named[0]])
        return {"type": kind}

    apart = [
        {**m, "content": [place(part) for part in m["content"]]}
        if isinstance(m, Mapping) and isinstance(m.get("content"), list | tuple)
        else m
        for m in messages
    ]
    return apart, got


def _split(text: str) -> tuple[str | Slot, ...]:
    first, *others = text.split(PLACEHOLDER)
    return (first, *(part for other in others for part in (Slot(), other)))


def _part(part: object, where: str) -> str | Slot:
    if isinstance(part, Mapping):
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            return part["text"]
        if part.get("type") in ("image", "video") and len(part) == 1:
            return Slot(part["type"])
    form = '{"type": "text", "text": ...}, {"type": "image"} or {"type": "video"}; media go into images=, videos='
    raise BadConversation(f"{where}: {part!r:.80}: give {form}")


def _stripped(parsed: ParsedMessage) -> ParsedMessage:
    parts = list(parsed.parts) or [""]
    if isinstance(first := parts[0], str):
        parts[0] = first.lstrip()
    if isinstance(last := parts[-1], str):
        parts[-1] = last.rstrip()
    return ParsedMessage(parsed.role, tuple(parts))


def assign(messages: Sequence[ParsedMessage], kinds: Sequence[str]) -> list[int] | None:
    """Which image fills which slot, in the order of the slots; None: the only image goes to the very start.

    A slot of any kind takes the first image left, another one the first of its kind.

    Args:
        kinds: image, video or any, per image.

    Raises:
        BadConversation: images and slots do not match.
    """
    slots = [part for message in messages for part in message.parts if isinstance(part, Slot)]
    if len(kinds) == 1 and not slots:
        return None
    left, chosen = list(range(len(kinds))), []
    for slot in slots:
        fitting = [i for i in left if "any" in (slot.kind, kinds[i]) or kinds[i] == slot.kind]
        chosen += fitting[:1]
        left = [i for i in left if i not in chosen]
    if len(kinds) != len(slots):
        form = (
            "; ".join(f"Image{i + 1} {PLACEHOLDER}" for i in range(len(kinds))) or "no placeholder"
        )
        literal = (
            f"; to write {PLACEHOLDER} as text, give the content as parts"
            if len(slots) > len(kinds)
            else ""
        )
        got = f"{len(kinds)} images but {len(slots)} placeholders"
        raise BadConversation(f"{got}; the prompt needs: {form}{literal}")
    if left:
        got = f"{', '.join(slot.kind for slot in slots)} for {', '.join(kinds)}"
        raise BadConversation(
            f"placeholders of other kinds than the images: {got}; name the kinds alike"
        )
    return chosen


@dataclass(frozen=True)
class Block:
    """A stretch of ids that stands or falls as a whole: a message, or what comes before the first."""

    role: str
    pieces: tuple[list[int] | int, ...]
    """Ids, and the numbers of images."""

    def length(self, counts: Sequence[int]) -> int:
        """Tokens, where image i has `counts[i]`."""
        return sum(counts[piece] if isinstance(piece, int) else len(piece) for piece in self.pieces)

    def images(self) -> list[int]:
        """The images in it, in reading order."""
        return [piece for piece in self.pieces if isinstance(piece, int)]


@dataclass(frozen=True)
class Layout:
    """A conversation as blocks, ready to be written out once the images' token counts are known."""

    blocks: tuple[Block, ...]

    def length(self, counts: Sequence[int]) -> int:
        """Tokens, where image i has `counts[i]`."""
        return sum(block.length(counts) for block in self.blocks)

    def images(self) -> list[int]:
        """The images in it, in reading order."""
        return [piece for piece in self.pieces() if isinstance(piece, int)]

    def pieces(self) -> list[list[int] | int]:
        """Ids, and the numbers of images."""
        return [piece for block in self.blocks for piece in block.pieces]

    def ids(self, counts: Sequence[int], image_id: int) -> list[int]:
        """All ids, the image token in every place of an image token."""
        return [
            i for p in self.pieces() for i in ([image_id] * counts[p] if isinstance(p, int) else p)
        ]

    def without_oldest(self) -> "Layout | None":
        """The same without its oldest exchange; None when only the last one is left.

        An exchange is a user's message with what answers it. System messages and the beginning stay.
        """
        users = [i for i, block in enumerate(self.blocks) if block.role == "user"]
        if len(users) < 2:
            return None
        remaining = [
            b for i, b in enumerate(self.blocks) if i >= users[1] or b.role in ("", "system")
        ]
        return replace(self, blocks=tuple(remaining))


class Template:
    """The official template over one tokenizer.

    Every message is `[UNUSED_TOKEN_146]role`, newline, content, `[UNUSED_TOKEN_145]`, newline. Role and content are
    encoded together, as officially; an image cuts the text in two.
    """

    def __init__(self, ids: Mapping[str, int], encode: Callable[[str], list[int]]) -> None:
        self.ids, self.encode = ids, encode

    def layout(self, messages: Sequence[ParsedMessage], kinds: Sequence[str]) -> Layout:
        """`<s>`, the only image if no slot wants it, and the messages."""
        order = assign(messages, kinds)
        numbers = iter(order or ())
        start = ([self.ids["bos"]], *([0] if order is None else []))
        return Layout((Block("", start), *(self._block(m, numbers) for m in messages)))

    def _block(self, message: ParsedMessage, numbers: Any) -> Block:
        pieces: list[list[int] | int] = [[self.ids["turn_start"]]]
        text = message.role + "\n"
        for part in message.parts:
            if isinstance(part, str):
                text += part
            else:
                pieces += [self.encode(text), next(numbers)]
                text = ""
        return Block(
            message.role, (*pieces, self.encode(text), [self.ids["turn_end"]], self.encode("\n"))
        )

    def opening(self) -> list[int]:
        """What stands before an assistant's answer."""
        return [self.ids["turn_start"], *self.encode("assistant\n")]

    def continued(self, messages: Sequence[ParsedMessage]) -> list[int]:
        """What follows the first turn of an answer that has several: a newline, and the messages to their last end."""
        pieces = [piece for message in messages for piece in self._block(message, iter(())).pieces]
        texts = [self.encode("\n"), *(piece for piece in pieces[:-1] if isinstance(piece, list))]
        return [i for text in texts for i in text]

    def tail(self, newline: bool) -> list[int]:
        """What the score is read from: `</s>` and the reward token, or a newline and these."""
        return [*(self.encode("\n") if newline else []), self.ids["eos"], self.ids["reward"]]

    def to_score(self, layout: Layout, newline: bool) -> Layout:
        """The conversation with the tail in the place of its last newline."""
        *before, last = layout.blocks
        return Layout((*before, replace(last, pieces=(*last.pieces[:-1], self.tail(newline)))))

    def to_answer(self, layout: Layout) -> Layout:
        """The conversation with the opening of an answer."""
        *before, last = layout.blocks
        return Layout((*before, replace(last, pieces=(*last.pieces, self.opening()))))
