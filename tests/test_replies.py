"""What a nasty server sends: endless bodies, impossible numbers, and refusals that must not stop the others."""

import gzip
import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from fake_openai import KEY, serving

import ixc.stages.generate
import ixc.stages.judge.stage
from ixc.clients.server import ServerFailed, ServerRefused
from ixc.data.samples import Gold, Sample, Turn, read_samples, write_samples
from ixc.params import GenerateParams, JudgeParams, LLMJudgeParams, ServerParams

MB = 1024 * 1024
FILTERED = {"error": {"code": "content_filter", "message": f"The prompt was flagged, {KEY}."}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("SERVER_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as handler:
        yield handler


def settings(server: Any, **changes: Any) -> dict[str, Any]:
    given = {
        "model": "m",
        "base_url": server.address,
        "api_key_env": "SERVER_KEY",
        "concurrency": 2,
        "timeout_s": 5.0,
    }
    return given | {"input_price": 2.0, "output_price": 10.0} | changes


def generate(tmp_path: Path, server: Any, *asked: str, **changes: Any) -> tuple[Any, list[Sample]]:
    params = GenerateParams(
        num_candidates=1, max_new_tokens=32, server=ServerParams(**settings(server, **changes))
    )
    write_samples([tiny.sample(text) for text in asked], tmp_path / "prompts.parquet")
    metrics = ixc.stages.generate.run(
        params, tmp_path / "prompts.parquet", tmp_path, tmp_path, tmp_path / "out.parquet"
    )
    return metrics, list(read_samples(tmp_path / "out.parquet"))


def judge(tmp_path: Path, server: Any, *names: str, **changes: Any) -> tuple[Any, list[Sample]]:
    gold = Gold(check="open", value="", answer="A good answer.")
    samples = [
        Sample(
            id=name,
            source="test",
            domain="general",
            modality="text",
            prompt=(Turn(role="user", content=f"Tell me about {name}."),),
            gold=gold,
            candidates=("Bad.",),
        )
        for name in names
    ]
    write_samples(samples, tmp_path / "c.parquet")
    params = JudgeParams(judges=(LLMJudgeParams(**settings(server, poll_s=0.01, **changes)),))
    metrics = ixc.stages.judge.stage.run(
        params, tmp_path / "c.parquet", tmp_path, tmp_path / "j.parquet", tmp_path / "verdicts"
    )
    return metrics, list(read_samples(tmp_path / "j.parquet"))


def journal_of(tmp_path: Path) -> Path:
    return tmp_path / ".out.parquet.server.jsonl"


def refuse(server: Any, monkeypatch: pytest.MonkeyPatch, word: str, status: int, body: Any) -> None:
    """Questions with a word are refused, singly and in batches; the others are answered."""
    chat, batch_line, asked = server.chat, server.batch_line, server.asked

    def answer(self: Any, request: dict[str, Any]) -> None:
        if word not in self.text(request):
            return chat(self, request)
        asked[self.text(request)] += 1
        return self.reply(status, body)

    def line(self: Any, request: dict[str, Any]) -> bytes:
        if word not in self.text(request["body"]):
            return batch_line(self, request)
        asked[self.text(request["body"])] += 1
        response = {"status_code": status, "body": body}
        return (
            json.dumps(
                {"custom_id": request["custom_id"], "response": response, "error": None}
            ).encode()
            + b"\n"
        )

    monkeypatch.setattr(server, "chat", answer)
    monkeypatch.setattr(server, "batch_line", line)


# Long replies


def endless(self: Any, size: int = 64 * MB) -> None:
    """A body without an end, as far as the client can tell."""
    self.send_response(200)
    self.send_header("content-type", "application/json")
    self.send_header("connection", "close")
    self.end_headers()
    self.wfile.write(b'{"id": "1", "choices": [{"message": {"content": "')
    for _ in range(size // MB):
        self.wfile.write(b"x" * MB)


def a_20_mb_answer(self: Any) -> None:
    self.reply(
        200,
        self.completion({"model": "m", "seed": 0, "messages": [{"content": "x"}]}, KEY)
        | {"pad": "x" * 20 * MB},
    )


def an_error_page(self: Any) -> None:
    self.send(400, b"x" * 20 * MB)


def a_bomb(self: Any) -> None:
    data = gzip.compress(b'{"id": "' + b"x" * 64 * MB + b'"}')
    self.send_response(200)
    self.send_header("content-encoding", "gzip")
    self.send_header("content-length", str(len(data)))
    self.end_headers()
    self.wfile.write(data)


@pytest.mark.parametrize("body", [endless, a_20_mb_answer, an_error_page, a_bomb])
def test_no_reply_is_read_to_an_end_that_was_not_asked_for(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch, body: Callable[[Any], None]
) -> None:
    chat = server.chat
    monkeypatch.setattr(
        server, "chat", lambda self, r: body(self) if "long" in self.text(r) else chat(self, r)
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    metrics, got = generate(tmp_path, server, "Hi.", "Be long.")
    assert [sample.prompt[0].content for sample in got] == ["Hi."]
    assert (metrics["server/refused"], metrics["server/requests"]) == (1, 2)
    assert journal_of(tmp_path).stat().st_size < 2000
    if body is not a_20_mb_answer:  # the fake server shares our memory
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024


def test_an_answer_longer_than_was_asked_for_is_not_kept(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        server,
        "answer",
        lambda self, body: "y" * 30_000 if "long" in self.text(body) else "z" * 1000,
    )
    metrics, got = generate(tmp_path, server, "Hi.", "Be long.")
    assert [sample.candidates for sample in got] == [("z" * 1000,)]
    assert metrics["server/refused"] == 1 and metrics["server/cost"] == pytest.approx(2 * 0.003)
    assert (
        "more than was asked for" in journal_of(tmp_path).read_text()
        and journal_of(tmp_path).stat().st_size < 2000
    )


def test_the_replies_of_a_batch_are_bounded_too(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "judgement", lambda *_: "x" * 20 * MB)
    with pytest.raises(ServerFailed, match="more than"):
        judge(tmp_path, server, "x", batch=True)
    assert not (tmp_path / "verdicts" / "m.batch.json").exists(), (
        "or every later run would read it first"
    )


def test_a_reply_that_drips_for_ever_is_given_up(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ixc.clients.server.MAX_RETRIES", 0)
    chat = server.chat

    def drip(self: Any, body: Any) -> None:
        if "slow" not in self.text(body):
            return chat(self, body)
        self.send_response(200)
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b" ")
            time.sleep(0.05)
        return None

    monkeypatch.setattr(server, "chat", drip)
    metrics, got = generate(tmp_path, server, "Hi.", "Be slow.", timeout_s=0.2)
    assert len(got) == 1 and metrics["server/unreachable"] == 1


# Impossible numbers


@pytest.mark.parametrize("number", [-1_000_000, -0.5, 1e300, 10**30, "many", None, [5], {"a": 1}])
@pytest.mark.parametrize("batch", [False, True])
def test_no_number_of_tokens_lowers_what_was_spent(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch, number: Any, batch: bool
) -> None:
    judge(tmp_path, server, "cats")
    completion = server.completion
    usage = {"prompt_tokens": number, "completion_tokens": number, "total_tokens": number}
    monkeypatch.setattr(
        server, "completion", lambda *args, **kw: completion(*args, **kw) | {"usage": usage}
    )
    metrics, pairs = judge(tmp_path, server, "cats", "dogs", batch=batch)
    if not batch or number is None or (isinstance(number, int) and not isinstance(number, bool)):
        assert len(pairs) == 2
    assert metrics["llm/cost"] == 0
    assert metrics["llm/m/spent"] == pytest.approx(2 * 0.003)


def test_what_an_older_run_has_stored_lowers_it_neither(tmp_path: Path, server: Any) -> None:
    judge(tmp_path, server, "cats", "dogs")
    path = tmp_path / "verdicts" / "m.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(
            json.dumps(line | {"cost": -50.0, "input_tokens": -9}) + "\n"
            for line in lines[:1] + lines
        )
    )
    metrics, _ = judge(tmp_path, server, "cats", "dogs")
    assert metrics["llm/m/spent"] == 0


# Refusals


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, FILTERED),
        (400, {"error": {"message": "no"}}),
        (422, {"error": {"message": "cannot process this"}}),
        (403, {"error": {"message": "your input was flagged by moderation"}}),
        (413, {"error": {"message": "too large"}}),
    ],
)
def test_a_refused_question_is_stored_and_stops_no_one(
    tmp_path: Path,
    server: Any,
    monkeypatch: pytest.MonkeyPatch,
    batch: bool,
    status: int,
    body: Any,
    capfd: Any,
) -> None:
    refuse(server, monkeypatch, "bombs", status, body)
    metrics, pairs = judge(tmp_path, server, "bombs", "cats", batch=batch)
    assert [pair.id for pair in pairs] == ["cats#0"]
    assert (metrics["llm/refused"], metrics["llm/left"], metrics["llm/unreachable"]) == (2, 0, 0)
    path = tmp_path / "verdicts" / "m.jsonl"
    stored = [line for line in map(json.loads, path.read_text().splitlines()) if line["refused"]]
    assert len(stored) == 2 and all(line["refused"].startswith(f"{status}: ") for line in stored)
    assert KEY not in path.read_text()
    said = capfd.readouterr().err
    assert "2 refused (" in said and 'with "refused": "' in said and KEY not in said

    for names in (
        ("bombs", "cats"),
        ("bombs",),
    ):  # paid and stored, or the one refused question alone
        before = server.asked.total()
        metrics, _ = judge(tmp_path, server, *names, batch=batch)
        assert (metrics["llm/refused"], metrics["llm/requests"]) == (
            2,
            0,
        ) and server.asked.total() == before

    path.write_text("".join(line for line in path.open() if '"refused": "' not in line))
    metrics, pairs = judge(tmp_path, server, "bombs", "cats", batch=batch)
    assert (metrics["llm/refused"], metrics["llm/requests"], len(pairs)) == (
        2,
        2,
        1,
    )  # asked again: it was told to


@pytest.mark.parametrize(
    "how", [{"finish_reason": "content_filter"}, {"refusal": "I can't help with that."}]
)
@pytest.mark.parametrize("batch", [False, True])
def test_a_model_that_declines_is_not_asked_three_times(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch, how: dict[str, str], batch: bool
) -> None:
    completion = server.completion

    def declined(self: Any, body: Any, *arguments: Any, **named: Any) -> Any:
        found = completion(self, body, *arguments, **named)
        if "bombs" in self.text(body):
            choice = found["choices"][0]
            choice |= {key: value for key, value in how.items() if key == "finish_reason"}
            choice["message"] |= {"content": None} | {
                key: value for key, value in how.items() if key == "refusal"
            }
        return found

    monkeypatch.setattr(server, "completion", declined)
    metrics, pairs = judge(tmp_path, server, "bombs", "cats", batch=batch)
    assert (metrics["llm/refused"], metrics["llm/unreadable"], len(pairs)) == (2, 0, 1)
    assert metrics["llm/cost"] == pytest.approx(4 * 0.003)  # it was paid for
    assert judge(tmp_path, server, "bombs", "cats", batch=batch)[0]["llm/requests"] == 0


def test_generate_goes_on_without_a_refused_prompt(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(server, monkeypatch, "bombs", 400, FILTERED)
    for requests in (2, 0):
        metrics, got = generate(tmp_path, server, "Hi.", "Tell of bombs.")
        assert [sample.prompt[0].content for sample in got] == ["Hi."]
        assert (metrics["server/refused"], metrics["server/requests"]) == (1, requests)
    assert (
        '"refused": "400: content_filter: The prompt was flagged, ***."'
        in journal_of(tmp_path).read_text()
    )


def test_a_content_filter_that_refuses_all_is_an_answer_too(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(server, monkeypatch, "bombs", 400, FILTERED)
    metrics, pairs = judge(tmp_path, server, "bombs")
    assert (metrics["llm/refused"], pairs) == (2, [])


@pytest.mark.parametrize("batch", [False, True])
def test_parameters_that_a_server_refuses_are_no_answers(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch, batch: bool
) -> None:
    refuse(server, monkeypatch, "Tell", 400, {"error": {"message": "temperature is not supported"}})
    names = [f"topic{i}" for i in range(40)]
    with pytest.raises(ServerFailed, match=r"temperature is not supported.*see to the parameters"):
        judge(tmp_path, server, *names, batch=batch, batch_size=8)
    assert server.asked.total() < 40
    stored = tmp_path / "verdicts" / "m.jsonl"
    assert not stored.exists() or stored.read_text() == ""


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_what_is_wrong_for_all_stops_the_run(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    refuse(server, monkeypatch, "Tell", status, {"error": {"message": "no"}})
    with pytest.raises(ServerRefused, match=str(status)):
        judge(tmp_path, server, "cats", "dogs")


def test_a_question_that_breaks_the_server_does_not_block_what_is_stored(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr("ixc.clients.server.MAX_RETRIES", 0)
    for requests in (4, 2):
        metrics, pairs = judge(tmp_path, server, "dead", "cats")  # `dead`: 500, always
        assert (len(pairs), metrics["llm/unreachable"], metrics["llm/requests"]) == (1, 2, requests)
        assert "2 got no reply" in capfd.readouterr().err
    server.address = "http://127.0.0.1:9/v1"
    with pytest.raises(ServerFailed, match="no request came through"):
        judge(tmp_path, server, "dead", "cats")


@pytest.mark.parametrize("batch", [False, True])
def test_who_refuses_a_question_for_its_content_has_taken_the_parameters(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch, batch: bool
) -> None:
    refuse(server, monkeypatch, "novels", 400, {"error": {"message": "9000 tokens are too many"}})
    refuse(server, monkeypatch, "bombs", 400, FILTERED)
    for requests in (4, 0):
        metrics, pairs = judge(tmp_path, server, "bombs", "novels", batch=batch)
        assert (metrics["llm/refused"], metrics["llm/requests"], pairs) == (4, requests, [])
    metrics, _ = judge(tmp_path, server, "bombs", "novels", "novels too", batch=batch)
    assert (metrics["llm/refused"], metrics["llm/requests"]) == (6, 2)


ODD = {
    "too deep": b"[" * 200_000,
    "choices that are no list": b'{"id": "1", "choices": {"0": 1}}',
    "a key that the client knows": b'{"id": "1", "choices": [], "_fields_set": "x"}',
    "a choice that is a number": b'{"id": "1", "choices": [5]}',
    "a number of 6,000 digits": b'{"id": "1", "usage": ' + b"9" * 6000 + b"}",
    "no UTF-8": b'{"id": "1", "choices": [{"message": {"content": "\xe9"}}]}',
    "half a character": b'{"id": "1", "choices": [{"message": {"content": null, "refusal": "\\ud800 no"}}]}',
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_body_stops_no_other_question(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("ixc.clients.server.MAX_RETRIES", 0)
    chat = server.chat

    def odd(self: Any, request: dict[str, Any]) -> None:
        return self.send(200, ODD[name]) if "odd" in self.text(request) else chat(self, request)

    monkeypatch.setattr(server, "chat", odd)
    _, got = generate(tmp_path, server, "Be odd.", "Hi.")
    assert "Hi." in [sample.prompt[0].content for sample in got]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_line_stops_no_batch(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    batch_line = server.batch_line

    def line(self: Any, request: dict[str, Any]) -> bytes:
        if "odd" not in self.text(request["body"]):
            return batch_line(self, request)
        head = json.dumps({"custom_id": request["custom_id"], "response": {"status_code": 200}})[
            :-2
        ]
        return head.encode() + b', "body": ' + ODD[name] + b"}}\n"

    monkeypatch.setattr(server, "batch_line", line)
    _, pairs = judge(tmp_path, server, "odd", "cats", batch=True)
    assert [pair.id for pair in pairs] == ["cats#0"]


@pytest.mark.parametrize("batch", [False, True])
def test_no_part_of_the_key_is_left_where_a_reason_is_cut(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch, batch: bool, capfd: Any
) -> None:
    for room in range(270, 300):
        error = {"message": f"\ud800{'x' * room}{KEY}", "code": "content_filter"}
        refuse(server, monkeypatch, f"no. {room}.", 400, {"error": error})
    judge(tmp_path, server, "cats", *(f"no. {room}" for room in range(270, 300)), batch=batch)
    stored = (tmp_path / "verdicts" / "m.jsonl").read_text(encoding="utf-8")
    assert stored.count('"refused": "') == 60
    assert KEY[:4] not in stored + capfd.readouterr().err


def test_half_a_character_is_stored_as_a_whole_one(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "answer", lambda *_: "So \ud83d.")
    _, [got] = generate(tmp_path, server, "Hi.")
    assert got.candidates == ("So ?.",)


def test_the_reason_of_a_verdict_is_bounded(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        server, "judgement", lambda *_: json.dumps({"reason": "x" * 90_000, "winner": "tie"})
    )
    judge(tmp_path, server, "cats")
    assert (tmp_path / "verdicts" / "m.jsonl").stat().st_size < 10_000
