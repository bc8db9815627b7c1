"""Every reader: on rows of the native form written here, on broken ones, and on the real data."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from real import REAL, needs_real

from ixc.data.samples import Gold
from ixc.data.sources import READERS, BadSource, Refused, Row
from ixc.data.sources.__main__ import main as try_reader
from ixc.stages.judge.agreement import wildvision
from ixc.stages.validate.contamination import Benchmarks
from ixc.stages.validate.shingles import Words

USER = "\n\nHuman: "
ASSISTANT = "\n\nAssistant: "


def write(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def paint(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path)


def read(name: str, path: Path) -> tuple[list[Row], list[Refused]]:
    items = list(READERS[name](path, 0))
    return [i for i in items if isinstance(i, Row)], [i for i in items if isinstance(i, Refused)]


# hh_rlhf


def test_hh_rlhf_is_split_at_the_last_assistant_turn(tmp_path: Path):
    start = f"{USER}Hi.{ASSISTANT}Hello.{USER}How are you?"
    write(
        tmp_path / "test.jsonl",
        {"chosen": f"{start}{ASSISTANT}Fine.", "rejected": f"{start}{ASSISTANT}Go."},
    )
    [row], refused = read("hh_rlhf", tmp_path)
    assert [(turn.role, turn.content) for turn in row.prompt] == [
        ("user", "Hi."),
        ("assistant", "Hello."),
        ("user", "How are you?"),
    ]
    assert (row.chosen, row.rejected, row.domain, refused) == ("Fine.", "Go.", "safety", [])


def test_hh_rlhf_refuses_dialogues_that_part_early_or_end_without_a_response(tmp_path: Path):
    parted = {"chosen": f"{USER}A{ASSISTANT}x", "rejected": f"{USER}B{ASSISTANT}y"}
    silent = {"chosen": f"{USER}A{ASSISTANT}x", "rejected": f"{USER}A\n\nAssistant:"}
    write(tmp_path / "test.jsonl", parted, silent, {"chosen": "Hi.", "rejected": "Ho."})
    rows, refused = read("hh_rlhf", tmp_path)
    assert rows == []
    assert [(item.where, item.reason.split(";")[0]) for item in refused] == [
        ("test.jsonl:1", "the dialogues part before their last turn: two prompts, no pair"),
        ("test.jsonl:2", "an empty response"),
        ("test.jsonl:3", "no dialogue of Human and Assistant that ends with the Assistant"),
    ]


def test_a_gzipped_file_is_read_and_a_cut_one_refused(tmp_path: Path):
    line = json.dumps({"chosen": f"{USER}A{ASSISTANT}x", "rejected": f"{USER}A{ASSISTANT}y"}) + "\n"
    packed = gzip.compress(line.encode())
    (tmp_path / "train.jsonl.gz").write_bytes(packed)
    assert len(read("hh_rlhf", tmp_path)[0]) == 1
    (tmp_path / "train.jsonl.gz").write_bytes(packed[:-6])
    assert [item.where for item in read("hh_rlhf", tmp_path)[1]] == ["train.jsonl.gz:2"]


# gsm8k


def test_gsm8k_yields_the_number_and_a_pair_of_solutions(tmp_path: Path):
    write(
        tmp_path / "test.jsonl",
        {"question": "2000 + 1?", "answer": "It is <<2000+1=2001>>2001.\n#### 2,001"},
    )
    models = {
        "small": {"is_correct": False, "solution": "<<1+1=2>>2\nA: 2"},
        "large": {"is_correct": True, "solution": "2001\nA: 2001"},
    }
    write(
        tmp_path / "example_model_solutions.jsonl",
        {"question": "2000 + 1?", "ground_truth": "", **models},
    )
    [problem, pair], _ = read("gsm8k", tmp_path)
    assert problem.gold and (problem.gold.check, problem.gold.value) == ("number", "2001")
    assert problem.gold.answer == "It is 2001.\nThe answer is 2001."
    assert (pair.chosen, pair.rejected) == ("2001\nThe answer is 2001.", "2\nThe answer is 2.")
    assert problem.group == pair.group


def test_the_first_rows_of_gsm8k_are_problems_and_pairs(tmp_path: Path):
    write(
        tmp_path / "test.jsonl",
        *({"question": f"{i} + 1?", "answer": f"#### {i + 1}"} for i in range(3)),
    )
    models = {
        name: {"is_correct": name == "large", "solution": f"A: {name}"}
        for name in ("small", "large")
    }
    write(
        tmp_path / "example_model_solutions.jsonl",
        *({"question": f"{i} + 1?", **models} for i in range(2)),
    )
    assert [bool(row.chosen) for row in read("gsm8k", tmp_path)[0]] == [
        False,
        True,
        False,
        True,
        False,
    ]


def test_gsm8k_refuses_a_problem_without_an_answer(tmp_path: Path):
    write(
        tmp_path / "test.jsonl", {"question": "1 + 1?", "answer": "no idea"}, {"question": "1 + 1?"}
    )
    rows, refused = read("gsm8k", tmp_path)
    assert (rows, [item.where for item in refused]) == ([], ["test.jsonl:1", "test.jsonl:2"])
    assert refused[1].reason == "answer: missing; add the field or remove the row"


# math_vision


def math_vision(folder: Path, **changes: Any) -> Path:
    item = {
        "id": "7",
        "question": "How long?\n<image1>",
        "options": ["1 cm", "2 cm"],
        "answer": "B",
    }
    write(
        folder / "test.jsonl",
        {**item, "image": "images/7.jpg", "level": 1, "subject": "algebra", **changes},
    )
    paint(folder / "images" / "7.jpg")
    right = {"id": "7", "response": "(B)", "model_answer": "b", "correct": True}
    wrong = {"id": "7", "response": "(A)", "model_answer": "a", "correct": False}
    write(folder / "outputs" / "one.jsonl", right)
    write(folder / "outputs" / "two.jsonl", wrong)
    return folder


def test_math_vision_yields_a_choice_and_a_pair_of_the_models_answers(tmp_path: Path):
    [prompt, pair], _ = read("math_vision", math_vision(tmp_path))
    assert prompt.gold and (prompt.gold.check, prompt.gold.value) == ("choice", "B")
    assert prompt.wrong == ("The answer is (A).",)
    assert prompt.prompt[0].content == (
        "How long?\n(A) 1 cm\n(B) 2 cm\nAnswer with the letter of the right option."
    )
    assert (pair.chosen, pair.rejected) == ("(B)", "(A)")
    assert pair.media == prompt.media and prompt.media[0].path == tmp_path / "images" / "7.jpg"


def test_math_vision_without_options_is_a_number(tmp_path: Path):
    [prompt, _], _ = read("math_vision", math_vision(tmp_path, options=[], answer="60"))
    assert prompt.gold and (prompt.gold.check, prompt.gold.value) == ("number", "60")


def test_math_vision_refuses_an_answer_that_is_no_option(tmp_path: Path):
    rows, [refused] = read("math_vision", math_vision(tmp_path, answer="C"))
    assert (rows, refused.reason) == ([], "answer: 'C': not one of the 2 options; correct it")


@pytest.mark.parametrize("image", ["../secret.jpg", "/etc/hostname", "images/missing.jpg"])
def test_a_image_outside_its_folder_or_missing_is_refused(tmp_path: Path, image: str):
    folder = math_vision(tmp_path / "data", image=image)
    paint(tmp_path / "secret.jpg")
    rows, [refused] = read("math_vision", folder)
    assert rows == []
    assert "leaves the source's folder" in refused.reason or "no such file" in refused.reason


# nlvr, super_clevr, ifeval


def test_nlvr_asks_for_the_truth_and_knows_the_other_value(tmp_path: Path):
    item = {"sentence": "there is a box", "label": "false", "identifier": "12-3", "directory": "0"}
    write(tmp_path / "dev.json", item, {**item, "label": "maybe"})
    paint(tmp_path / "images" / "0" / "dev-12-3-0.png")
    [row], [refused] = read("nlvr", tmp_path)
    assert row.gold and (row.gold.value, row.gold.others, row.wrong) == (
        "false",
        ("true",),
        ("True.",),
    )
    assert row.prompt[0].content == "Is this true or false? There is a box."
    assert refused.where == "dev.json:2"


def super_clevr(folder: Path, *answers: Any) -> Path:
    questions = [
        {"image_filename": "a.png", "question": "Q?", "answer": answer} for answer in answers
    ]
    write(folder / "superCLEVR_questions_5.json", {"info": {}, "questions": questions})
    paint(folder / "images" / "a.png")
    return folder


def test_super_clevr_wrong_answers_are_of_the_same_kind(tmp_path: Path):
    rows, _ = read(
        "super_clevr", super_clevr(tmp_path, True, 0, "large", "purple", "saddle", "roof")
    )
    assert [(row.gold.check, row.gold.value) for row in rows if row.gold] == [
        ("match", "yes"),
        ("number", "0"),
        ("match", "large"),
        ("match", "purple"),
        ("match", "saddle"),
        ("match", "roof"),
    ]
    assert [row.wrong for row in (*rows[:3], *rows[4:])] == [
        ("No.",),
        ("1.",),
        ("Small.",),
        ("Roof.",),
        ("Saddle.",),
    ]
    assert rows[3].wrong[0].strip(".").lower() in {
        "gray",
        "red",
        "blue",
        "green",
        "brown",
        "cyan",
        "yellow",
    }
    assert {row.group for row in rows} == {"a.png"}


def test_super_clevr_refuses_a_question_without_an_answer_and_a_cut_file(tmp_path: Path):
    rows, [refused] = read("super_clevr", super_clevr(tmp_path, None, True))
    assert (len(rows), refused.where) == (1, "superCLEVR_questions_5.json:1")
    whole = (tmp_path / "superCLEVR_questions_5.json").read_text()
    (tmp_path / "superCLEVR_questions_6.json").write_text(whole[: len(whole) // 2])
    rows, refusals = read("super_clevr", tmp_path)
    assert (len(rows), len(refusals)) == (1, 2)
    assert refusals[1].where == "superCLEVR_questions_6.json:1" and "not JSON" in refusals[1].reason


def test_ifeval_keeps_the_constraints_without_nulls_and_has_no_answer(tmp_path: Path):
    item = {
        "key": 13,
        "prompt": "Write.",
        "instruction_id_list": ["a:b"],
        "kwargs": [{"num": 3, "other": None}],
    }
    write(tmp_path / "input.jsonl", item, {**item, "kwargs": []})
    [row], [refused] = read("ifeval", tmp_path)
    assert row.gold and (row.gold.check, row.gold.answer) == ("constraints", "")
    assert json.loads(row.gold.value) == [{"id": "a:b", "kwargs": {"num": 3}}]
    assert refused.reason.startswith("1 instructions, 0 kwargs")


# photos, videos


def test_photos_pairs_have_equal_length_and_only_one_sees_what_is_absent(tmp_path: Path):
    paint(tmp_path / "a.png")
    qa = [
        {"question": "What is it?", "answer": "a cat"},
        {"question": "Is it red?", "answer": "no"},
    ]
    write(
        tmp_path / "captions.jsonl",
        {"image": "a.png", "caption": "A cat.", "qa": qa, "absent": ["owl"]},
    )
    rows, _ = read("photos", tmp_path)
    [pair] = [row for row in rows if row.chosen]
    assert (pair.chosen, pair.rejected) == (
        "A cat. There is no owl here.",
        "A cat. There is also an owl.",
    )
    values = {row.prompt[0].content: row.gold.value for row in rows if row.gold}
    assert values == {
        "Describe the picture.": "A cat.",
        "Is there an owl in the picture?": "no",
        "What is it?": "cat",
        "Is it red?": "no",
    }


def test_videos_pair_a_caption_with_another_videos(tmp_path: Path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"film")
    write(
        tmp_path / "captions.jsonl", *({"video": f"{n}.mp4", "caption": f"Film {n}."} for n in "ab")
    )
    rows, _ = read("videos", tmp_path)
    pairs = [(row.chosen, row.rejected) for row in rows if row.chosen]
    assert pairs == [("Film a.", "Film b."), ("Film b.", "Film a.")]


def test_a_single_video_has_no_other_caption_to_lose(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"film")
    write(tmp_path / "captions.jsonl", {"video": "a.mp4", "caption": "A film."})
    rows, refused = read("videos", tmp_path)
    assert ([row.id for row in rows], refused) == (["a.mp4/caption"], [])


# Your own

PAIR = {
    "prompt": "Is it red?",
    "chosen": "Yes.",
    "rejected": [{"role": "assistant", "content": "No."}],
}


def test_your_own_pairs_and_prompts_are_read(tmp_path: Path):
    paint(tmp_path / "a.png")
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    question = {
        "prompt": [*turns, {"role": "user", "content": "How?"}],
        "answer": "So.",
        "domain": "safety",
    }
    write(tmp_path / "mine.jsonl", {**PAIR, "images": ["a.png"]}, {**question, "id": 7})
    [pair, prompt], refused = read("preferences", tmp_path / "mine.jsonl")
    assert (pair.id, pair.chosen, pair.rejected, pair.domain) == (
        "mine/1",
        "Yes.",
        "No.",
        "general",
    )
    assert [file.path for file in pair.media] == [tmp_path / "a.png"]
    assert (prompt.id, prompt.domain, len(prompt.prompt), refused) == ("7", "safety", 3, [])
    assert prompt.gold == Gold(check="open", value="So.", answer="So.")


def test_your_own_mistakes_are_refused_one_by_one(tmp_path: Path):
    bad = (
        {"domain": "gossip"},
        {"images": ["../a.png"]},
        {"prompt": [{"role": "robot"}]},
        {"chosen": [1, 2]},
    )
    write(tmp_path / "mine.jsonl", *({**PAIR, **change} for change in bad))
    rows, refused = read("preferences", tmp_path)
    assert (rows, [item.where for item in refused]) == (
        [],
        [f"mine.jsonl:{line}" for line in (1, 2, 3, 4)],
    )
    assert refused[0].reason.startswith("domain: 'gossip': not one of instruction, general")


# Broken files


def test_a_broken_line_is_refused_and_the_rest_goes_on(tmp_path: Path):
    good = json.dumps(
        {"key": 1, "prompt": "Write.", "instruction_id_list": ["a"], "kwargs": [{}]}
    ).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([b'{"key": "\xe9"}', b"[1]", good, good[:30]]))
    rows, refused = read("ifeval", tmp_path)
    assert [row.id for row in rows] == ["1"]
    assert [(item.where, item.reason.split(" ")[0:2]) for item in refused] == [
        ("a.jsonl:1", ["not", "UTF-8"]),
        ("a.jsonl:2", ["list,", "not"]),
        ("a.jsonl:4", ["not", "JSON"]),
    ]


def test_a_value_of_the_wrong_type_is_refused(tmp_path: Path):
    paint(tmp_path / "a.png")
    bad = {"image": "a.png", "caption": "A cat.", "qa": [7], "absent": []}
    write(tmp_path / "captions.jsonl", bad, {**bad, "qa": [], "absent": [7]}, {**bad, "qa": []})
    rows, refused = read("photos", tmp_path)
    assert ([row.id for row in rows], [item.where[-2:] for item in refused]) == (
        ["a.png/caption"],
        [":1", ":2"],
    )


def test_an_empty_file_is_refused(tmp_path: Path):
    (tmp_path / "a.jsonl").touch()
    assert read("ifeval", tmp_path) == (
        [],
        [Refused(where="a.jsonl", reason="empty file; fetch it again, or remove it")],
    )


@pytest.mark.parametrize("name", sorted(set(READERS) - {"embedded"}))
def test_a_folder_without_the_data_set_is_a_bad_source(tmp_path: Path, name: str):
    with pytest.raises(BadSource, match=r"no file .*; set `path` to the data set's own folder"):
        read(name, tmp_path)


# The real data

COUNTS = {
    "hh_rlhf": 500,
    "gsm8k": 300,
    "ifeval": 406,
    "math_vision": 220,
    "nlvr": 600,
    "super_clevr": 368,
    "puzzlevqa": 119,
    "algopuzzlevqa": 47,
    "photos": 13,
    "videos": 4,
}
"""As the README of the data says."""
READER = {"algopuzzlevqa": "puzzlevqa"}
"""Of the folders that are not called as their reader is."""
PAIRS = {"gsm8k": 159, "math_vision": 220, "videos": 4, "photos": 26}
"""Problems with right and wrong solutions; problems; videos; two absent objects for each of 13 photographs."""


def native(row: Row) -> str:
    """The native record of a row; the questions about a photograph or video share one."""
    return row.group if row.id.split("/")[0] in ("images", row.group) else row.id


@needs_real
@pytest.mark.parametrize("name", COUNTS)
def test_every_real_row_is_read_or_refused(name: str):
    rows, refused = read(READER.get(name, name), REAL / name)
    assert len({row.id for row in rows}) == len(rows)
    pairs = [row for row in rows if row.chosen]
    if name == "hh_rlhf":
        assert len(pairs) + len(refused) == COUNTS[name]
        # one dialogue parts early (README); two responses are empty
        assert Counter(item.reason.split(" ")[0] for item in refused) == {"the": 1, "an": 2}
        return
    assert refused == []
    assert len(pairs) == PAIRS.get(name, 0)
    assert len({native(row) for row in rows if not row.chosen}) == COUNTS[name]
    assert all(row.gold for row in rows if not row.chosen)


@needs_real
@pytest.mark.parametrize("name", COUNTS)
def test_reading_twice_gives_the_same_rows(name: str):
    assert read(READER.get(name, name), REAL / name) == read(READER.get(name, name), REAL / name)


@needs_real
def test_every_real_row_of_the_benchmark_is_read():
    benchmarks, files = (
        Benchmarks([REAL / "rm_bench"], 13, 6),
        sorted((REAL / "rm_bench").glob("*.json")),
    )
    rows = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
    matches = [
        benchmarks.text_overlap(map(Words.of, (row["prompt"], *row["chosen"], *row["rejected"])))
        for row in rows
    ]
    assert (len(rows), sum(map(bool, matches))) == (337, 337)  # as the README of the data says


@needs_real
def test_every_real_verdict_is_read():
    marked = list(wildvision(REAL))
    assert len(marked) == len({one.id for one in marked}) == 60  # as the README of the data says
    assert all(one.answer.strip() and one.our_mark == one.author_mark for one in marked)


# python -m ixc.data.sources


def test_a_reader_can_be_tried_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    good = {"question": "1 + 1?", "answer": "It is 2.\n#### 2"}
    write(tmp_path / "test.jsonl", good, {"question": "?"}, good, good)
    try_reader(["--rows", "1", "gsm8k", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "test/1 (reasoning, val)\n  user: 1 + 1?\n" in printed and "test/3" not in printed
    assert "refused test.jsonl:2: answer: missing; add the field or remove the row" in printed
    assert printed.endswith("3 prompts · 1 refused\n")


def test_a_path_without_the_data_is_an_error_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        try_reader(["gsm8k", str(tmp_path)])
    assert "no file test*.jsonl or train*.jsonl; set `path`" in capsys.readouterr().err
