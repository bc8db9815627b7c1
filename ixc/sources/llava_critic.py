"""LLaVA-Critic-113k, pairwise: GPT-4o's judgements of two answers about a picture. Apache-2.0; commercial use allowed.

Native: Parquet, `{"id", "source", "conversations": [{"from", "value"}], "image"}`. The human's turn is a judge's prompt
that holds `Question: [...]`, `The first response: [...]`, `The second response: [...]`; the model's turn says which is
better. A judgement that names none, both or a tie yields no pair; neither do the rows of the config `pointwise`.

Source: https://huggingface.co/datasets/lmms-lab/llava-critic-113k, arXiv:2410.02712.
"""

import re
from collections.abc import Iterator

from ixc.sources import Refused, Row
from ixc.sources.conversations import place, turns
from ixc.sources.licences import Licence
from ixc.sources.native import Entry, Origin, Unusable, each, media, take

LICENCE = Licence(name="Apache-2.0", commercial=True)
# The texts may hold brackets themselves: only a bracket before the next label ends one.
_TASK = re.compile(
    r"Question: ?\[(.*)\]\s*The first response: ?\[(.*)\]\s*The second response: ?\[(.*)\]\s*(?:ASSISTANT:\s*)?$",
    re.DOTALL,
)
_VERDICT = re.compile(
    r"\b(first|second) (?:response|answer)\b[^;,]{0,20}?\b(?:is|was|are) (?:\w+ly |much |far |a bit |the )?"
    r"(?:(better|superior|preferable|preferred|stronger)|worse|inferior|weaker)\b",
    re.IGNORECASE,
)
_HEDGED = re.compile(r"\b(?:neither|equally|not|if|whether)\b", re.IGNORECASE)


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """Ready pairs, the judge's prompt taken apart."""
    yield from each(origin, lambda entry: [_row(entry)])


def _row(entry: Entry) -> Row:
    asked, *_, judged = turns(take(entry.record, "conversations", list))
    if not (task := _TASK.search(asked.content)):
        raise Unusable("no question and two responses in brackets: a pointwise row, or another wording; remove it")
    question, *responses = (text.strip() for text in task.groups())
    chosen, rejected = responses if better(judged.content) == "first" else reversed(responses)
    files = (media(entry.folder, entry.record.get("image"), "image"),)
    return Row(
        id=entry.id,
        domain="general",
        prompt=place(turns(question), files),
        media=files,
        chosen=chosen,
        rejected=rejected,
        meta={"source": entry.record.get("source")},
    )


def better(judgement: str) -> str:
    """Which response a judgement prefers: first or second.

    >>> better("The second response is slightly worse: it overlooks the dog.")
    'first'

    Raises:
        Unusable: it prefers none, or says both.
    """
    sentences = [text for text in re.split(r"[.!?\n]", judgement) if not _HEDGED.search(text)]
    named = {_winner(*said) for text in sentences for said in _VERDICT.findall(text)}
    if len(named) != 1:
        raise Unusable(f"a judgement that prefers {'both' if named else 'neither'}: {judgement[:60]!r}; remove the row")
    return named.pop()


def _winner(which: str, better: str) -> str:
    return "first" if (which.lower() == "first") == bool(better) else "second"
