"""Chats in passes of bounded size: those that share prompt and media are read as one, the prompt once.

However many answers one prompt has, a pass holds as many as its budget takes; the others follow in passes of their own.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, NamedTuple

from ixc.data.media import BadMedia
from ixc.models.base import BadConversation, ChatProcessor, Kind, Reading
from ixc.packing.layout import PrefixGroup
from ixc.serve.chat_media import opened
from ixc.serve.chats import ChatRecord

Refuse = Callable[[int, ValueError], None]
"""Called with a chat's number and why it cannot be scored."""


@dataclass(frozen=True)
class SharedPrompt:
    """A prompt with answers to it that are scored together."""

    group: PrefixGroup
    images: list[Any]
    chats: list[list[int]]
    """Which chats each response stands for; equal ones are one response."""

    def __len__(self) -> int:
        return len(self.group)


class _Read(NamedTuple):
    """A chat as ids, and the numbers of the chats that are equal to it."""

    reading: Reading
    chats: list[int]


def shared_prompts(
    chats: Mapping[int, ChatRecord],
    processor: ChatProcessor,
    apart: Callable[[Sequence[int]], Any],
    budget: int,
    refuse: Refuse,
) -> Iterator[SharedPrompt]:
    """Chats with the same prompt and media, together; each of `budget` tokens at most, unless its prompt is longer.

    Args:
        chats: by number.
        apart: what sequences must have in common to be read as one group.
        budget: tokens of a prompt with its answers; of one that is longer than half of it, twice the prompt's, so that
            a long prompt is not read anew for every few answers.
        refuse: is told which chats cannot be read; raising ends the iteration.
    """
    for answers in _groups(chats).values():
        read = _readings(chats, list(answers.values()), processor, refuse)
        for some in _within(read, budget):
            yield from _trees(some, apart)


def _groups(chats: Mapping[int, ChatRecord]) -> dict[Any, dict[Any, list[int]]]:
    """Numbers of chats by prompt and media, then by answer."""
    groups: dict[Any, dict[Any, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, chat in chats.items():
        *prompt, last = chat.messages
        alone = number if chat.answer_shows() else None  # its images are not the prompt's
        prompt_hash = hashlib.sha256(repr(prompt).encode("utf-8", "surrogatepass")).digest()
        content = last["content"]
        answer = (
            content if isinstance(content, str) else (repr(content),)
        )  # a text may look like parts
        groups[prompt_hash, chat.media_keys(), alone][last["role"], answer].append(number)
    return groups


def _readings(
    chats: Mapping[int, ChatRecord],
    answers: Sequence[list[int]],
    processor: ChatProcessor,
    refuse: Refuse,
) -> Iterator[_Read]:
    """Chats of one group as ids; their media are opened once, and if they cannot be, all are refused."""
    seen: dict[Any, Any] = {}
    try:
        media: list[tuple[Kind, Any]] = [
            (medium.kind, opened(medium)) for medium in chats[answers[0][0]].media
        ]
    except BadMedia as error:
        _refuse_all(answers, error, refuse)
        return
    for place, equal in enumerate(answers):
        try:
            read = _Read(processor.read(chats[equal[0]].messages, media, seen), equal)
        except (
            BadMedia,
            OSError,
        ) as error:  # a name of a thousand letters, a file that may not be read
            _refuse_all(answers[place:], BadMedia(str(error)), refuse)
            return
        except BadConversation as error:
            _refuse_all([equal], error, refuse)
        else:
            yield read


def _refuse_all(answers: Sequence[list[int]], error: ValueError, refuse: Refuse) -> None:
    for number in (number for equal in answers for number in equal):
        refuse(number, error)


def _within(chats: Iterable[_Read], budget: int) -> Iterator[list[_Read]]:
    """Chats of one group, as many at a time as the budget takes."""
    some: list[_Read] = []
    shared = own = 0
    for chat in chats:
        ids = chat.reading.prompt.ids
        if some:
            together = _shared(some[0].reading.prompt.ids, ids, shared)
            own_then = own + (shared - together) * len(some) + len(ids) - together
            if together + own_then <= max(budget, 2 * together):
                shared, own = together, own_then
                some.append(chat)
                continue
            yield some
        some, shared, own = [chat], len(ids), 0
    if some:
        yield some


def _shared(first: Sequence[int], other: Sequence[int], most: int) -> int:
    """How many leading ids two sequences have in common, at most so many."""
    if first[:most] == other[:most]:
        return min(most, len(other))
    return sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, other, strict=False))
    )


def _trees(chats: Sequence[_Read], apart: Callable[[Sequence[int]], Any]) -> Iterator[SharedPrompt]:
    """One group; several where the length policy shortened the chats differently, or they cannot share a prompt."""
    groups: dict[Any, dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    first: dict[Any, Reading] = {}
    for reading, numbers in chats:
        ids = reading.prompt.ids
        key = reading.dropped, apart(ids)
        groups[key][tuple(ids)] += numbers
        first.setdefault(key, reading)
    for key, rows in groups.items():
        group = branched(list(rows))
        prefix = first[key].prompt.cut(len(group.prefix))
        yield SharedPrompt(replace(group, prefix=prefix), first[key].images, list(rows.values()))


def branched(rows: Sequence[Sequence[int]]) -> PrefixGroup:
    """Sequences as a group: what they all begin with is read once; each keeps a token of its own at least.

    >>> branched([[1, 2, 3, 4], [1, 2, 5]])
    PrefixGroup(prefix=[1, 2], responses=[[3, 4], [5]], free=[])
    """
    columns = zip(*(row[:-1] for row in rows), strict=False)
    shared = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, columns))
    return PrefixGroup(list(rows[0][:shared]), [list(row[shared:]) for row in rows])


def passes(prompts: Iterable[SharedPrompt], budget: int) -> Iterator[list[SharedPrompt]]:
    """What goes through the model together: of at most so many tokens, or one alone."""
    batch: list[SharedPrompt] = []
    held = 0
    for prompt in prompts:
        if batch and held + len(prompt) > budget:
            yield batch
            batch, held = [], 0
        batch.append(prompt)
        held += len(prompt)
    if batch:
        yield batch
