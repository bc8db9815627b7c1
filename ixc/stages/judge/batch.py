"""OpenAI's Batch API: requests go up as one file, replies come down within a day, and no kill pays twice.

What is under way is on disk beside the verdicts before it is sent. A batch whose id was never heard of, for the
process died in between, is found again on the server by the digest of its requests, which it carries along.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import openai
from openai import OpenAI
from openai.types import Batch
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from ixc.clients.ledger import MAX_REASKS, Due, Ledger, Paid, Usage, due
from ixc.clients.replies import (
    TooLong,
    completion_of,
    http_client,
    refusal_of,
    too_long,
    wire_bytes,
)
from ixc.clients.server import (
    MAX_REFUSED_AT_FIRST,
    MAX_RETRIES,
    ServerFailed,
    address,
    all_refused,
    api_key,
    client_options,
    hopeless,
    read,
    refusal,
    words,
)
from ixc.data.media import BadMedia
from ixc.io.files import replacing
from ixc.params import LLMJudgeParams
from ixc.stages.judge.questions import Question
from ixc.stages.judge.store import Asked

MAX_BYTES = 100_000_000
"""Of a batch's file; OpenAI takes 200 MB."""
ENDPOINT = "/v1/chat/completions"
OVER = ("completed", "expired", "cancelled")


@runtime_checkable
class BatchLedger(Ledger[Question], Protocol):
    """A ledger that can also be written when only the short form of a question is left, after a kill."""

    def keep_asked(self, asked: Asked, text: str | None, paid: Paid, /) -> bool:
        """As `keep`."""
        ...

    def refuse_asked(self, asked: Asked, reason: str, paid: Paid, /) -> None:
        """As `refuse`."""
        ...


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Pending:
    """A batch under way, as the disk knows it."""

    digest: str
    """SHA-256 of its requests."""
    batch: str | None = None
    """Its id; None until the server has told it."""
    asked: list[Asked] = field(default_factory=list)
    paid: dict[str, Paid] = field(default_factory=dict)
    """What earlier replies to the same questions took, by key; so its replies may be read, and stored, twice."""


_PENDING = TypeAdapter(Pending)


def ask_in_batches(
    section: str,
    params: LLMJudgeParams,
    questions: Iterable[Question],
    ledger: BatchLedger,
    verdicts: Path,
) -> Usage:
    """Ask every question that is due, `batch_size` at a time, after reading a batch that an earlier run has left.

    Args:
        section: where `params` stands in `params.yaml`, for messages.
        verdicts: the file beside which is noted what is under way.

    Raises:
        ServerRefused: key, address or model is missing or wrong.
        ServerFailed: the server cannot be reached, refused a file, or answered a whole batch with errors.
    """
    state, todo = verdicts.with_suffix(".batch.json"), due(questions, ledger)
    if not todo.jobs and not state.exists():
        return todo.usage()
    key = api_key(section, params)
    failure: Exception
    try:
        replies = _Replies(ledger.max_bytes)
        options = client_options(params, key, MAX_RETRIES)
        with OpenAI(**options, http_client=http_client(replies.max_bytes)) as client:
            return _Batches(section, params, key, client, state, ledger, todo, replies).all()
    except (openai.APIError, TooLong) as error:
        said = words(key, f"{type(error).__name__}: {too_long(error) or error}")
        failure = ServerFailed(f"{address(section, params)}: {said}")
        failure = refusal(section, params, error) if hopeless(error) else failure
    raise failure  # out here, so that no traceback holds a server's echo of the key


class _Replies:
    """How long the next reply may be: a batch's file has one for each question."""

    def __init__(self, max_text_bytes: int) -> None:
        self.each, self.count = wire_bytes(max_text_bytes), 1

    def max_bytes(self) -> int:
        """Of the next one."""
        return self.each * self.count


class _Batches:
    """One batch after the other."""

    def __init__(
        self,
        section: str,
        params: LLMJudgeParams,
        key: str,
        client: OpenAI,
        state: Path,
        ledger: BatchLedger,
        todo: Due[Question],
        file_replies: _Replies,
    ) -> None:
        self.where, self.params, self.key, self.client = (
            address(section, params),
            params,
            key,
            client,
        )
        self.state, self.requests = state, state.with_suffix(".jsonl")
        self.ledger, self.questions = ledger, todo.jobs
        self.usage, self.dearest = todo.usage(), todo.dearest
        self.works, self.file_replies = todo.answered + todo.refused > 0, file_replies
        self.held: list[tuple[Asked, str, Paid]] = []
        """Refusals that may yet turn out to be the parameters' fault."""
        self.replies = 0
        self.tried: Counter[str] = Counter()
        """How often a question was sent in this run."""
        self.unusable: set[str] = set()
        """Questions whose pictures cannot be shown."""

    def all(self) -> Usage:
        """Everything that the budget allows."""
        given_up, batches = self.usage.unreadable, 0
        if self.state.exists():
            self.finish(_PENDING.validate_json(self.state.read_bytes()))
        while todo := self.next():
            asked = self.write(todo)
            if asked:
                self.finish(self.submit(asked))
            else:
                self.forget()
            batches += 1
            self.check(batches)
        if self.held:
            raise self.all_refused()
        return self.outcome(given_up)

    def check(self, batches: int) -> None:
        """Stop a run whose first batches brought nothing but errors, or all of whose batches did."""
        if self.replies or self.works or not self.usage.last_error:
            return
        if batches > MAX_REASKS or not self.next():
            raise ServerFailed(f"{self.where}: no request came through ({self.usage.last_error})")

    def outcome(self, given_up: int) -> Usage:
        """What became of the questions; so many had been given up before."""
        unanswered = [question for question in self.questions if not self.ledger.answered(question)]
        vain = [self.ledger.paid(question).given_up for question in unanswered]
        failed = [
            self.tried[one.key] > MAX_REASKS and not self.ledger.refused(one) for one in unanswered
        ]
        self.usage.unreadable = given_up + sum(vain)
        self.usage.unreachable = sum(
            failure and not done for failure, done in zip(failed, vain, strict=True)
        )
        refused = [self.ledger.refused(question) for question in unanswered]
        settled = sum(vain) + sum(refused) + self.usage.unreachable + self.usage.unusable_media
        self.usage.left = len(unanswered) - settled
        self.usage.tell_media(self.where)
        return self.usage

    def next(self) -> list[Question]:
        """The questions of the next batch, as far as the budget goes; a few, while no price is known."""
        room = min(self.params.batch_size, self.params.max_requests - self.usage.requests)
        if self.params.max_cost is not None and self.dearest:
            room = min(room, int((self.params.max_cost - self.usage.spent) / self.dearest))
        elif self.params.max_cost is not None and not self.replies:
            room = min(room, self.params.concurrency)
        todo = sorted(
            filter(self.open, self.questions), key=lambda question: self.tried[question.key]
        )
        return todo[: max(room, 0)]

    def open(self, question: Question) -> bool:
        """Whether it is worth another request."""
        vain = self.tried[question.key] > MAX_REASKS or self.ledger.paid(question).given_up
        settled = self.ledger.answered(question) or self.ledger.refused(question)
        settled = settled or any(question.key == asked.key for asked, _, _ in self.held)
        return not vain and not settled and question.key not in self.unusable

    def submit(self, questions: Sequence[Question]) -> Pending:
        """Send the requests that were written."""
        asked = [question.asked for question in questions]
        paid = {
            question.key: paid
            for question in questions
            if (paid := self.ledger.paid(question)).attempts
        }
        digest = hashlib.sha256(self.requests.read_bytes()).hexdigest()
        self.tried.update(one.key for one in asked)
        pending = self.remember(Pending(digest=digest, asked=asked, paid=paid))
        uploaded = self.client.files.create(file=self.requests, purpose="batch")
        batch = self.client.batches.create(
            input_file_id=uploaded.id,
            endpoint=ENDPOINT,
            completion_window="24h",
            metadata={"digest": pending.digest},
        )
        return self.remember(replace(pending, batch=batch.id))

    def write(self, questions: Sequence[Question]) -> list[Question]:
        """The requests as a JSONL file of at most `MAX_BYTES`, but at least one that can be made; what it asks."""
        asked: list[Question] = []
        with self.requests.open("wb") as file:
            for question in questions:
                data = self.line(question)
                if asked and file.tell() + len(data) > MAX_BYTES:
                    break
                file.write(data)
                asked += [question] if data else []
        return asked

    def line(self, question: Question) -> bytes:
        """A request; none if its pictures cannot be used, which is noted."""
        try:
            body = {"model": self.params.model, **self.ledger.request(question)}
        except BadMedia as error:
            self.unusable.add(question.key)
            self.usage.media[str(error)] += 1
            return b""
        line = {"custom_id": question.key, "method": "POST", "url": ENDPOINT, "body": body}
        return json.dumps(line).encode() + b"\n"

    def remember(self, pending: Pending) -> Pending:
        """Write down what is under way."""
        with replacing(self.state) as part:
            part.write_bytes(_PENDING.dump_json(pending))
        return pending

    def finish(self, pending: Pending) -> None:
        """Wait for a batch and keep its replies; one that never reached the server is forgotten."""
        batch = self.find(pending)
        if batch is not None:
            self.take(self.wait(batch), pending)
        self.forget()

    def forget(self) -> None:
        """Nothing is under way."""
        for path in (self.state, self.requests):
            path.unlink(missing_ok=True)

    def find(self, pending: Pending) -> Batch | None:
        """The server's side of a batch."""
        if pending.batch is not None:
            return self.client.batches.retrieve(pending.batch)
        recent = (
            batch
            for batch, _ in zip(self.client.batches.list(limit=100), range(1000), strict=False)
        )
        return next((b for b in recent if (b.metadata or {}).get("digest") == pending.digest), None)

    def wait(self, batch: Batch) -> Batch:
        """The batch when it is over.

        Raises:
            ServerFailed: the server refused its file, or has too much to do.
        """
        while batch.status not in OVER:
            if batch.status == "failed":
                self.forget()
                details = (batch.errors and batch.errors.data) or []
                said = words(self.key, "; ".join(str(detail.message) for detail in details))
                raise ServerFailed(
                    f"{self.where}: batch {batch.id} failed: {said or 'no reason given'}"
                )
            time.sleep(self.params.poll_s)
            batch = self.client.batches.retrieve(batch.id)
        return batch

    def take(self, batch: Batch, pending: Pending) -> None:
        """Keep the replies of a batch; refusals last, when it is known whether there was anything else."""
        asked = {one.key: one for one in pending.asked}
        for line in self.lines(batch, len(pending.asked)):
            one = asked.pop(str(line.get("custom_id")), None)
            if one is not None:
                self.usage.done += self.keep_line(one, pending.paid.get(one.key, Paid()), line)
        self.usage.requests += len(pending.asked)
        if self.replies or self.works:
            self.release()
        elif len(self.held) >= MAX_REFUSED_AT_FIRST:
            self.forget()
            raise self.all_refused()

    def release(self) -> None:
        """Store the refusals that were held back."""
        for refused in self.held:
            self.ledger.refuse_asked(*refused)
        self.held.clear()

    def all_refused(self) -> ServerFailed:
        """Nothing but refusals that name no content, at the very first: they are not stored."""
        return all_refused(self.where, len(self.held), self.usage.last_refusal)

    def lines(self, batch: Batch, count: int) -> Iterator[dict[str, Any]]:
        """The replies, then the errors; what is no JSON object is passed over, its question counts as not answered."""
        for id in filter(None, (batch.output_file_id, batch.error_file_id)):
            for line in self.file(id, count).split("\n"):
                with suppress(ValueError, RecursionError):
                    found = json.loads(line)
                    if isinstance(found, dict):
                        yield found

    def file(self, id: str, count: int) -> str:
        """The server's file of so many replies; a longer one says nothing, or every later run would stop at it."""
        self.file_replies.count = count
        try:
            return self.client.files.content(id).text
        except (openai.APIError, TooLong) as error:
            if (cut := too_long(error)) is None:
                raise
            self.usage.last_error = str(cut)
            return ""
        finally:
            self.file_replies.count = 1

    def keep_line(self, asked: Asked, before: Paid, line: dict[str, Any]) -> bool:
        """Keep one reply, if it can be read."""
        response = line.get("response") if isinstance(line.get("response"), dict) else {}
        body = (response or {}).get("body") or {}
        if not isinstance(body, dict) or not isinstance(body.get("choices"), list):
            return self.keep_error(
                asked, before, (response or {}).get("status_code"), line.get("error") or body
            )
        said, paid = read(self.params, self.key, completion_of(body), before, self.ledger.max_bytes)
        self.replies += 1
        cost = paid.cost - before.cost
        self.usage.cost += cost
        self.usage.spent += cost
        self.dearest = max(self.dearest, cost)
        if said.refused is not None:
            self.refuse(asked, said.refused, paid)
            return False
        return self.ledger.keep_asked(asked, said.text, paid)

    def keep_error(self, asked: Asked, before: Paid, status: object, error: object) -> bool:
        """Keep a refusal; note any other error, after which the question is asked again."""
        refusal = refusal_of(status, error) if isinstance(status, int) else None
        if refusal is None:
            self.usage.last_error = words(self.key, json.dumps(error))
            return False
        self.works |= refusal.about_content
        self.refuse(asked, words(self.key, refusal.reason), before)
        return False

    def refuse(self, asked: Asked, reason: str, paid: Paid) -> None:
        """Note a refusal, which is stored with its batch."""
        self.usage.refused += 1
        self.usage.last_refusal = reason
        self.held.append((asked, reason, paid))
