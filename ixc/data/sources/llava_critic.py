"""LLaVA-Critic-113k, pairwise: GPT-4o's judgements of two answers about an image. Apache-2.0; commercial use allowed.

Native: Parquet, `{"id", "source", "conversations": [{"from", "value"}], "image"}`. The human's turn is a judge's prompt
that holds `Question: [...]`, `The first response: [...]`, `The second response: [...]`; the model's turn says which is
better. A judgement that names none, both or a tie yields no pair; neither do the rows of the config `pointwise`.

Source: https://huggingface.co/datasets/lmms-lab/llava-critic-113k, arXiv:2410.02712.
"""

import re
from collections.abc import Iterator

from ixc.data.sources import Refused, Row
from ixc.data.sources.conversations import place, turns
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, Unusable, each, take
from ixc.data.sources.strangers import refuse_strangers

LICENCE = Licence(name="Apache-2.0", commercial=True)
# The texts may hold brackets themselves: only a bracket before the next label ends one.
_TASK = re.compile(
    r"Question: ?\[(.*)\]\s*The first response: ?\[(.*)\]\s*The second response: ?\[(.*)\]\s*(?:ASSISTANT:\s*)?$",
    re.DOTALL,
)
_NOUN = r"(?:response|answer|one|choice|option)"
_FIRST = rf"(?:the (?:first|former)|first {_NOUN}|(?:response|answer) (?:1|one|a))\b"
_SECOND = rf"(?:the (?:second|latter)|second {_NOUN}|(?:response|answer) (?:2|two|b))\b"
_WHICH = rf"\b(?:(?P<first>{_FIRST})|{_SECOND})"
_ADVERBS = r"(?:(?:\w+ly|much|far|a bit|a little|still|even|the) ){0,2}"
_IS = rf"(?:(?!{_FIRST}|{_SECOND})[^;,]){{0,25}}?\b(?:is|was|are) {_ADVERBS}"
# Better in one respect is no verdict on the whole.
_WHOLE = rf"(?!(?: {_NOUN})? (?:at|on|regarding|in terms of|with respect to|with regard to|in its|in the|in how)\b)"
_WORTH = "accurate|helpful|correct|relevant|informative|comprehensive|complete|appropriate|faithful|reliable|useful"
_STATED = rf"{_WHICH}{_IS}(?:(?P<better>better|superior|preferable|preferred|stronger)|worse|inferior|weaker)\b{_WHOLE}"
_TURNED = rf"\b(?:(?P<better>better|superior|preferred)|worse|inferior|weaker) {_NOUN} is {_WHICH}"
_WEIGHED = rf"{_WHICH}{_IS}(?:(?P<better>more)|less) (?:\w+ and )?(?:{_WORTH})\b{_WHOLE}"
_VERDICTS = [
    [re.compile(form, re.IGNORECASE) for form in forms]
    for forms in ((_STATED, _TURNED), (_WEIGHED,))
]
"""In plain words, and, where there are none, by what makes an answer worth more."""
_HEDGED = re.compile(r"\b(?:neither|nor|equally|not|no|if|whether)\b|n't\b", re.IGNORECASE)
_CLAUSE = re.compile(
    r"[;,:]|\b(?:because|since|as|but|while|whereas|although|though|so)\b", re.IGNORECASE
)
COLUMNS = ("conversations", "image")


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """Ready pairs, the judge's prompt taken apart."""
    yield from each(origin, lambda entry: [_row(entry)])


def _row(entry: Entry) -> Row:
    refuse_strangers(entry.record, COLUMNS)
    conversation = take(entry.record, "conversations", list)
    task, *_, judgement = turns(conversation)
    texts = _TASK.search(task.content)
    if not texts:
        raise Unusable(
            "no question and two responses in brackets: a pointwise row, or another wording; remove it"
        )
    question, chosen, rejected = (text.strip() for text in texts.groups())
    if better(judgement.content) == "second":
        chosen, rejected = rejected, chosen
    files = (entry.image(entry.record.get("image")),)
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
    """Which response a judgement prefers, by the last sentence that says so: first or second.

    >>> better("The second response is slightly worse: it overlooks the dog.")
    'first'

    Raises:
        Unusable: it prefers none, or says both.
    """
    winners = _last_preferred(judgement)
    if len(winners) != 1:
        what = "both" if winners else "neither"
        raise Unusable(f"a judgement that prefers {what}: {judgement[:60]!r}; remove the row")
    return winners.pop()


def _last_preferred(judgement: str) -> set[str]:
    """What the last sentence with a verdict prefers; plain words count before what an answer is worth."""
    sentences = re.split(r"[.!?\n]", judgement)
    for forms in _VERDICTS:
        for sentence in reversed(sentences):
            if winners := _preferred(sentence, forms):
                return winners
    return set()


def _preferred(sentence: str, forms: list[re.Pattern[str]]) -> set[str]:
    """What the clauses of a sentence prefer; a hedge counts in its own clause, before the verdict."""
    winners = set()
    for form in forms:
        for verdict in form.finditer(sentence):
            clause = _CLAUSE.split(sentence[: verdict.end()])[-1]
            if not _HEDGED.search(clause):
                winners.add(_winner(verdict))
    return winners


def _winner(verdict: re.Match[str]) -> str:
    return "first" if bool(verdict["first"]) == bool(verdict["better"]) else "second"
