"""A model as judge of pairs, over any OpenAI-compatible server: request by request, or in batches."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ixc.clients.content import image_parts, text_part
from ixc.clients.ledger import Paid, Usage
from ixc.clients.server import address, ask_all
from ixc.metrics import Log, ignore
from ixc.params import LLMJudgeParams
from ixc.stages.judge.batch import ask_in_batches
from ixc.stages.judge.questions import Preference, Question, parse_reply
from ixc.stages.judge.store import Asked, Judgement, VerdictStore, slug

SECTION = "judge.judges"
SCHEMA = {"name": "preference", "strict": True, "schema": Preference.model_json_schema()}
MAX_KEPT = 500
"""Characters of a reply that cannot be read."""
MAX_REASON = 4000
"""Characters of a verdict's reason that are stored."""


def ask(
    params: LLMJudgeParams,
    asked: Iterable[Question],
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
    judge, questions = _Judge(params, media_root, store, log), _distinct(asked)
    if params.batch:
        usage = ask_in_batches(SECTION, params, questions, judge, store.path)
    else:
        usage = ask_all(SECTION, params, questions, judge)
    usage.tell_vain(address(SECTION, params), store.path, '"winner": null')
    return usage


def _distinct(asked: Iterable[Question]) -> Iterator[Question]:
    seen: set[str] = set()
    for question in asked:
        if question.key not in seen:
            seen.add(question.key)
            yield question


class _Judge:
    """How a question is put, and what is kept of the replies."""

    max_bytes = 100_000
    """Of a reply; a verdict with its reason has a few hundred."""

    def __init__(
        self, params: LLMJudgeParams, media_root: Path, store: VerdictStore, log: Log
    ) -> None:
        self.params, self.media_root, self.store, self.log = params, media_root, store, log
        self.judgements, self.cost = 0, 0.0

    def request(self, question: Question) -> dict[str, Any]:
        """One message, pictures first; a `Preference` is wanted, as structured output."""
        shown = (
            image_parts(medium, self.media_root, self.params) for medium in question.sample.media
        )
        content = [*(part for parts in shown for part in parts), text_part(question.text)]
        extra = {} if self.params.temperature is None else {"temperature": self.params.temperature}
        form = {"type": "json_schema", "json_schema": SCHEMA}
        return {
            "messages": [{"role": "user", "content": content}],
            "response_format": form,
            **extra,
        }

    def answered(self, question: Question) -> bool:
        """Whether the store knows a winner."""
        found = self.store.get(question.key)
        return found is not None and found.winner is not None

    def paid(self, question: Question) -> Paid:
        """What the store says that its replies took."""
        return self._paid(question.key)

    def _paid(self, key: str) -> Paid:
        found = self.store.get(key)
        return Paid() if found is None else Paid.stored(vars(found))

    def refused(self, question: Question) -> bool:
        """Whether the store says that it will not be judged."""
        found = self.store.get(question.key)
        return found is not None and found.refused is not None

    def refuse(self, question: Question, reason: str, paid: Paid) -> None:
        """Store that it will not be judged."""
        self.refuse_asked(question.asked, reason, paid)

    def refuse_asked(self, asked: Asked, reason: str, paid: Paid) -> None:
        """The same for a question of which only this much is known."""
        self._add(asked, paid, winner=None, reason="", refused=reason)

    def keep(self, question: Question, text: str | None, paid: Paid) -> bool:
        """Store what was replied and report progress; False if there is no judgement in it."""
        return self.keep_asked(question.asked, text, paid)

    def keep_asked(self, asked: Asked, text: str | None, paid: Paid) -> bool:
        """The same for a question of which only this much is known."""
        found = parse_reply(text)
        reason = found.reason[:MAX_REASON] if found else (text or "")[:MAX_KEPT]
        self._add(asked, paid, winner=found and found.winner, reason=reason)
        if found is None:
            return False
        self.judgements += 1
        self.log({f"llm/{slug(self.params.model)}/cost": self.cost}, self.judgements)
        return True

    def _add(self, asked: Asked, paid: Paid, **said: Any) -> None:
        self.cost += paid.cost - self._paid(asked.key).cost
        self.store.add(
            Judgement(**asked._asdict(), model=self.params.model, **said, **paid._asdict())
        )
