"""Conversations as data sets write them: TRL's turns, sharegpt's, plain texts; and where their pictures belong."""

import re
import reprlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from ixc.samples import PLACEHOLDER, Turn
from ixc.sources import File
from ixc.sources.native import Unusable

_MARK = re.compile(r"<(?:image|image-placeholder|ImageHere|video)>")
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
    (before, first), (other, second) = _ended(chosen), _ended(rejected)
    if before and other and before != other:
        raise Unusable("the dialogues part before their last turn: two prompts, no pair; remove the row")
    before = before or other
    if before and before[0].role != "assistant":
        return Pair(before, first, second)
    if prompt is None:
        raise Unusable("no prompt: neither a field for it nor a beginning that the answers share; add it")
    return Pair((*turns(prompt), *before), first, second)


def dialogues(chosen: str, rejected: str) -> Pair:
    """A pair of two hh-rlhf dialogues.

    Raises:
        Unusable: they part before their last turn.
    """
    one, other = dialogue(chosen), dialogue(rejected)
    if one[:-1] != other[:-1]:
        raise Unusable("the dialogues part before their last turn: two prompts, no pair; remove the row")
    return Pair(one[:-1], one[-1].content, other[-1].content)


def _texts(chosen: str, rejected: str) -> Pair:
    """Source of the rule: TRL, `extract_prompt`."""
    shorter = min(len(chosen), len(rejected))
    length = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)
    length -= chosen[length - 1 : length] == " "
    if not chosen[:length].strip():
        raise Unusable("no prompt: neither a field for it nor a beginning that the answers share; add it")
    return Pair(turns(chosen[:length]), chosen[length:], rejected[length:])


def _ended(value: Any) -> tuple[tuple[Turn, ...], str]:
    """What comes before an answer, and the answer."""
    if isinstance(value, str):
        return (), value
    *before, last = turns(value)
    if last.role != "assistant":
        raise Unusable("an answer that does not end with the assistant's turn; correct the row")
    return tuple(before), last.content


def dialogue(text: str) -> tuple[Turn, ...]:
    """The turns of an hh-rlhf dialogue, which ends with the assistant's response.

    >>> [turn.role for turn in dialogue("\\n\\nHuman: Hi.\\n\\nAssistant: Hello.")]
    ['user', 'assistant']
    """
    _, *parts = _SPEAKER.split(text)
    if len(parts) < 4 or parts[-2] != "Assistant":
        raise Unusable("no dialogue of Human and Assistant that ends with the Assistant; correct the row")
    spoken = zip(parts[::2], parts[1::2], strict=True)
    return tuple(_turn({"role": speaker.lower(), "content": said.strip()}) for speaker, said in spoken)


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
        raise Unusable(f"{reprlib.repr(value)}: neither a text nor a list of turns; correct the row")
    return tuple(_turn(turn) for turn in value)


def _turn(turn: Any) -> Turn:
    said = (turn.get("role") or turn.get("from")) if isinstance(turn, dict) else None
    role = _ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise Unusable(f"{reprlib.repr(turn)}: no turn whose role is one of {', '.join(_ROLES)}; correct it")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        content = "".join(map(_part, content))
    if not isinstance(content, str):
        raise Unusable(f"{reprlib.repr(turn)}: a turn without a text; add it or remove the row")
    return Turn(role=role, content=content)


def _part(part: dict[str, Any]) -> str:
    """A part of a message in TRL's form for pictures: `{"type": "text", "text"}` or `{"type": "image"}`."""
    return part["text"] if part["type"] == "text" else PLACEHOLDER


def place(prompt: Sequence[Turn], files: Sequence[File]) -> tuple[Turn, ...]:
    """Mark where pictures and films belong in the way of the model.

    A single one needs no mark: without it, it comes first. Several that are not marked one by one are named at
    the start, as in the official training data: `Image1 <ImageHere>; Image2 <ImageHere>; `.

    >>> place(turns("<image>\\nWhat is it?"), [File(kind="image")])[0].content
    'What is it?'

    Raises:
        Unusable: there are more or fewer marks than files.
    """
    marks = sum(len(_MARK.findall(turn.content)) for turn in prompt)
    if marks != len(files) and (not files or marks > 1):
        raise Unusable(f"the prompt marks {marks} pictures, the row has {len(files)}; correct it")
    if len(files) > 1 and marks <= 1:
        listed = "".join(f"Image{number} {PLACEHOLDER}; " for number in range(1, len(files) + 1))
        return _opened_by(listed, [replace(turn, content=_MARK.sub("", turn.content).strip()) for turn in prompt])
    placed = [replace(turn, content=_MARK.sub(PLACEHOLDER, turn.content)) for turn in prompt]
    return tuple(_without_edges(turn) if len(files) == 1 else turn for turn in placed)


def _opened_by(text: str, prompt: Sequence[Turn]) -> tuple[Turn, ...]:
    first = next((i for i, turn in enumerate(prompt) if turn.role == "user"), 0)
    return tuple(replace(turn, content=text + turn.content) if i == first else turn for i, turn in enumerate(prompt))


def _without_edges(turn: Turn) -> Turn:
    text = turn.content.strip()
    if text.startswith(PLACEHOLDER) or text.endswith(PLACEHOLDER):
        return replace(turn, content=text.removeprefix(PLACEHOLDER).removesuffix(PLACEHOLDER).strip())
    return turn
