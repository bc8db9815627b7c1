"""A model as judge of pairs, over any OpenAI-compatible server.

Each pair is asked about twice, once in either order, for judges favour a position: a win must be won twice.
"""

import asyncio
import base64
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import openai
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from ixc.files import track
from ixc.judging.store import Judgement, VerdictStore
from ixc.media import load_picture, read_frames
from ixc.metrics import Log, ignore
from ixc.params import LLMJudgeParams
from ixc.samples import Media, Sample, Verdict

T = TypeVar("T")

PROMPT = (Path(__file__).parent / "prompts" / "pairwise.md").read_text(encoding="utf-8")
MAX_RETRIES = 4
"""Of the client, with growing pauses: 429, 5xx, time-outs and lost connections."""
MAX_REASKS = 2
"""More requests for one judgement, when the server's answer cannot be read."""


class JudgeFailed(RuntimeError):
    """The judge cannot be asked: key, address or model is wrong, or no request came through."""


class Preference(BaseModel):
    """What the judge is asked to reply; the reason comes first, so that it is found before the winner."""

    model_config = ConfigDict(extra="forbid")
    reason: str
    winner: Literal["first", "second", "tie"]


class Question(NamedTuple):
    """Two answers to a sample's prompt, in the order the judge sees them."""

    key: str
    sample: Sample
    first: str
    second: str

    @property
    def text(self) -> str:
        """The judge's prompt."""
        conversation = "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in self.sample.prompt)
        return fill(PROMPT, conversation=conversation, first=self.first, second=self.second)


@dataclass
class Usage:
    """What asking took."""

    requests: int = 0
    cost: float = 0.0
    """US dollars."""
    judgements: int = 0
    unreadable: int = 0
    """Questions given up on, for no reply could be read; the next run asks them again."""
    unreachable: int = 0
    """Questions whose requests failed, the client's retries included; the next run asks them again."""
    left: int = 0
    """Questions that `max_requests` left for the next run."""
    last_error: str = ""


def questions(model: str, sample: Sample, chosen: str, rejected: str) -> tuple[Question, Question]:
    """The two questions about a pair: chosen first, then rejected first."""
    return _question(model, sample, chosen, rejected), _question(model, sample, rejected, chosen)


def _question(model: str, sample: Sample, first: str, second: str) -> Question:
    question = Question("", sample, first, second)
    shown = json.dumps([model, question.text, [medium.sha256 for medium in sample.media]])
    return question._replace(key=hashlib.sha256(shown.encode()).hexdigest())


def fill(template: str, **values: str) -> str:
    """Put values in their places at one go: an answer that contains `{second}` stays as it is.

    >>> fill("{first} or {second}", first="{second}", second="b")
    '{second} or b'
    """
    holes = "|".join(rf"\{{{name}\}}" for name in values)
    return re.sub(holes, lambda hole: values[hole.group()[1:-1]], template)


def verdict(model: str, chosen_first: Judgement, rejected_first: Judgement) -> Verdict:
    """Both orders as one verdict: a win counts only if it does not depend on the order."""
    by_position = {"first": "chosen", "second": "rejected", "tie": "tie"}
    swapped = {"first": "rejected", "second": "chosen", "tie": "tie"}
    orders = (by_position[chosen_first.winner], swapped[rejected_first.winner])
    winner: Any = orders[0] if orders[0] == orders[1] else "tie"
    cost = chosen_first.cost + rejected_first.cost
    return Verdict(winner=winner, judge=model, orders=orders, reason=chosen_first.reason, cost=cost)


def ask(
    params: LLMJudgeParams,
    asked: Iterable[Question],
    media_root: Path,
    store: VerdictStore,
    *,
    log: Log = ignore,
) -> Usage:
    """Ask every question the store cannot answer, until `max_requests` are spent, and store the judgements.

    Raises:
        JudgeFailed: key, address or model is missing or refused, or no request came through.
    """
    unanswered = {question.key: question for question in asked if store.get(question.key) is None}
    if not unanswered:
        return Usage()
    key = os.environ.get(params.api_key_env)
    if not key:
        raise JudgeFailed(f"judge.llm.api_key_env: {params.api_key_env!r}: no such variable; export it")
    usage = asyncio.run(_Asking(params, key, media_root, store, log).all(list(unanswered.values())))
    if not usage.judgements and usage.unreachable:
        raise JudgeFailed(f"{_address(params)}: no request came through ({usage.last_error}); is it up?")
    usage.left = len(unanswered) - usage.judgements - usage.unreadable - usage.unreachable
    return usage


def _address(params: LLMJudgeParams) -> str:
    return f"judge.llm: model {params.model!r} at {params.base_url or 'the default address'}"


class _Asking:
    """The requests of one run, `concurrency` at a time."""

    def __init__(self, params: LLMJudgeParams, key: str, media_root: Path, store: VerdictStore, log: Log) -> None:
        self.params, self.media_root, self.store, self.log = params, media_root, store, log
        self.key, self.usage = key, Usage()
        self.failed_in_a_row = 0

    async def all(self, asked: Sequence[Question]) -> Usage:
        """Work off the questions; on the first hopeless error, stop."""
        left = iter(track(asked, f"asking {self.params.model}", len(asked)))
        async with AsyncOpenAI(
            api_key=self.key,
            base_url=self.params.base_url,
            timeout=self.params.timeout_s,
            max_retries=MAX_RETRIES,
        ) as client:
            workers = [asyncio.create_task(self.work(client, left)) for _ in range(self.params.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return self.usage

    async def work(self, client: AsyncOpenAI, left: Iterator[Question]) -> None:
        """One of the workers that share the questions."""
        while self.usage.requests < self.params.max_requests and (question := next(left, None)):
            failure = ""
            try:
                await self.settle(client, question)
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                failure = f"{error.status_code}: check ${self.params.api_key_env}, model and base_url"
            except openai.BadRequestError as error:
                failure = f"400: {self.without_key(error.message)}"
            except openai.APIError as error:
                self.usage.unreachable += 1
                self.usage.last_error = self.without_key(f"{type(error).__name__}: {error.message}")
                self.failed_in_a_row += 1
                if self.failed_in_a_row >= 3 * self.params.concurrency:
                    failure = f"{self.failed_in_a_row} requests in a row failed ({self.usage.last_error})"
            if failure:  # raised out here, so that no traceback holds a server's echo of the key
                raise JudgeFailed(f"{_address(self.params)}: {failure}")

    async def settle(self, client: AsyncOpenAI, question: Question) -> None:
        """Ask until the reply can be read, and keep the judgement."""
        content = await asyncio.to_thread(self.content, question)
        tokens_in = tokens_out = 0
        for _ in range(1 + MAX_REASKS):
            if self.usage.requests >= self.params.max_requests:
                return
            self.usage.requests += 1
            reply = await self.request(client, content)
            self.failed_in_a_row = 0
            if reply is not None and reply.usage is not None:
                tokens_in += reply.usage.prompt_tokens
                tokens_out += reply.usage.completion_tokens
                self.usage.cost += self.cost(reply.usage.prompt_tokens, reply.usage.completion_tokens)
            text = reply.choices[0].message.content if reply is not None and reply.choices else None
            if (preference := parse(text)) is not None:
                self.keep(question, preference, tokens_in, tokens_out)
                return
        self.usage.unreadable += 1

    async def request(self, client: AsyncOpenAI, content: list[dict[str, Any]]) -> ChatCompletion | None:
        """One request for a `Preference`, as structured output; None for a garbled reply."""
        schema = {"name": "preference", "strict": True, "schema": Preference.model_json_schema()}
        extra: dict[str, Any] = {} if self.params.temperature is None else {"temperature": self.params.temperature}
        messages: Any = [{"role": "user", "content": content}]
        form: Any = {"type": "json_schema", "json_schema": schema}
        try:
            reply = await client.chat.completions.create(
                model=self.params.model, messages=messages, response_format=form, **extra
            )
        except (json.JSONDecodeError, openai.APIResponseValidationError):
            return None
        return reply if isinstance(reply, ChatCompletion) else None  # a body that is not JSON comes as text

    def keep(self, question: Question, preference: Preference, tokens_in: int, tokens_out: int) -> None:
        """Store the judgement and report progress."""
        self.store.add(
            Judgement(
                key=question.key,
                model=self.params.model,
                winner=preference.winner,
                reason=self.without_key(preference.reason),
                input_tokens=tokens_in,
                output_tokens=tokens_out,
                cost=self.cost(tokens_in, tokens_out),
            )
        )
        self.usage.judgements += 1
        self.log({"llm/requests": self.usage.requests, "llm/cost": self.usage.cost}, self.usage.judgements)

    def content(self, question: Question) -> list[dict[str, Any]]:
        """The message: pictures first, then the text."""
        shown = (data_urls(medium, self.media_root, self.params) for medium in question.sample.media)
        pictures = [{"type": "image_url", "image_url": {"url": url}} for urls in shown for url in urls]
        return [*pictures, {"type": "text", "text": question.text}]

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """US dollars."""
        return (tokens_in * self.params.input_price + tokens_out * self.params.output_price) / 1e6

    def without_key(self, text: str) -> str:
        """Some servers echo the key; it must not reach a file or a message."""
        return text.replace(self.key, "***")


def parse(content: str | None) -> Preference | None:
    r"""The judge's reply, bare or in a Markdown fence; None if it cannot be read.

    >>> parse('```json\n{"reason": "It counts right.", "winner": "first"}\n```').winner
    'first'
    """
    try:
        return Preference.model_validate_json(re.sub(r"^\s*```(?:json)?|```\s*$", "", content or ""))
    except ValidationError:
        return None


def data_urls(medium: Media, root: Path, params: LLMJudgeParams) -> list[str]:
    """A picture as one data URL; a film as `video_frames` of the frames that the model sees."""
    if medium.kind == "image":
        return [_data_url(load_picture(root, medium), params.max_side)]
    frames = spaced(read_frames(root / medium.path), params.video_frames)
    return [_data_url(frame, params.max_side) for frame in frames]


def spaced(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spaced, the first and the last among them.

    >>> spaced("abcde", 3), spaced("ab", 3), spaced("ab", 1)
    (['a', 'c', 'e'], ['a', 'b'], ['a'])
    """
    last = len(items) - 1
    return [items[i] for i in sorted({round(k * last / max(count - 1, 1)) for k in range(count)})]


def _data_url(picture: Image.Image, max_side: int) -> str:
    picture = picture.convert("RGB")
    picture.thumbnail((max_side, max_side))
    form = "png" if max(picture.size) <= 256 else "jpeg"  # a small drawing is smaller as PNG, and exact
    buffer = io.BytesIO()
    picture.save(buffer, format=form)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"
