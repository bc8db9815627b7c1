"""A server that speaks OpenAI's protocol on the loopback, fails on demand, and remembers what it was asked."""

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-secret-0123456789"
FAULTS = ("busy", "down", "cut", "torn", "late", "overtaken")


def is_dead(text: str) -> bool:
    """Whether the prompt names the fault; a question's random code, hexadecimal, may hold its letters."""
    return re.search(r"\bdead\d*\b", text) is not None


class FakeOpenAI(BaseHTTPRequestHandler):
    """A judge that prefers what says `good`, but the first answer if the prompt says `biased`.

    Asked for nothing structured it answers: the model, the seed and the last word of the prompt.

    The first request about a prompt naming a fault fails: `busy` 429, `down` 500, `cut` half a JSON in the
    message, `torn` half a JSON body. Others always do: `mute` no JSON, `speechless` no text, `locked` 401, `dead`
    500. `echo` tells the key. Besides, a share `flaky` of all requests fails in one of these ways, is answered too late
    (after `late_s`), or after requests that came later. Every reply takes `thinks_s`.
    """

    protocol_version = "HTTP/1.1"
    address: str
    asked: Counter[str]
    """Requests by their text."""
    paid: Counter[str]
    """Readable replies by their text."""
    bodies: list[dict[str, Any]]
    faults: set[str]
    flaky: float
    late_s: float
    thinks_s: float
    times: list[float]
    """When requests were answered."""
    files: dict[str, bytes]
    batches: list[dict[str, Any]]
    polls_until_done: int

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        if self.path.endswith("/files"):
            self.reply(200, self.upload(data))
        elif self.path.endswith("/batches"):
            self.reply(200, self.begin(json.loads(data)))
        else:
            self.chat(json.loads(data))

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[-1] == "content":
            self.send(200, self.files[parts[-2]])
        elif parts[-1] == "batches":
            self.reply(200, {"object": "list", "data": self.batches[::-1], "has_more": False})
        else:
            self.reply(
                200, self.look(next(batch for batch in self.batches if batch["id"] == parts[-1]))
            )

    def chat(self, body: dict[str, Any]) -> None:
        text, key = self.text(body), self.headers["authorization"].removeprefix("Bearer ")
        self.asked[text] += 1
        self.bodies.append(body)
        fresh = text not in self.faults
        self.faults.add(text)
        fault = random.choice(FAULTS) if random.random() < self.flaky else ""
        if "locked" in text:
            return self.reply(401, {"error": {"message": f"bad key {key}"}})
        if (fresh and "busy" in text) or fault == "busy":
            return self.reply(429, {"error": {"message": f"slow down, {key}"}})
        if (fresh and "down" in text) or is_dead(text) or fault == "down":
            return self.reply(500, {"error": {"message": "oops"}})
        time.sleep({"late": self.late_s, "overtaken": 0.1}.get(fault, self.thinks_s))
        cut = (fresh and "cut" in text) or "mute" in text or fault == "cut"
        torn = (fresh and "torn" in text) or fault == "torn"
        self.paid[text] += int(not (cut or torn or fault == "late"))
        self.times.append(time.monotonic())
        return self.reply(200, self.completion(body, key, cut), torn)

    @staticmethod
    def text(body: dict[str, Any]) -> str:
        content = body["messages"][-1]["content"]
        return content if isinstance(content, str) else content[-1]["text"]

    def completion(self, body: dict[str, Any], key: str, cut: bool = False) -> dict[str, Any]:
        said = self.judgement(body, key) if "response_format" in body else self.answer(body)
        content = (
            None if "speechless" in self.text(body) else said[: len(said) // 2] if cut else said
        )
        message = {"role": "assistant", "content": content}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
        }

    def judgement(self, body: dict[str, Any], key: str) -> str:
        text = self.text(body)
        first = text.split("<first_answer>")[1].split("</first_answer>")[0]
        contrary = body["model"] == "contrarian"
        winner = "first" if "biased" in text or ("good" in first) != contrary else "second"
        return json.dumps(
            {"reason": f"It is good. {key if 'echo' in text else ''}", "winner": winner}
        )

    def answer(self, body: dict[str, Any]) -> str:
        return f"{body['model']} {body['seed']} {self.text(body).split()[-1]}"

    def upload(self, data: bytes) -> dict[str, Any]:
        name = f"file-{len(self.files)}"
        content = data.split(b'name="file"')[1].split(b"\r\n\r\n", 1)[1]
        self.files[name] = content[: content.rindex(b"\n--")].rstrip(b"\r")
        return {
            "id": name,
            "object": "file",
            "bytes": 1,
            "created_at": 1,
            "filename": "f",
            "purpose": "batch",
        }

    def begin(self, body: dict[str, Any]) -> dict[str, Any]:
        batch = {
            "id": f"batch-{len(self.batches)}",
            "object": "batch",
            "created_at": 1,
            "status": "validating",
            **body,
        }
        self.batches.append(batch)
        return batch

    def look(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Its state; after `polls_until_done` looks it is done, the replies in another order than the requests."""
        batch["polls"] = batch.get("polls", 0) + 1
        if (
            batch["status"] not in ("completed", "failed")
            and batch["polls"] >= self.polls_until_done
        ):
            requests = [
                json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()
            ]
            good = [r for r in requests if not is_dead(self.text(r["body"]))]
            bad = [r for r in requests if is_dead(self.text(r["body"]))]
            self.files[f"{batch['id']}-out"] = b"".join(map(self.batch_line, reversed(good)))
            self.files[f"{batch['id']}-err"] = b"".join(map(self.error_line, bad))
            batch |= {"status": "completed", "output_file_id": f"{batch['id']}-out"}
            batch |= {"error_file_id": f"{batch['id']}-err"} if bad else {}
        return batch

    def batch_line(self, request: dict[str, Any]) -> bytes:
        text = self.text(request["body"])
        self.asked[text] += 1
        self.paid[text] += 1
        self.bodies.append(request["body"])
        fresh = text not in self.faults
        self.faults.add(text)
        body = self.completion(
            request["body"], KEY, cut="mute" in text or (fresh and "cut" in text)
        )
        reply = {
            "custom_id": request["custom_id"],
            "response": {"status_code": 200, "body": body},
            "error": None,
        }
        return json.dumps(reply).encode() + b"\n"

    def error_line(self, request: dict[str, Any]) -> bytes:
        self.asked[self.text(request["body"])] += 1
        error = {"error": {"message": f"overloaded, {KEY}"}}
        reply = {
            "custom_id": request["custom_id"],
            "response": {"status_code": 500, "body": error},
            "error": None,
        }
        return json.dumps(reply).encode() + b"\n"

    def reply(self, status: int, body: dict[str, Any], torn: bool = False) -> None:
        data = json.dumps(body).encode()
        self.send(status, data[: len(data) // 2] if torn else data)

    def send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.send_header("retry-after-ms", "5")
        self.end_headers()
        self.wfile.write(data)

    def handle(self) -> None:
        """A client that was killed, or waited too long, is no fault of the server's."""
        try:
            super().handle()
        except (ConnectionError, TimeoutError, json.JSONDecodeError):
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def serving() -> Iterator[Any]:
    """A server of its own, up while the block runs."""
    state: dict[str, Any] = {
        **{name: Counter() for name in ("asked", "paid")},
        **{name: [] for name in ("bodies", "batches", "times")},
        **{
            "faults": set(),
            "files": {},
            "flaky": 0.0,
            "late_s": 0.5,
            "thinks_s": 0.0,
            "polls_until_done": 2,
        },
    }
    handler: Any = type("Handler", (FakeOpenAI,), state)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        handler.address = f"http://127.0.0.1:{http.server_port}/v1"
        try:
            yield handler
        finally:
            http.shutdown()
            thread.join()
