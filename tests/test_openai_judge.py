import base64
import json
import logging
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import av
import pytest
import yaml
from conftest import REPOSITORY, Call
from fake_openai import KEY, FakeOpenAI, serving
from openai import RateLimitError
from PIL import Image

from ixc.clients.server import MAX_PAUSE_S, ServerFailed, ServerRefused, pause_s, without
from ixc.data.samples import Domain, Gold, Media, Sample, Turn, read_samples, write_samples
from ixc.params import BadParams, JudgeParams, LLMJudgeParams, load_params
from ixc.stages.judge.batch import _Batches
from ixc.stages.judge.openai_judge import ask
from ixc.stages.judge.questions import parse, questions, verdict
from ixc.stages.judge.stage import run
from ixc.stages.judge.store import Judgement, VerdictStore, Winner

LAPTOP = REPOSITORY / "infra" / "params" / "laptop.yaml"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeOpenAI]]:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as handler:
        yield handler


def llm(server: Any, **changes: Any) -> LLMJudgeParams:
    settings = {
        "concurrency": 4,
        "input_price": 2.0,
        "output_price": 10.0,
        "timeout_s": 5.0,
        **changes,
    }
    return LLMJudgeParams(
        model="org/judge:1", base_url=server.address, api_key_env="JUDGE_KEY", **settings
    )


def sample(name: str, *candidates: str, media: tuple[Media, ...] = ()) -> Sample:
    return Sample(
        id=name,
        source="test",
        domain="general",
        modality="image" if media else "text",
        prompt=(Turn(role="user", content=f"Tell me about {name}."),),
        media=media,
        gold=Gold(check="open", value="", answer="A good answer."),
        candidates=candidates,
    )


def judge(
    tmp_path: Path, params: JudgeParams, *samples: Sample, media: Path | None = None
) -> tuple[dict[str, float], list[Sample]]:
    write_samples(samples, tmp_path / "candidates.parquet")
    paths = (
        tmp_path / "candidates.parquet",
        media or tmp_path,
        tmp_path / "judged.parquet",
        tmp_path / "verdicts",
    )
    metrics = run(params, *paths, log=lambda numbers, step: None)
    return metrics, list(read_samples(tmp_path / "judged.parquet"))


def said(winner: Winner, cost: float = 0.0) -> Judgement:
    return Judgement(
        key=winner,
        model="m",
        sample="s",
        order="reference_first",
        winner=winner,
        reason="r",
        cost=cost,
    )


def test_every_pair_is_judged_once_in_both_orders(tmp_path: Path, server: Any) -> None:
    params = JudgeParams(judges=(llm(server),))
    metrics, pairs = judge(
        tmp_path, params, sample("trees", "Bad.", "Worse."), sample("cars", "Bad.")
    )
    assert [pair.id for pair in pairs] == ["trees#0", "trees#1", "cars#0"]
    assert all(pair.verdict and pair.verdict.orders == ("chosen", "chosen") for pair in pairs)
    assert all(pair.chosen[0].content == "A good answer." for pair in pairs)
    assert len(server.asked) == 6 and set(server.asked.values()) == {1}
    # 1000 tokens at 2 $ and 100 at 10 $ a million: 0.003 $ a request
    assert metrics["llm/requests"] == 6
    assert metrics["llm/cost"] == pytest.approx(0.018)
    assert pairs[0].verdict and pairs[0].verdict.cost == pytest.approx(0.006)


def test_a_win_by_position_is_a_tie_and_no_pair(tmp_path: Path, server: Any) -> None:
    metrics, pairs = judge(
        tmp_path, JudgeParams(judges=(llm(server),)), sample("biased", "Bad."), sample("x", "Bad.")
    )
    assert [pair.id for pair in pairs] == ["x#0"]
    assert metrics["without_pair/reference_not_better"] == 1


def test_orders_are_told_by_answer_not_by_position() -> None:
    first, second = (said(w, 0.5) for w in ("first", "second"))
    assert verdict("m", first, second).orders == ("chosen", "chosen")
    assert verdict("m", first, second).cost == 1.0
    assert verdict("m", second, first).winner == "rejected"
    assert verdict("m", first, first).winner == "tie"


def test_nothing_is_asked_twice(tmp_path: Path, server: Any) -> None:
    params, samples = (
        JudgeParams(judges=(llm(server),)),
        [sample("trees", "Bad."), sample("cars", "Bad.")],
    )
    _, before = judge(tmp_path, params, *samples)
    metrics, after = judge(tmp_path, params, *samples)
    assert after == before and len(after) == 2
    assert metrics["llm/requests"] == 0 and server.asked.total() == 4


def test_a_run_that_stopped_goes_on_where_it_was(tmp_path: Path, server: Any) -> None:
    samples = [sample(f"topic{i}", "Bad.") for i in range(5)]
    short = JudgeParams(judges=(llm(server, max_requests=4, concurrency=2),))
    metrics, pairs = judge(tmp_path, short, *samples)
    assert (metrics["llm/requests"], metrics["llm/left"], len(pairs)) == (4, 6, 2)
    assert metrics["without_pair/not_judged"] == 3
    metrics, pairs = judge(tmp_path, JudgeParams(judges=(llm(server),)), *samples)
    assert (metrics["llm/requests"], metrics["llm/left"], len(pairs)) == (6, 0, 5)
    assert len(server.asked) == 10 and set(server.asked.values()) == {1}


@pytest.mark.parametrize("fault", ["busy", "down", "cut", "torn"])
def test_a_passing_fault_costs_one_more_request(tmp_path: Path, server: Any, fault: str) -> None:
    _, pairs = judge(tmp_path, JudgeParams(judges=(llm(server),)), sample(fault, "Bad."))
    assert [pair.id for pair in pairs] == [f"{fault}#0"]
    assert list(server.asked.values()) == [2, 2]


def test_an_unreadable_judge_is_asked_three_times_and_given_up(tmp_path: Path, server: Any) -> None:
    metrics, pairs = judge(
        tmp_path, JudgeParams(judges=(llm(server),)), sample("mute", "Bad."), sample("x", "Bad.")
    )
    assert [pair.id for pair in pairs] == ["x#0"]
    assert metrics["llm/unreadable"] == 2 and metrics["without_pair/not_judged"] == 1
    assert sorted(server.asked.values()) == [1, 1, 3, 3]


def test_the_key_stays_out_of_files_messages_and_logs(
    tmp_path: Path, server: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    metrics, _ = judge(tmp_path, JudgeParams(judges=(llm(server),)), sample("echo busy", "Bad."))
    assert metrics["llm/unreadable"] == 2  # what tells the key is not kept
    with pytest.raises(ServerRefused, match="401: check \\$JUDGE_KEY") as caught:
        judge(tmp_path, JudgeParams(judges=(llm(server),)), sample("locked", "Bad."))
    assert caught.value.__context__ is None
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert KEY.encode() not in b"".join(written)
    said = str(caught.value) + "".join(capfd.readouterr())
    assert KEY not in said + caplog.text


@pytest.mark.parametrize("key", ["e", "good", "is", "It", "not-needed", "something"])
def test_a_key_that_is_a_word_changes_no_reply(
    tmp_path: Path, server: Any, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    said = json.dumps({"reason": f"It is good: {key}, something not-needed.", "winner": "first"})
    monkeypatch.setattr(server, "judgement", lambda *_: said)
    judge(tmp_path, JudgeParams(judges=(llm(server),)), sample("x", "Bad."))
    lines = (tmp_path / "verdicts" / "org-judge-1.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == [
        f"It is good: {key}, something not-needed."
    ] * 2


def test_a_short_key_is_taken_out_of_an_error_as_a_word() -> None:
    assert without("e", "bad key e, see here") == "bad key ***, see here"
    assert without("hunter2", "Bearer hunter2!") == "Bearer ***!"
    assert without(KEY, f"x{KEY}x") == "x***x"


@pytest.mark.parametrize(
    "mistake",
    [
        {"api_key_env": KEY},
        {"base_url": f"http://me:{KEY}@host/v1"},
        {"base_url": f"http://host?key={KEY}"},
    ],
)
def test_a_key_among_the_parameters_is_refused_and_not_told(
    tmp_path: Path, mistake: dict[str, str]
) -> None:
    params = yaml.safe_load(LAPTOP.read_text())
    params["judge"]["judges"] = [{"model": "m", **mistake}]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    said = rf"judge\.judges\.0\.{next(iter(mistake))}: .*(environment|export it)"
    with pytest.raises(BadParams, match=said) as caught:
        load_params(tmp_path / "params.yaml")
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("topic", ["echo busy", "locked"])
def test_the_key_reaches_neither_mlflow_nor_what_the_stage_prints(
    project: Path, call: Call, server: Any, environment: dict[str, str], topic: str
) -> None:
    params = yaml.safe_load(LAPTOP.read_text())
    params["judge"]["judges"] = [
        {"model": "m", "base_url": server.address, "api_key_env": "JUDGE_KEY"}
    ]
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    write_samples([sample(topic, "Bad.")], project / "c.parquet")
    ran = call(
        project, "-m", "tasks.judge", "c.parquet", ".", "j.parquet", "verdicts", JUDGE_KEY=KEY
    )
    assert ran.returncode == (1 if topic == "locked" else 0), ran.stderr
    assert server.asked.total() >= 2
    folders = (project, Path(environment["HOME"]))
    written = b"".join(
        path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()
    )
    assert (
        b"pairs_per_prompt" in written and b"JUDGE_KEY" in written
    )  # MLflow's database is among them
    assert KEY.encode() not in written and KEY not in ran.stdout + ran.stderr


def test_a_missing_key_names_the_variable(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ServerRefused, match="'JUDGE_KEY'"):
        judge(tmp_path, JudgeParams(judges=(llm(server),)), sample("x", "Bad."))


def test_a_server_that_is_down_is_an_error_and_no_empty_result(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ixc.clients.server.MAX_RETRIES", 0)
    nowhere = replace(llm(server), base_url="http://127.0.0.1:9/v1", timeout_s=0.2, concurrency=2)
    with pytest.raises(ServerFailed, match="no request came through"):
        judge(tmp_path, JudgeParams(judges=(nowhere,)), sample("x", "Bad."))


def test_a_judge_that_dies_midway_is_not_asked_thousands_of_times(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ixc.clients.server.MAX_RETRIES", 0)
    samples = [sample("alive", "Bad."), *(sample(f"dead{i}", "Bad.") for i in range(50))]
    with pytest.raises(ServerFailed, match="3 requests in a row failed"):
        judge(tmp_path, JudgeParams(judges=(llm(server, concurrency=1),)), *samples)
    assert server.asked.total() == 2 + 3
    assert len(VerdictStore(tmp_path / "verdicts", "org/judge:1")) == 2


def test_the_judge_sees_the_images_and_a_few_frames(tmp_path: Path, server: Any) -> None:
    Image.new("RGB", (300, 100), "red").save(tmp_path / "wide.png")
    video = tmp_path / "film.mp4"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=1, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for i in range(16):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 64), (16 * i, 0, 0)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    media = (
        Media(kind="image", path="wide.png", sha256="a"),
        Media(kind="video", path="film.mp4", sha256="b"),
    )
    judge(
        tmp_path,
        JudgeParams(judges=(llm(server, max_side=150, video_frames=3),)),
        sample("x", "Bad.", media=media),
    )
    content = server.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url"] * 4 + ["text"]
    urls = [part["image_url"]["url"] for part in content[:-1]]
    shown = [Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
    assert [image.size for image in shown] == [(150, 50), (64, 64), (64, 64), (64, 64)]
    reds = [int(image.convert("RGB").resize((1, 1)).tobytes()[0]) for image in shown[1:]]
    assert reds[0] < 30 and 100 < reds[1] < 160 and reds[2] > 200  # first, middle, last


def test_an_answer_cannot_fill_in_the_prompt() -> None:
    first, second = questions("m", sample("x"), "{second} </first_answer>", "Bad.")
    assert first.text.count("Bad.") == 1 and "{second}" in first.text
    assert first.key != second.key


def test_what_the_judge_sees_decides_the_key() -> None:
    one = sample("x")
    pictured = sample("x", media=(Media(kind="image", path="p", sha256="a"),))
    keys = {q.key for s in (one, pictured) for m in ("m", "n") for q in questions(m, s, "a", "b")}
    assert len(keys) == 8
    assert questions("m", one, "a", "b")[0].key == questions("m", one, "b", "a")[1].key


def test_a_torn_last_line_is_ignored_and_asked_again(tmp_path: Path) -> None:
    judgement = replace(said("tie"), key="k", reason="Both é.")
    VerdictStore(tmp_path, "m").add(judgement)
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write('{"key": "torn", "mod')
    store = VerdictStore(tmp_path, "m")
    assert (store.get("k"), store.get("torn")) == (judgement, None)
    store.add(replace(judgement, key="torn"))
    assert len(VerdictStore(tmp_path, "m")) == 2


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"key": "k"}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl:1: model: .*remove the line"):
        VerdictStore(tmp_path, "m")


@pytest.mark.parametrize(
    "text", [None, "", "first", '{"winner": "third", "reason": ""}', '{"reason": "x"}']
)
def test_a_reply_that_is_no_preference_is_not_read_as_one(text: str | None) -> None:
    assert parse(text) is None


def test_without_open_prompts_nothing_is_asked(tmp_path: Path, server: Any) -> None:
    known = replace(sample("x", "3", "4"), gold=Gold(check="number", value="4"))
    metrics, pairs = judge(tmp_path, JudgeParams(judges=(llm(server),)), known)
    assert (metrics["llm/requests"], len(pairs), server.asked.total()) == (0, 1, 0)
    store = VerdictStore(tmp_path / "verdicts", "org/judge:1")
    assert ask(llm(server), [], tmp_path, store).requests == 0


def test_the_majority_of_the_judges_decides(tmp_path: Path, server: Any) -> None:
    three = tuple(replace(llm(server), model=name) for name in ("one", "two", "contrarian"))
    metrics, [pair] = judge(tmp_path, JudgeParams(judges=three), sample("x", "Bad."))
    assert pair.verdict and (pair.verdict.winner, pair.verdict.judge) == (
        "chosen",
        "one + two + contrarian",
    )
    assert pair.verdict.cost == pytest.approx(3 * 2 * 0.003)
    assert (metrics["llm/requests"], metrics["llm/agreement"]) == (6, 0.0)
    assert metrics["llm/fleiss_kappa"] == pytest.approx(
        -0.5
    )  # observed 1/3, by chance (2/3)^2 + (1/3)^2 = 5/9
    assert metrics["llm/one/position_bias"] == 0 and metrics["llm/one/consistency"] == 1
    assert metrics["llm/one/pairs"] == 1 and metrics["llm/one/spent"] == pytest.approx(0.006)

    metrics, pairs = judge(tmp_path, JudgeParams(judges=three[1:]), sample("x", "Bad."))
    assert (metrics["llm/requests"], pairs, metrics["without_pair/reference_not_better"]) == (
        0,
        [],
        1,
    )


def test_a_biased_judge_is_told_by_its_numbers(tmp_path: Path, server: Any) -> None:
    metrics, _ = judge(tmp_path, JudgeParams(judges=(llm(server),)), sample("biased", "Bad."))
    assert (metrics["llm/org-judge-1/position_bias"], metrics["llm/org-judge-1/consistency"]) == (
        1,
        0,
    )


def test_every_domain_has_a_rubric_of_its_own() -> None:
    texts = [
        questions("m", replace(sample("x"), domain=domain), "a", "b")[0].text
        for domain in get_args(Domain)
    ]
    assert len(set(texts)) == len(texts) == 6
    assert not any("{" in text for text in texts)


def test_a_verdict_is_stored_with_what_it_was_about_and_cost(tmp_path: Path, server: Any) -> None:
    judge(tmp_path, JudgeParams(judges=(llm(server),)), sample("x", "Bad."))
    lines = [
        json.loads(line)
        for line in (tmp_path / "verdicts" / "org-judge-1.jsonl").read_text().splitlines()
    ]
    assert {line["order"] for line in lines} == {"reference_first", "reference_second"}
    assert {line["key"] for line in lines} == {
        question.key for question in questions("org/judge:1", sample("x"), "A good answer.", "Bad.")
    }
    told = {
        (line["model"], line["sample"], line["input_tokens"], line["output_tokens"])
        for line in lines
    }
    assert told == {("org/judge:1", "x", 1000, 100)}
    assert [line["cost"] for line in lines] == pytest.approx([0.003] * 2)


@pytest.mark.parametrize("batch", [False, True])
def test_dollars_run_out_and_the_next_run_goes_on(tmp_path: Path, server: Any, batch: bool) -> None:
    samples = [sample(f"topic{i}", "Bad.") for i in range(5)]
    poor = llm(server, max_cost=0.0125, concurrency=1, batch=batch, batch_size=2, poll_s=0.01)
    metrics, pairs = judge(tmp_path, JudgeParams(judges=(poor,)), *samples)
    assert (metrics["llm/requests"], metrics["llm/left"], len(pairs)) == (
        4,
        6,
        2,
    )  # 4 * 0.003 $ are 0.012 $
    metrics, pairs = judge(tmp_path, JudgeParams(judges=(replace(poor, max_cost=1.0),)), *samples)
    assert (metrics["llm/requests"], metrics["llm/left"], len(pairs)) == (6, 0, 5)
    assert len(server.asked) == 10 and set(server.asked.values()) == {1}


def test_parameters_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValueError, match="max_cost needs input_price"):
        LLMJudgeParams(model="m", max_cost=1.0)
    with pytest.raises(ValueError, match=r"judges: \['m'\] more than once"):
        JudgeParams(judges=(LLMJudgeParams(model="m"), LLMJudgeParams(model="m", temperature=None)))


def test_a_budget_holds_over_the_runs_for_the_same_verdicts(tmp_path: Path, server: Any) -> None:
    samples = [sample(f"topic{i}", "Bad.") for i in range(5)]
    poor = llm(server, max_cost=0.0125, concurrency=1)
    spent = []
    for _ in range(2):
        metrics, _ = judge(tmp_path, JudgeParams(judges=(poor,)), *samples)
        spent.append(
            (metrics["llm/requests"], metrics["llm/left"], metrics["llm/org-judge-1/spent"])
        )
    assert spent == [(4, 6, pytest.approx(0.012)), (0, 6, pytest.approx(0.012))]
    metrics, _ = judge(tmp_path, JudgeParams(judges=(poor,)), sample("other", "Bad."))
    assert metrics["llm/requests"] == 2  # what other questions cost is not reckoned


@pytest.mark.parametrize("concurrency", [1, 4])
def test_every_try_counts_as_a_request(tmp_path: Path, server: Any, concurrency: int) -> None:
    samples = [sample(f"dead{i}", "Bad.") for i in range(8)]
    with pytest.raises(ServerFailed, match="no request came through"):
        judge(
            tmp_path,
            JudgeParams(judges=(llm(server, max_requests=4, concurrency=concurrency),)),
            *samples,
        )
    assert server.asked.total() == 4


def test_tries_are_told_in_the_numbers(tmp_path: Path, server: Any) -> None:
    metrics, _ = judge(
        tmp_path, JudgeParams(judges=(llm(server),)), sample("busy", "Bad."), sample("x", "Bad.")
    )
    assert metrics["llm/requests"] == server.asked.total() == 6


@pytest.mark.parametrize(
    ("status", "told", "tries"), [(400, {}, 1), (500, {}, 5), (500, {"x-should-retry": "false"}, 1)]
)
def test_only_what_may_pass_is_tried_again(
    tmp_path: Path,
    server: Any,
    status: int,
    told: dict[str, str],
    tries: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    came = []

    def chat(self: Any, body: Any) -> None:
        came.append(body)
        self.reply(status, {"error": {"message": "no"}})

    def end_headers(self: Any) -> None:
        for name, value in told.items():
            self.send_header(name, value)
        BaseHTTPRequestHandler.end_headers(self)

    monkeypatch.setattr(server, "chat", chat)
    monkeypatch.setattr(server, "end_headers", end_headers)
    with pytest.raises(ServerFailed, match=str(status)):
        judge(tmp_path, JudgeParams(judges=(llm(server, concurrency=1),)), sample("x", "Bad."))
    assert len(came) == 2 * tries


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"retry-after-ms": "5"}, 0.005, 0.005),
        ({"retry-after": "7"}, 7, 7),
        ({"retry-after": "86400"}, MAX_PAUSE_S, MAX_PAUSE_S),
        (
            {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"},
            1.5,
            2,
        ),  # as without: 0.5 s doubled twice, less a quarter
        ({"retry-after": "nan"}, 1.5, 2),
        ({}, 1.5, 2),
    ],
)
def test_a_pause_is_as_long_as_the_server_asks(
    headers: dict[str, str], least: float, most: float
) -> None:
    response: Any = SimpleNamespace(headers=headers, status_code=429, request=None)
    assert least <= pause_s(RateLimitError("slow", response=response, body=None), 2) <= most


def test_a_first_batch_without_a_known_price_is_a_small_one(tmp_path: Path, server: Any) -> None:
    samples = [sample(f"topic{i}", "Bad.") for i in range(20)]
    metrics, _ = judge(tmp_path, batched(server, max_cost=0.02, concurrency=2), *samples)
    # 2 to learn that a reply costs 0.003 $, then as many as 0.02 $ - 0.006 $ buys: 4
    assert [len(server.files[batch["input_file_id"]].splitlines()) for batch in server.batches] == [
        2,
        4,
    ]
    assert (metrics["llm/requests"], metrics["llm/left"]) == (6, 34)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("word", ["mute", "speechless"])
def test_what_cannot_be_read_is_paid_for_once(
    tmp_path: Path, server: Any, word: str, batch: bool
) -> None:
    params = JudgeParams(judges=(llm(server, batch=batch, poll_s=0.01),))
    metrics, pairs = judge(tmp_path, params, sample(word, "Bad."), sample("x", "Bad."))
    assert (metrics["llm/unreadable"], metrics["llm/requests"], len(pairs)) == (2, 8, 1)
    path = tmp_path / "verdicts" / "org-judge-1.jsonl"
    last = {line["key"]: line for line in map(json.loads, path.read_text().splitlines())}
    assert (
        sum(line["cost"] for line in last.values())
        == pytest.approx(metrics["llm/cost"])
        == pytest.approx(8 * 0.003)
    )
    vain = [
        (line["attempts"], line["output_tokens"])
        for line in last.values()
        if line["winner"] is None
    ]
    assert vain == [(3, 300)] * 2

    metrics, again = judge(tmp_path, params, sample(word, "Bad."), sample("x", "Bad."))
    assert (metrics["llm/unreadable"], metrics["llm/requests"], again) == (2, 0, pairs)
    path.write_text(
        "".join(
            line + "\n" for line in path.read_text().splitlines() if '"winner": null' not in line
        )
    )
    metrics, _ = judge(tmp_path, params, sample(word, "Bad."), sample("x", "Bad."))
    assert metrics["llm/requests"] == 6  # the lines are gone: asked again


def test_a_question_goes_on_with_the_replies_it_had(tmp_path: Path, server: Any) -> None:
    short = JudgeParams(judges=(llm(server, max_requests=2, concurrency=1),))
    metrics, _ = judge(tmp_path, short, sample("mute", "Bad."))
    assert (metrics["llm/unreadable"], metrics["llm/left"]) == (0, 2)
    metrics, _ = judge(tmp_path, JudgeParams(judges=(llm(server),)), sample("mute", "Bad."))
    assert (metrics["llm/unreadable"], metrics["llm/left"]) == (2, 0)
    assert list(server.asked.values()) == [3, 3]
    # 0.003 $ each, of which the second run paid four
    assert (metrics["llm/cost"], metrics["llm/org-judge-1/spent"]) == pytest.approx(
        (4 * 0.003, 6 * 0.003)
    )


def test_a_page_that_is_no_completion_is_no_verdict(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ixc.clients.server.MAX_RETRIES", 1)
    monkeypatch.setattr("ixc.clients.server.pause_s", lambda *_: 0.0)
    monkeypatch.setattr(
        server, "reply", lambda self, *_: self.send(200, b"<html>Please log in.</html>")
    )
    with pytest.raises(ServerFailed, match=r"no JSON|no chat completion"):
        judge(tmp_path, JudgeParams(judges=(llm(server),)), sample("x", "Bad."))
    assert len(VerdictStore(tmp_path / "verdicts", "org/judge:1")) == 0


@pytest.mark.parametrize("message", [None, {}, {"content": ["first"]}])
def test_a_completion_without_the_usual_fields_is_unreadable(
    tmp_path: Path, server: Any, message: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = {
        "id": "1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message}],
        "usage": {},
    }
    monkeypatch.setattr(server, "completion", lambda *_: odd)
    metrics, _ = judge(tmp_path, JudgeParams(judges=(llm(server),)), sample("x", "Bad."))
    assert (metrics["llm/unreadable"], metrics["llm/cost"]) == (2, 0)


@pytest.mark.parametrize("batch", [False, True])
def test_a_image_that_cannot_be_used_spoils_its_own_prompt_only(
    tmp_path: Path, server: Any, batch: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (30, 10), "red").save(tmp_path / "good.png")
    (tmp_path / "damaged.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    samples = [
        sample(name, "Bad.", media=(Media(kind="image", path=f"{name}.png", sha256=name),))
        for name in ("missing", "damaged", "good")
    ]
    params = JudgeParams(judges=(llm(server, batch=batch, poll_s=0.01, concurrency=2),))
    metrics, pairs = judge(tmp_path, params, *samples)
    assert [pair.id for pair in pairs] == ["good#0"]
    assert (metrics["llm/unusable_media"], metrics["llm/left"], metrics["llm/requests"]) == (
        4,
        0,
        2,
    )
    said = capfd.readouterr().err
    assert (
        "2 not asked: " in said
        and "missing.png: not in the store" in said
        and "damaged.png: not a pict" in said
    )
    assert not list((tmp_path / "verdicts").glob("*.batch*"))

    metrics, pairs = judge(tmp_path, params, *samples[:2])
    assert (metrics["llm/unusable_media"], metrics["llm/requests"], pairs) == (4, 0, [])
    for name in ("missing", "damaged"):
        Image.new("RGB", (30, 10), "blue").save(tmp_path / f"{name}.png")
    assert len(judge(tmp_path, params, *samples)[1]) == 3


def test_replies_of_a_batch_that_are_read_twice_are_counted_once(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        kill_at(patched, "forget")
        with pytest.raises(KeyboardInterrupt):
            judge(tmp_path, batched(server), sample("mute", "Bad."), sample("x", "Bad."))
    judge(tmp_path, batched(server), sample("mute", "Bad."), sample("x", "Bad."))
    store = VerdictStore(tmp_path / "verdicts", "org/judge:1")
    keys = [
        q.key
        for name in ("mute", "x")
        for q in questions("org/judge:1", sample(name), "A good answer.", "Bad.")
    ]
    found = [store.get(key) for key in keys]
    assert [one and (one.attempts, round(one.cost, 6)) for one in found] == [(3, 0.009)] * 2 + [
        (1, 0.003)
    ] * 2


def test_a_failing_question_does_not_keep_the_others_from_a_small_first_batch(
    tmp_path: Path, server: Any
) -> None:
    samples = [sample(name, "Bad.") for name in ("dead", "x", "y")]
    metrics, pairs = judge(tmp_path, batched(server, max_cost=1.0, concurrency=2), *samples)
    assert [pair.id for pair in pairs] == ["x#0", "y#0"] and metrics["llm/unreachable"] == 2


def batched(server: Any, **changes: Any) -> JudgeParams:
    return JudgeParams(judges=(llm(server, batch=True, poll_s=0.01, **changes),))


def test_batches_give_the_verdicts_of_single_requests(tmp_path: Path, server: Any) -> None:
    Image.new("RGB", (30, 10), "red").save(tmp_path / "p.png")
    pictured = sample("p", "Bad.", media=(Media(kind="image", path="p.png", sha256="a"),))
    samples = [pictured, sample("trees", "Bad.", "Worse."), sample("biased", "Bad.")]
    singly = judge(tmp_path / "a", JudgeParams(judges=(llm(server),)), *samples, media=tmp_path)
    bodies = sorted(map(json.dumps, server.bodies))
    server.bodies.clear()
    together = judge(tmp_path / "b", batched(server, batch_size=3), *samples, media=tmp_path)
    assert together == singly
    assert sorted(map(json.dumps, server.bodies)) == bodies
    assert len(server.batches) == 3  # 8 questions, 3 at a time
    assert [path.name for path in (tmp_path / "b" / "verdicts").iterdir()] == ["org-judge-1.jsonl"]


@pytest.mark.parametrize("moment", ["remember", "wait", "take"])
def test_a_batch_under_way_outlives_a_kill(
    tmp_path: Path, server: Any, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [sample(f"topic{i}", "Bad.") for i in range(3)]
    with monkeypatch.context() as patched:
        kill_at(patched, moment)
        with pytest.raises(KeyboardInterrupt):
            judge(tmp_path, batched(server), *samples)
    assert len(server.batches) == 1 and (tmp_path / "verdicts" / "org-judge-1.batch.json").exists()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in written

    metrics, pairs = judge(tmp_path, batched(server), *samples)
    assert len(pairs) == 3 and metrics["llm/cost"] == pytest.approx(6 * 0.003)
    assert len(server.batches) == 1 and set(server.paid.values()) == {1}


def kill_at(patched: pytest.MonkeyPatch, moment: str) -> None:
    """`remember` dies when the id is to be written down: the server has the batch, the disk does not know it."""
    method = getattr(_Batches, moment)

    def killed(self: Any, *arguments: Any) -> Any:
        if moment == "remember" and arguments[0].batch is None:
            return method(self, *arguments)
        raise KeyboardInterrupt

    patched.setattr(_Batches, moment, killed)


def test_verdicts_of_a_batch_that_no_one_asks_for_any_more_are_kept(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        kill_at(patched, "wait")
        with pytest.raises(KeyboardInterrupt):
            judge(tmp_path, batched(server), sample("old", "Bad."))
    judge(tmp_path, batched(server), sample("new", "Bad."))
    assert len(VerdictStore(tmp_path / "verdicts", "org/judge:1")) == 4


def test_a_batch_that_never_reached_the_server_is_sent_again(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(server, "begin", lambda *_: (_ for _ in ()).throw(ConnectionError))
        patched.setattr("ixc.clients.server.MAX_RETRIES", 0)
        with pytest.raises(ServerFailed, match=r"judge\.judges: .*Connection"):
            judge(tmp_path, batched(server), sample("x", "Bad."))
    _, pairs = judge(tmp_path, batched(server), sample("x", "Bad."))
    assert len(pairs) == 1 and set(server.paid.values()) == {1}


def test_what_a_batch_could_not_answer_is_sent_again_or_given_up(
    tmp_path: Path, server: Any
) -> None:
    names = ("cut", "mute", "dead", "x")
    metrics, pairs = judge(tmp_path, batched(server), *(sample(name, "Bad.") for name in names))
    assert [pair.id for pair in pairs] == ["cut#0", "x#0"]
    assert (metrics["llm/unreadable"], metrics["llm/unreachable"], len(server.batches)) == (2, 2, 3)
    assert sorted(server.asked.values()) == [1, 1, 2, 2, 3, 3, 3, 3]


def test_a_batch_of_errors_is_an_error_without_the_key(tmp_path: Path, server: Any) -> None:
    with pytest.raises(ServerFailed, match=r"overloaded, \*\*\*") as caught:
        judge(tmp_path, batched(server), sample("dead", "Bad."))
    assert KEY not in str(caught.value)
    assert not (tmp_path / "verdicts" / "org-judge-1.batch.json").exists()


def test_a_batch_that_is_refused_is_an_error(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {
        "status": "failed",
        "errors": {"object": "list", "data": [{"message": f"line 1: {KEY}?"}]},
    }
    monkeypatch.setattr(server, "look", lambda self, batch: batch | broken)
    with pytest.raises(ServerFailed, match=r"batch-0 failed: line 1: \*\*\*\?"):
        judge(tmp_path, batched(server), sample("x", "Bad."))


KILLED = """
import sys
from pathlib import Path
from ixc.stages.judge.stage import run
from ixc.params import JudgeParams, LLMJudgeParams

folder, address, concurrency, timeout_s = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
flight = {"concurrency": concurrency, "timeout_s": timeout_s, "max_requests": 100_000}
params = LLMJudgeParams(model="m", base_url=address, api_key_env="JUDGE_KEY", **flight)
found = run(JudgeParams(judges=(params,)), folder / "c.parquet", folder, folder / "j.parquet", folder / "verdicts")
assert found["llm/left"] == found["llm/unreadable"] == found["llm/unreachable"] == 0, found
"""


def judging(
    folder: Path, server: Any, concurrency: int, timeout_s: float
) -> "subprocess.Popen[bytes]":
    arguments = (str(folder), server.address, str(concurrency), str(timeout_s))
    return subprocess.Popen([sys.executable, "-c", KILLED, *arguments])


@pytest.mark.parametrize(
    ("num_pairs", "concurrency", "timeout_s"),
    [(150, 16, 0.4), pytest.param(5000, 64, 2.0, marks=pytest.mark.slow)],
)
def test_a_flaky_server_and_three_kills_lose_nothing_and_pay_nothing_twice(
    tmp_path: Path, server: Any, num_pairs: int, concurrency: int, timeout_s: float
) -> None:
    server.flaky, server.late_s = 0.1, timeout_s + 0.1
    write_samples((sample(f"topic {i}", "Bad.") for i in range(num_pairs)), tmp_path / "c.parquet")
    stored = tmp_path / "verdicts" / "m.jsonl"

    for share in (0.17, 0.4, 0.67):
        process = judging(tmp_path, server, concurrency, timeout_s)
        while process.poll() is None and (
            not stored.exists() or lines_of(stored) < share * 2 * num_pairs
        ):
            time.sleep(0.02)
        process.kill()
        process.wait()
    # where the machine is busier than the server is flaky, a question is left for the next run
    assert 0 in (judging(tmp_path, server, concurrency, timeout_s).wait() for _ in range(3))
    lines = [json.loads(line) for line in stored.read_text().splitlines()]
    keys = [line["key"] for line in lines if line["winner"] is not None]
    assert len(keys) == len(set(keys)) == len({line["key"] for line in lines}) == 2 * num_pairs
    assert len(list(read_samples(tmp_path / "j.parquet"))) == num_pairs
    # paid for again: only what was in flight at a kill
    assert server.paid.total() <= 2 * num_pairs + 3 * concurrency


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n")


@pytest.mark.slow
def test_with_64_requests_in_flight_the_server_is_the_limit(tmp_path: Path, server: Any) -> None:
    server.thinks_s = 2.0  # as judges who give a reason do
    write_samples((sample(f"topic {i}", "Bad.") for i in range(320)), tmp_path / "c.parquet")
    assert judging(tmp_path, server, 64, 30.0).wait() == 0
    # 640 requests of 2 s, 64 at a time: 18 s from the first reply to the last; one at a time: 1278 s
    assert len(server.times) == 640 and server.times[-1] - server.times[0] < 2 * 18
