"""Asking an OpenAI-compatible server: bounded, within a budget, patient with its faults, silent about the key."""

import asyncio
import json
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import openai
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from ixc.files import track
from ixc.media import BadMedia
from ixc.params import ServerParams

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

MAX_RETRIES = 4
"""Of one request, with growing pauses: 429, 5xx, time-outs, lost connections, bodies that are no completion."""
MAX_PAUSE_S = 120.0
"""Between two of them, however long the server asks for."""
MAX_REASKS = 2
"""More replies that are asked, and paid, for a job, when one cannot be read."""
MAX_TOLD = 10
"""Unusable pictures that are named."""


class ServerRefused(ValueError):
    """Key, address or model is wrong: to try again cannot help."""


class ServerFailed(RuntimeError):
    """No request comes through: to try again, later, may help."""


class Garbled(RuntimeError):
    """A body that is no completion: half of one, or a page of another server; nothing says what it cost."""


class Paid(NamedTuple):
    """What one job took, re-asking included, in earlier runs, too."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    """US dollars."""
    attempts: int = 0
    """Replies, those that could not be read among them."""

    def plus(self, params: ServerParams, tokens_in: int, tokens_out: int) -> "Paid":
        """With another reply."""
        cost = (tokens_in * params.input_price + tokens_out * params.output_price) / 1e6
        return Paid(self.input_tokens + tokens_in, self.output_tokens + tokens_out, self.cost + cost, self.attempts + 1)

    @property
    def given_up(self) -> bool:
        """Whether so many replies could not be read that no other is asked for."""
        return self.attempts > MAX_REASKS


@dataclass
class Usage:
    """What asking took."""

    requests: int = 0
    """Sent, those among them that failed and were tried again; of a batch, its questions."""
    cost: float = 0.0
    """US dollars, in this run."""
    spent: float = 0.0
    """US dollars for the same jobs, in earlier runs, too: what `max_cost` bounds."""
    done: int = 0
    unreadable: int = 0
    """Jobs given up on, in this run or an earlier one, for no reply could be read; they are not asked again."""
    unreachable: int = 0
    """Jobs whose requests failed, however often they were tried; the next run asks them again."""
    left: int = 0
    """Jobs that the budget left for the next run."""
    media: Counter[str] = field(default_factory=Counter)
    """Why jobs could not be asked, for want of a picture or film, and how many; the next run tries them again."""
    last_error: str = ""

    @property
    def unusable_media(self) -> int:
        """Jobs that could not be asked."""
        return self.media.total()

    def metrics(self) -> dict[str, float | int]:
        """Its numbers by name."""
        names = ("requests", "cost", "unreadable", "unreachable", "unusable_media", "left")
        return {name: getattr(self, name) for name in names}

    def tell_media(self, where: str) -> None:
        """Name what could not be shown to the server."""
        for reason, count in self.media.most_common(MAX_TOLD):
            print(f"{where}: {count} not asked: {reason}", file=sys.stderr)
        if len(self.media) > MAX_TOLD:
            print(f"{where}: and {len(self.media) - MAX_TOLD:,} other pictures or films", file=sys.stderr)


@runtime_checkable
class Ledger(Protocol[T_contra]):
    """How jobs are put, and what is written down about them."""

    def request(self, job: T_contra, /) -> dict[str, Any]:
        """The arguments of `chat.completions.create`, all but the model; may take its time over pictures.

        Raises:
            BadMedia: one cannot be used.
        """
        ...

    def answered(self, job: T_contra, /) -> bool:
        """Whether a reply was kept."""
        ...

    def paid(self, job: T_contra, /) -> Paid:
        """What the replies so far took."""
        ...

    def keep(self, job: T_contra, text: str | None, paid: Paid, /) -> bool:
        """Store a reply, and what all took; False if it cannot be read, and only `paid` was stored."""
        ...


@dataclass(frozen=True)
class Due(Generic[T]):
    """What is to be asked, and what was paid before."""

    jobs: list[T]
    spent: float
    """US dollars, in earlier runs."""
    dearest: float
    """The highest price of a reply, in US dollars; 0 where none is known."""
    given_up: int

    def usage(self) -> Usage:
        """At the start."""
        return Usage(spent=self.spent, unreadable=self.given_up)


def due(jobs: Iterable[T], ledger: Ledger[T]) -> Due[T]:
    """Leave out what is answered, or given up."""
    found, spent, dearest, given_up = [], 0.0, 0.0, 0
    for job in jobs:
        paid = ledger.paid(job)
        spent += paid.cost
        dearest = max(dearest, paid.cost / max(paid.attempts, 1))
        if ledger.answered(job):
            continue
        given_up += paid.given_up
        if not paid.given_up:
            found.append(job)
    return Due(found, spent, dearest, given_up)


def ask_all(section: str, params: ServerParams, jobs: Iterable[T], ledger: Ledger[T]) -> Usage:
    """Ask about every job that is due, `concurrency` at a time, until all are kept or the budget is spent.

    Args:
        section: where `params` stands in `params.yaml`, for messages.

    Raises:
        ServerRefused: key, address or model is missing or wrong.
        ServerFailed: no request came through.
    """
    todo = due(jobs, ledger)
    if not todo.jobs:
        return todo.usage()
    key, where = api_key(section, params), address(section, params)
    usage = asyncio.run(_Asking(section, params, key, ledger, todo).all())
    usage.tell_media(where)
    if not usage.done and usage.unreachable:
        raise ServerFailed(f"{where}: no request came through ({usage.last_error}); is it up?")
    settled = usage.done + usage.unreadable - todo.given_up + usage.unreachable + usage.unusable_media
    usage.left = len(todo.jobs) - settled
    return usage


def api_key(section: str, params: ServerParams) -> str:
    """The key, from the environment.

    Raises:
        ServerRefused: there is none.
    """
    key = os.environ.get(params.api_key_env)
    if not key:
        remedy = "export it (any text, if the server asks for none)"
        raise ServerRefused(f"{section}.api_key_env: {params.api_key_env!r}: no such variable; {remedy}")
    return key


def address(section: str, params: ServerParams) -> str:
    """Who was asked, for messages."""
    return f"{section}: model {params.model!r} at {params.base_url or 'the default address'}"


_WORD = r"(?:[A-Z]?[a-z]{1,20}|[A-Z]{1,20})"


def secret(key: str) -> bool:
    """Whether a key is one: not a word or two, for a server that asks for none.

    >>> [secret(key) for key in ("e", "none", "not-needed", "sk-0123456789")]
    [False, False, False, True]
    """
    return len(key) >= 8 and not re.fullmatch(rf"{_WORD}(?:[-_. ]{_WORD})*", key)


def without(key: str, text: str) -> str:
    """An error's words: some servers echo the key in them; it must not reach a file or a message."""
    return re.sub(re.escape(key) if secret(key) else rf"(?<!\w){re.escape(key)}(?!\w)", "***", text)


def hopeless(error: Exception) -> bool:
    """Whether every other request would fail like this one."""
    return isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError | openai.NotFoundError)


def passing(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if not isinstance(error, openai.APIStatusError):
        return True  # time-outs, lost connections, garbled bodies
    told = error.response.headers.get("x-should-retry")
    return told == "true" if told in ("true", "false") else error.status_code in (408, 409, 429, *range(500, 600))


def pause_s(error: Exception, retry: int) -> float:
    """Seconds until the next try: what the server asks for, or else twice as long as before the last, up to 8."""
    headers = error.response.headers if isinstance(error, openai.APIStatusError) else {}
    for name, units in (("retry-after-ms", 1000), ("retry-after", 1)):
        with suppress(KeyError, ValueError):  # it may also be a date
            if (asked := float(headers[name]) / units) > 0:
                return min(asked, MAX_PAUSE_S)
    return min(0.5 * 2**retry, 8.0) * random.uniform(0.75, 1)


def refusal(section: str, params: ServerParams, error: Exception) -> ServerRefused:
    """A hopeless error as a sentence; the server's own words may hold the key and are left out."""
    status = getattr(error, "status_code", "")
    where = address(section, params)
    return ServerRefused(f"{where}: {status}: check ${params.api_key_env}, model and base_url")


def client_options(params: ServerParams, key: str, max_retries: int) -> dict[str, Any]:
    """How the client is set up, be it asynchronous or not."""
    return {"api_key": key, "base_url": params.base_url, "timeout": params.timeout_s, "max_retries": max_retries}


class _Asking(Generic[T]):
    """The requests of one run."""

    def __init__(self, section: str, params: ServerParams, key: str, ledger: Ledger[T], todo: Due[T]) -> None:
        self.section, self.params, self.key, self.ledger = section, params, key, ledger
        self.jobs, self.dearest, self.usage = todo.jobs, todo.dearest, todo.usage()
        self.in_flight = self.failed_in_a_row = 0

    async def all(self) -> Usage:
        """Work off the jobs; on the first hopeless error, stop."""
        left = iter(track(self.jobs, f"asking {self.params.model}", len(self.jobs)))
        async with AsyncOpenAI(**client_options(self.params, self.key, 0)) as client:  # we try again: each try counts
            workers = [asyncio.create_task(self.work(client, left)) for _ in range(self.params.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return self.usage

    async def work(self, client: AsyncOpenAI, left: Iterator[T]) -> None:
        """One of the workers that share the jobs."""
        while self.affordable(self.in_flight + 1) and (job := next(left, None)) is not None:
            failure: Exception | None = None
            self.usage.requests += 1  # at once, for the other workers reckon with it
            self.in_flight += 1
            try:
                await self.settle(client, job)
            except BadMedia as error:
                self.usage.requests -= 1  # none was sent
                self.usage.media[str(error)] += 1
            except (openai.APIError, Garbled) as error:
                failure = self.failure(error)
            finally:
                self.in_flight -= 1
            if failure:  # raised out here, so that no traceback holds a server's echo of the key
                raise failure

    def failure(self, error: Exception) -> Exception | None:
        """What to stop with, if an error is hopeless or the last of many."""
        if hopeless(error):
            return refusal(self.section, self.params, error)
        self.usage.unreachable += 1
        self.usage.last_error = without(self.key, f"{type(error).__name__}: {error}")
        self.failed_in_a_row += 1
        if self.failed_in_a_row < 3 * self.params.concurrency:
            return None
        said = f"{self.failed_in_a_row} requests in a row failed ({self.usage.last_error})"
        return ServerFailed(f"{address(self.section, self.params)}: {said}")

    def affordable(self, in_flight: int) -> bool:
        """Whether one more request is within the budget, if those in flight are as dear as the dearest so far."""
        cost = self.usage.spent + in_flight * self.dearest
        within = self.params.max_cost is None or cost <= self.params.max_cost
        return within and self.usage.requests < self.params.max_requests

    async def settle(self, client: AsyncOpenAI, job: T) -> None:
        """Ask until the reply can be kept, or there were too many that cannot be read."""
        arguments, paid = await asyncio.to_thread(self.ledger.request, job), self.ledger.paid(job)
        while True:
            text, paid = self.account(await self.send(client, arguments), paid)
            if self.ledger.keep(job, text, paid):
                self.usage.done += 1
                return
            if paid.given_up:
                self.usage.unreadable += 1
                return
            if not self.affordable(self.in_flight):
                return
            self.usage.requests += 1

    async def send(self, client: AsyncOpenAI, arguments: dict[str, Any]) -> ChatCompletion:
        """A reply, asked for again while its failures may pass, and each try is within the budget.

        Raises:
            openai.APIError, Garbled: the last failure.
        """
        retry = 0
        while True:
            try:
                return await _completion(client, self.params.model, arguments)
            except (openai.APIError, Garbled) as error:
                if retry == MAX_RETRIES or not passing(error) or not self.affordable(self.in_flight):
                    raise
                pause = pause_s(error, retry)
            retry += 1
            self.usage.requests += 1
            await asyncio.sleep(pause)

    def account(self, reply: ChatCompletion, before: Paid) -> tuple[str | None, Paid]:
        """A reply's text, None if there is none to keep, and what the job has cost with it."""
        self.failed_in_a_row = 0
        text, paid = read(self.params, self.key, reply, before)
        cost = paid.cost - before.cost
        self.usage.cost += cost
        self.usage.spent += cost
        self.dearest = max(self.dearest, cost)
        return text, paid


async def _completion(client: AsyncOpenAI, model: str, arguments: dict[str, Any]) -> ChatCompletion:
    try:
        reply: object = await client.chat.completions.create(model=model, **arguments)
    except (json.JSONDecodeError, openai.APIResponseValidationError):
        raise Garbled("a body that is no JSON") from None
    if not isinstance(reply, ChatCompletion):  # a body that is not JSON comes as text
        raise Garbled("a body that is no chat completion")
    return reply


def read(params: ServerParams, key: str, reply: ChatCompletion, paid: Paid) -> tuple[str | None, Paid]:
    """A reply's text, and what the job has cost with it.

    There is no text where the model refused, or where it tells the key, which is never to be stored.
    """
    used, message = reply.usage, reply.choices[0].message if reply.choices else None
    tokens = (getattr(used, name, None) or 0 for name in ("prompt_tokens", "completion_tokens"))
    text = getattr(message, "content", None)
    told = isinstance(text, str) and not (secret(key) and key in text)
    return text if told else None, paid.plus(params, *tokens)
