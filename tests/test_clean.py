"""Cleaning of a corpus: defects that are planted, and what is removed."""

import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from ixc.batches import OverBudget
from ixc.clean import auroc, found, lowest, run
from ixc.defects import EVASIVE, plant
from ixc.model.folder import save
from ixc.params import CleanParams, FeatureParams
from ixc.samples import Media, Sample, answer, read_samples, write_samples

RED, BLUE = (Media(kind="image", path=f"{c}.png", sha256=c) for c in ("red", "blue"))


def row(text: str, said: str = "good", **known: object) -> Sample:
    return tiny.sample(text, chosen=answer(said), **known)  # type: ignore[arg-type]


def test_auroc_by_hand():
    # below its good rows: 1 beats 2, 3 and ties 1; 2 beats 3 and ties 2: (2.5 + 1.5) / 6
    assert auroc(np.array([1.0, 2.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(4 / 6)


def test_auroc_is_1_where_all_bad_rows_are_lower_and_a_half_where_all_are_equal():
    low, high = np.array([0.0, 1.0]), np.array([2.0, 3.0, 4.0])
    assert (auroc(low, high), auroc(high, low), auroc(low * 0, high * 0)) == (1.0, 0.0, 0.5)


def test_auroc_of_nothing_is_not_a_number():
    assert math.isnan(auroc(np.array([]), np.array([1.0])))
    assert math.isnan(auroc(np.array([1.0]), np.array([])))


def test_the_lowest_share_of_each_domain_is_removed():
    general = [row(f"g{i}", rewards=(float(i),)) for i in range(4)]
    safety = [row(f"s{i}", rewards=(100.0 - i,), domain="safety") for i in range(4)]
    assert lowest(general + safety, 0.25) == {0, 7}
    assert lowest(general + safety, 0.5) == {0, 1, 6, 7}


def test_found_by_hand():
    kinds = ["", "empty", "", "empty", "mismatch"]
    samples = [
        row(str(i), rewards=(reward,), meta={"defect": kind} if kind else {})
        for i, (kind, reward) in enumerate(zip(kinds, (5.0, 1.0, 2.0, 3.0, 9.0), strict=True))
    ]
    got = found(samples, {1, 2})
    # empty: 1 is below 5 and 2, 3 only below 5: 3 of 4; mismatch: 9 is below neither; all: 3 of 6
    assert got["auroc/empty"] == 0.75
    assert got["auroc/mismatch"] == 0.0
    assert got["auroc/all"] == 0.5
    assert (got["planted/empty"], got["planted/mismatch"]) == (2, 1)
    assert (got["recall/empty"], got["recall/mismatch"], got["precision"]) == (0.5, 0.0, 0.5)


def test_a_corpus_without_planted_defects_has_no_such_numbers():
    assert found([row("a", rewards=(1.0,))], {0}) == {}


def test_defects_are_of_the_kinds_that_are_open_to_a_row():
    text = [row(f"t{i}") for i in range(40)]
    wrong = [row(f"w{i}", meta={"wrong": ["bad"]}) for i in range(40)]
    shown = [row(f"p{i}", media=[RED if i % 2 else BLUE]) for i in range(40)]
    before = text + wrong + shown
    after = plant(before, 0.5, random.Random(0))
    spoiled = [(b, a) for b, a in zip(before, after, strict=True) if a.meta.get("defect")]
    assert len(spoiled) == 60
    kinds = {group: Counter(a.meta["defect"] for b, a in spoiled if b.id[0] == group) for group in "twp"}
    assert [set(kinds[group]) for group in "twp"] == [
        {"empty"},
        {"empty", "hallucination"},
        {"empty", "mismatch"},
    ]
    for old, new in spoiled:
        match new.meta["defect"]:
            case "empty":
                assert new.chosen[0].content in EVASIVE and new.media == old.media
            case "hallucination":
                assert new.chosen[0].content == "bad" and new.media == old.media
            case _:
                assert new.chosen == old.chosen and new.media != old.media


def test_what_is_not_spoiled_is_untouched_and_equal_seeds_spoil_equally():
    samples = [row(f"t{i}", meta={"wrong": ["bad"]}) for i in range(50)]
    after = plant(samples, 0.3, random.Random(0))
    assert sum(a is b for a, b in zip(after, samples, strict=True)) == 35
    assert after == plant(samples, 0.3, random.Random(0)) != plant(samples, 0.3, random.Random(1))
    assert plant(samples, 0.0, random.Random(0)) == samples


def test_a_picture_alone_in_its_domain_is_never_swapped():
    samples = [row(str(i), media=[RED]) for i in range(20)]
    after = plant(samples, 0.95, random.Random(0))
    assert {s.meta.get("defect") for s in after} == {"empty", None}


def test_the_stage_parts_a_corpus_in_two(tmp_path: Path):
    media = tiny.picture(tmp_path / "media", "red")
    corpus = [row(f"Question {i}?", f"Answer {i}.", media=[media] if i % 2 else []) for i in range(20)]
    write_samples(corpus, tmp_path / "corpus.parquet")
    save(tiny.reward(), tiny.processor(), tmp_path / "reward")
    paths = [tmp_path / n for n in ("corpus.parquet", "media", "reward", "cleaned.parquet", "removed.parquet")]
    params = CleanParams(plant=0.0, remove=0.25, features=FeatureParams(disk=str(tmp_path / "store")))
    metrics = run(params, *paths)

    cleaned, removed = (list(read_samples(path)) for path in paths[-2:])
    assert (metrics["rows"], metrics["removed"], len(cleaned), len(removed)) == (20, 5, 15, 5)
    assert {s.id for s in cleaned} | {s.id for s in removed} == {s.id for s in corpus}
    assert [s.rewards for s in removed] == sorted(s.rewards for s in removed)
    assert max(s.rewards for s in removed) <= min(s.rewards for s in cleaned)
    assert any((tmp_path / "store").iterdir())
    with pytest.raises(OverBudget, match="tokens, more than pass_tokens 20"):
        run(replace(params, pass_tokens=20), *paths)
    assert run(CleanParams(plant=0.5, remove=0.25), *paths)["planted/empty"] == 10
