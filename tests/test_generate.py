"""The same answers whether or not a run was killed on the way, from the base model and from a server."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from fake_openai import KEY, serving

import ixc.engine.sampling
import ixc.stages.generate
from ixc.clients.server import ServerFailed
from ixc.data.samples import Sample, Turn, read_samples, write_samples
from ixc.engine.sampling import generate
from ixc.engine.vision_cache import VisionCache
from ixc.metrics import Metrics
from ixc.params import GenerateParams, ServerParams
from ixc.stages.generate import messages, run

PARAMS = GenerateParams(num_candidates=3, max_new_tokens=6, batch_size=2, seed=7)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("SERVER_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as handler:
        yield handler


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    red, blue = tiny.image(tmp_path, "red"), tiny.image(tmp_path, "blue", (90, 30))
    texts = [
        tiny.sample(text)
        for text in ("Hello, who are you?", "Hi.", "Why?", "What now?", "Tell me more, please.")
    ]
    return [
        *texts,
        tiny.sample("What is it?", [red]),
        tiny.sample("<ImageHere> and <ImageHere>?", [red, blue]),
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny.causal().save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    return folder


def remote(server: Any, **changes: Any) -> GenerateParams:
    changes = {"concurrency": 4, "input_price": 2.0, "output_price": 10.0, **changes}
    settings = ServerParams(model="m", base_url=server.address, api_key_env="SERVER_KEY", **changes)
    return replace(PARAMS, server=settings)


def answer(
    tmp_path: Path, base: Path, params: GenerateParams, samples: list[Sample]
) -> tuple[Metrics, list[Sample]]:
    write_samples(samples, tmp_path / "prompts.parquet")
    found = run(
        params,
        tmp_path / "prompts.parquet",
        tmp_path,
        base,
        tmp_path / "out" / "candidates.parquet",
    )
    return found, list(read_samples(tmp_path / "out" / "candidates.parquet"))


def left_over(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "out").iterdir() if path.name != "candidates.parquet"]


def test_the_base_models_answers_are_those_of_one_plain_run(
    tmp_path: Path, base: Path, samples: list[Sample]
) -> None:
    metrics, got = answer(tmp_path, base, PARAMS, samples)
    model = tiny.causal()
    rows = generate(
        model, VisionCache(model, tiny.processor(), tmp_path), samples, 3, 1.0, 6, 2, seed=7
    )
    assert [s.candidates for s in got] == [tuple(a.text for a in row) for row in rows]
    assert [replace(s, candidates=(), meta={}) for s in got] == samples
    assert all(s.meta == {"generate": {"model": base.as_posix(), "seed": 7}} for s in got)
    assert (metrics["prompts"], metrics["candidates"]) == (7, 21)
    assert metrics["length"] == pytest.approx(sum(len(a.ids) for row in rows for a in row) / 21)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_a_killed_run_goes_on_and_ends_the_same(
    tmp_path: Path, base: Path, samples: list[Sample], batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = answer(tmp_path, base, PARAMS, samples)
    (tmp_path / "out" / "candidates.parquet").unlink()
    sample_ids, done = ixc.engine.sampling.sample_ids, []

    def killed(*arguments: Any) -> list[list[list[int]]]:
        if len(done) == batches:
            raise KeyboardInterrupt
        done.append(0)
        return sample_ids(*arguments)

    monkeypatch.setattr(ixc.engine.sampling, "sample_ids", killed)
    with pytest.raises(KeyboardInterrupt):
        answer(tmp_path, base, PARAMS, samples)
    assert left_over(tmp_path) == [".candidates.parquet.base-0.jsonl"]
    with (tmp_path / "out" / ".candidates.parquet.base-0.jsonl").open("a") as journal:
        journal.write('{"ids": [[[1, 2')  # the line that the kill tore

    counted = []
    monkeypatch.setattr(
        ixc.engine.sampling, "sample_ids", lambda *each: counted.append(0) or sample_ids(*each)
    )
    _, resumed = answer(tmp_path, base, PARAMS, samples)
    assert resumed == whole and len(counted) == 4 - batches
    assert left_over(tmp_path) == []


def test_other_prompts_or_parameters_do_not_go_on_from_a_strangers_journal(
    tmp_path: Path, base: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, wanted = answer(tmp_path, base, replace(PARAMS, seed=8), samples)

    def full(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(ixc.stages.generate, "write_samples", full)
        with pytest.raises(OSError, match="full"):
            answer(tmp_path, base, PARAMS, samples)
    assert left_over(tmp_path) == [".candidates.parquet.base-0.jsonl"]
    assert answer(tmp_path, base, replace(PARAMS, seed=8), samples)[1] == wanted


def test_a_server_answers_with_recorded_seeds(
    tmp_path: Path, server: Any, samples: list[Sample]
) -> None:
    metrics, got = answer(tmp_path, tmp_path, remote(server), samples)
    for sample in got:
        made = sample.meta["generate"]
        assert made["model"] == "m" and len(set(made["seeds"])) == 3
        last = sample.prompt[-1].content.split()[-1].removeprefix("<ImageHere>")
        assert sample.candidates == tuple(f"m {seed} {last}" for seed in made["seeds"])
    assert {(body["temperature"], body["max_tokens"]) for body in server.bodies} == {(1.0, 6)}
    assert (metrics["candidates"], metrics["server/requests"], metrics["length"]) == (21, 21, 100)
    assert metrics["server/cost"] == pytest.approx(
        21 * 0.003
    )  # 1000 tokens at 2 $, 100 at 10 $ a million
    assert left_over(tmp_path) == []
    assert KEY not in json.dumps([sample.meta for sample in got])


def test_a_budget_stops_and_the_next_run_asks_for_the_rest_only(
    tmp_path: Path, server: Any, samples: list[Sample]
) -> None:
    _, whole = answer(tmp_path, tmp_path, remote(server), samples)
    server.asked.clear()
    metrics, some = answer(
        tmp_path, tmp_path, remote(server, max_requests=8, concurrency=1), samples
    )
    assert (metrics["server/left"], len(some)) == (13, 3)  # 3 + 3 + 2 answers
    metrics, got = answer(tmp_path, tmp_path, remote(server), samples)
    assert got == whole and server.asked.total() == 21
    assert metrics["server/left"] == 0 and left_over(tmp_path) == []


def test_what_a_server_was_paid_for_survives_a_run_of_the_base_model(
    tmp_path: Path, server: Any, base: Path, samples: list[Sample]
) -> None:
    answer(tmp_path, base, remote(server, max_requests=8), samples)
    answer(tmp_path, base, PARAMS, samples)
    answer(tmp_path, base, remote(server), samples)
    assert server.asked.total() == 21


def test_what_a_server_could_not_answer_is_asked_again_and_nothing_else(
    tmp_path: Path, server: Any, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ixc.clients.server.MAX_RETRIES", 0)
    both = [samples[0], tiny.sample("It is down")]
    metrics, got = answer(tmp_path, tmp_path, remote(server, concurrency=1), both)
    assert [len(sample.candidates) for sample in got] == [3, 2]
    assert metrics["server/unreachable"] == 1
    _, got = answer(tmp_path, tmp_path, remote(server), both)
    assert [len(sample.candidates) for sample in got] == [3, 3] and server.asked.total() == 7


def test_what_a_server_was_asked_in_vain_is_paid_for_once(
    tmp_path: Path, server: Any, samples: list[Sample]
) -> None:
    both = [samples[0], tiny.sample("Be speechless")]
    metrics, got = answer(tmp_path, tmp_path, remote(server), both)
    assert [len(sample.candidates) for sample in got] == [3]
    assert (metrics["server/unreadable"], metrics["server/requests"]) == (3, 3 + 3 * 3)
    assert metrics["server/cost"] == pytest.approx(12 * 0.003)
    metrics, again = answer(tmp_path, tmp_path, remote(server), both)
    assert again == got and (metrics["server/unreadable"], metrics["server/requests"]) == (3, 0)
    journal = tmp_path / "out" / ".candidates.parquet.server.jsonl"
    journal.write_text("".join(line for line in journal.open() if '"text": null' not in line))
    assert answer(tmp_path, tmp_path, remote(server), both)[0]["server/requests"] == 9


def test_a_length_is_that_of_the_answer_and_not_of_what_was_asked_in_vain(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter((None, "Hi."))
    completion = server.completion

    def changed(self: Any, *arguments: Any) -> dict[str, Any]:
        body = completion(self, *arguments)
        body["choices"][0]["message"]["content"] = next(said)
        return body

    monkeypatch.setattr(server, "completion", changed)
    metrics, [got] = answer(
        tmp_path, tmp_path, replace(remote(server), num_candidates=1), [tiny.sample("Hello")]
    )
    assert (got.candidates, metrics["length"]) == (("Hi.",), 100)


def test_a_missing_image_spoils_its_own_prompt_only(
    tmp_path: Path, server: Any, samples: list[Sample], capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / samples[-2].media[0].path).rename(tmp_path / "away")
    metrics, got = answer(tmp_path, tmp_path, remote(server), samples)
    assert [sample.id for sample in got] == [sample.id for sample in samples[:-2]]
    assert (metrics["server/unusable_media"], metrics["server/requests"]) == (6, 15)
    assert "6 not asked: " in capfd.readouterr().err
    (tmp_path / "away").rename(tmp_path / samples[-2].media[0].path)
    metrics, got = answer(tmp_path, tmp_path, remote(server), samples)
    assert len(got) == 7 and metrics["server/requests"] == 6


def test_a_key_that_is_a_word_changes_no_answer(
    tmp_path: Path, server: Any, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_KEY", "m")
    _, got = answer(tmp_path, tmp_path, remote(server), samples[:1])
    assert all(text.startswith("m ") for text in got[0].candidates)


def test_a_server_that_is_not_there_is_an_error(
    tmp_path: Path, server: Any, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ixc.clients.server.MAX_RETRIES", 0)
    server.address = "http://127.0.0.1:9/v1"
    with pytest.raises(ServerFailed, match=r"generate\.server: model 'm' at http://127\.0\.0\.1:9"):
        answer(tmp_path, tmp_path, remote(server, concurrency=2), samples)


def test_images_stand_where_they_are_marked(tmp_path: Path, samples: list[Sample]) -> None:
    def kinds(sample: Sample) -> list[Any]:
        contents = [
            message["content"] for message in messages(sample, tmp_path, ServerParams(model="m"))
        ]
        return [
            c if isinstance(c, str) else [part.get("text", "PICTURE") for part in c]
            for c in contents
        ]

    unmarked, marked = samples[-2:]
    assert kinds(unmarked) == [["PICTURE", "What is it?"]]
    assert kinds(marked) == [["PICTURE", " and ", "PICTURE", "?"]]
    system = Turn(role="system", content="Be brief.")
    later = Turn(role="user", content="And <ImageHere>?")
    talk = replace(unmarked, prompt=(system, *unmarked.prompt, later), media=marked.media)
    assert kinds(talk) == ["Be brief.", ["PICTURE", "What is it?"], ["And ", "PICTURE", "?"]]
    assert kinds(replace(marked, media=marked.media[:1])) == [
        ["PICTURE", " and ", "<ImageHere>", "?"]
    ]
