"""OpenAI's Batch API: requests go up as one file, replies come down within a day, and no kill pays twice.

What is under way is on disk beside the verdicts before it is sent. A batch whose id was never heard of, for the
process died in between, is found again on the server by the digest of its requests, which it carries along.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import openai
from openai import OpenAI
from openai.types import Batch
from pydantic import AliasChoices, ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

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
from ixc.clients.usage import MAX_REASKS, Due, Ledger, Paid, Usage, due
from ixc.data.media import BadMedia
from ixc.io.digests import file_sha256
from ixc.io.files import replacing
from ixc.params import LLMJudgeParams
from ixc.stages.judge.questions import Question
from ixc.stages.judge.store import QuestionRef

MAX_BYTES = 100_000_000
"""Of a batch's file; OpenAI takes 200 MB."""
ENDPOINT = "/v1/chat/completions"
OVER = ("completed", "expired", "cancelled")


@runtime_checkable
class BatchLedger(Ledger[Question], Protocol):
    """A ledger that can also be written when only the short form of a question is left, after a kill."""

    def keep_ref(self, ref: QuestionRef, text: str | None, paid: Paid, /) -> bool:
        """As `keep`."""
        ...

    def refuse_ref(self, ref: QuestionRef, reason: str, paid: Paid, /) -> None:
        """As `refuse`."""
        ...


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Pending:
    """A batch under way, as the disk knows it."""

    digest: str
    """SHA-256 of its requests."""
    batch: str | None = None
    """Its id; None until the server has given it one."""
    # A batch that was sent under the key's old name is paid for, and read all the same.
    questions: list[QuestionRef] = Field(
        default_factory=list, validation_alias=AliasChoices("questions", "asked")
    )
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
    state = verdicts.with_suffix(".batch.json")
    todo = due(questions, ledger)
    if not todo.jobs and not state.exists():
        return todo.usage()
    key = api_key(section, params)
    failure: Exception
    try:
        limit = _ReplyLimit(ledger.max_bytes)
        http = http_client(limit.max_bytes)
        options = client_options(params, key, MAX_RETRIES)
        with OpenAI(**options, http_client=http) as client:
            batches = _Batches(section, params, key, client, state, ledger, todo, limit)
            return batches.all()
    except (openai.APIError, TooLong) as error:
        reason = words(key, f"{type(error).__name__}: {too_long(error) or error}")
        failure = ServerFailed(f"{address(section, params)}: {reason}")
        if hopeless(error):
            failure = refusal(section, params, error)
    raise failure  # out here, so that no traceback holds a server's echo of the key


class _ReplyLimit:
    """How long the next reply may be: a batch's file has one for each question."""

    def __init__(self, max_text_bytes: int) -> None:
        self.each = wire_bytes(max_text_bytes)
        self.count = 1

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
        limit: _ReplyLimit,
    ) -> None:
        # What a batch is made with.
        self.where = address(section, params)
        self.params, self.key = params, key
        self.client, self.limit = client, limit
        self.state = state
        self.requests = state.with_suffix(".jsonl")
        self.ledger, self.questions = ledger, todo.jobs

        # What it has come to so far.
        self.usage = todo.usage()
        self.max_cost_seen = todo.max_cost_seen
        """Of a reply, in US dollars: what the next batch is reckoned with."""
        self.works = todo.answered + todo.refused > 0
        """Whether the parameters are known to be good."""
        self.held: list[tuple[QuestionRef, str, Paid]] = []
        """Refusals that may yet turn out to be the parameters' fault."""
        self.replies = 0
        self.tried: Counter[str] = Counter()
        """How often a question was sent in this run."""
        self.unusable: set[str] = set()
        """Questions whose media cannot be sent."""

    def all(self) -> Usage:
        """Everything that the budget allows."""
        given_up = self.usage.unreadable

        # First what an earlier run has left under way: it is paid for.
        if self.state.exists():
            self.finish(_PENDING.validate_json(self.state.read_bytes()))

        batches = 0
        while todo := self.next():
            written = self.write(todo)
            if written:
                self.finish(self.submit(written))
            else:  # of none could a request be made
                self.forget()
            batches += 1
            self.check(batches)

        # Refusals that are still held back at the end are the parameters' fault.
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
        unreadable = refused = unreachable = 0
        for question in unanswered:
            is_unreadable = self.ledger.paid(question).given_up
            is_refused = self.ledger.refused(question)
            tried_enough = self.tried[question.key] > MAX_REASKS
            unreadable += is_unreadable
            refused += is_refused
            unreachable += tried_enough and not is_refused and not is_unreadable

        # What is left was never sent, or waits for its next try.
        self.usage.unreadable = given_up + unreadable
        self.usage.unreachable = unreachable
        settled = unreadable + refused + unreachable + self.usage.unusable_media
        self.usage.left = len(unanswered) - settled
        self.usage.warn_media(self.where)
        return self.usage

    def next(self) -> list[Question]:
        """The questions of the next batch, as far as the budget goes; a few, while no price is known."""
        # While no price is known, a few show what the rest will cost.
        room = min(self.params.batch_size, self.params.max_requests - self.usage.requests)
        if self.params.max_cost is not None and self.max_cost_seen:
            money_left = self.params.max_cost - self.usage.spent
            room = min(room, int(money_left / self.max_cost_seen))
        elif self.params.max_cost is not None and not self.replies:
            room = min(room, self.params.concurrency)

        # Those that were tried least come first, or a few that fail would take every batch.
        open_questions = filter(self.open, self.questions)
        todo = sorted(open_questions, key=lambda question: self.tried[question.key])
        return todo[: max(room, 0)]

    def open(self, question: Question) -> bool:
        """Whether it is worth another request."""
        if self.tried[question.key] > MAX_REASKS or self.ledger.paid(question).given_up:
            return False
        if self.ledger.answered(question) or self.ledger.refused(question):
            return False
        is_held = any(question.key == ref.key for ref, _, _ in self.held)
        return not is_held and question.key not in self.unusable

    def submit(self, questions: Sequence[Question]) -> Pending:
        """Send the requests that were written."""
        refs = [question.ref for question in questions]
        paid = {question.key: self.ledger.paid(question) for question in questions}
        paid = {key: before for key, before in paid.items() if before.attempts}
        self.tried.update(ref.key for ref in refs)

        # Written down before it is sent: killed in between, the next run finds it by its digest.
        digest = file_sha256(self.requests)
        pending = self.remember(Pending(digest=digest, questions=refs, paid=paid))

        # With its id on disk the next run asks the server no more than for the state of this batch.
        uploaded = self.client.files.create(file=self.requests, purpose="batch")
        batch = self.client.batches.create(
            input_file_id=uploaded.id,
            endpoint=ENDPOINT,
            completion_window="24h",
            metadata={"digest": pending.digest},
        )
        return self.remember(replace(pending, batch=batch.id))

    def write(self, questions: Sequence[Question]) -> list[Question]:
        """The requests as a JSONL file of at most `MAX_BYTES`, but at least one that can be made; its questions."""
        written: list[Question] = []
        with self.requests.open("wb") as file:
            for question in questions:
                data = self.line(question)
                if written and file.tell() + len(data) > MAX_BYTES:
                    break
                if data:
                    file.write(data)
                    written.append(question)
        return written

    def line(self, question: Question) -> bytes:
        """A request; none if its media cannot be used, which is noted."""
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
        """Wait for a batch and store its replies; one that never reached the server is forgotten."""
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

        # Its id never came back. A thousand of the latest will do: it was sent at the end of the run before.
        recent = islice(self.client.batches.list(limit=100), 1000)
        for batch in recent:
            if (batch.metadata or {}).get("digest") == pending.digest:
                return batch
        return None

    def wait(self, batch: Batch) -> Batch:
        """The batch when it is over.

        Raises:
            ServerFailed: the server refused its file, or has too much to do.
        """
        while batch.status not in OVER:
            # Of a file that the server refuses nothing was paid: the next run may send another.
            if batch.status == "failed":
                self.forget()
                details = (batch.errors and batch.errors.data) or []
                reasons = "; ".join(str(detail.message) for detail in details)
                reason = words(self.key, reasons) or "no reason given"
                raise ServerFailed(f"{self.where}: batch {batch.id} failed: {reason}")
            time.sleep(self.params.poll_s)
            batch = self.client.batches.retrieve(batch.id)
        return batch

    def take(self, batch: Batch, pending: Pending) -> None:
        """Store the replies of a batch; refusals last, when it is known whether there was anything else."""
        refs = {ref.key: ref for ref in pending.questions}
        for line in self.lines(batch, len(pending.questions)):
            # Taken out, for a server may send a reply twice.
            ref = refs.pop(str(line.get("custom_id")), None)
            if ref is not None:
                before = pending.paid.get(ref.key, Paid())
                self.usage.done += self.keep_line(ref, before, line)
        self.usage.requests += len(pending.questions)

        # Nothing but refusals may be the parameters' fault, and then they are not stored.
        if self.replies or self.works:
            self.release()
        elif len(self.held) >= MAX_REFUSED_AT_FIRST:
            self.forget()
            raise self.all_refused()

    def release(self) -> None:
        """Store the refusals that were held back."""
        for ref, reason, paid in self.held:
            self.ledger.refuse_ref(ref, reason, paid)
        self.held.clear()

    def all_refused(self) -> ServerFailed:
        """Nothing but refusals that name no content, at the very first: they are not stored."""
        return all_refused(self.where, len(self.held), self.usage.last_refusal)

    def lines(self, batch: Batch, count: int) -> Iterator[dict[str, Any]]:
        """The replies, then the errors; what is no JSON object is passed over, its question counts as not answered."""
        for id in filter(None, (batch.output_file_id, batch.error_file_id)):
            for line in self.file(id, count).split("\n"):
                with suppress(ValueError, RecursionError):
                    content = json.loads(line)
                    if isinstance(content, dict):
                        yield content

    def file(self, id: str, count: int) -> str:
        """The server's file of so many replies; a longer one says nothing, or every later run would stop at it."""
        self.limit.count = count
        try:
            return self.client.files.content(id).text
        except (openai.APIError, TooLong) as error:
            if (cut := too_long(error)) is None:
                raise
            self.usage.last_error = str(cut)
            return ""
        finally:
            self.limit.count = 1

    def keep_line(self, ref: QuestionRef, before: Paid, line: dict[str, Any]) -> bool:
        """Store one reply, if it can be read."""
        # A line is what the server made of it: any of its fields may be missing, or something else.
        http_response = line.get("response")
        if not isinstance(http_response, dict):
            http_response = {}
        body = http_response.get("body") or {}
        if not isinstance(body, dict) or not isinstance(body.get("choices"), list):
            status = http_response.get("status_code")
            return self.keep_error(ref, before, status, line.get("error") or body)

        completion = completion_of(body)
        response, paid = read(self.params, self.key, completion, before, self.ledger.max_bytes)
        self.replies += 1
        cost = paid.cost - before.cost
        self.usage.cost += cost
        self.usage.spent += cost
        self.max_cost_seen = max(self.max_cost_seen, cost)

        if response.refused is not None:
            self.refuse(ref, response.refused, paid)
            return False
        return self.ledger.keep_ref(ref, response.text, paid)

    def keep_error(self, ref: QuestionRef, before: Paid, status: object, error: object) -> bool:
        """Store a refusal; note any other error, after which the question is asked again."""
        refusal = refusal_of(status, error) if isinstance(status, int) else None
        if refusal is None:
            self.usage.last_error = words(self.key, json.dumps(error))
            return False
        # Who objects to what is asked has taken the parameters.
        self.works |= refusal.about_content
        self.refuse(ref, words(self.key, refusal.reason), before)
        return False

    def refuse(self, ref: QuestionRef, reason: str, paid: Paid) -> None:
        """Note a refusal, which is stored with its batch."""
        self.usage.refused += 1
        self.usage.last_refusal = reason
        self.held.append((ref, reason, paid))
