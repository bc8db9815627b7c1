"""HH-RLHF: human preferences about harmlessness, multi-turn text. MIT; commercial use allowed.

Native: JSON lines, also gzipped, `{"chosen", "rejected"}`; each is a whole dialogue of `\\n\\nHuman: ` and
`\\n\\nAssistant: ` turns. The response is what follows the last `\\n\\nAssistant:`. Where the dialogues part
before that, the two responses answer different prompts and are no pair. Some texts are offensive or harmful.

Source: https://github.com/anthropics/hh-rlhf, arXiv:2204.05862.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from ixc.samples import Turn
from ixc.sources import Refused, Row
from ixc.sources.native import Record, Unusable, find, home, rows, take

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """Ready pairs, the two answers to one dialogue."""
    for file in find(path, "**/*.jsonl", "**/*.jsonl.gz"):
        name = file.relative_to(home(path)).as_posix().removesuffix(".gz").removesuffix(".jsonl")
        yield from rows(file, lambda record, number, name=name: [_pair(record, f"{name}/{number}")])


def _pair(record: Record, id: str) -> Row:
    chosen, rejected = dialogue(take(record, "chosen", str)), dialogue(take(record, "rejected", str))
    if chosen[:-1] != rejected[:-1]:
        raise Unusable("the dialogues part before their last turn: two prompts, no pair; remove the row")
    if not chosen[-1].content or not rejected[-1].content:
        raise Unusable("an empty response; remove the row")
    prompt = chosen[:-1]
    # Many pairs open with the same question: held out together, or validation is half known.
    return Row(
        id=id,
        domain="safety",
        prompt=prompt,
        chosen=chosen[-1].content,
        rejected=rejected[-1].content,
        group=prompt[0].content,
    )


def dialogue(text: str) -> tuple[Turn, ...]:
    """The turns of a dialogue that ends with the assistant's response.

    >>> [turn.role for turn in dialogue("\\n\\nHuman: Hi.\\n\\nAssistant: Hello.")]
    ['user', 'assistant']
    """
    _, *parts = _SPEAKER.split(text)
    if len(parts) < 4 or parts[-2] != "Assistant":
        raise Unusable("no dialogue of Human and Assistant that ends with the Assistant; correct the row")
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return tuple(
        Turn(role="user" if speaker == "Human" else "assistant", content=said.strip()) for speaker, said in pairs
    )
