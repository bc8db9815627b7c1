"""The question-and-answer sets: on rows of the native form of each written here, on broken ones, on arbitrary ones."""

import csv
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ixc.data.media import Store
from ixc.data.sources import READERS, BadSource, Refused, Row, native
from ixc.data.sources.answers import choice, short
from ixc.data.sources.hub import Hub
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Unusable
from ixc.verifiers.rules import check

Record = dict[str, Any]
Write = Callable[[Path, list[Record]], object]
MISSING = object()


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_list(name: str) -> Write:
    return lambda folder, records: put(folder / name, json.dumps(records))


def as_mapping(name: str) -> Write:
    return lambda folder, records: put(folder / name, json.dumps(numbered(records)))


def as_csv(name: str, delimiter: str = ",") -> Write:
    def write(folder: Path, records: list[Record]) -> None:
        text, columns = io.StringIO(newline=""), max(records, key=len)
        writer = csv.writer(text, delimiter=delimiter)
        writer.writerows(
            [list(columns), *([record[c] for c in columns if c in record] for record in records)]
        )
        put(folder / name, text.getvalue())

    return write


def as_parquet(name: str) -> Write:
    def write(folder: Path, records: list[Record]) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            pa.Table.from_pylist(records, schema=pa.Table.from_pylist(records[:1]).schema),
            folder / name,
        )

    return write


def as_lines_of_lists(folder: Path, records: list[Record]) -> None:
    columns = list(TRAFFIC)
    lines = [columns, *([record[c] for c in columns if c in record] for record in records)]
    put(folder / "R2_train.jsonl", "\n".join(map(json.dumps, lines)))


def as_diagrams(folder: Path, records: list[Record]) -> None:
    for key, record in numbered(records).items():
        put(
            folder / "questions" / f"{key}.png.json",
            json.dumps({"questions": {"What is A?": record}}),
        )


def as_lessons(folder: Path, records: list[Record]) -> None:
    lessons = [
        {"questions": {"diagramQuestions": {f"DQ_{key}": r}}}
        for key, r in numbered(records).items()
    ]
    put(folder / "train" / "tqa_v1_train.json", json.dumps(lessons))


def as_people(folder: Path, records: list[Record]) -> None:
    """One image for each question, so that a broken one is one record."""
    people = {
        key: {
            "imgPath": r.get("imgPath"),
            "Questions": [r.get("question")],
            "Answers": [r.get("answer")],
        }
        for key, r in numbered(records).items()
    }
    put(folder / "dataset.json", json.dumps(people))


def as_pickle(folder: Path, records: list[Record]) -> None:
    put(folder / "GeoQA3" / "train.pk", pickle.dumps(records, protocol=4))


def numbered(records: list[Record]) -> dict[str, Record]:
    return {str(number): record for number, record in enumerate(records, start=1)}


@dataclass(frozen=True, kw_only=True)
class Set:
    """A set: where its reader is, how its files are written, one good record, and how its rows must look."""

    module: str
    write: Write
    good: Record
    media: tuple[str, ...] = ()
    """Written beside it."""
    prompt: str
    answer: str
    value: str
    check: str
    split: str | None = None
    bad: dict[str, tuple[Any, str]] = field(default_factory=dict)
    """Field -> a value that must be refused, and what the refusal says."""
    optional: tuple[str, ...] = ()
    """Fields that a record may lack."""
    rows: int = 1
    """Of one record."""


LETTER = "Answer with the letter of the right option."
ANIMALS = f"What is it?\n(A) a cat\n(B) a dog\n{LETTER}"
STORED = {"bytes": png(), "path": None}
NO_FILE = "no such file below the source's folder"
OUTSIDE = "leaves the source's folder"
TRAFFIC = {
    "record_id": 9875,
    "vid_id": 20485,
    "vid_filename": "b_1.mp4",
    "perspective": 1,
    "q_body": "What is it?",
    "q_type": "A",
    "option0": "",
    "option1": "a cat",
    "option2": "",
    "option3": "a dog",
    "answer": 3,
}
AOKVQA = {
    "split": "train",
    "image_id": 299207,
    "question_id": "22M",
    "question": "What is it?",
    "choices": ["a cat", "a dog"],
    "correct_choice_idx": 1,
    "direct_answers": ["dog", "dog", "puppy"],
    "difficult_direct_answer": False,
    "rationales": ["It barks", "Ears"],
}
SETS = {
    "kvqa": Set(
        module="kvqa",
        write=as_people,
        good={
            "imgPath": "KVQAimgs/1.jpg",
            "question": "Who is left of the king?",
            "answer": "Ann Lee",
        },
        media=("KVQAimgs/1.jpg",),
        prompt="Who is left of the king?",
        answer="Ann Lee.",
        value="Ann Lee",
        check="match",
        bad={
            "answer": ([], "expected a text or a number"),
            "imgPath": ("../x.jpg", OUTSIDE),
            "question": (7, "str"),
        },
    ),
    "aokvqa": Set(
        module="aokvqa",
        write=as_list("aokvqa_v1p0_train.json"),
        good=AOKVQA,
        media=("train2017/000000299207.jpg",),
        prompt=ANIMALS,
        answer="It barks.\nThe answer is (B) a dog.",
        value="B. a dog",
        check="choice",
        optional=("direct_answers", "difficult_direct_answer", "rationales"),
        bad={
            "correct_choice_idx": (2, "not the index of one of the 2 options"),
            "choices": (["a cat", ""], "none of them empty"),
            "image_id": (1, NO_FILE),
            "split": ("../../x", OUTSIDE),
            "direct_answers": ("[dog", "not a list of texts"),
        },
        rows=2,
    ),
    "aokvqa_stored": Set(
        module="aokvqa",
        write=as_parquet("data/validation-00000-of-00001.parquet"),
        good={
            **{k: v for k, v in AOKVQA.items() if k not in ("split", "image_id")},
            "image": STORED,
            "direct_answers": "['dog', 'dog', 'puppy']",
        },
        prompt=ANIMALS,
        answer="It barks.\nThe answer is (B) a dog.",
        value="B. a dog",
        check="choice",
        optional=("direct_answers", "difficult_direct_answer", "rationales"),
        split="val",
        bad={"image": (None, "neither bytes nor a file's name"), "question": (" ", "empty")},
        rows=2,
    ),
    "pmc_vqa": Set(
        module="pmc_vqa",
        write=as_csv("train.csv"),
        good={
            "Figure_path": "PMC1_Fig1.jpg",
            "Caption": "One, two\nthree.",
            "Question": "What is it?",
            "Choice A": " A:a cat ",
            "Choice B": " B:a dog ",
            "Choice C": " C:a cow ",
            "Choice D": "D: a hen ",
            "Answer": "a dog",
            "Answer_label": "B",
        },
        media=("figures/PMC1_Fig1.jpg",),
        prompt=f"What is it?\n(A) a cat\n(B) a dog\n(C) a cow\n(D) a hen\n{LETTER}",
        answer="The answer is (B) a dog.",
        value="B. a dog",
        check="choice",
        bad={
            "Figure_path": ("../secret.jpg", OUTSIDE),
            "Choice C": ("", "Choice C: empty"),
            "Question": (" ", "Question: empty"),
        },
    ),
    "ai2d": Set(
        module="ai2d",
        write=as_diagrams,
        good={
            "questionId": "1.png-0",
            "answerTexts": ["a cat", "a dog"],
            "correctAnswer": 1,
            "abcLabel": False,
        },
        media=("images/1.png", "images/2.png", "images/3.png"),
        prompt=f"What is A?\n(A) a cat\n(B) a dog\n{LETTER}",
        answer="The answer is (B) a dog.",
        value="B. a dog",
        check="choice",
        optional=("abcLabel",),
        bad={
            "abcLabel": (True, NO_FILE),
            "correctAnswer": (-1, "not the index"),
            "answerTexts": (["a cat"], "1 options"),
        },
    ),
    "ai2d_stored": Set(
        module="ai2d",
        write=as_parquet("data/test-00000-of-00001.parquet"),
        good={
            "question": "What is it?",
            "options": ["a cat", "a dog"],
            "answer": "1",
            "image": STORED,
        },
        prompt=ANIMALS,
        answer="The answer is (B) a dog.",
        value="B. a dog",
        check="choice",
        split="val",
        bad={"answer": ("B", "expected the index"), "options": (None, "expected a list")},
    ),
    "iconqa": Set(
        module="iconqa",
        write=as_mapping("problems.json"),
        good={
            "question": "What is it?",
            "choices": ["a cat", "a dog"],
            "answer": 1,
            "ques_type": "choose_txt",
            "split": "val",
        },
        media=tuple(f"iconqa/val/choose_txt/{pid}/image.png" for pid in (1, 2, 3)),
        prompt=ANIMALS,
        answer="The answer is (B) a dog.",
        value="B. a dog",
        check="choice",
        split="val",
        bad={
            "ques_type": ("draw", "not one of choose_txt"),
            "split": ("../../../../x", OUTSIDE),
            "answer": ("B", "expected int"),
        },
    ),
    "iconqa_stored": Set(
        module="iconqa",
        write=as_parquet("data/val-00000-of-00001.parquet"),
        good={
            "question_id": "1",
            "question": "What is it?",
            "choices": "a cat,a dog",
            "answer": "a dog",
            "ques_type": "choose_txt",
            "query_image": STORED,
        },
        prompt=ANIMALS,
        answer="The answer is (B) a dog.",
        value="B. a dog",
        check="choice",
        optional=("question_id",),
        split="val",
        bad={
            "ques_type": ("draw", "not one of choose_txt"),
            "answer": ("a cow", "not one of the options"),
            "choices": (None, "choices: None: expected str"),
            "query_image": (None, "neither bytes nor a file's name"),
        },
    ),
    "puzzlevqa": Set(
        module="puzzlevqa",
        write=as_list("triangle.json"),
        good={
            "image": "images/triangle/1.png",
            "question": "Which number is missing?",
            "options": ["4", 5, "6"],
            "answer": 6,
            "caption": "Three numbers.",
            "deduction": "It should be 6.",
        },
        media=("images/triangle/1.png",),
        prompt=f"Which number is missing?\n(A) 4\n(B) 5\n(C) 6\n{LETTER}",
        answer="It should be 6.\nThe answer is (C) 6.",
        value="C. 6",
        check="choice",
        optional=("caption", "deduction"),
        bad={
            "image": ("../secret.png", OUTSIDE),
            "answer": (7, "not one of the options"),
            "options": ([4, 5], "not one of the options"),
        },
    ),
    "tqa": Set(
        module="tqa",
        write=as_lessons,
        good={
            "beingAsked": {"processedText": "What is it?"},
            "answerChoices": {"b": {"processedText": "a dog"}, "a": {"processedText": "a cat"}},
            "correctAnswer": {"processedText": "b"},
            "imagePath": "question_images/1.png",
        },
        media=("train/question_images/1.png",),
        prompt=ANIMALS,
        answer="The answer is (B) a dog.",
        value="B. a dog",
        check="choice",
        bad={
            "correctAnswer": ({"processedText": "c"}, "not one of the options"),
            "answerChoices": ({"a": {}}, "processedText: missing"),
            "imagePath": ("../../x.png", OUTSIDE),
        },
    ),
    "chartqa": Set(
        module="chartqa",
        write=as_list("train/train_human.json"),
        good={"imgname": "1.png", "query": "How many?", "label": "1,250.5"},
        media=("train/png/1.png",),
        prompt="How many?",
        answer="1,250.5.",
        value="1250.5",
        check="chart",
        bad={
            "imgname": ("2.png", NO_FILE),
            "label": (None, "expected a text or a number"),
            "query": ("", "empty"),
        },
    ),
    "chartqa_stored": Set(
        module="chartqa",
        write=as_parquet("test-00000-of-00001.parquet"),
        good={"image": STORED, "question": "Is it rising?", "answer": "Yes", "type": "human_test"},
        prompt="Is it rising?",
        answer="Yes.",
        value="Yes",
        check="match",
        optional=("type",),
        split="val",
        bad={"answer": ("", "answer: empty"), "image": (None, "neither bytes")},
    ),
    "chartqa_stored_labels": Set(
        module="chartqa",
        write=as_parquet("data/train-00000-of-00003.parquet"),
        good={"image": STORED, "query": "How many?", "label": ["1,250.5"], "human_or_machine": 0},
        prompt="How many?",
        answer="1,250.5.",
        value="1250.5",
        check="chart",
        optional=("human_or_machine",),
        bad={
            "label": (["1", "2"], "expected one"),
            "query": ("", "empty"),
            "image": (None, "neither bytes"),
        },
    ),
    "dvqa": Set(
        module="dvqa",
        write=as_list("val_easy_qa.json"),
        good={
            "image": "bar_1.png",
            "question": "How many bars?",
            "answer": "two",
            "question_type": "data",
        },
        media=("images/bar_1.png",),
        prompt="How many bars?\nWrite a value in digits and a count in words.",
        answer="Two.",
        value="two",
        check="match",
        optional=("question_type",),
        split="val",
        bad={"image": ("bar_2.png", NO_FILE), "answer": ({}, "expected a text or a number")},
    ),
    "scienceqa": Set(
        module="scienceqa",
        write=as_mapping("problems.json"),
        good={
            "question": "What is it?",
            "choices": ["a cat", "a dog"],
            "answer": 1,
            "hint": "It barks.",
            "image": "image.png",
            "subject": "natural science",
            "solution": "Dogs bark",
            "split": "train",
        },
        media=tuple(f"images/train/{qid}/image.png" for qid in (1, 2, 3)),
        prompt=f"It barks.\n{ANIMALS}",
        answer="Dogs bark.\nThe answer is (B) a dog.",
        value="B. a dog",
        check="choice",
        optional=("hint", "solution", "subject"),
        bad={
            "image": ("other.png", NO_FILE),
            "choices": (None, "expected a list"),
            "answer": (True, "not the index"),
        },
    ),
    "scienceqa_stored": Set(
        module="scienceqa",
        write=as_parquet("train.parquet"),
        good={
            "question": "What is it?",
            "choices": ["a cat", "a dog"],
            "answer": 1,
            "hint": "",
            "image": STORED,
        },
        prompt=ANIMALS,
        answer="The answer is (B) a dog.",
        value="B. a dog",
        check="choice",
        optional=("hint", "image"),
        bad={"answer": (5, "not the index"), "question": (None, "expected str")},
    ),
    "geoqa": Set(
        module="geoqa",
        write=as_pickle,
        good={
            "id": 7,
            "image": np.full((4, 6), 255, np.uint8),
            "token_list": ["∠1", "=", "N_0", ",", "∠2", "?"],
            "numbers": [50.0],
            "choice_nums": [40.0, 52.5, 130.0, 90.0],
            "label": np.int64(2),
            "formal_point": ["邻补角"],
        },
        prompt=f"∠1=50,∠2?\n(A) 40\n(B) 52.5\n(C) 130\n(D) 90\n{LETTER}",
        answer="The answer is (C) 130.",
        value="C. 130",
        check="choice",
        optional=("formal_point",),
        bad={
            "numbers": ([], "N_0: there are 0 numbers"),
            "choice_nums": ([None, 1.0], "expected a number"),
            "label": ("C", "not of the expected form"),
            "image": (np.zeros((4, 4)), "expected pixels of 8 bits"),
        },
    ),
    "clevr_math": Set(
        module="clevr_math",
        write=as_parquet("general/train/0000.parquet"),
        good={
            "template": "subtraction",
            "id": "CLEVR_1",
            "question": "Take one away.",
            "image": STORED,
            "label": 4,
        },
        prompt="Take one away.",
        answer="4.",
        value="4",
        check="number",
        optional=("template", "id"),
        bad={
            "label": (None, "expected int"),
            "image": ({"bytes": b"", "path": None}, "neither bytes"),
        },
    ),
    "tabmwp": Set(
        module="tabmwp",
        write=as_mapping("problems_train.json"),
        good={
            "question": "How much is it?",
            "choices": None,
            "answer": "1,234",
            "unit": "$",
            "solution": "Add them up",
            "split": "train",
        },
        media=tuple(f"tables/{pid}.png" for pid in (1, 2, 3)),
        prompt="How much is it? (unit: $)",
        answer="Add them up.\nThe answer is 1,234.",
        value="1234",
        check="number",
        optional=("choices", "unit", "solution"),
        bad={
            "answer": (1234, "expected str"),
            "choices": (["1", "2"], "not one of the options"),
            "split": (1, "str"),
        },
    ),
    "trafficqa": Set(
        module="trafficqa",
        write=as_lines_of_lists,
        good=TRAFFIC,
        media=("raw_videos/b_1.mp4",),
        prompt=ANIMALS,
        answer="The answer is (B) a dog.",
        value="B. a dog",
        check="choice",
        bad={
            "answer": (2, "not one of the options [1, 3]"),
            "vid_filename": ("../b.mp4", OUTSIDE),
            "option1": ("", "1 options"),
        },
    ),
    "funqa": Set(
        module="funqa",
        write=as_list("annotation_with_ID/funqa_test.json"),
        good={
            "instruction": "Why is it funny?",
            "visual_input": "H_A_1.mp4",
            "output": "He falls.",
            "task": "H3",
            "ID": "t0",
        },
        media=("test/test_humor/H_A_1.mp4",),
        prompt="Why is it funny?",
        answer="He falls.",
        value="He falls.",
        check="open",
        split="val",
        bad={
            "visual_input": ("H_A_2.mp4", NO_FILE),
            "output": ("", "empty"),
            "ID": (7, "expected str"),
        },
    ),
    "miradata": Set(
        module="miradata",
        write=as_csv("miradata_v0.csv"),
        good={
            "index": "000000001_abc-1",
            "video_id": "abc",
            "short_caption": "A sea.",
            "dense_caption": 'A "calm" sea,\nat night.',
        },
        media=("clip_video/000000000/000000001_abc-1.mp4",),
        prompt="Describe the film in detail.",
        answer='A "calm" sea,\nat night.',
        value='A "calm" sea,\nat night.',
        check="open",
        bad={
            "index": ("000000002_abc-1", NO_FILE),
            "dense_caption": ("  ", "empty"),
            "video_id": ("", "empty"),
        },
    ),
}
EVERY = pytest.mark.parametrize("name", SETS)


def read(name: str, path: Path) -> tuple[list[Row], list[Refused]]:
    items = list(import_module(f"ixc.data.sources.{SETS[name].module}").read(path, 0))
    return [i for i in items if isinstance(i, Row)], [i for i in items if isinstance(i, Refused)]


def folder_of(name: str, folder: Path, *changes: Record) -> Path:
    """A folder of the set: one record for each of `changes`, which replace fields or take them away."""
    a_set = SETS[name]
    merged = ({**a_set.good, **change} for change in changes)
    a_set.write(
        folder, [{k: v for k, v in record.items() if v is not MISSING} for record in merged]
    )
    for file in a_set.media:
        put(folder / file, png())
    return folder


@EVERY
def test_a_native_record_is_read(tmp_path: Path, name: str):
    a_set = SETS[name]
    rows, refused = read(name, folder_of(name, tmp_path, {}))
    assert refused == [] and len(rows) == a_set.rows
    row = rows[0]
    assert row.prompt[0].content == a_set.prompt
    assert row.gold and (row.gold.check, row.gold.value, row.gold.answer) == (
        a_set.check,
        a_set.value,
        a_set.answer,
    )
    assert row.split == a_set.split


@EVERY
def test_the_verifier_accepts_the_gold_answer_and_no_wrong_one(tmp_path: Path, name: str):
    rows, _ = read(name, folder_of(name, tmp_path, {}))
    for row in rows:
        assert row.gold
        assert check(row.gold, row.gold.answer) in (1.0, None) or row.gold.check == "vqa"
        assert all(check(row.gold, wrong) == 0.0 for wrong in row.wrong)
        assert row.gold.check != "choice" or row.wrong


@EVERY
def test_images_enter_the_store(tmp_path: Path, name: str):
    rows, _ = read(name, folder_of(name, tmp_path / "data", {}))
    store = Store(tmp_path / "media")
    images = [store.add(file) for row in rows for file in row.media if file.kind == "image"]
    assert images or rows[0].domain == "video"


@EVERY
def test_every_broken_field_is_refused_and_the_rest_goes_on(tmp_path: Path, name: str):
    a_set = SETS[name]
    for i, (column, (value, reason)) in enumerate(a_set.bad.items()):
        rows, refused = read(name, folder_of(name, tmp_path / str(i), {}, {column: value}, {}))
        assert len(rows) == 2 * a_set.rows
        assert [reason in item.reason for item in refused] == [True], (column, refused)
        assert ":" in refused[0].where


@EVERY
def test_a_missing_field_is_refused(tmp_path: Path, name: str):
    a_set = SETS[name]
    for column in sorted(set(a_set.good) - set(a_set.optional)):
        rows, refused = read(name, folder_of(name, tmp_path / column, {}, {column: MISSING}, {}))
        assert (len(rows), len(refused)) == (2 * a_set.rows, 1), column


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path):
    folder = folder_of("chartqa", tmp_path / "data", {})
    (folder / "train/png/1.png").unlink()
    (folder / "train/png/1.png").symlink_to(put(tmp_path / "secret.png", png()))
    assert [OUTSIDE in item.reason for item in read("chartqa", folder)[1]] == [True]


TYPED = {"clevr_math", "geoqa", "miradata", "pmc_vqa"}
"""Sets whose files cannot hold any value in any column."""
JSON_FORMS = sorted(name for name in SETS if "stored" not in name and name not in TYPED)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False)
    | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), name=st.sampled_from(JSON_FORMS))
def test_whatever_a_field_holds_each_record_is_kept_or_refused(data: st.DataObject, name: str):
    a_set = SETS[name]
    column = data.draw(st.sampled_from(sorted(a_set.good)))
    value = data.draw(VALUES | st.just(MISSING))
    with TemporaryDirectory() as folder:
        rows, refused = read(name, folder_of(name, Path(folder), {}, {column: value}, {}))
    usable = [row for row in rows if not row.id.endswith("/direct")]
    assert len(usable) + len(refused) == 3


@pytest.mark.parametrize("module", sorted({a_set.module for a_set in SETS.values()}))
def test_a_reader_states_its_licence_and_what_it_looked_for(tmp_path: Path, module: str):
    reader = import_module(f"ixc.data.sources.{module}")
    text = str(reader.__doc__)
    assert isinstance(reader.LICENCE, Licence)
    assert reader.LICENCE.name.lower() in text.lower()
    assert (
        text.split("\n", maxsplit=1)[0].endswith("commercial use allowed.")
        == reader.LICENCE.commercial
    )
    with pytest.raises(BadSource, match=r"no file .*; set `path` to the data set's own folder"):
        list(reader.read(tmp_path, 0))


# What single sets have of their own


def test_kvqa_refuses_one_question_and_keeps_the_others_of_its_image(tmp_path: Path):
    put(tmp_path / "a.jpg", png())
    one = {
        "imgPath": "a.jpg",
        "Questions": ["Who?", "When?", "Old?"],
        "Answers": ["Ann", None, 1950],
    }
    uneven = {"imgPath": "a.jpg", "Questions": ["Who?"], "Answers": []}
    put(
        tmp_path / "dataset.json",
        json.dumps({"7": {**one, "Type of Question": [["1-hop"]]}, "8": uneven, "9": 3}),
    )
    rows, refused = read("kvqa", tmp_path)
    assert [(row.id, row.group, row.meta["kinds"]) for row in rows] == [
        ("7/1", "a.jpg", ["1-hop"]),
        ("7/3", "a.jpg", None),
    ]
    assert [item.where for item in refused] == [
        "dataset.json:7/2",
        "dataset.json:8",
        "dataset.json:9",
    ]
    assert [row.gold.check for row in rows if row.gold] == ["match", "number"]


def test_aokvqa_without_options_keeps_the_answers_of_all_people(tmp_path: Path):
    [_, direct], _ = read("aokvqa", folder_of("aokvqa", tmp_path, {}))
    assert (direct.id, direct.prompt[0].content) == (
        "22M/direct",
        "What is it?\nAnswer in a word or a short phrase.",
    )
    assert direct.gold and (direct.gold.check, direct.gold.answer) == ("vqa", "Dog.")
    assert json.loads(direct.gold.value) == ["dog", "dog", "puppy"]


@pytest.mark.parametrize("change", [{"difficult_direct_answer": True}, {"direct_answers": MISSING}])
def test_aokvqa_asks_for_a_short_answer_only_where_there_is_one(tmp_path: Path, change: Record):
    [row], _ = read("aokvqa", folder_of("aokvqa", tmp_path, change))
    assert row.gold and row.gold.check == "choice"


@pytest.mark.parametrize("answer", ["B", "a dog", "B:a dog"])
def test_pmc_vqa_knows_the_answer_by_letter_or_text(tmp_path: Path, answer: str):
    [row], _ = read(
        "pmc_vqa", folder_of("pmc_vqa", tmp_path, {"Answer": answer, "Answer_label": ""})
    )
    assert row.gold and row.gold.value == "B. a dog"


@pytest.mark.parametrize(
    ("files", "num_rows"),
    [(("test", "test_clean"), 1), (("test_clean",), 1), (("test", "test_2"), 2)],
)
def test_pmc_vqa_reads_the_clean_part_of_its_test_once(
    tmp_path: Path, files: tuple[str, ...], num_rows: int
):
    folder = folder_of("pmc_vqa", tmp_path, {})
    for name in files:
        put(folder / f"{name}.csv", (folder / "train.csv").read_bytes())
    (folder / "train.csv").unlink()
    assert len(read("pmc_vqa", folder)[0]) == num_rows


def test_pmc_vqa_as_a_table_of_the_hub_has_its_figures_in_a_column(monkeypatch: pytest.MonkeyPatch):
    record = SETS["pmc_vqa"].good
    monkeypatch.setattr(native, "stream", lambda hub: iter([record | {"image": STORED}, record]))
    row, refused = READERS["pmc_vqa"](Hub(name="owner/name", split="test"), 0)
    assert isinstance(row, Row) and (row.media[0].data, row.split) == (png(), "val")
    assert isinstance(refused, Refused) and refused.reason.startswith("image: None: neither bytes")


LATER = 'clip_id,source_id,video_id,video_url,dense_caption,short_caption,,\n7,s1,v1,u1,"A dog, running.","A dog.",,\n'


@pytest.mark.parametrize("name", ["7.mp4", "s1_v1-7.mp4", "v1_7.mp4"])
def test_miradata_with_the_header_of_its_own_tables(tmp_path: Path, name: str):
    (tmp_path / "a.csv").write_text(LATER + "8,s2,v2,u2,A boat.,A boat.,,\n")
    put(tmp_path / "clip_video" / name, b"film")
    [row], [refused] = read("miradata", tmp_path)
    assert (row.id, row.group, row.media[0].path) == ("7", "v1", tmp_path / "clip_video" / name)
    assert row.gold is not None and row.gold.answer == "A dog, running."
    assert (refused.where, refused.reason.split(":")[0]) == ("a.csv:3", "'8.mp4'")


def test_two_figures_of_one_name_are_not_guessed_between(tmp_path: Path):
    folder = folder_of("pmc_vqa", tmp_path, {})
    put(folder / "other/PMC1_Fig1.jpg", png("blue"))
    [refused] = read("pmc_vqa", folder)[1]
    assert (
        "in two places, figures/PMC1_Fig1.jpg and other/PMC1_Fig1.jpg; keep one" in refused.reason
    )


def test_ai2d_shows_the_lettered_image_where_the_options_are_letters(tmp_path: Path):
    put(tmp_path / "abc_images/1.png", png())
    change = {"abcLabel": True, "answerTexts": ["A", "B"]}
    [row], _ = read("ai2d", folder_of("ai2d", tmp_path, change))
    assert row.media[0].path == tmp_path / "abc_images/1.png"


def test_iconqa_shows_the_options_that_are_images(tmp_path: Path):
    for image in ("image", "choice_0", "choice_1"):
        put(tmp_path / f"iconqa/val/choose_img/1/{image}.png", png())
    change = {"ques_type": "choose_img", "choices": ["choice_0.png", "choice_1.png"]}
    [row], _ = read("iconqa", folder_of("iconqa", tmp_path, change))
    assert [file.path.name for file in row.media if file.path] == [
        "image.png",
        "choice_0.png",
        "choice_1.png",
    ]
    assert row.prompt[0].content.count("<ImageHere>") == 3
    assert row.gold and (row.gold.value, row.gold.others, row.gold.answer) == (
        "B",
        ("A",),
        "The answer is (B).",
    )
    assert row.wrong == ("The answer is (A).",)


def test_iconqa_as_stored_has_its_options_images_in_columns(tmp_path: Path):
    two = {"choice_image_0": STORED, "choice_image_1": STORED}
    change = {
        "ques_type": "choose_img",
        "choices": "choice_0.png,choice_1.png",
        "answer": "choice_1.png",
    }
    [row], _ = read("iconqa_stored", folder_of("iconqa_stored", tmp_path / "a", change | two))
    assert len(row.media) == row.prompt[0].content.count("<ImageHere>") == 3
    assert row.gold and (row.gold.value, row.gold.others) == ("B", ("A",))
    [refused] = read("iconqa_stored", folder_of("iconqa_stored", tmp_path / "b", change))[1]
    assert "neither bytes nor a file's name" in refused.reason


def test_iconqa_fills_in_blanks(tmp_path: Path):
    put(tmp_path / "iconqa/val/fill_in_blank/1/image.png", png())
    change = {"ques_type": "fill_in_blank", "choices": MISSING, "answer": "10"}
    [row], _ = read("iconqa", folder_of("iconqa", tmp_path, change))
    assert row.gold and (row.gold.check, row.gold.value) == ("number", "10")


def test_tqa_leaves_out_questions_without_a_diagram(tmp_path: Path):
    lesson = {"questions": {"nonDiagramQuestions": {"NDQ_1": {}}, "diagramQuestions": {}}}
    put(tmp_path / "train/tqa_v1_train.json", json.dumps([lesson]))
    assert read("tqa", tmp_path) == ([], [])


@pytest.mark.parametrize(
    ("label", "kind"), [("12", "chart"), ("Germany", "match"), (["12%"], "chart")]
)
def test_chartqa_is_lenient_about_numbers_only(tmp_path: Path, label: Any, kind: str):
    [row], _ = read("chartqa", folder_of("chartqa", tmp_path, {"label": label}))
    assert row.gold and row.gold.check == kind
    assert check(row.gold, row.gold.answer) == 1.0


def test_scienceqa_without_a_image_is_text(tmp_path: Path):
    [row], _ = read("scienceqa", folder_of("scienceqa", tmp_path, {"image": None}))
    assert row.media == ()


def test_tabmwp_lists_the_options_it_has(tmp_path: Path):
    change = {"choices": ["a cat", "a dog"], "answer": "a dog", "question": "What is it?"}
    [row], _ = read("tabmwp", folder_of("tabmwp", tmp_path, change))
    assert row.prompt[0].content == ANIMALS
    assert row.gold and row.gold.answer == "Add them up.\nThe answer is (B) a dog."


def test_geoqa_never_runs_a_pickle(tmp_path: Path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "boom",))

    put(tmp_path / "train.pk", pickle.dumps([Bomb()]))
    put(tmp_path / "dev.pk", pickle.dumps([SETS["geoqa"].good])[:-20])
    put(tmp_path / "test.pk", pickle.dumps({"id": "a dictionary of types"}))
    rows, refused = read("geoqa", tmp_path)
    assert rows == [] and not (tmp_path / "boom").exists()
    assert [item.where for item in refused] == ["dev.pk", "test.pk", "train.pk"]
    assert "it would load" in refused[2].reason


def test_geoqa_reads_old_pickles(tmp_path: Path):
    put(tmp_path / "train.pk", pickle.dumps([SETS["geoqa"].good], protocol=2))
    [row], refused = read("geoqa", tmp_path)
    assert (
        refused == []
        and row.media[0].data
        and Image.open(io.BytesIO(row.media[0].data)).size == (6, 4)
    )


ON_THE_HUB = (
    "aokvqa_stored",
    "ai2d_stored",
    "iconqa_stored",
    "chartqa_stored",
    "chartqa_stored_labels",
    "scienceqa_stored",
    "clevr_math",
)


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_the_hub_has_the_rows_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    a_set = SETS[name]
    monkeypatch.setattr(native, "stream", lambda hub: iter([a_set.good]))
    reader = import_module(f"ixc.data.sources.{a_set.module}")
    rows = list(reader.read(Hub(name="owner/name", split="train"), 0))
    assert len(rows) == a_set.rows
    assert rows[0].prompt[0].content == a_set.prompt and rows[0].media[0].data == png()


def test_trafficqa_needs_its_first_line(tmp_path: Path):
    put(tmp_path / "R2_train.jsonl", json.dumps({"record_id": 1}) + "\n" + json.dumps([1, 2]))
    assert [item.reason for item in read("trafficqa", tmp_path)[1]] == [
        "not a list; one JSON list a line"
    ]


# What they share

OPTIONS = st.lists(
    st.text("abcdefg \n", min_size=1, max_size=6).map(str.strip).filter(bool),
    min_size=2,
    max_size=10,
)


@settings(max_examples=100, deadline=None)
@given(options=OPTIONS, data=st.data())
def test_only_the_right_one_of_any_options_is_right(options: list[str], data: st.DataObject):
    right = data.draw(st.integers(0, len(options) - 1))
    if options.count(options[right]) > 1:
        with pytest.raises(Unusable, match="stands twice"):
            choice(options, right)
        return
    answer = choice(options, right)
    assert check(answer["gold"], answer["gold"].answer) == 1.0
    assert [check(answer["gold"], wrong) for wrong in answer["wrong"]] == [0.0] * (len(options) - 1)


@pytest.mark.parametrize(
    "value", ["7", "1,234.5", "$13.50", "3/4", "25%", "-2", 0, 2.5, "Yes", "the red car", "1999 AD"]
)
def test_a_short_answer_passes_its_own_check(value: object):
    answer = short(value, reason="Look closely")
    assert check(answer["gold"], answer["gold"].answer) == 1.0
    assert check(answer["gold"], "something else") == 0.0
