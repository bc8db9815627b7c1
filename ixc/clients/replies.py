"""A server's replies, bounded while they are read, and what they say: a text, a refusal, what it cost.

Nothing that a server sends is believed: a reply longer than what was asked for is cut off on the wire, numbers of
tokens that cannot be are none, and a refusal is told from a fault.
"""

import importlib
import math
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import openai
from openai.types.chat import ChatCompletion

_CLIENT = next(kind for kind in openai.DefaultHttpxClient.__mro__ if kind.__name__ == "Client")
httpx: Any = importlib.import_module(_CLIENT.__module__.partition(".")[0])
"""The HTTP library that this `openai` is built on: `httpx`, or `httpx2` from 3 on."""

OVERHEAD_BYTES = 64 * 1024
"""Of a reply besides its text."""
BYTES_PER_TEXT_BYTE = 8
"""On the wire: JSON may write six for one, and a reasoning model sends its thoughts along."""
MAX_TOKENS = 100_000_000
"""Of one reply; more cannot be."""


class TooLong(RuntimeError):
    """A reply of more bytes than were asked for; the rest was not read."""


class Response(NamedTuple):
    """What a completion comes to: a text or a refusal, and what it cost."""

    text: str | None
    """None where there is none to store."""
    refused: str | None
    """Why there will be none, however often the question is asked."""
    tokens_in: int
    tokens_out: int


class Refusal(NamedTuple):
    """A server's no to one question."""

    reason: str
    about_content: bool
    """Whether it is the question's words or images; else it may be the parameters, which all questions share."""


def wire_bytes(text_bytes: int) -> int:
    """What a reply may have on the wire, whose text may have so many."""
    return OVERHEAD_BYTES + BYTES_PER_TEXT_BYTE * text_bytes


# On the wire


class _Bounded(httpx.AsyncByteStream, httpx.SyncByteStream):
    """A reply's bytes, and an error where they should have ended."""

    def __init__(self, stream: Any, max_bytes: int) -> None:
        self.stream, self.max_bytes = stream, max_bytes
        self.bytes_left = max_bytes

    def count(self, chunk: bytes) -> bytes:
        self.bytes_left -= len(chunk)
        if self.bytes_left < 0:
            raise TooLong(f"a reply of more than {self.max_bytes:,} bytes")
        return chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self.stream:
            yield self.count(chunk)

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.stream:
            yield self.count(chunk)

    async def aclose(self) -> None:
        await self.stream.aclose()

    def close(self) -> None:
        self.stream.close()


def _bound(response: Any, max_bytes: int) -> None:
    """Bound a reply whose body was not read yet; one that is compressed unasked could be of any length."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise TooLong("a compressed reply, though none was asked for")
    response.stream = _Bounded(response.stream, max_bytes)


def async_http_client(max_bytes: int) -> Any:
    """A client none of whose replies, errors among them, is longer than `max_bytes`."""

    async def bound(response: Any) -> None:
        _bound(response, max_bytes)

    return openai.DefaultAsyncHttpxClient(
        event_hooks={"response": [bound]}, headers={"Accept-Encoding": "identity"}
    )


def http_client(max_bytes: Callable[[], int]) -> Any:
    """The same for one thread; the bound is asked for reply by reply."""

    def bound(response: Any) -> None:
        _bound(response, max_bytes())

    return openai.DefaultHttpxClient(
        event_hooks={"response": [bound]}, headers={"Accept-Encoding": "identity"}
    )


def too_long(error: BaseException) -> TooLong | None:
    """The cut-off reply behind an error of the client."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, TooLong):
        cause = cause.__cause__ or cause.__context__
    return cause


# What a reply says


def read_completion(reply: ChatCompletion, max_bytes: int) -> Response:
    """A completion's text, or why there is none.

    There is none where the model or a filter refused, and where it has more than `max_bytes`.
    """
    tokens_in = _tokens(getattr(reply.usage, "prompt_tokens", None))
    tokens_out = _tokens(getattr(reply.usage, "completion_tokens", None))

    # A server may leave out, or make up, any of these.
    choice = reply.choices[0] if isinstance(reply.choices, list) and reply.choices else None
    message = getattr(choice, "message", None)
    refusal = getattr(message, "refusal", None)
    text = getattr(message, "content", None)
    if isinstance(text, str):
        text = text.encode("utf-8", "replace").decode()  # half a character cannot be stored

    refused = None
    if getattr(choice, "finish_reason", None) == "content_filter":
        refused = "content filter"
    elif isinstance(refusal, str) and refusal.strip():
        refused = f"refused by the model: {one_line(refusal)}"
    elif isinstance(text, str) and len(text.encode()) > max_bytes:
        refused = f"a text of more than {max_bytes:,} bytes, which is more than was asked for"
    usable = isinstance(text, str) and refused is None
    return Response(text if usable else None, refused, tokens_in, tokens_out)


def completion_of(body: dict[str, Any]) -> ChatCompletion:
    """A completion from a file, read as leniently as `openai` reads one from the wire; without a choice if it cannot.

    >>> completion_of({"_fields_set": 1, "choices": []}).choices
    []
    """
    try:
        known = [name for name in ChatCompletion.model_fields if name in body]
        return ChatCompletion.construct(**{name: body[name] for name in known})
    except Exception:  # a body may be anything, and the client raises whatever it stumbles over
        return ChatCompletion.construct(choices=[])


def _tokens(value: object) -> int:
    """A number of tokens; 0 for what is none: negative, no number, or beyond all reason."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0
    return int(value) if 0 <= value <= MAX_TOKENS else 0


_FAULTS = (401, 402, 404, 405, 407, 408, 409, 425, 429)
"""Codes below 500 that tell of the server, the key or the moment, and not of the question."""
_ACCOUNT = {
    "invalid_api_key",
    "insufficient_quota",
    "billing_not_active",
    "billing_hard_limit_reached",
    "model_not_found",
}
_ABOUT_CONTENT = re.compile(
    r"content[ _-]?(?:filter|policy|management|moderation)|moderation|flagged|safety|policy[ _-]?violation|harmful"
    r"|data_?inspection|sensitive|inappropriate|responsible ?ai|敏感|违规|不安全",
    re.IGNORECASE,
)


def refusal_of(status: int, body: object) -> Refusal | None:
    """What an error status says about the question; None if it says nothing about it.

    >>> refusal_of(400, {"code": "content_filter", "message": "Flagged."})
    Refusal(reason='400: content_filter: Flagged.', about_content=True)
    >>> refusal_of(401, {}), refusal_of(500, {}), refusal_of(403, {"message": "no access"})
    (None, None, None)
    """
    details: dict[Any, Any] = body if isinstance(body, dict) else {"message": body}
    if isinstance(details.get("error"), dict):  # OpenAI's form; others send it bare
        details = details["error"]
    code = _words(details.get("code"))
    kind = _words(details.get("type"))
    message = _words(details.get("message"))
    about_content = _ABOUT_CONTENT.search(" ".join((code, kind, message))) is not None

    # The server, the key or the account is at fault: another question would fare no better.
    if not 400 <= status < 500 or status in _FAULTS or {code, kind} & _ACCOUNT:
        return None
    if status == 403 and not about_content:
        return None
    reason = filter(None, (str(status), code, message or kind))
    return Refusal(": ".join(reason), about_content)


def _words(value: object) -> str:
    return one_line(str(value)) if isinstance(value, str | int) else ""


def one_line(text: str) -> str:
    r"""A server's words as a line that can be stored and shown: no half characters, no commands to a terminal.

    >>> one_line("red:\x1b[31m\n \ud800no")
    'red: [31m no'
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(printable.split())
