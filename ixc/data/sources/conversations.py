"""Conversations as data sets write them: TRL's turns, sharegpt's, plain texts; and where their images belong."""

import re
import reprlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from ixc.data.samples import PLACEHOLDER, Turn, user_message
from ixc.data.sources import File
from ixc.data.sources.native import Unusable
from ixc.data.sources.phrases import without_edge
from ixc.data.sources.strangers import refuse_strangers

_MARK = re.compile(r"<(?:image|image-placeholder|ImageHere|video)>")
IMAGE_PART, VIDEO_PART, _OF_PARTS = "\ufdd0", "\ufdd1", "\ufdd2"
"""Until `place`: where a turn of parts has an image or video, and that a turn is of parts. No text holds such a code
point, and in a turn of parts `<image>` is a word like any other."""
_PART_MARK = re.compile(f"[{IMAGE_PART}{VIDEO_PART}]")
_PART_MARKS = {
    "image": IMAGE_PART,
    "image_url": IMAGE_PART,
    "video": VIDEO_PART,
    "video_url": VIDEO_PART,
}
_TURN_FIELDS = ("role", "from", "content", "value")
_SOURCES = ("url", "path", "base64", "bytes", "source")
"""Where a part has its image or video, if not under the kind's own name."""
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
Kind = Literal["image", "video"]
_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
}


NO_PROMPT = "no prompt: neither a field for it nor a beginning that the answers share; add it"
TWO_PROMPTS = "the dialogues part before their last turn: two prompts, no pair; remove the row"


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
    # Two texts without a prompt: each is a whole dialogue, or prompt and answer in one.
    if prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        return dialogues(chosen, rejected) if _SPEAKER.match(chosen) else _texts(chosen, rejected)

    chosen_context, chosen_answer = ended(chosen)
    rejected_context, rejected_answer = ended(rejected)
    if not chosen_answer.strip() and not rejected_answer.strip():
        raise Unusable("two empty answers; fill them in or remove the row")
    context = _shared_context(chosen_context, rejected_context)

    # Turns before the answer that begin with the user's are the prompt; a field for it may only repeat them.
    if context and not _is_of_answer(context):
        if prompt is not None and not _within(turns(prompt), context):
            raise Unusable(
                "prompt: says something else than the dialogue that ends with the answer; keep one of them"
            )
        return Pair(context, chosen_answer, rejected_answer)
    if prompt is None:
        raise Unusable(NO_PROMPT)
    return Pair((*turns(prompt), *context), chosen_answer, rejected_answer)


def _shared_context(chosen: tuple[Turn, ...], rejected: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns before both answers; one of the two may be given without them."""
    if chosen == rejected:
        return chosen
    is_of_answer = _is_of_answer(chosen) or _is_of_answer(rejected)
    if is_of_answer or (chosen and rejected):
        raise Unusable(TWO_PROMPTS)
    return chosen or rejected


def _is_of_answer(context: Sequence[Turn]) -> bool:
    """Whether turns before an answer belong to the answer: they begin with the assistant's."""
    return bool(context) and context[0].role == "assistant"


def _within(prompt: Sequence[Turn], dialogue: Sequence[Turn]) -> bool:
    messages = {_one_spaced(turn.content) for turn in dialogue}
    return all(_one_spaced(turn.content) in messages for turn in prompt)


def _one_spaced(text: str) -> str:
    return " ".join(text.split())


def dialogues(chosen: str, rejected: str) -> Pair:
    """A pair of two hh-rlhf dialogues.

    Raises:
        Unusable: they part before their last turn.
    """
    *prompt, chosen_turn = dialogue(chosen)
    *other_prompt, rejected_turn = dialogue(rejected)
    if prompt != other_prompt:
        raise Unusable(TWO_PROMPTS)
    return Pair(tuple(prompt), chosen_turn.content, rejected_turn.content)


def _texts(chosen: str, rejected: str) -> Pair:
    """A pair of two texts that begin with their prompt.

    Source of the rule: TRL, `extract_prompt`.
    """
    shorter = min(len(chosen), len(rejected))
    length = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)
    # A blank before the answers belongs to them.
    if chosen[length - 1 : length] == " ":
        length -= 1
    prompt = chosen[:length]
    if not prompt.strip():
        raise Unusable(NO_PROMPT)
    return Pair(turns(prompt), chosen[length:], rejected[length:])


def ended(value: Any) -> tuple[tuple[Turn, ...], str]:
    """The turns before an answer, and the answer: of a conversation that ends with the assistant's turn, or a text.

    >>> ended([{"from": "human", "value": "Hi."}, {"from": "gpt", "value": ""}])[1]
    ''

    Raises:
        Unusable: it ends with another turn, or with one that shows an image.
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
    _, *pieces = _SPEAKER.split(text)
    speakers = pieces[::2]
    messages = pieces[1::2]
    if len(messages) < 2 or speakers[-1] != "Assistant":
        raise Unusable(
            "no dialogue of Human and Assistant that ends with the Assistant; correct the row"
        )
    dialogue = []
    for speaker, message in zip(speakers, messages, strict=True):
        dialogue.append(_turn({"role": speaker.lower(), "content": message.strip()}))
    return tuple(dialogue)


def turns(value: Any) -> tuple[Turn, ...]:
    """A text as the user's turn; else turns as they are, `{"role", "content"}` or `{"from", "value"}`.

    >>> turns([{"from": "human", "value": "Hi."}])[0].role
    'user'

    Raises:
        Unusable: it is neither.
    """
    if isinstance(value, str):
        return user_message(value)
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list) or not value:
        raise Unusable(
            f"{reprlib.repr(value)}: neither a text nor a list of turns; correct the row"
        )
    return tuple(_turn(turn) for turn in value)


def _turn(turn: Any) -> Turn:
    # The role has one name in TRL and OpenAI, another in sharegpt.
    speaker = (turn.get("role") or turn.get("from")) if isinstance(turn, dict) else None
    role = _ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise Unusable(
            f"{reprlib.repr(turn)}: no turn whose role is one of {', '.join(_ROLES)}; correct it"
        )
    refuse_strangers(turn, _TURN_FIELDS, remedy="put it into the turn's content, or remove it")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        content = _OF_PARTS + "".join(map(_part, content))
    if not isinstance(content, str):
        raise Unusable(f"{reprlib.repr(turn)}: a turn without a text; add it or remove the row")
    return Turn(role=role, content=content)


def _part(part: Any) -> str:
    """A part of a message: `{"type": "text", "text"}`, or an image or video, as TRL or OpenAI write it."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind not in _PART_MARKS:
        raise Unusable(
            f"{reprlib.repr(part)}: no part of type text, image or video; correct it or remove the row"
        )
    return _PART_MARKS[kind]


def inline_media(conversation: Any) -> list[tuple[Kind, Any]]:
    """The images and videos that turns of parts bring along, in their order; a part may also stand for a column's.

    >>> inline_media([{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "image"}]}])
    [('image', 'a.png')]
    """
    turns = conversation if isinstance(conversation, list) else [conversation]
    media = []
    for turn in turns:
        content = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
        parts = content if isinstance(content, list) else []
        for part in parts:
            medium = _inline_medium(part) if isinstance(part, dict) else None
            if medium:
                media.append(medium)
    return media


def _inline_medium(part: dict[str, Any]) -> tuple[Kind, Any] | None:
    """What a part brings along; None for a text, or for a part that only marks a place."""
    type = part.get("type")
    if type not in _PART_MARKS:
        return None
    kind = "video" if type in ("video", "video_url") else "image"
    for name in (kind, f"{kind}_url", *_SOURCES):
        value = part.get(name)
        if value is None:
            continue
        # OpenAI wraps it once more: {"image_url": {"url": ...}}.
        for inner in ("url", "data"):
            if isinstance(value, dict) and inner in value:
                return kind, value[inner]
        return kind, value
    return None


def ordered(prompt: Sequence[Turn], files: Sequence[File]) -> tuple[File, ...]:
    """Images and videos in the order of their marks, where the marks tell the kinds apart.

    `<image> <video>` with a video and an image. Where they do not (`<image>` stands for a video, too), as they are.
    """
    kinds = []
    for mark in _marks(prompt):
        kinds.append("video" if mark in ("<video>", VIDEO_PART) else "image")
    if sorted(kinds) != sorted(file.kind for file in files):
        return tuple(files)
    images = iter([file for file in files if file.kind == "image"])
    videos = iter([file for file in files if file.kind == "video"])
    return tuple(next(videos if kind == "video" else images) for kind in kinds)


def _pattern(prompt: Sequence[Turn]) -> re.Pattern[str]:
    """What marks an image."""
    has_parts = any(turn.content.startswith(_OF_PARTS) for turn in prompt)
    return _PART_MARK if has_parts else _MARK


def _marks(prompt: Sequence[Turn]) -> list[str]:
    pattern = _pattern(prompt)
    marks = []
    for turn in prompt:
        marks += pattern.findall(turn.content)
    return marks


def place(prompt: Sequence[Turn], files: Sequence[File]) -> tuple[Turn, ...]:
    """Mark where images and videos belong in the way of the model.

    A single one needs no mark: without it, it comes first. Several that are not marked one by one are named at
    the start, as in the official training data: `Image1 <ImageHere>; Image2 <ImageHere>; `.

    >>> place(turns("<image>\\nWhat is it?"), [File(kind="image")])[0].content
    'What is it?'

    Raises:
        Unusable: there are more or fewer marks than files.
    """
    pattern = _pattern(prompt)
    num_marks = len(_marks(prompt))
    if num_marks != len(files) and (not files or num_marks > 1):
        raise Unusable(
            f"the prompt marks {num_marks} pictures, the row has {len(files)}; correct it"
        )
    contents = [turn.content.removeprefix(_OF_PARTS) for turn in prompt]
    first = _first_question(prompt)
    if len(files) > 1 and num_marks <= 1:
        # Several without a mark each: named at the start of the first question.
        contents = [pattern.sub("", content).strip() for content in contents]
        names = [f"Image{number} {PLACEHOLDER}; " for number in range(1, len(files) + 1)]
        contents[first] = "".join(names) + contents[first]
    else:
        contents = [pattern.sub(PLACEHOLDER, content) for content in contents]
        if len(files) == 1:
            contents[first] = _without_first_mark(contents[first], pattern)
    return _with_contents(prompt, contents)


def _without_first_mark(content: str, pattern: re.Pattern[str]) -> str:
    """A question without the mark of the only file, where it stands at the edge."""
    if pattern is _PART_MARK:
        return content.removeprefix(PLACEHOLDER)
    unmarked = without_edge(content, PLACEHOLDER)
    return content if unmarked is None else unmarked


def _with_contents(turns: Sequence[Turn], contents: Sequence[str]) -> tuple[Turn, ...]:
    paired = zip(turns, contents, strict=True)
    return tuple(replace(turn, content=content) for turn, content in paired)


def without_media(prompt: Sequence[Turn]) -> tuple[Turn, ...]:
    """A prompt of words alone.

    Raises:
        Unusable: one of its parts is an image or video.
    """
    if any(_PART_MARK.search(turn.content) for turn in prompt):
        raise Unusable(
            "a turn shows a picture or film, and the row has none; map its column or remove the row"
        )
    contents = [turn.content.removeprefix(_OF_PARTS) for turn in prompt]
    return _with_contents(prompt, contents)


def _first_question(prompt: Sequence[Turn]) -> int:
    return next((i for i, turn in enumerate(prompt) if turn.role == "user"), 0)
