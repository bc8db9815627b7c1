"""The command line: what it prints, what it refuses, and that it asks no network."""

import io
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image

from ixc.api import ChatModel, RewardModel
from ixc.cli import main
from ixc.model.folder import save
from ixc.samples import write_samples

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A saved reward model, a chat model and a picture."""
    root = tmp_path_factory.mktemp("models")
    save(tiny.reward(), tiny.processor(), root / "reward")
    save(tiny.causal(), tiny.processor(), root / "chat")
    Image.new("RGB", (28, 28), "red").save(root / "red.png")
    return {name: str(root / name) for name in ("reward", "chat", "red.png")}


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
        for answer, media in (("Red.", [folders["red.png"]]), ("Blue.", [folders["red.png"]]), ("Three.", []))
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return path


def test_score_prints_the_scores_of_a_file(folders: dict[str, str], tmp_path: Path, capsys: Capture):
    path = chats(folders, tmp_path)
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    wanted = RewardModel.from_pretrained(folders["reward"]).score(
        [row["messages"] for row in rows], [row["media"] for row in rows]
    )
    assert run(capsys, "score", folders["reward"], str(path)) == pytest.approx(wanted)
    assert main(["score", folders["reward"], str(path)]) == 0
    assert [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()] == ["Red.", "Blue.", "Three."]


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


def test_chat_answers_one_message_or_several(folders: dict[str, str], capsys: Capture, monkeypatch: pytest.MonkeyPatch):
    length = ("--max-new-tokens", "3")
    found = run(capsys, "chat", folders["chat"], "Colour?", "--media", folders["red.png"], *length)
    asked = [{"role": "user", "content": "Colour?"}]
    wanted = ChatModel.from_pretrained(folders["chat"]).reply(asked, [folders["red.png"]], max_new_tokens=3)
    assert found == {"role": "assistant", "content": wanted}
    monkeypatch.setattr("sys.stdin", io.StringIO("One?\nTwo?\n"))
    assert main(["chat", folders["chat"], *length, "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_an_answer_of_parts_is_printed_too(folders: dict[str, str], tmp_path: Path, capsys: Capture):
    said = {"role": "assistant", "content": [{"type": "text", "text": "Red."}]}
    row = {"messages": [{"role": "user", "content": "Colour?"}, said]}
    (tmp_path / "chats.jsonl").write_text(json.dumps(row))
    assert main(["score", folders["reward"], str(tmp_path / "chats.jsonl")]) == 0
    assert capsys.readouterr().out.endswith("  Red.\n")


def test_convert_and_back(folders: dict[str, str], tmp_path: Path, capsys: Capture):
    assert run(capsys, "convert", folders["reward"], str(tmp_path / "official")) == {"new": [], "ignored": []}
    assert json.loads((tmp_path / "official" / "config.json").read_text())["model_type"] == "internlm2"


def test_convert_replaces_no_files_of_others(folders: dict[str, str], tmp_path: Path, capsys: Capture):
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
        (["REWARD", "--question", "a", "--answer", "b", "--media", "https://example.org/a.png"], "address"),
        (["REWARD", "--question", "<ImageHere>", "--answer", "b"], "0 pictures"),
        (["REWARD", "--question", "a", "--answer", "b", "--attention", "none"], "none"),
        (["REWARD", "--question", "a", "--answer", "b", "--attention", "flash_attention_2"], "FlashAttention2"),
        (["REWARD", "--question", "a", "--answer", "b", "--device", "abacus"], "--device abacus: "),
        (["CHAT", "--question", "a", "--answer", "b"], "no score.weight"),
    ],
)
def test_bad_input_ends_in_one_line(folders: dict[str, str], capsys: Capture, arguments: list[str], message: str):
    named = {"REWARD": folders["reward"], "CHAT": folders["chat"]}
    assert main(["score", *(named.get(a, a) for a in arguments)]) == 2
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.startswith("ixc score: ") and message in printed


@pytest.mark.parametrize("line", ["{", "[]", '{"messages": "hello"}', '{"messages": [], "media": "a.png"}'])
def test_a_bad_line_is_named(folders: dict[str, str], tmp_path: Path, capsys: Capture, line: str):
    path = chats(folders, tmp_path)
    path.write_text(path.read_text().split("\n")[0] + "\n" + line)
    assert main(["score", folders["reward"], str(path)]) == 2
    assert f"{path}:2: " in capsys.readouterr().err


def test_show_prints_the_rows_of_a_table(tmp_path: Path, capsys: Capture):
    write_samples([tiny.pair("Who?", "Ann.", "Ben."), tiny.pair("Where?", "Here.", "There.")], tmp_path / "a.parquet")
    assert main(["show", str(tmp_path / "a.parquet"), "--limit", "1"]) == 0
    printed = capsys.readouterr().out
    assert "Who?" in printed and "Where?" not in printed
    assert main(["show", str(tmp_path / "missing.parquet")]) == 2
