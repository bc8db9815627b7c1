"""Who is held out: by the names of files, by the rows themselves, and by what rows share."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_sources import ASSISTANT, USER, paint, super_clevr, write
from test_sources_preferences import GOOD
from test_sources_questions import folder_of

from ixc.data.sources import READERS, Row
from ixc.data.sources.hub import Hub
from ixc.data.sources.splits import Splits, held_out


def split_of(reader: str, path: Path) -> set[str | None]:
    rows = [item for item in READERS[reader](path, 0) if isinstance(item, Row)]
    assert rows
    return {row.split for row in rows}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/Alpaca-7B/train.jsonl", None),
        ("data/Alpaca-7B/test.jsonl", "val"),
        ("askbaking/validation.json", "val"),
        ("test_prefs-00000-of-00001.parquet", "val"),
        ("train_prefs", None),
        ("dev_sample.json", "val"),
        ("testmini", "val"),
        ("protest/contest.json", None),
    ],
)
def test_a_name_tells_what_is_for_tests(name: str, split: str | None):
    assert held_out(name) == split


@pytest.mark.parametrize("name", ["pku_saferlhf", "shp", "ultrafeedback", "rlaif_v"])
@pytest.mark.parametrize(
    ("file", "split"), [("test.jsonl", "val"), ("a/validation.json", "val"), ("train.jsonl", None)]
)
def test_a_set_of_pairs_holds_out_its_test_files(
    tmp_path: Path, name: str, file: str, split: str | None
):
    record = {key: value for key, value in GOOD[name][0].items() if key != "image"}
    if "image" in GOOD[name][0]:
        paint(tmp_path / "red.png")
        record["image"] = "red.png"
    write(tmp_path / file, record)
    assert split_of(name, tmp_path) == {split}


@pytest.mark.parametrize(("file", "split"), [("test.jsonl", "val"), ("train.jsonl", None)])
def test_dialogues_and_sums_hold_out_test_files_too(tmp_path: Path, file: str, split: str | None):
    write(
        tmp_path / "hh" / file,
        {"chosen": f"{USER}A{ASSISTANT}x", "rejected": f"{USER}A{ASSISTANT}y"},
    )
    write(tmp_path / "gsm" / file, {"question": "1 + 1?", "answer": "#### 2"})
    assert split_of("hh_rlhf", tmp_path / "hh") == split_of("gsm8k", tmp_path / "gsm") == {split}


@pytest.mark.parametrize(
    ("split", "expected"), [("train", None), ("validation", "val"), ("test", "val")]
)
def test_the_hubs_split_tells_as_a_file_does(
    monkeypatch: pytest.MonkeyPatch, split: str, expected: str | None
):
    monkeypatch.setattr("ixc.data.sources.native.stream", lambda hub: iter([GOOD["shp"][0]]))
    [row] = READERS["shp"](Hub(name="stanfordnlp/SHP", split=split), 0)
    assert isinstance(row, Row) and row.split == expected


def test_an_evaluation_set_is_held_out_whole(tmp_path: Path):
    write(tmp_path / "harmless.jsonl", GOOD["hhh_alignment"][0])
    assert split_of("hhh_alignment", tmp_path) == {"val"}


@pytest.mark.parametrize(
    ("change", "split"),
    [
        ({"split": "new", "image_index": 19_999}, None),
        ({"split": "new", "image_index": 20_000}, "val"),
        ({"split": "test"}, "val"),
        ({}, None),
    ],
)
def test_super_clevr_is_split_by_its_images(
    tmp_path: Path, change: dict[str, Any], split: str | None
):
    file = super_clevr(tmp_path, True) / "superCLEVR_questions_5.json"
    content = json.loads(file.read_text())
    content["questions"][0] |= change
    file.write_text(json.dumps(content))
    assert split_of("super_clevr", tmp_path) == {split}


@pytest.mark.parametrize(
    ("ways", "split"), [([1, 2, 3, 1, 1], None), ([2, 1, 1, 1, 1], "val"), ([3], "val"), ([], None)]
)
def test_kvqa_follows_the_first_of_its_ways_to_split(
    tmp_path: Path, ways: list[int], split: str | None
):
    content = json.loads((folder_of("kvqa", tmp_path, {}) / "dataset.json").read_text())
    content["1"]["split"] = ways
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert split_of("kvqa", tmp_path) == {split}


# What is bound together

ROWS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 12), min_size=1, max_size=3),
        st.sampled_from(["", "", "", "val", "train"]),
    ),
    max_size=25,
)


def decided(rows: list[tuple[list[int], str]]) -> list[str]:
    splits = Splits()
    for keys, own in rows:
        splits.add(keys, own)
    return list(splits.decided(0.5, seed=0))


@given(ROWS)
def test_what_shares_a_bond_shares_a_split_and_nothing_is_trained_on_that_is_held_out(rows: list):
    splits = decided(rows)
    for (keys, own), split in zip(rows, splits, strict=True):
        assert split == (own or split)
        for (others, theirs), other in zip(rows, splits, strict=True):
            if set(keys) & set(others) and not own and theirs != "train":
                assert split == other


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_decides_nothing(rows: list, random: Any):
    places = list(range(len(rows)))
    random.shuffle(places)
    before = decided(rows)
    assert [before[i] for i in places] == decided([rows[i] for i in places])


def test_about_the_right_share_is_held_out():
    # 1000 draws of 0.5: standard deviation 16
    assert 420 < decided([([i], "") for i in range(1000)]).count("val") < 580
