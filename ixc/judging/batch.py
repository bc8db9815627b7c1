"""OpenAI's Batch API: requests go up as one file, replies come down within a day, and no kill pays twice.

What is under way is on disk beside the verdicts before it is sent. A batch whose id was never heard of, for the
process died in between, is found again on the server by the digest of its requests, which it carries along.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import openai
from openai import OpenAI
from openai.types import Batch
from openai.types.chat import ChatCompletion
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ixc.files import replacing
from ixc.judging.questions import Question
from ixc.judging.store import Asked, VerdictStore
from ixc.params import LLMJudgeParams
from ixc.remote import (
    MAX_REASKS,
    Paid,
    Request,
    ServerFailed,
    Usage,
    address,
    api_key,
    client_options,
    hopeless,
    read,
    refusal,
    without,
)

MAX_BYTES = 100_000_000
"""Of a batch's file; OpenAI takes 200 MB."""
ENDPOINT = "/v1/chat/completions"
OVER = ("completed", "expired", "cancelled")
KeepAsked = Callable[[Asked, str | None, Paid], bool]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Pending:
    """A batch under way, as the disk knows it."""

    digest: str
    """SHA-256 of its requests."""
    batch: str | None = None
    """Its id; None until the server has told it."""
    asked: list[Asked] = field(default_factory=list)


_PENDING = TypeAdapter(Pending)


def ask_in_batches(
    section: str,
    params: LLMJudgeParams,
    questions: Sequence[Question],
    request: Request[Question],
    keep: KeepAsked,
    store: VerdictStore,
) -> Usage:
    """Ask every question, `batch_size` at a time, after reading a batch that an earlier run has left.

    Raises:
        ServerRefused: key, address or model is missing or wrong.
        ServerFailed: the server cannot be reached, refused a file, or answered a whole batch with errors.
    """
    state = store.path.with_suffix(".batch.json")
    if not questions and not state.exists():
        return Usage()
    key = api_key(section, params)
    failure: Exception
    try:
        with OpenAI(**client_options(params, key)) as client:
            return _Batches(section, params, key, client, state, request, keep).all(questions, store)
    except openai.APIError as error:
        said = without(key, f"{type(error).__name__}: {error.message}")
        failure = ServerFailed(f"{address(section, params)}: {said}")
        failure = refusal(section, params, error) if hopeless(error) else failure
    raise failure  # out here, so that no traceback holds a server's echo of the key


class _Batches:
    """One batch after the other."""

    def __init__(
        self,
        section: str,
        params: LLMJudgeParams,
        key: str,
        client: OpenAI,
        state: Path,
        request: Request[Question],
        keep: KeepAsked,
    ) -> None:
        self.where, self.params, self.key, self.client = address(section, params), params, key, client
        self.state, self.requests = state, state.with_suffix(".jsonl")
        self.request, self.keep = request, keep
        self.usage, self.dearest = Usage(), 0.0

    def all(self, questions: Sequence[Question], store: VerdictStore) -> Usage:
        """Everything that the budget allows."""
        tried: Counter[str] = Counter()
        if self.state.exists():
            self.finish(_PENDING.validate_json(self.state.read_bytes()))
        while todo := self.next(questions, store, tried):
            pending = self.submit(todo)
            tried.update(asked.key for asked in pending.asked)
            self.finish(pending)
            if not self.usage.done and self.usage.last_error:
                raise ServerFailed(f"{self.where}: no request came through ({self.usage.last_error})")
        unanswered = [question.key for question in questions if store.get(question.key) is None]
        self.usage.unreadable = sum(tried[key] > MAX_REASKS for key in unanswered)
        self.usage.left = len(unanswered) - self.usage.unreadable
        return self.usage

    def next(self, questions: Sequence[Question], store: VerdictStore, tried: Counter[str]) -> list[Question]:
        """The questions of the next batch, as far as the budget goes."""
        room = min(self.params.batch_size, self.params.max_requests - self.usage.requests)
        if self.params.max_cost is not None:
            rest = self.params.max_cost - self.usage.cost
            room = min(room, int(rest / self.dearest) if self.dearest else room)
        todo = (q for q in questions if store.get(q.key) is None and tried[q.key] <= MAX_REASKS)
        return [question for question, _ in zip(todo, range(max(room, 0)), strict=False)]

    def submit(self, questions: Sequence[Question]) -> Pending:
        """Send as many of the questions as fit into a file."""
        asked = self.write(questions)
        pending = Pending(digest=hashlib.sha256(self.requests.read_bytes()).hexdigest(), asked=asked)
        self.remember(pending)
        uploaded = self.client.files.create(file=self.requests, purpose="batch")
        batch = self.client.batches.create(
            input_file_id=uploaded.id,
            endpoint=ENDPOINT,
            completion_window="24h",
            metadata={"digest": pending.digest},
        )
        return self.remember(Pending(digest=pending.digest, batch=batch.id, asked=asked))

    def write(self, questions: Sequence[Question]) -> list[Asked]:
        """The requests as a JSONL file of at most `MAX_BYTES`, but at least one; what it asks."""
        asked: list[Asked] = []
        with self.requests.open("wb") as file:
            for question in questions:
                body = {"model": self.params.model, **self.request(question)}
                line = {"custom_id": question.key, "method": "POST", "url": ENDPOINT, "body": body}
                data = json.dumps(line).encode() + b"\n"
                if asked and file.tell() + len(data) > MAX_BYTES:
                    break
                file.write(data)
                asked.append(question.asked)
        return asked

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
        recent = (batch for batch, _ in zip(self.client.batches.list(limit=100), range(1000), strict=False))
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
                said = without(self.key, "; ".join(str(detail.message) for detail in details))
                raise ServerFailed(f"{self.where}: batch {batch.id} failed: {said or 'no reason given'}")
            time.sleep(self.params.poll_s)
            batch = self.client.batches.retrieve(batch.id)
        return batch

    def take(self, batch: Batch, pending: Pending) -> None:
        """Keep the replies of a batch."""
        asked = {one.key: one for one in pending.asked}
        for line in self.lines(batch):
            one = asked.pop(line.get("custom_id", ""), None)
            if one is not None:
                self.usage.done += self.keep_line(one, line)
        self.usage.requests += len(pending.asked)

    def lines(self, batch: Batch) -> Iterator[dict[str, Any]]:
        """The replies, then the errors."""
        for id in (batch.output_file_id, batch.error_file_id):
            text = self.client.files.content(id).text if id else ""
            yield from (json.loads(line) for line in text.split("\n") if line)

    def keep_line(self, asked: Asked, line: dict[str, Any]) -> bool:
        """Keep one reply, if it can be read."""
        body = (line.get("response") or {}).get("body") or {}
        try:
            text, paid = read(self.params, ChatCompletion.model_validate(body), Paid())
        except ValidationError:
            self.usage.last_error = without(self.key, json.dumps(line.get("error") or body))[:500]
            return False
        self.usage.cost += paid.cost
        self.dearest = max(self.dearest, paid.cost)
        return self.keep(asked, None if text is None else without(self.key, text), paid)
