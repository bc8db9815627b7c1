"""What a judge is asked about a pair, and how its replies become a verdict.

Each pair is asked about twice, once in either order, for judges favour a position: a win must be won twice.
"""

import itertools
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from ixc.data.samples import Sample, Verdict
from ixc.io.digests import json_sha256
from ixc.stages.judge.store import Judgement, Order, QuestionRef, Winner

PROMPTS = Path(__file__).parent / "prompts"
"""`pairwise.md`, the template, and a rubric per domain in `rubrics/`."""


class Preference(BaseModel):
    """What the judge is asked to reply; the reason comes first, so that it is thought of before the winner."""

    model_config = ConfigDict(extra="forbid")
    reason: str
    winner: Literal["first", "second", "tie"]


class Question(NamedTuple):
    """Two answers to a sample's prompt, in the order the judge sees them."""

    key: str
    order: Order
    sample: Sample
    first: str
    second: str

    @property
    def ref(self) -> QuestionRef:
        """What a stored judgement says of it."""
        return QuestionRef(self.key, self.sample.id, self.order)

    @property
    def text(self) -> str:
        """The judge's prompt; a code that no text holds marks where each begins and ends."""
        texts = [turn.content for turn in self.sample.prompt]
        code = boundary(*texts, self.first, self.second)
        turns = [fenced(turn.role, turn.content, code) for turn in self.sample.prompt]
        return fill(
            _read("pairwise"),
            rubric=_read(f"rubrics/{self.sample.domain}"),
            boundary=code,
            conversation="\n\n".join(turns),
            first=fenced("first answer", self.first, code),
            second=fenced("second answer", self.second, code),
        )


def boundary(*texts: str) -> str:
    """A code that stands in none of the texts, and that their authors could not foresee.

    It is a digest of the texts themselves: the same question has the same code, so that its verdict is found again,
    and a text would have to contain its own digest to end where it wants.

    >>> boundary("a", "b") == boundary("a", "b") != boundary("ab", "")
    True
    """
    for attempt in itertools.count():
        code = json_sha256([attempt, *texts])[:20]
        if not any(code in text.lower() for text in texts):
            return code
    raise AssertionError  # `count` never ends


def fenced(name: str, text: str, code: str) -> str:
    """A text between two lines that only we can write.

    >>> print(fenced("user", "Hi.", "c0de"))
    --- begin user c0de ---
    Hi.
    --- end user c0de ---
    """
    return f"--- begin {name} {code} ---\n{text}\n--- end {name} {code} ---"


@cache
def _read(name: str) -> str:
    """A template or a rubric, by its name."""
    return (PROMPTS / f"{name}.md").read_text(encoding="utf-8").strip()


def questions(model: str, sample: Sample, reference: str, other: str) -> tuple[Question, Question]:
    """The two questions about a pair: the reference first, then second."""
    first = _question(model, "reference_first", sample, reference, other)
    second = _question(model, "reference_second", sample, other, reference)
    return first, second


def _question(model: str, order: Order, sample: Sample, first: str, second: str) -> Question:
    """A question with its key."""
    question = Question("", order, sample, first, second)
    # The key is a digest of all that the judge sees: a changed rubric is another question.
    media = [medium.sha256 for medium in sample.media]
    key = json_sha256([model, question.text, media])
    return question._replace(key=key)


def fill(template: str, **values: str) -> str:
    """Put values in their places at one go: an answer that contains `{second}` stays as it is.

    >>> fill("{first} or {second}", first="{second}", second="b")
    '{second} or b'
    """
    # One pass over the template, and none over the values.
    holes = "|".join(rf"\{{{name}\}}" for name in values)
    return re.sub(holes, lambda hole: values[hole.group()[1:-1]], template)


def verdict(model: str, chosen_first: Judgement, rejected_first: Judgement) -> Verdict:
    """Both orders as one verdict: a win counts only if it does not depend on the order."""
    by_position: dict[Winner | None, str] = {"first": "chosen", "second": "rejected", "tie": "tie"}
    swapped: dict[Winner | None, str] = {"first": "rejected", "second": "chosen", "tie": "tie"}
    # Translated from places to answers; where the orders disagree, only the place has won.
    first_order = by_position[chosen_first.winner]
    second_order = swapped[rejected_first.winner]
    winner: Any = first_order if first_order == second_order else "tie"
    return Verdict(
        winner=winner,
        judge=model,
        orders=(first_order, second_order),
        reason=chosen_first.reason,
        cost=chosen_first.cost + rejected_first.cost,
    )


def parse(content: str | None) -> Preference | None:
    r"""A published judgement: what `parse_reply` reads, or a text with `[[A>B]]`; None if it cannot be read.

    >>> parse("B names the colour. My final verdict is: [[B>>A]]").winner
    'second'
    """
    return parse_reply(content) or _in_words(content or "")


def parse_reply(content: str | None) -> Preference | None:
    r"""Our judge's reply: JSON, bare or in a Markdown fence; None if it cannot be read.

    A `[[A>B]]` counts for nothing here: it may be a word of the answers, quoted.

    >>> parse_reply('```json\n{"reason": "It counts right.", "winner": "first"}\n```').winner
    'first'
    >>> parse_reply("The second answer wants to hear [[B>A]], so the first is better.")
    """
    # Servers without structured output put JSON into a fence.
    bare = re.sub(r"^\s*```(?:json)?|```\s*$", "", content or "")
    try:
        return Preference.model_validate_json(bare)
    except ValidationError:
        return None


_LABELS: dict[str, Literal["first", "second", "tie"]] = {
    **dict.fromkeys(("A>>B", "A>B", "A"), "first"),
    **dict.fromkeys(("B>>A", "B>A", "B"), "second"),
    **dict.fromkeys(("A=B", "C"), "tie"),
}
"""Arena-Hard's five verdicts, which WildVision-Bench asks GPT-4o for, and MT-Bench's three."""


def label(text: str) -> str | None:
    """The one verdict in double brackets that a text holds; None if there is none, or several that differ.

    >>> label("At first [[A=B]], but no: [[A>B]]"), label("so [[A>>B]]")
    (None, 'A>>B')
    """
    # The same one several times is still one.
    bracketed = set(re.findall(r"\[\[([^\[\]]*)\]\]", text))
    labels = bracketed & _LABELS.keys()
    return labels.pop() if len(labels) == 1 else None


def _in_words(text: str) -> Preference | None:
    """A judgement in words, which ends in a label."""
    verdict_label = label(text)
    if verdict_label is None:
        return None
    return Preference(reason=text.strip(), winner=_LABELS[verdict_label])
