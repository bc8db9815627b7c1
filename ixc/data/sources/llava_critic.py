"""LLaVA-Critic-113k, pairwise: GPT-4o's judgements of two answers about a picture. Apache-2.0; commercial use allowed.

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
from ixc.data.sources.native import Entry, Origin, Unusable, each, media, take
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
    asked, *_, judged = turns(take(entry.record, "conversations", list))
    if not (task := _TASK.search(asked.content)):
        raise Unusable(
            "no question and two responses in brackets: a pointwise row, or another wording; remove it"
        )
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
    """Which response a judgement prefers, by the last sentence that says so: first or second.

    >>> better("The second response is slightly worse: it overlooks the dog.")
    'first'

    Raises:
        Unusable: it prefers none, or says both.
    """
    sentences = re.split(r"[.!?\n]", judgement)[::-1]
    found = (_preferred(sentence, forms) for forms in _VERDICTS for sentence in sentences)
    named = next(filter(None, found), set())
    if len(named) != 1:
        raise Unusable(
            f"a judgement that prefers {'both' if named else 'neither'}: {judgement[:60]!r}; remove the row"
        )
    return named.pop()


def _preferred(sentence: str, forms: list[re.Pattern[str]]) -> set[str]:
    """What the clauses of a sentence prefer; a hedge counts in its own clause, before the verdict."""
    verdicts = [verdict for form in forms for verdict in form.finditer(sentence)]
    return {
        _winner(verdict)
        for verdict in verdicts
        if not _HEDGED.search(_so_far(sentence, verdict.end()))
    }


def _so_far(sentence: str, end: int) -> str:
    return _CLAUSE.split(sentence[:end])[-1]


def _winner(verdict: re.Match[str]) -> str:
    return "first" if bool(verdict["first"]) == bool(verdict["better"]) else "second"
