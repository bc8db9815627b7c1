"""A model as judge of pairs, over any OpenAI-compatible server: request by request, or in batches."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ixc.judging.batch import ask_in_batches
from ixc.judging.questions import Preference, Question, parse
from ixc.judging.store import Asked, Judgement, VerdictStore, slug
from ixc.metrics import Log, ignore
from ixc.params import LLMJudgeParams
from ixc.remote import Paid, Usage, ask_all, picture_parts, text_part

SECTION = "judge.judges"
SCHEMA = {"name": "preference", "strict": True, "schema": Preference.model_json_schema()}


def ask(
    params: LLMJudgeParams, asked: Iterable[Question], media_root: Path, store: VerdictStore, *, log: Log = ignore
) -> Usage:
    """Ask every question the store cannot answer, until the budget is spent, and store the judgements.

    Raises:
        ServerRefused: key, address or model is missing or wrong.
        ServerFailed: no request came through.
    """
    unanswered = {question.key: question for question in asked if store.get(question.key) is None}
    judge, open_questions = _Judge(params, media_root, store, log), list(unanswered.values())
    if params.batch:
        return ask_in_batches(SECTION, params, open_questions, judge.request, judge.keep, store)
    return ask_all(SECTION, params, open_questions, judge.request, lambda q, *reply: judge.keep(q.asked, *reply))


class _Judge:
    """How a question is put, and what is kept of the reply."""

    def __init__(self, params: LLMJudgeParams, media_root: Path, store: VerdictStore, log: Log) -> None:
        self.params, self.media_root, self.store, self.log = params, media_root, store, log
        self.judgements, self.cost = 0, 0.0

    def request(self, question: Question) -> dict[str, Any]:
        """One message, pictures first; a `Preference` is wanted, as structured output."""
        shown = (picture_parts(medium, self.media_root, self.params) for medium in question.sample.media)
        content = [*(part for parts in shown for part in parts), text_part(question.text)]
        extra = {} if self.params.temperature is None else {"temperature": self.params.temperature}
        form = {"type": "json_schema", "json_schema": SCHEMA}
        return {"messages": [{"role": "user", "content": content}], "response_format": form, **extra}

    def keep(self, asked: Asked, text: str | None, paid: Paid) -> bool:
        """Store the judgement and report progress; False if there is none in the reply."""
        preference = parse(text)
        if preference is None:
            return False
        said = {"model": self.params.model, "winner": preference.winner, "reason": preference.reason}
        self.store.add(Judgement(**asked._asdict(), **said, **paid._asdict()))
        self.judgements += 1
        self.cost += paid.cost
        self.log({f"llm/{slug(self.params.model)}/cost": self.cost}, self.judgements)
        return True
