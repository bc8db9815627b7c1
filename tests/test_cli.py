"""The command line: what it prints, what it refuses, and that it asks no network."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image

from ixc.data.samples import write_samples
from ixc.models.ixc25.folder import save
from ixc.serve.api import ChatModel, RewardModel
from ixc.serve.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A saved reward model, a chat model and an image."""
    root = tmp_path_factory.mktemp("models")
    save(tiny.reward(), tiny.processor(), root / "reward")
    save(tiny.causal(), tiny.processor(), root / "chat")
    for name, broken in (("broken", tiny.reward()), ("broken-chat", tiny.causal())):
        with torch.no_grad():
            next(broken.model.layers[0].parameters()).fill_(float("nan"))
        save(broken, tiny.processor(), root / name)
    Image.new("RGB", (28, 28), "red").save(root / "red.png")
    return {
        name: str(root / name) for name in ("reward", "chat", "broken", "broken-chat", "red.png")
    }


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise AssertionError("a network call")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def run(capture: Capture, *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capture.readouterr().out)


def chats(folders: dict[str, str], tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    asked = {"role": "user", "content": "Colour?"}
    rows = [
        {"messages": [asked, {"role": "assistant", "content": answer}], "media": media}
        for answer, media in (
            ("Red.", [folders["red.png"]]),
            ("Blue.", [folders["red.png"]]),
            ("Three.", []),
        )
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return path


def test_score_prints_the_scores_of_a_file(
    folders: dict[str, str], tmp_path: Path, capsys: Capture
):
    path = chats(folders, tmp_path)
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    wanted = RewardModel.from_pretrained(folders["reward"]).score(
        [row["messages"] for row in rows], [row["media"] for row in rows]
    )
    assert run(capsys, "score", folders["reward"], str(path)) == pytest.approx(wanted)
    assert main(["score", folders["reward"], str(path)]) == 0
    assert [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()] == [
        "Red.",
        "Blue.",
        "Three.",
    ]


def test_chats_come_from_standard_input_too(
    folders: dict[str, str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    path = chats(folders, tmp_path)
    from_file = run(capsys, "score", folders["reward"], str(path))
    monkeypatch.setattr("sys.stdin", io.StringIO(path.read_text()))
    assert run(capsys, "score", folders["reward"], "-") == from_file


def test_rank_prints_the_best_first(folders: dict[str, str], capsys: Capture):
    asked = ["rank", folders["reward"], "--question", "Colour?", "--media", folders["red.png"]]
    answers = [option for answer in ("Red.", "Blue.", "Green.") for option in ("--answer", answer)]
    found = run(capsys, *asked, *answers)
    assert sorted(found["order"]) == [0, 1, 2]
    assert [found["order"][rank - 1] for rank in found["ranks"]] == [0, 1, 2]
    assert found["scores"][found["order"][0]] == max(found["scores"])


def test_chat_answers_one_message_or_several(
    folders: dict[str, str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    length = ("--max-new-tokens", "3")
    found = run(capsys, "chat", folders["chat"], "Colour?", "--media", folders["red.png"], *length)
    asked = [{"role": "user", "content": "Colour?"}]
    wanted = ChatModel.from_pretrained(folders["chat"]).reply(
        asked, [folders["red.png"]], max_new_tokens=3
    )
    assert found == {"role": "assistant", "content": wanted}
    monkeypatch.setattr("sys.stdin", io.StringIO("One?\nTwo?\n"))
    assert main(["chat", folders["chat"], *length, "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_an_answer_of_parts_is_printed_too(
    folders: dict[str, str], tmp_path: Path, capsys: Capture
):
    said = {"role": "assistant", "content": [{"type": "text", "text": "Red."}]}
    row = {"messages": [{"role": "user", "content": "Colour?"}, said]}
    (tmp_path / "chats.jsonl").write_text(json.dumps(row))
    assert main(["score", folders["reward"], str(tmp_path / "chats.jsonl")]) == 0
    assert capsys.readouterr().out.endswith("  Red.\n")


def test_convert_and_back(folders: dict[str, str], tmp_path: Path, capsys: Capture):
    assert run(capsys, "convert", folders["reward"], str(tmp_path / "official")) == {
        "new": [],
        "ignored": [],
    }
    assert (
        json.loads((tmp_path / "official" / "config.json").read_text())["model_type"] == "internlm2"
    )


def test_convert_replaces_no_files_of_others(
    folders: dict[str, str], tmp_path: Path, capsys: Capture
):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["convert", folders["reward"], str(tmp_path)]) == 2
    assert "name a new or an empty folder" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_the_device_may_be_left_to_the_machine(folders: dict[str, str], capsys: Capture):
    asked = ("score", folders["reward"], "--question", "Colour?", "--answer", "Red.")
    assert run(capsys, *asked, "--device", "auto") == pytest.approx(run(capsys, *asked), abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--question", "a", "--answer", "b"], "nowhere"),
        (["REWARD"], "name a file of chats"),
        (["REWARD", "--question", "a"], "--answer"),
        (["REWARD", "missing.jsonl"], "missing.jsonl"),
        (["REWARD", "--question", "a", "--answer", "b", "--media", "missing.png"], "missing.png"),
        (
            ["REWARD", "--question", "a", "--answer", "b", "--media", "https://example.org/a.png"],
            "address",
        ),
        (["REWARD", "--question", "<ImageHere>", "--answer", "b"], "0 images"),
        (
            ["REWARD", "--question", "a", "--answer", "b" * 99, "--max-length", "50"],
            "more than --max-length 50 .*; raise --max-length",
        ),
        (
            ["REWARD", "--question", "a", "--answer", "b", "--media", "RED", "--max-pixels", "9"],
            "raise --max-pixels",
        ),
        (["REWARD", "CHATS", "--media", "RED"], "--media goes with --question"),
        (
            ["BROKEN", "--question", "a", "--answer", "b"],
            "score nan: no number: .*with --dtype float32",
        ),
        (
            ["REWARD", "--question", "a", "--answer", "b", "--attention", "flash_attention_2"],
            "--attention 'flash_attention_2': needs a GPU.*; or give --attention auto$",
        ),
        (["REWARD", "--question", "a", "--answer", "b", "--device", "meta"], "--device meta: "),
        (
            ["REWARD", "--in", "CHATS", "--out", "x", "--attention", "eager"],
            "--attention eager reads every chat whole",
        ),
        (["REWARD", "--question", "a", "--answer", "b", "--device", "abacus"], "--device abacus: "),
        (["CHAT", "--question", "a", "--answer", "b"], "no score.weight"),
    ],
)
def test_bad_input_ends_in_one_line(
    folders: dict[str, str], capsys: Capture, arguments: list[str], message: str
):
    named = {"REWARD": "reward", "CHAT": "chat", "RED": "red.png", "BROKEN": "broken"}
    assert main(["score", *(folders[named[a]] if a in named else a for a in arguments)]) == 2
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.startswith("ixc score: ") and re.search(message, printed)


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"messages": "hello"}', '{"messages": [], "media": "a.png"}', "\ud800"]
)
def test_a_bad_line_is_named_and_the_others_are_scored(
    folders: dict[str, str], tmp_path: Path, capsys: Capture, line: str
):
    path = chats(folders, tmp_path)
    first, second, *_ = path.read_text().split("\n")
    path.write_bytes("\n".join([first, line, second]).encode("utf-8", "surrogatepass"))
    assert main(["score", folders["reward"], str(path), "--json"]) == 3
    printed = capsys.readouterr()
    scores = json.loads(printed.out)
    assert [isinstance(score, float) for score in scores] == [True, False, True] and scores[
        1
    ] is None
    named, counted = printed.err.splitlines()[-2:]
    assert named.startswith(f"ixc score: {path}:2: ") and "1 of 3 chats not scored" in counted


def test_one_missing_image_loses_no_other_row(
    folders: dict[str, str], tmp_path: Path, capsys: Capture
):
    """Rows of the file under the names of the field, each with an image beside the file."""
    shutil.copy(folders["red.png"], tmp_path / "red.png")
    asked, said = {"role": "user", "content": "Colour?"}, {"role": "assistant", "content": "Red."}
    rows = [
        {"messages": [asked, said], "images": [name]}
        for name in ("red.png", "missing.png", "red.png")
    ]
    rows.append({"messages": [asked, said], "image": "also-missing.png"})
    rows.append({"messages": [asked, {**said, "content": "x" * 99}], "images": ["red.png"]})
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert main(["rank", folders["reward"], str(path), "--json", "--max-length", "60"]) == 3
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["ranks"] == [1, None, 2, None, None] and found["order"] == [0, 2]
    assert found["scores"][0] == found["scores"][2] != None  # noqa: E711
    for where, reason in (
        (2, "/missing.png: no such file"),
        (4, "also-missing.png: no such"),
        (5, "--max-length 60"),
    ):
        assert re.search(rf"chats.jsonl:{where}: .*{reason}", printed.err)
    assert (
        main(["score", folders["reward"], str(path), "--media-root", str(tmp_path / "elsewhere")])
        == 2
    )


def test_one_answer_that_is_too_long_loses_no_other(folders: dict[str, str], capsys: Capture):
    asked = [
        "score",
        folders["reward"],
        "--question",
        "a",
        "--answer",
        "b",
        "--answer",
        "c" * 99,
        "--answer",
        "d",
    ]
    assert main([*asked, "--max-length", "50", "--json"]) == 3
    printed = capsys.readouterr()
    assert [score is None for score in json.loads(printed.out)] == [False, True, False]
    assert re.search(r"--answer 2: .*raise --max-length", printed.err)


def test_text_that_no_terminal_can_show_costs_no_score(
    folders: dict[str, str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "chats.jsonl"
    asked = {"role": "user", "content": "Colour?"}
    rows = [
        [asked, {"role": "assistant", "content": answer}]
        for answer in ("Red.", "half \ud800", "赤い")
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["score", folders["reward"], str(path)]) == 3
    first, second, third = written.getvalue().decode().splitlines()
    assert "Red." in first and "half \\ud800" in second and "\\u8d64" in third
    assert "chats.jsonl:2: 'assistant" in capsys.readouterr().err


def test_every_attention_of_the_command_line_gives_the_same_scores(
    folders: dict[str, str], capsys: Capture
):
    asked = ("score", folders["reward"], "--question", "a", "--answer", "b", "--answer", "c")
    wanted = run(capsys, *asked)
    for name in ("auto", "sdpa", "eager"):
        assert run(capsys, *asked, "--attention", name) == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    assert "{auto,sdpa,flash_attention_2,flex,eager}" in capsys.readouterr().out


def test_a_reader_who_has_seen_enough_ends_a_command_quietly(
    folders: dict[str, str], tmp_path: Path
):
    arguments = ["score", folders["reward"], str(chats(folders, tmp_path))]
    command = f"from ixc.serve.cli import main; raise SystemExit(main({arguments!r}))"
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        [sys.executable, "-c", command],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_row_of_images_scores_as_the_api_does(
    folders: dict[str, str], tmp_path: Path, capsys: Capture
):
    asked, said = {"role": "user", "content": "Colour?"}, {"role": "assistant", "content": "Red."}
    [wanted] = RewardModel.from_pretrained(folders["reward"]).score(
        [[asked, said]], [folders["red.png"]]
    )
    [blind] = RewardModel.from_pretrained(folders["reward"]).score([[asked, said]])
    shutil.copy(folders["red.png"], tmp_path / "red.png")
    part = {"type": "image_url", "image_url": {"url": "red.png"}}
    rows: list[Any] = [
        {"messages": [asked, said], "images": ["red.png"]},
        {
            "conversations": [
                {"from": "human", "value": "<image>\nColour?"},
                {"from": "gpt", "value": "Red."},
            ],
            "image": "red.png",
        },
        {
            "messages": [
                {"role": "user", "content": [part, {"type": "text", "text": "Colour?"}]},
                said,
            ]
        },
    ]
    (tmp_path / "chats.json").write_text(json.dumps(rows, indent=1))
    found = run(capsys, "score", folders["reward"], str(tmp_path / "chats.json"))
    assert found[:2] == pytest.approx([wanted] * 2, abs=1e-5)
    assert abs(wanted - blind) > 1e-3 and abs(found[2] - blind) > 1e-3
    direct = RewardModel.from_pretrained(folders["reward"]).score(
        [{**rows[0], "images": [folders["red.png"]]}]
    )
    assert direct == pytest.approx([wanted], abs=1e-5)


def test_the_exit_status_is_in_the_help(capsys: Capture):
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    assert "3: at least one row could not be scored" in " ".join(capsys.readouterr().out.split())


def test_the_version_is_printed(capsys: Capture):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and re.fullmatch(r"ixc \d+\.\d+.*\n", capsys.readouterr().out)


def test_a_reply_is_printed_as_it_comes(
    folders: dict[str, str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    pieces: list[str] = []
    write = print

    def note(*values: Any, **how: Any) -> None:
        pieces.append(str(values[0]))
        write(*values, **how)

    monkeypatch.setattr("builtins.print", note)
    asked = [
        "chat",
        folders["chat"],
        "Colour?",
        "--max-new-tokens",
        "12",
        "--temperature",
        "3",
        "--seed",
        "5",
    ]
    assert main(asked) == 0
    streamed = capsys.readouterr().out
    monkeypatch.undo()
    assert len([piece for piece in pieces if piece]) > 3
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["content"] + "\n" == streamed


def test_an_empty_message_is_refused_and_not_waited_for(folders: dict[str, str], capsys: Capture):
    assert main(["chat", folders["chat"], " "]) == 2
    assert "the message is empty" in capsys.readouterr().err


def test_a_break_ends_a_conversation_quietly(
    folders: dict[str, str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    def stop(*_: Any, **__: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(ChatModel, "reply", stop)
    assert main(["chat", folders["chat"], "Colour?"]) == 130
    assert capsys.readouterr().err == ""


def test_chat_options_reach_the_model(
    folders: dict[str, str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    short = ("chat", folders["chat"], "Colour?", "--max-new-tokens", "8")
    plain = run(capsys, *short)
    assert run(capsys, *short, "--temperature", "0") == run(capsys, *short, "--seed", "3") == plain
    warm = [run(capsys, *short, "--temperature", "5", "--seed", seed) for seed in ("1", "1", "2")]
    assert warm[0] == warm[1] != warm[2]
    seen: list[Any] = []
    monkeypatch.setattr(
        ChatModel,
        "reply",
        lambda self, messages, *_, **how: seen.append((list(messages), how)) or "",
    )
    run(capsys, *short, "--system", "Be brief.", "--sample", "--temperature", "0.5", "--seed", "7")
    [(messages, how)] = seen
    assert messages[0] == {"role": "system", "content": "Be brief."}
    assert how == {
        "max_new_tokens": 8,
        "do_sample": True,
        "top_p": 0.8,
        "repetition_penalty": 1.005,
        "temperature": 0.5,
        "seed": 7,
    }
    wrong = (
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--seed", "x"),
        ("--max-new-tokens", "0"),
    )
    for bad in (*wrong, ("--attention", "none")):
        with pytest.raises(SystemExit):
            main([*short, *bad])


def test_a_chat_that_is_too_long_says_which_options_there_are(
    folders: dict[str, str], capsys: Capture
):
    asked = ["chat", folders["chat"], "Colour?", "--media", folders["red.png"], "--max-length", "9"]
    assert main(asked) == 2
    printed = capsys.readouterr().err
    for name in ("--max-length", "--image-budget", "--on-overflow"):
        assert name in printed
        with pytest.raises(SystemExit):
            main(["chat", "--help"])
        assert name in capsys.readouterr().out


def test_a_chat_model_without_numbers_is_named(folders: dict[str, str], capsys: Capture):
    for how in ([], ["--temperature", "1"]):
        assert main(["chat", folders["broken-chat"], "Colour?", *how]) == 2
        assert "logit nan: no number" in capsys.readouterr().err


def test_show_prints_the_rows_of_a_table(tmp_path: Path, capsys: Capture):
    write_samples(
        [tiny.pair("Who?", "Ann.", "Ben."), tiny.pair("Where?", "Here.", "There.")],
        tmp_path / "a.parquet",
    )
    assert main(["show", str(tmp_path / "a.parquet"), "--limit", "1"]) == 0
    printed = capsys.readouterr().out
    assert "Who?" in printed and "Where?" not in printed
    assert main(["show", str(tmp_path / "missing.parquet")]) == 2
