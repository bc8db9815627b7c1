"""Conversations as data sets write them: TRL's turns, sharegpt's, plain texts; and where their pictures belong."""

import re
import reprlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from ixc.data.samples import PLACEHOLDER, Turn
from ixc.data.sources import File
from ixc.data.sources.native import Unusable
from ixc.data.sources.phrases import without_edge
from ixc.data.sources.strangers import refuse_strangers

_MARK = re.compile(r"<(?:image|image-placeholder|ImageHere|video)>")
IMAGE_PART, VIDEO_PART, _OF_PARTS = "\ufdd0", "\ufdd1", "\ufdd2"
"""Until `place`: where a turn of parts has a picture or film, and that a turn is of parts. No text holds such a code
point, and in a turn of parts `<image>` is a word like any other."""
_PART_MARK = re.compile(f"[{IMAGE_PART}{VIDEO_PART}]")
_PARTS = {
    "image": IMAGE_PART,
    "image_url": IMAGE_PART,
    "video": VIDEO_PART,
    "video_url": VIDEO_PART,
}
_OF_A_TURN = ("role", "from", "content", "value")
_SOURCES = ("url", "path", "base64", "bytes", "source")
"""Where a part has its picture or film, if not under the kind's own name."""
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
}


class Pair(NamedTuple):
    """Two answers to one prompt."""

    prompt: tuple[Turn, ...]
    chosen: str
    rejected: str


def pair(prompt: Any, chosen: Any, rejected: Any) -> Pair:
    """A pair, however its row spreads it over the fields.

    An answer is a text, an assistant's turn, or a conversation that ends with it. Without a `prompt` (None) it is
    what the two begin with: TRL's implicit prompt, or a dialogue of hh-rlhf.

    >>> pair("Hi.", "Hello.", [{"from": "gpt", "value": "No."}]).rejected
    'No.'
    >>> pair(None, "1 + 1 = 2", "1 + 1 = 3").prompt[0].content
    '1 + 1 ='

    Raises:
        Unusable: there is no prompt, or the answers belong to two.
    """
    if prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        return dialogues(chosen, rejected) if _SPEAKER.match(chosen) else _texts(chosen, rejected)
    (before, first), (other, second) = ended(chosen), ended(rejected)
    if not first.strip() and not second.strip():
        raise Unusable("two empty answers; fill them in or remove the row")
    if before != other and ((before and other) or _goes_on(before) or _goes_on(other)):
        raise Unusable(
            "the dialogues part before their last turn: two prompts, no pair; remove the row"
        )
    before = before or other
    if before and not _goes_on(before):
        if prompt is not None and not _within(turns(prompt), before):
            raise Unusable(
                "prompt: says something else than the dialogue that ends with the answer; keep one of them"
            )
        return Pair(before, first, second)
    if prompt is None:
        raise Unusable(
            "no prompt: neither a field for it nor a beginning that the answers share; add it"
        )
    return Pair((*turns(prompt), *before), first, second)


def _goes_on(before: Sequence[Turn]) -> bool:
    """Whether turns before an answer belong to the answer: they begin with the assistant's."""
    return bool(before) and before[0].role == "assistant"


def _within(prompt: Sequence[Turn], dialogue: Sequence[Turn]) -> bool:
    said = {" ".join(turn.content.split()) for turn in dialogue}
    return all(" ".join(turn.content.split()) in said for turn in prompt)


def dialogues(chosen: str, rejected: str) -> Pair:
    """A pair of two hh-rlhf dialogues.

    Raises:
        Unusable: they part before their last turn.
    """
    one, other = dialogue(chosen), dialogue(rejected)
    if one[:-1] != other[:-1]:
        raise Unusable(
            "the dialogues part before their last turn: two prompts, no pair; remove the row"
        )
    return Pair(one[:-1], one[-1].content, other[-1].content)


def _texts(chosen: str, rejected: str) -> Pair:
    """Source of the rule: TRL, `extract_prompt`."""
    shorter = min(len(chosen), len(rejected))
    length = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)
    length -= chosen[length - 1 : length] == " "
    if not chosen[:length].strip():
        raise Unusable(
            "no prompt: neither a field for it nor a beginning that the answers share; add it"
        )
    return Pair(turns(chosen[:length]), chosen[length:], rejected[length:])


def ended(value: Any) -> tuple[tuple[Turn, ...], str]:
    """The turns before an answer, and the answer: of a conversation that ends with the assistant's turn, or a text.

    >>> ended([{"from": "human", "value": "Hi."}, {"from": "gpt", "value": ""}])[1]
    ''

    Raises:
        Unusable: it ends with another turn, or with one that shows a picture.
    """
    if isinstance(value, str):
        return (), value
    *before, last = turns(value)
    if last.role != "assistant":
        raise Unusable("an answer that does not end with the assistant's turn; correct the row")
    if _PART_MARK.search(last.content):
        raise Unusable("an answer that shows a picture or film; only prompts can: remove the row")
    return tuple(before), last.content.removeprefix(_OF_PARTS)


def dialogue(text: str) -> tuple[Turn, ...]:
    """The turns of an hh-rlhf dialogue, which ends with the assistant's response.

    >>> [turn.role for turn in dialogue("\\n\\nHuman: Hi.\\n\\nAssistant: Hello.")]
    ['user', 'assistant']
    """
    _, *parts = _SPEAKER.split(text)
    if len(parts) < 4 or parts[-2] != "Assistant":
        raise Unusable(
            "no dialogue of Human and Assistant that ends with the Assistant; correct the row"
        )
    spoken = zip(parts[::2], parts[1::2], strict=True)
    return tuple(
        _turn({"role": speaker.lower(), "content": said.strip()}) for speaker, said in spoken
    )


def turns(value: Any) -> tuple[Turn, ...]:
    """A text as the user's turn; else turns as they are, `{"role", "content"}` or `{"from", "value"}`.

    >>> turns([{"from": "human", "value": "Hi."}])[0].role
    'user'

    Raises:
        Unusable: it is neither.
    """
    if isinstance(value, str):
        return (Turn(role="user", content=value),)
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list) or not value:
        raise Unusable(
            f"{reprlib.repr(value)}: neither a text nor a list of turns; correct the row"
        )
    return tuple(_turn(turn) for turn in value)


def _turn(turn: Any) -> Turn:
    said = (turn.get("role") or turn.get("from")) if isinstance(turn, dict) else None
    role = _ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise Unusable(
            f"{reprlib.repr(turn)}: no turn whose role is one of {', '.join(_ROLES)}; correct it"
        )
    refuse_strangers(turn, _OF_A_TURN, remedy="put it into the turn's content, or remove it")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        content = _OF_PARTS + "".join(map(_part, content))
    if not isinstance(content, str):
        raise Unusable(f"{reprlib.repr(turn)}: a turn without a text; add it or remove the row")
    return Turn(role=role, content=content)


def _part(part: Any) -> str:
    """A part of a message: `{"type": "text", "text"}`, or a picture or film, as TRL or OpenAI write it."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind not in _PARTS:
        raise Unusable(
            f"{reprlib.repr(part)}: no part of type text, image or video; correct it or remove the row"
        )
    return _PARTS[kind]


def carried(*conversations: Any) -> list[tuple[Literal["image", "video"], Any]]:
    """The pictures and films that turns of parts bring along, in their order; a part may also stand for a column's.

    >>> carried([{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "image"}]}])
    [('image', 'a.png')]
    """
    contents = [
        turn.get("content", turn.get("value"))
        for conversation in conversations
        for turn in (conversation if isinstance(conversation, list) else [conversation])
        if isinstance(turn, dict)
    ]
    parts = [
        part
        for content in contents
        if isinstance(content, list)
        for part in content
        if isinstance(part, dict)
    ]
    return [found for part in parts if (found := _brought(part))]


def _brought(part: dict[str, Any]) -> tuple[Literal["image", "video"], Any] | None:
    kind = "video" if part.get("type") in ("video", "video_url") else "image"
    names = [name for name in (kind, f"{kind}_url", *_SOURCES) if part.get(name) is not None]
    if part.get("type") not in _PARTS or not names:
        return None
    value = part[names[0]]
    inner = [value[name] for name in ("url", "data") if isinstance(value, dict) and name in value]
    return kind, inner[0] if inner else value


def ordered(prompt: Sequence[Turn], files: Sequence[File]) -> tuple[File, ...]:
    """Pictures and films in the order of their marks, where the marks tell the kinds apart.

    `<image> <video>` with a film and a picture. Where they do not (`<image>` stands for a film, too), as they are.
    """
    kinds = [
        "video" if mark in ("<video>", VIDEO_PART) else "image"
        for turn in prompt
        for mark in _marks(prompt, turn)
    ]
    if sorted(kinds) != sorted(file.kind for file in files):
        return tuple(files)
    left = {
        kind: iter([file for file in files if file.kind == kind]) for kind in ("image", "video")
    }
    return tuple(next(left[kind]) for kind in kinds)


def _pattern(prompt: Sequence[Turn]) -> re.Pattern[str]:
    """What marks a picture."""
    return _PART_MARK if any(turn.content.startswith(_OF_PARTS) for turn in prompt) else _MARK


def _marks(prompt: Sequence[Turn], turn: Turn) -> list[str]:
    return _pattern(prompt).findall(turn.content)


def place(prompt: Sequence[Turn], files: Sequence[File]) -> tuple[Turn, ...]:
    """Mark where pictures and films belong in the way of the model.

    A single one needs no mark: without it, it comes first. Several that are not marked one by one are named at
    the start, as in the official training data: `Image1 <ImageHere>; Image2 <ImageHere>; `.

    >>> place(turns("<image>\\nWhat is it?"), [File(kind="image")])[0].content
    'What is it?'

    Raises:
        Unusable: there are more or fewer marks than files.
    """
    pattern = _pattern(prompt)
    marks = sum(len(pattern.findall(turn.content)) for turn in prompt)
    if marks != len(files) and (not files or marks > 1):
        raise Unusable(f"the prompt marks {marks} pictures, the row has {len(files)}; correct it")
    prompt = [replace(turn, content=turn.content.removeprefix(_OF_PARTS)) for turn in prompt]
    if len(files) > 1 and marks <= 1:
        listed = "".join(f"Image{number} {PLACEHOLDER}; " for number in range(1, len(files) + 1))
        return _opened_by(
            listed,
            [replace(turn, content=pattern.sub("", turn.content).strip()) for turn in prompt],
        )
    placed = [replace(turn, content=pattern.sub(PLACEHOLDER, turn.content)) for turn in prompt]
    if len(files) == 1:
        first = _first_question(placed)
        turn = placed[first]
        alone = (
            turn.content.removeprefix(PLACEHOLDER)
            if pattern is _PART_MARK
            else without_edge(turn.content, PLACEHOLDER)
        )
        placed[first] = turn if alone is None else replace(turn, content=alone)
    return tuple(placed)


def unshown(prompt: Sequence[Turn]) -> tuple[Turn, ...]:
    """A prompt of words alone.

    Raises:
        Unusable: one of its parts is a picture or film.
    """
    if any(_PART_MARK.search(turn.content) for turn in prompt):
        raise Unusable(
            "a turn shows a picture or film, and the row has none; map its column or remove the row"
        )
    return tuple(replace(turn, content=turn.content.removeprefix(_OF_PARTS)) for turn in prompt)


def _first_question(prompt: Sequence[Turn]) -> int:
    return next((i for i, turn in enumerate(prompt) if turn.role == "user"), 0)


def _opened_by(text: str, prompt: Sequence[Turn]) -> tuple[Turn, ...]:
    first = _first_question(prompt)
    return tuple(
        replace(turn, content=text + turn.content) if i == first else turn
        for i, turn in enumerate(prompt)
    )
