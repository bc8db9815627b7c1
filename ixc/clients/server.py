"""Asking an OpenAI-compatible server: bounded, within a budget, patient with its faults, silent about the key."""

import asyncio
import os
import random
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar

import openai
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from ixc.clients.replies import (
    Refusal,
    Response,
    TooLong,
    async_http_client,
    httpx,
    one_line,
    read_completion,
    refusal_of,
    too_long,
    wire_bytes,
)
from ixc.clients.usage import Due, Ledger, Paid, Usage, due
from ixc.data.media import BadMedia
from ixc.io.files import track
from ixc.params import ServerParams

T = TypeVar("T")

MAX_RETRIES = 4
"""Of one request, with growing pauses: 429, 5xx, time-outs, lost connections, bodies that are no completion."""
MAX_PAUSE_S = 120.0
"""Between two of them, however long the server asks for."""
MAX_WORDS = 300
"""Characters of a server's words that are stored or printed."""
MAX_REFUSED_AT_FIRST = 16
"""Refusals in a row, before any reply ever came, that are taken for the fault of the parameters."""


class ServerRefused(ValueError):
    """Key, address or model is wrong: to try again cannot help."""


class ServerFailed(RuntimeError):
    """No request comes through: to try again, later, may help."""


class Garbled(RuntimeError):
    """A body that is no completion: half of one, or a page of another server; nothing says what it cost."""


def ask_all(section: str, params: ServerParams, jobs: Iterable[T], ledger: Ledger[T]) -> Usage:
    """Ask about every job that is due, `concurrency` at a time, until all are stored or the budget is spent.

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
    asking = _Asking(section, params, key, ledger, todo)
    usage = asyncio.run(asking.all())
    usage.warn_media(where)

    # Failures alone are worth an error, unless the server was there and has answered before.
    refused = usage.refused - todo.refused
    nothing_done = usage.unreachable and not usage.done and not refused
    if nothing_done and not (asking.reached and todo.answered):
        raise ServerFailed(f"{where}: no request came through ({usage.last_error}); is it up?")

    # What was given up or refused by earlier runs is not among the jobs of this one.
    unreadable = usage.unreadable - todo.given_up
    settled = usage.done + unreadable + refused + usage.unreachable + usage.unusable_media
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
        raise ServerRefused(
            f"{section}.api_key_env: {params.api_key_env!r}: no such variable; {remedy}"
        )
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


def words(key: str, text: str) -> str:
    """What a server said, short and in one line; cut behind the key's removal, or the half of it would stay."""
    return without(key, one_line(text))[:MAX_WORDS]


def hopeless(error: Exception) -> bool:
    """Whether every other request would fail like this one: key, credit, address or model is wrong."""
    if not isinstance(error, openai.APIStatusError):
        return False
    if error.status_code not in (401, 402, 403, 404):
        return False
    return refusal_of(error.status_code, error.body) is None


def all_refused(where: str, count: int, reason: str) -> ServerFailed:
    """What to stop with where a server refuses everything, which may be the parameters' fault."""
    return ServerFailed(
        f"{where}: no request came through: {count} of {count} refused ({reason}); see to the parameters"
    )


def refused(error: Exception) -> Refusal | None:
    """An error that is about its question; None for any other."""
    cut = too_long(error)
    if cut is not None:
        return Refusal(str(cut), about_content=False)
    if isinstance(error, openai.APIStatusError):
        return refusal_of(error.status_code, error.body)
    return None


def reached(error: Exception) -> bool:
    """Whether a server was there, be it that it failed."""
    # Who reads too slowly was connected.
    timed_out = isinstance(error.__cause__, httpx.ReadTimeout)
    return not isinstance(error, openai.APIConnectionError) or timed_out


def passing(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if too_long(error) is not None:
        return False
    if not isinstance(error, openai.APIStatusError):
        return True  # time-outs, lost connections, garbled bodies
    should_retry = error.response.headers.get("x-should-retry")
    if should_retry in ("true", "false"):
        return should_retry == "true"
    return error.status_code in (408, 409, 429, *range(500, 600))


def pause_s(error: Exception, retry: int) -> float:
    """Seconds until the next try: what the server asks for, or else twice as long as before the last, up to 8."""
    headers = error.response.headers if isinstance(error, openai.APIStatusError) else {}
    for name, units in (("retry-after-ms", 1000), ("retry-after", 1)):
        with suppress(KeyError, ValueError):  # it may also be a date
            requested = float(headers[name]) / units
            if requested > 0:
                return min(requested, MAX_PAUSE_S)
    return min(0.5 * 2**retry, 8.0) * random.uniform(0.75, 1)


def refusal(section: str, params: ServerParams, error: Exception) -> ServerRefused:
    """A hopeless error as a sentence; the server's own words may hold the key and are left out."""
    status = getattr(error, "status_code", "")
    where = address(section, params)
    return ServerRefused(f"{where}: {status}: check ${params.api_key_env}, model and base_url")


def client_options(params: ServerParams, key: str, max_retries: int) -> dict[str, Any]:
    """How the client is set up, be it asynchronous or not."""
    return {
        "api_key": key,
        "base_url": params.base_url,
        "timeout": params.timeout_s,
        "max_retries": max_retries,
    }


class _Asking(Generic[T]):
    """The requests of one run."""

    def __init__(
        self, section: str, params: ServerParams, key: str, ledger: Ledger[T], todo: Due[T]
    ) -> None:
        self.section, self.params, self.key, self.ledger = section, params, key, ledger
        self.jobs, self.usage = todo.jobs, todo.usage()
        self.max_cost_seen = todo.max_cost_seen
        """Of a reply, in US dollars: what the next one is reckoned with."""
        self.in_flight = self.failed_in_a_row = 0
        self.reached = False
        """Whether a server was there."""
        self.works = todo.answered + todo.refused > 0
        """Whether the parameters are known to be good."""
        self.held: list[tuple[T, str]] = []
        """Refusals that may yet turn out to be the parameters' fault."""

    async def all(self) -> Usage:
        """Work off the jobs; on the first hopeless error, stop."""
        jobs = iter(track(self.jobs, f"asking {self.params.model}", len(self.jobs)))
        http = async_http_client(wire_bytes(self.ledger.max_bytes))
        options = client_options(self.params, self.key, 0)  # we try again: each try counts
        async with AsyncOpenAI(**options, http_client=http) as client:
            workers = [
                asyncio.create_task(self.work(client, jobs)) for _ in range(self.params.concurrency)
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        if self.held:
            raise self.all_refused()
        return self.usage

    async def work(self, client: AsyncOpenAI, jobs: Iterator[T]) -> None:
        """One of the workers that share the jobs."""
        while self.affordable(self.in_flight + 1) and (job := next(jobs, None)) is not None:
            failure: Exception | None = None
            self.usage.requests += 1  # at once, for the other workers reckon with it
            self.in_flight += 1
            try:
                await self.settle(client, job)
            except BadMedia as error:
                self.usage.requests -= 1  # none was sent
                self.usage.media[str(error)] += 1
            except (openai.APIError, Garbled, TooLong) as error:
                failure = self.failure(job, error)
            finally:
                self.in_flight -= 1
            if failure:  # raised out here, so that no traceback holds a server's echo of the key
                raise failure

    def failure(self, job: T, error: Exception) -> Exception | None:
        """What to stop with, if an error is hopeless or the last of many."""
        self.reached |= reached(error)
        if hopeless(error):
            return refusal(self.section, self.params, error)
        if (no := refused(error)) is not None:
            return self.refusal(job, no)
        self.usage.unreachable += 1
        self.usage.last_error = words(self.key, f"{type(error).__name__}: {error}")
        self.failed_in_a_row += 1
        if self.failed_in_a_row < 3 * self.params.concurrency:
            return None
        reason = f"{self.failed_in_a_row} requests in a row failed ({self.usage.last_error})"
        return ServerFailed(f"{address(self.section, self.params)}: {reason}")

    def refusal(self, job: T, no: Refusal) -> Exception | None:
        """Note a refusal; what to stop with, if nothing but refusals came and they may be the parameters' fault."""
        reason = words(self.key, no.reason)
        self.works |= no.about_content  # who looks at what is asked has taken the parameters
        self.failed_in_a_row = 0
        self.usage.refused += 1
        self.usage.last_refusal = reason
        self.held.append((job, reason))
        if self.works:
            self.release()
        elif len(self.held) >= max(MAX_REFUSED_AT_FIRST, 3 * self.params.concurrency):
            return self.all_refused()
        return None

    def all_refused(self) -> ServerFailed:
        """Nothing but refusals that name no content, at the very first: they are not stored."""
        return all_refused(
            address(self.section, self.params), len(self.held), self.usage.last_refusal
        )

    def release(self) -> None:
        """Store the refusals that were held back."""
        for job, reason in self.held:
            self.ledger.refuse(job, reason, self.ledger.paid(job))
        self.held.clear()

    def affordable(self, in_flight: int) -> bool:
        """Whether one more request is within the budget, if those in flight cost as much as the costliest so far."""
        cost = self.usage.spent + in_flight * self.max_cost_seen
        within = self.params.max_cost is None or cost <= self.params.max_cost
        return within and self.usage.requests < self.params.max_requests

    async def settle(self, client: AsyncOpenAI, job: T) -> None:
        """Ask until the reply can be stored, or there were too many that cannot be read."""
        # In a thread, for images take their time to load and the other workers need not wait.
        arguments = await asyncio.to_thread(self.ledger.request, job)
        paid = self.ledger.paid(job)
        while True:
            reply = await self.send(client, arguments)
            response, paid = self.account(reply, paid)
            if response.refused is not None:
                self.usage.refused += 1
                self.usage.last_refusal = response.refused
                self.ledger.refuse(job, response.refused, paid)
                return
            if self.ledger.keep(job, response.text, paid):
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
            openai.APIError, Garbled, TooLong: the last failure.
        """
        retry = 0
        while True:
            try:
                return await _completion(client, self.params, arguments)
            except (openai.APIError, Garbled, TooLong) as error:
                if retry == MAX_RETRIES or not passing(error):
                    raise
                if not self.affordable(self.in_flight):
                    raise
                pause = pause_s(error, retry)
            retry += 1
            self.usage.requests += 1
            await asyncio.sleep(pause)

    def account(self, reply: ChatCompletion, before: Paid) -> tuple[Response, Paid]:
        """What a reply says, and what the job has cost with it."""
        self.failed_in_a_row = 0
        self.reached = self.works = True
        self.release()
        response, paid = read(self.params, self.key, reply, before, self.ledger.max_bytes)
        cost = paid.cost - before.cost
        self.usage.cost += cost
        self.usage.spent += cost
        self.max_cost_seen = max(self.max_cost_seen, cost)
        return response, paid


async def _completion(
    client: AsyncOpenAI, params: ServerParams, arguments: dict[str, Any]
) -> ChatCompletion:
    # `timeout_s` bounds each wait, and a server may send byte after byte for ever.
    whole_s = 2 * params.timeout_s
    try:
        async with asyncio.timeout(whole_s):
            reply: object = await client.chat.completions.create(model=params.model, **arguments)
    except TimeoutError:
        raise Garbled(f"no whole reply within {whole_s:g} s") from None
    except (openai.APIStatusError, openai.APIConnectionError, TooLong):
        raise
    except (
        Exception
    ) as error:  # a body may be anything, and the client raises what it stumbles over
        raise Garbled(f"a body that is no JSON ({type(error).__name__})") from None
    if not isinstance(reply, ChatCompletion):  # a body that is not JSON comes as text
        raise Garbled("a body that is no chat completion")
    return reply


def read(
    params: ServerParams, key: str, reply: ChatCompletion, paid: Paid, max_bytes: int
) -> tuple[Response, Paid]:
    """What a reply says, and what the job has cost with it; one that tells the key says nothing: it is never stored."""
    response = read_completion(reply, max_bytes)
    if response.text is not None and secret(key) and key in response.text:
        response = response._replace(text=None)
    if response.refused is not None:
        response = response._replace(refused=words(key, response.refused))
    return response, paid.plus(params, response.tokens_in, response.tokens_out)
