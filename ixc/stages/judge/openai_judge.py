"""A model as judge of pairs, over any OpenAI-compatible server: request by request, or in batches."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ixc.clients.content import image_parts, text_part
from ixc.clients.server import address, ask_all
from ixc.clients.usage import Paid, Usage
from ixc.metrics import Log, ignore
from ixc.params import LLMJudgeParams
from ixc.stages.judge.batch import ask_in_batches
from ixc.stages.judge.questions import Preference, Question, parse_reply
from ixc.stages.judge.store import Judgement, QuestionRef, VerdictStore, slug

SECTION = "judge.judges"
SCHEMA = {"name": "preference", "strict": True, "schema": Preference.model_json_schema()}
MAX_UNREADABLE = 500
"""Characters of a reply that cannot be read that are stored."""
MAX_REASON = 4000
"""Characters of a verdict's reason that are stored."""


def ask(
    params: LLMJudgeParams,
    questions: Iterable[Question],
    media_root: Path,
    store: VerdictStore,
    *,
    log: Log = ignore,
) -> Usage:
    """Ask every question the store cannot answer, until the budget is spent, and store the judgements.

    Raises:
        ServerRefused: key, address or model is missing or wrong.
        ServerFailed: no request came through.
    """
    # In batches at half the price, if a day's wait does not matter.
    judge = _Judge(params, media_root, store, log)
    distinct = _distinct(questions)
    if params.batch:
        usage = ask_in_batches(SECTION, params, distinct, judge, store.path)
    else:
        usage = ask_all(SECTION, params, distinct, judge)

    # What nobody will ask again is worth a line, with the way to have it asked.
    usage.warn_unanswered(address(SECTION, params), store.path, '"winner": null')
    return usage


def _distinct(questions: Iterable[Question]) -> Iterator[Question]:
    """Each question once: two candidates may be equal."""
    seen: set[str] = set()
    for question in questions:
        if question.key not in seen:
            seen.add(question.key)
            yield question


class _Judge:
    """How a question is put, and what is stored of the replies."""

    max_bytes = 100_000
    """Of a reply; a verdict with its reason has a few hundred."""

    def __init__(
        self, params: LLMJudgeParams, media_root: Path, store: VerdictStore, log: Log
    ) -> None:
        self.params, self.media_root = params, media_root
        self.store, self.log = store, log
        self.judgements = 0
        self.cost = 0.0

    def request(self, question: Question) -> dict[str, Any]:
        """One message, images first; it asks for a `Preference`, as structured output."""
        content = []
        for medium in question.sample.media:
            content += image_parts(medium, self.media_root, self.params)
        content.append(text_part(question.text))

        arguments: dict[str, Any] = {
            "messages": [{"role": "user", "content": content}],
            "response_format": {"type": "json_schema", "json_schema": SCHEMA},
        }
        # Some models refuse to be sent one.
        if self.params.temperature is not None:
            arguments["temperature"] = self.params.temperature
        return arguments

    def answered(self, question: Question) -> bool:
        """Whether the store knows a winner."""
        judgement = self.store.get(question.key)
        return judgement is not None and judgement.winner is not None

    def paid(self, question: Question) -> Paid:
        """What the store says that its replies took."""
        return self._paid(question.key)

    def _paid(self, key: str) -> Paid:
        """What all replies under a key took so far."""
        judgement = self.store.get(key)
        return Paid() if judgement is None else Paid.stored(vars(judgement))

    def refused(self, question: Question) -> bool:
        """Whether the store says that it will not be judged."""
        judgement = self.store.get(question.key)
        return judgement is not None and judgement.refused is not None

    def refuse(self, question: Question, reason: str, paid: Paid) -> None:
        """Store that it will not be judged."""
        self.refuse_ref(question.ref, reason, paid)

    def refuse_ref(self, ref: QuestionRef, reason: str, paid: Paid) -> None:
        """The same for a question of which only this much is known."""
        self._add(ref, paid, winner=None, reason="", refused=reason)

    def keep(self, question: Question, text: str | None, paid: Paid) -> bool:
        """Store what was replied and report progress; False if there is no judgement in it."""
        return self.keep_ref(question.ref, text, paid)

    def keep_ref(self, ref: QuestionRef, text: str | None, paid: Paid) -> bool:
        """The same for a question of which only this much is known."""
        preference = parse_reply(text)
        if preference is None:
            # How it began is stored for a person to see what the model does instead.
            self._add(ref, paid, winner=None, reason=(text or "")[:MAX_UNREADABLE])
            return False

        # The cost so far is the curve that a person watches.
        reason = preference.reason[:MAX_REASON]
        self._add(ref, paid, winner=preference.winner, reason=reason)
        self.judgements += 1
        self.log({f"llm/{slug(self.params.model)}/cost": self.cost}, self.judgements)
        return True

    def _add(self, ref: QuestionRef, paid: Paid, **outcome: Any) -> None:
        """Store a judgement, and add what is new of its cost."""
        # `paid` has what earlier replies took; this run's cost is what came since.
        self.cost += paid.cost - self._paid(ref.key).cost
        judgement = Judgement(
            **ref._asdict(),
            model=self.params.model,
            **outcome,
            **paid._asdict(),
        )
        self.store.add(judgement)
