"""Asking an OpenAI-compatible server: bounded, within a budget, patient with its faults, silent about the key."""

import asyncio
import base64
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import openai
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion
from PIL import Image

from ixc.files import track
from ixc.media import load_picture, read_frames
from ixc.params import ServerParams
from ixc.samples import Media

T = TypeVar("T")
Part = dict[str, Any]
"""One `text` or `image_url` of a message."""

MAX_RETRIES = 4
"""Of the client, with growing pauses: 429, 5xx, time-outs and lost connections."""
MAX_REASKS = 2
"""More requests for one job, when the server's reply cannot be read."""


class ServerRefused(ValueError):
    """Key, address or model is wrong: to try again cannot help."""


class ServerFailed(RuntimeError):
    """No request comes through: to try again, later, may help."""


class Paid(NamedTuple):
    """What one job took, re-asking included."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    """US dollars."""

    def plus(self, params: ServerParams, tokens_in: int, tokens_out: int) -> "Paid":
        """With another reply."""
        cost = (tokens_in * params.input_price + tokens_out * params.output_price) / 1e6
        return Paid(self.input_tokens + tokens_in, self.output_tokens + tokens_out, self.cost + cost)


@dataclass
class Usage:
    """What asking took."""

    requests: int = 0
    cost: float = 0.0
    """US dollars."""
    done: int = 0
    unreadable: int = 0
    """Jobs given up on, for no reply could be read; the next run asks them again."""
    unreachable: int = 0
    """Jobs whose requests failed, the client's retries included; the next run asks them again."""
    left: int = 0
    """Jobs that the budget left for the next run."""
    last_error: str = ""

    def metrics(self) -> dict[str, float | int]:
        """Its numbers by name."""
        names = ("requests", "cost", "unreadable", "unreachable", "left")
        return {name: getattr(self, name) for name in names}


Request = Callable[[T], dict[str, Any]]
"""The arguments of `chat.completions.create` for a job, all but the model; may take its time over pictures."""
Keep = Callable[[T, str | None, Paid], bool]
"""Stores what was replied to a job; False if it cannot be read."""


def ask_all(section: str, params: ServerParams, jobs: Sequence[T], request: Request[T], keep: Keep[T]) -> Usage:
    """Ask about every job, `concurrency` at a time, until all are kept or the budget is spent.

    Args:
        section: where `params` stands in `params.yaml`, for messages.

    Raises:
        ServerRefused: key, address or model is missing or wrong.
        ServerFailed: no request came through.
    """
    if not jobs:
        return Usage()
    key = api_key(section, params)
    usage = asyncio.run(_Asking(section, params, key, request, keep).all(jobs))
    if not usage.done and usage.unreachable:
        raise ServerFailed(f"{address(section, params)}: no request came through ({usage.last_error}); is it up?")
    usage.left = len(jobs) - usage.done - usage.unreadable - usage.unreachable
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


def without(key: str, text: str) -> str:
    """Some servers echo the key; it must not reach a file or a message."""
    return text.replace(key, "***")


def hopeless(error: openai.APIError) -> bool:
    """Whether every other request would fail like this one."""
    return isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError | openai.NotFoundError)


def refusal(section: str, params: ServerParams, error: openai.APIError) -> ServerRefused:
    """A hopeless error as a sentence; the server's own words may hold the key and are left out."""
    status = getattr(error, "status_code", "")
    where = address(section, params)
    return ServerRefused(f"{where}: {status}: check ${params.api_key_env}, model and base_url")


def client_options(params: ServerParams, key: str) -> dict[str, Any]:
    """How the client is set up, be it asynchronous or not."""
    return {"api_key": key, "base_url": params.base_url, "timeout": params.timeout_s, "max_retries": MAX_RETRIES}


class _Asking(Generic[T]):
    """The requests of one run."""

    def __init__(self, section: str, params: ServerParams, key: str, request: Request[T], keep: Keep[T]) -> None:
        self.section, self.params, self.key = section, params, key
        self.request, self.keep, self.usage = request, keep, Usage()
        self.in_flight = self.failed_in_a_row = 0
        self.dearest = 0.0

    async def all(self, jobs: Sequence[T]) -> Usage:
        """Work off the jobs; on the first hopeless error, stop."""
        left = iter(track(jobs, f"asking {self.params.model}", len(jobs)))
        async with AsyncOpenAI(**client_options(self.params, self.key)) as client:
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
        while self.affordable() and (job := next(left, None)) is not None:
            failure: Exception | None = None
            self.usage.requests += 1  # at once, for the other workers reckon with it
            self.in_flight += 1
            try:
                await self.settle(client, job)
            except openai.APIError as error:
                failure = self.failure(error)
            finally:
                self.in_flight -= 1
            if failure:  # raised out here, so that no traceback holds a server's echo of the key
                raise failure

    def failure(self, error: openai.APIError) -> Exception | None:
        """What to stop with, if an error is hopeless or the last of many."""
        if hopeless(error):
            return refusal(self.section, self.params, error)
        self.usage.unreachable += 1
        self.usage.last_error = without(self.key, f"{type(error).__name__}: {error.message}")
        self.failed_in_a_row += 1
        if self.failed_in_a_row < 3 * self.params.concurrency:
            return None
        said = f"{self.failed_in_a_row} requests in a row failed ({self.usage.last_error})"
        return ServerFailed(f"{address(self.section, self.params)}: {said}")

    def affordable(self) -> bool:
        """Whether one more request is within the budget, if those in flight are as dear as the dearest so far."""
        cost = self.usage.cost + (self.in_flight + 1) * self.dearest
        within = self.params.max_cost is None or cost <= self.params.max_cost
        return within and self.usage.requests < self.params.max_requests

    async def settle(self, client: AsyncOpenAI, job: T) -> None:
        """Ask until the reply can be kept."""
        arguments = await asyncio.to_thread(self.request, job)
        paid = Paid()
        for attempt in range(1 + MAX_REASKS):
            if attempt:
                if not self.affordable():
                    return
                self.usage.requests += 1
            text, paid = await self.ask(client, arguments, paid)
            if self.keep(job, None if text is None else without(self.key, text), paid):
                self.usage.done += 1
                return
        self.usage.unreadable += 1

    async def ask(self, client: AsyncOpenAI, arguments: dict[str, Any], paid: Paid) -> tuple[str | None, Paid]:
        """One request: the reply's text, None if it is garbled, and what the job has cost so far."""
        try:
            reply = await client.chat.completions.create(model=self.params.model, **arguments)
        except (json.JSONDecodeError, openai.APIResponseValidationError):
            return None, paid
        self.failed_in_a_row = 0
        if not isinstance(reply, ChatCompletion):  # a body that is not JSON comes as text
            return None, paid
        text, now_paid = read(self.params, reply, paid)
        self.usage.cost += now_paid.cost - paid.cost
        self.dearest = max(self.dearest, now_paid.cost - paid.cost)
        return text, now_paid


def read(params: ServerParams, reply: ChatCompletion, paid: Paid) -> tuple[str | None, Paid]:
    """A reply's text, and what the job has cost with it."""
    if reply.usage is not None:
        paid = paid.plus(params, reply.usage.prompt_tokens, reply.usage.completion_tokens)
    return reply.choices[0].message.content if reply.choices else None, paid


def text_part(text: str) -> Part:
    """A message's text."""
    return {"type": "text", "text": text}


def picture_parts(medium: Media, root: Path, params: ServerParams) -> list[Part]:
    """A picture as one data URL; a film as `video_frames` of the frames that the model sees."""
    if medium.kind == "image":
        pictures = [load_picture(root, medium)]
    else:
        pictures = spaced(read_frames(root / medium.path), params.video_frames)
    return [{"type": "image_url", "image_url": {"url": data_url(picture, params.max_side)}} for picture in pictures]


def spaced(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spaced, the first and the last among them.

    >>> spaced("abcde", 3), spaced("ab", 3), spaced("ab", 1)
    (['a', 'c', 'e'], ['a', 'b'], ['a'])
    """
    last = len(items) - 1
    return [items[i] for i in sorted({round(k * last / max(count - 1, 1)) for k in range(count)})]


def data_url(picture: Image.Image, max_side: int) -> str:
    """A picture of at most `max_side` pixels as text."""
    picture = picture.convert("RGB")
    picture.thumbnail((max_side, max_side))
    form = "png" if max(picture.size) <= 256 else "jpeg"  # a small drawing is smaller as PNG, and exact
    buffer = io.BytesIO()
    picture.save(buffer, format=form)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"
