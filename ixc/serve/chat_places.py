"""Where a chat's images and videos belong in its messages.

Marks in texts are `<ImageHere>` (the model's own), `<image>`, `<image-placeholder>` and `<video>` (LLaVA and others).
They are places only in a chat whose contents are all plain strings, in what users and the system say, and only if there
are as many as media: `<video>` is also a word of HTML. What strangers wrote belongs into parts, where marks are text.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from ixc.data.samples import PLACEHOLDER
from ixc.data.sources.phrases import without_edge
from ixc.models.base import BadConversation
from ixc.serve.chat_media import Medium

_MARK = re.compile(r"<(?:image|image-placeholder|video)>")
_OURS = re.compile(re.escape(PLACEHOLDER))
_ANY = re.compile(rf"{_MARK.pattern}|{re.escape(PLACEHOLDER)}")
_AS_TEXT = 'to write one as text, give the content as parts: [{"type": "text", "text": ...}]'


class Place(NamedTuple):
    """A place for an image or video among the parts of a message."""

    kind: Literal["image", "video"]
    medium: Medium | None
    """None: it takes the next one that stands beside the messages."""


Pieces = str | list[str | Place]
Spoken = tuple[str, Pieces]
"""Role and content of a message."""


def fill_places(
    messages: Sequence[Spoken], beside: Sequence[Medium], unmarked_first: bool
) -> tuple[list[dict[str, Any]], list[Medium]]:
    """The messages with a part at each place, and the media in reading order.

    Args:
        beside: media that are not in the messages.
        unmarked_first: several that no mark places stand at the start, named one by one as in official training.

    Raises:
        BadConversation: media both in the messages and beside them, a place without its image, or a mark without one.
    """
    parts = [piece for _, content in messages if not isinstance(content, str) for piece in content]
    places = [piece for piece in parts if isinstance(piece, Place)]
    inside = [place.medium for place in places if place.medium is not None]
    if inside and beside:
        raise BadConversation("media in the messages and beside them: give them in one place")
    if inside and len(inside) < len(places):
        raise BadConversation(
            "a part without its image or video among parts that hold theirs: add it"
        )
    if all(isinstance(content, str) for _, content in messages):
        messages = _marked(messages, list(beside), unmarked_first)
    return [
        {"role": role, "content": _written(content)} for role, content in messages
    ], inside or list(beside)


def fill_text(text: str, media: Sequence[Medium]) -> list[str | Place]:
    """A message's text with its own media: at its marks if there are as many, else before it."""
    places = [Place(medium.kind, medium) for medium in media]
    if len(_ANY.findall(text)) == len(media):
        return _split(text, _ANY, places)
    return [*places, text]


def _written(content: Pieces) -> str | list[dict[str, str]]:
    """The content as the processor takes it."""
    if isinstance(content, str):
        return content
    return [
        {"type": "text", "text": p} if isinstance(p, str) else {"type": p.kind} for p in content
    ]


# Marks in plain strings


def _marked(
    messages: Sequence[Spoken], media: list[Medium], unmarked_first: bool
) -> Sequence[Spoken]:
    """Messages, all plain strings, with parts at the marks that are places."""
    texts = [
        content for role, content in messages if role != "assistant" and isinstance(content, str)
    ]
    ours = sum(text.count(PLACEHOLDER) for text in texts)
    others = sum(len(_MARK.findall(text)) for text in texts)
    if not media:
        _refuse_forsaken(texts)
        return messages
    if (
        len(media) == 1
        and ours == 0
        and others == 1
        and (alone := _without_edge(messages)) is not None
    ):
        return alone
    for count, mark in ((ours, _OURS), (others, _MARK), (ours + others, _ANY)):
        if count == len(media):
            return _at_marks(messages, mark, media)
    if ours == 0 and others <= 1 and unmarked_first and len(media) > 1:
        return _named_first(messages, media)
    if others > 0:
        raise BadConversation(
            f"{len(media)} images and videos but {ours + others} marks in the texts; {_AS_TEXT}"
        )
    return messages  # one alone comes first; of others the processor says what form they need


def _refuse_forsaken(texts: Sequence[str]) -> None:
    """A mark where LLaVA writes it, at the start or end of a text, in a chat without media: something was lost.

    Raises:
        BadConversation: there is one.
    """
    for text in texts:
        mark = _edge(text)
        if mark is not None:
            raise BadConversation(
                f"{mark} marks an image or video, but the chat has none: add it; {_AS_TEXT}"
            )


def _edge(text: str) -> str | None:
    """The mark that a text begins or ends with."""
    bare = text.strip()
    marks = _MARK.findall(bare)
    at_edge = [mark for mark in marks if bare.startswith(mark) or bare.endswith(mark)]
    return at_edge[0] if at_edge else None


def _without_edge(messages: Sequence[Spoken]) -> list[Spoken] | None:
    """Messages without the mark at the edge of the first user's text: a single image there comes before everything.

    As `collect` reads such rows, so that a model sees in use what it saw in training.
    """
    first = next((i for i, (role, _) in enumerate(messages) if role == "user"), None)
    if first is None:
        return None
    role, text = messages[first]
    assert isinstance(text, str)
    mark = _edge(text)
    bare = None if mark is None else without_edge(text, mark)
    return None if bare is None else [*messages[:first], (role, bare), *messages[first + 1 :]]


def _at_marks(
    messages: Sequence[Spoken], mark: re.Pattern[str], media: list[Medium]
) -> list[Spoken]:
    """Messages with places at the marks; `<video>` takes the next video, another mark the next of either kind."""
    left, filled = list(media), []
    for role, text in messages:
        assert isinstance(text, str)
        if role == "assistant" or not mark.search(text):
            filled.append((role, text))
            continue
        places = [_take(found, left) for found in mark.findall(text)]
        filled.append((role, _split(text, mark, places)))
    return filled


def _take(mark: str, left: list[Medium]) -> Place:
    """The place of a mark, whose medium is taken from those left."""
    kind = {"<video>": "video", "<image>": "image", "<image-placeholder>": "image"}.get(mark)
    at = next((i for i, medium in enumerate(left) if medium.kind == kind), 0)
    return Place(left.pop(at).kind, None)


def _split(text: str, mark: re.Pattern[str], places: Sequence[Place]) -> list[str | Place]:
    """A text with places instead of its marks.

    >>> _split("a<image>", _MARK, [Place("image", None)])
    ['a', Place(kind='image', medium=None)]
    """
    first, *others = mark.split(text)
    pieces: list[str | Place] = [first]
    for place, other in zip(places, others, strict=True):
        pieces += [place, other]
    return [piece for piece in pieces if piece != ""]


def _named_first(messages: Sequence[Spoken], media: Sequence[Medium]) -> list[Spoken]:
    """Several media that no mark places one by one: `Image1 <ImageHere>; Image2 <ImageHere>; ` opens the question."""
    first = next((i for i, (role, _) in enumerate(messages) if role == "user"), 0)
    opening: list[str | Place] = []
    for number, medium in enumerate(media, 1):
        opening += [f"Image{number} ", Place(medium.kind, None), "; "]
    named: list[Spoken] = []
    for i, (role, text) in enumerate(messages):
        assert isinstance(text, str)
        bare = _MARK.sub("", text).strip() if role != "assistant" and _MARK.search(text) else text
        named.append((role, [*opening, bare] if i == first else bare))
    return named
