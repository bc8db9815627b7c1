"""Cleaning of a corpus: what is kept stays as it came, what is removed, and what a spoilt copy is measured by."""

import json
import math
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from ixc.data.corruption import EVASIVE, Planting
from ixc.data.samples import BadRecord, Media, Sample, Turn, answer, write_samples
from ixc.engine.scoring import score
from ixc.metrics import Metrics
from ixc.models.ixc25.folder import save
from ixc.params import CleanParams, VisionCacheParams
from ixc.serve import bulk
from ixc.stages.clean import NothingScored, Outcome, auroc, lowest, measured, run

RED, BLUE, GREEN = (
    Media(kind="image", path=f"{c}.png", sha256=c) for c in ("red", "blue", "green")
)
OUTPUTS = ("cleaned.parquet", "removed.parquet", "unscored.parquet", "scores.parquet")


def row(text: str, said: str = "good", **known: object) -> Sample:
    return tiny.sample(text, **{"chosen": answer(said), **known})  # type: ignore[arg-type]


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
    domains = ["general"] * 4 + ["safety"] * 4
    rewards = np.array([0.0, 1, 2, 3, 100, 99, 98, 97])
    assert np.flatnonzero(lowest(domains, rewards, 0.25)).tolist() == [0, 7]
    assert np.flatnonzero(lowest(domains, rewards, 0.5)).tolist() == [0, 1, 6, 7]


def test_a_row_without_a_reward_is_none_of_the_lowest():
    rewards = np.array([math.nan, 1, 2, math.nan, 0])
    assert np.flatnonzero(lowest(["general"] * 5, rewards, 0.34)).tolist() == [4]


def outcome(rewards: Sequence[float], planted: dict[int, str], copies: dict[int, float]) -> Outcome:
    values = np.array(rewards)
    return Outcome(
        ["general"] * len(values), values, np.zeros(len(values), bool), {}, planted, copies
    )


def test_the_copy_is_measured_by_hand():
    found = outcome(
        [5.0, 7, 2, 8, 8], {1: "empty", 3: "empty", 4: "mismatch"}, {1: 1.0, 3: 3.0, 4: 9.0}
    )
    got = measured(found, 0.4)
    # the copy's rewards are 5, 1, 2, 3, 9, and its lowest two 1 and 2
    # empty: 1 is below 5 and 2, 3 only below 5: 3 of 4; mismatch: 9 is below neither; all: 3 of 6
    assert got["auroc/empty"] == 0.75
    assert got["auroc/mismatch"] == 0.0
    assert got["auroc/all"] == 0.5
    assert (got["planted/empty"], got["planted/mismatch"]) == (2, 1)
    assert (got["recall/empty"], got["recall/mismatch"], got["precision"]) == (0.5, 0.0, 0.5)


def test_where_nothing_was_planted_nothing_is_measured():
    assert measured(outcome([1.0], {}, {}), 0.25) == {}


def planted(
    samples: Sequence[Sample | BadRecord], share: float, seed: int = 0
) -> list[tuple[Sample, str, Sample]]:
    """Each spoilt row, how it was, and its copy."""
    defects = Planting(lambda: samples, share, seed).defects()
    return [
        (before, d.kind, d.sample) for d in defects if isinstance(before := samples[d.row], Sample)
    ]


def test_defects_are_of_the_kinds_that_are_open_to_a_row():
    text = [row(f"t{i}") for i in range(40)]
    wrong = [row(f"w{i}", meta={"wrong": ["bad"]}) for i in range(40)]
    shown = [row(f"p{i}", media=[RED if i % 2 else BLUE]) for i in range(40)]
    spoilt = planted(text + wrong + shown, 0.5)
    assert len(spoilt) == 60
    kinds = {
        group: Counter(kind for before, kind, _ in spoilt if before.id[0] == group)
        for group in "twp"
    }
    assert [set(kinds[group]) for group in "twp"] == [
        {"empty"},
        {"empty", "hallucination"},
        {"empty", "mismatch"},
    ]
    for old, kind, new in spoilt:
        match kind:
            case "empty":
                assert new.chosen[0].content in EVASIVE and new.media == old.media
            case "hallucination":
                assert new.chosen[0].content == "bad" and new.media == old.media
            case _:
                assert new.chosen == old.chosen and new.media != old.media


def plainly_spoilt(
    samples: Sequence[Sample], share: float, seed: int
) -> list[tuple[Sample, str, Sample]]:
    """The same in a few lines, in quadratic time."""
    rng = random.Random(seed)
    pools: dict[Any, list[tuple[Media, ...]]] = defaultdict(list)
    for s in samples:
        pools[s.domain, s.modality, len(s.media)].append(s.media)
    drawn, found = set(rng.sample(range(len(samples)), round(share * len(samples)))), []
    for i, s in enumerate(samples):
        if i in drawn:
            others = (
                [m for m in pools[s.domain, s.modality, len(s.media)] if m != s.media]
                if s.media
                else []
            )
            ways: dict[str, Any] = {
                "empty": lambda s=s: replace(s, chosen=answer(rng.choice(EVASIVE)))
            }
            if s.meta.get("wrong"):
                ways["hallucination"] = lambda s=s: replace(
                    s, chosen=answer(rng.choice(s.meta["wrong"]))
                )
            if others:
                ways["mismatch"] = lambda s=s, others=others: replace(s, media=rng.choice(others))
            kind = rng.choice(sorted(ways))
            found.append((s, kind, ways[kind]()))
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_equal_seeds_spoil_the_same_rows_in_the_same_ways(seed: int):
    images = random.Random(7)
    samples = [row(f"p{i}", media=[images.choice((RED, BLUE, GREEN))]) for i in range(200)]
    samples += [row(f"w{i}", meta={"wrong": ["bad", "worse"]}, domain="safety") for i in range(50)]
    assert (
        planted(samples, 0.3, seed)
        == plainly_spoilt(samples, 0.3, seed)
        != planted(samples, 0.3, 2)
    )
    assert planted(samples, 0.0, seed) == []


def test_rows_that_cannot_be_scored_are_not_spoilt():
    samples = [
        BadRecord("no sample"),
        row("unanswered", chosen=()),
        row("odd", meta={"wrong": "bad"}),
        row("a"),
    ]
    assert {before.id for before, kind, _ in planted(samples, 0.99) if kind == "empty"} == {
        "odd",
        "a",
    }


def test_a_image_alone_in_its_domain_is_never_swapped():
    assert {
        kind for _, kind, _ in planted([row(str(i), media=[RED]) for i in range(20)], 0.95)
    } == {"empty"}


@pytest.fixture
def corpus(tmp_path: Path) -> list[Sample]:
    """Rows with an image and without, each with a wrong answer known."""
    media = [tiny.image(tmp_path / "media", colour) for colour in ("red", "blue")]
    return [
        row(
            f"Question {i}?",
            f"Answer {i}.",
            media=[media[i // 2 % 2]] if i % 2 else [],
            meta={"wrong": ["No."]},
        )
        for i in range(20)
    ]


def cleaned(
    root: Path, table: Sequence[Sample] | pa.Table, params: CleanParams | None = None
) -> Metrics:
    """Run the stage."""
    if isinstance(table, pa.Table):
        pq.write_table(table, root / "corpus.parquet")
    else:
        write_samples(table, root / "corpus.parquet")
    save(tiny.reward(), tiny.processor(), root / "reward")
    paths = [root / name for name in ("corpus.parquet", "media", "reward", *OUTPUTS)]
    return run(params or CleanParams(shard_rows=6), *paths)


def tables(root: Path) -> list[pa.Table]:
    return [pq.read_table(root / name) for name in OUTPUTS]


def with_columns(samples: Sequence[Sample], root: Path) -> pa.Table:
    """A corpus with columns of somebody else's, and an answer's own rewards."""
    write_samples(
        [replace(s, rewards=(float(i),)) for i, s in enumerate(samples)], root / "plain.parquet"
    )
    table = pq.read_table(root / "plain.parquet")
    table = table.append_column("licence", pa.array(["cc-by"] * len(samples)).dictionary_encode())
    table = table.append_column(
        "raw", pa.array([bytes([i, 255]) for i in range(len(samples))], pa.large_binary())
    )
    return table.replace_schema_metadata({"huggingface": "{}"})


@pytest.mark.parametrize("plant", [0.0, 0.5])
def test_every_row_comes_out_as_it_came_in(tmp_path: Path, corpus: list[Sample], plant: float):
    table = with_columns(corpus, tmp_path)
    metrics = cleaned(tmp_path, table, CleanParams(plant=plant, shard_rows=6))
    kept, removed, unscored, scores = tables(tmp_path)
    assert (metrics["rows"], metrics["kept"], metrics["removed"], metrics["unscored"]) == (
        20,
        15,
        5,
        0,
    )
    low, high = (
        pa.array([(fate == "removed") is is_low for fate in scores["fate"].to_pylist()])
        for is_low in (True, False)
    )
    assert kept.schema.equals(table.schema, check_metadata=True)
    assert kept.equals(table.filter(high))
    assert removed.drop_columns(["clean_reward", "clean_reason"]).equals(table.filter(low))
    assert len(unscored) == 0
    assert max(removed["clean_reward"].to_pylist()) <= min(
        scores.filter(high)["reward"].to_pylist()
    )
    assert all(
        "among the lowest of domain general" in reason
        for reason in removed["clean_reason"].to_pylist()
    )
    assert not list(tmp_path.glob(".*"))


def test_the_corpus_is_removed_from_by_its_own_rewards_whatever_is_planted(
    tmp_path: Path, corpus: list[Sample]
):
    cleaned(tmp_path, corpus)
    plain = tables(tmp_path)
    metrics = cleaned(tmp_path, corpus, CleanParams(plant=0.5, seed=3, shard_rows=6))
    measuring = tables(tmp_path)
    assert measuring[:3] == plain[:3]
    assert measuring[3]["reward"] == plain[3]["reward"]
    assert sum(metrics[name] for name in metrics if name.startswith("planted/")) == 10


def test_what_is_measured_is_the_copy(tmp_path: Path, corpus: list[Sample]):
    metrics = cleaned(tmp_path, corpus, CleanParams(plant=0.5))
    copy: list[Sample] = list(corpus)
    planting = Planting(lambda: corpus, 0.5, 0)
    for defect in planting.defects():
        copy[defect.row] = defect.sample
    model = tiny.reward()
    rewards = score(
        model, tiny.vision_cache(model, tmp_path / "media"), copy, [[s.chosen] for s in copy], 8
    )
    values = np.array([reward for [reward] in rewards])
    bad = np.isin(np.arange(20), planting.rows)
    assert metrics["auroc/all"] == pytest.approx(auroc(values[bad], values[~bad]))
    scores = tables(tmp_path)[3]
    assert [bool(kind) for kind in scores["planted"].to_pylist()] == bad.tolist()
    spoilt = [reward for reward in scores["planted_reward"].to_pylist() if reward is not None]
    assert spoilt == pytest.approx(values[bad].tolist(), abs=1e-5)


def test_a_run_on_its_own_output_measures_nothing_of_an_earlier_run(
    tmp_path: Path, corpus: list[Sample]
):
    spoilt = [replace(s, meta={"defect": "empty"}) if i % 3 else s for i, s in enumerate(corpus)]
    assert not any("auroc" in name for name in cleaned(tmp_path, spoilt))
    again = cleaned(tmp_path, pq.read_table(tmp_path / "cleaned.parquet"))
    assert again["rows"] == 15 and not any("auroc" in name for name in again)
    [_, removed, _, _] = tables(tmp_path)
    assert removed.schema.names.count("clean_reason") == 1
    twice = cleaned(tmp_path, removed)
    [kept, low, _, _] = tables(tmp_path)
    assert twice["rows"] == len(kept) + len(low) == len(removed)
    assert "clean_reason" in kept.schema.names, "what came in stays, an earlier reason too"
    assert low.schema.names.count("clean_reason") == 1


def spoil_columns(table: pa.Table, changes: dict[int, tuple[str, Any]]) -> pa.Table:
    """The table with some cells as no writer of ours would write them."""
    records = table.to_pylist()
    for number, (name, value) in changes.items():
        records[number][name] = value
    return pa.Table.from_pylist(records, schema=table.schema)


def test_a_bad_row_stops_no_other_and_says_why(tmp_path: Path, corpus: list[Sample]):
    gone = Media(kind="image", path="gone.png", sha256="0" * 64)
    (tmp_path / "media" / "text.png").write_text("no picture")
    damaged = Media(kind="image", path="text.png", sha256="1" * 64)
    rows = [
        *corpus[:8],
        row("Lost?", media=[gone]),
        row("Damaged?", media=[damaged]),
        row("Endless?", "good " * 300),
        row("Unanswered?", chosen=()),
        row("Turned?", chosen=(Turn(role="user", content="Why?"),)),
        row("No place? <ImageHere>"),
        *(row(f"Odd {i}?") for i in range(4)),
    ]
    write_samples(rows, tmp_path / "plain.parquet")
    odd = {
        14: ("domain", "cooking"),
        15: ("meta", "{no JSON"),
        16: ("id", None),
        17: ("chosen", None),
    }
    table = spoil_columns(pq.read_table(tmp_path / "plain.parquet"), odd)
    metrics = cleaned(
        tmp_path, table, CleanParams(plant=0.5, max_tokens_per_microbatch=600, shard_rows=4)
    )
    kept, removed, unscored, scores = tables(tmp_path)
    assert (metrics["kept"], metrics["removed"], metrics["unscored"]) == (6, 2, 10)
    assert len(kept) + len(removed) + len(unscored) == len(scores) == metrics["rows"] == 18
    assert unscored.drop_columns(["clean_reward", "clean_reason"]).equals(table.slice(8))
    wanted = (
        "gone.png: no such file",
        "text.png",
        "tokens, more than 600; raise clean.max_tokens_per_microbatch",
        "chosen: no answer",
        "chosen: turns of user",
        "0 images",
        "row 14: domain",
        "row 15: meta",
        "row 16: id",
        "row 17: chosen",
    )
    for reason, part in zip(unscored["clean_reason"].to_pylist(), wanted, strict=True):
        assert part in reason


@pytest.mark.parametrize("column", ["id", "domain", "source", "meta"])
def test_a_text_that_is_no_utf_8_is_its_rows_own_affair(
    tmp_path: Path, corpus: list[Sample], column: str
):
    write_samples(corpus, tmp_path / "plain.parquet")
    table = pq.read_table(tmp_path / "plain.parquet")
    texts = [text.encode() for text in table[column].to_pylist()]
    texts[3] = b"\xff\xfe"
    odd = pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts, pa.binary()).buffers())
    table = table.set_column(table.schema.get_field_index(column), column, odd)
    metrics = cleaned(tmp_path, table, CleanParams(plant=0.5, shard_rows=6))
    assert (metrics["kept"], metrics["removed"], metrics["unscored"]) == (14, 5, 1)
    _, _, unscored, scores = tables(tmp_path)
    assert unscored[column].cast(pa.binary()).to_pylist() == [b"\xff\xfe"]
    assert len(scores.to_pylist()) == 20, "a table of ours is readable whatever came in"


@pytest.mark.parametrize("name", OUTPUTS)
def test_nothing_is_written_over_the_corpus(tmp_path: Path, corpus: list[Sample], name: str):
    write_samples(corpus, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(BadRecord, match=f"{name}: is the corpus"):
        run(CleanParams(), *(tmp_path / each for each in (name, "media", "reward", *OUTPUTS)))
    assert (tmp_path / name).read_bytes() == before


def test_where_nothing_can_be_scored_nothing_is_written(tmp_path: Path, corpus: list[Sample]):
    shown = [
        replace(s, media=tuple(replace(m, path=f"elsewhere/{m.path}") for m in s.media))
        for s in corpus[1::2]
    ]
    with pytest.raises(
        NothingScored,
        match=r"corpus.parquet: none of 10 rows .* row 0: .*elsewhere/red.*no such file",
    ):
        cleaned(tmp_path, shown)
    assert not any((tmp_path / name).exists() for name in OUTPUTS)


def test_some_unscored_rows_are_said_in_a_line(
    tmp_path: Path, corpus: list[Sample], capsys: pytest.CaptureFixture[str]
):
    cleaned(tmp_path, [*corpus[:3], row("?", chosen=())])
    line = "clean: 1 of 4 rows could not be scored, such as row 3: chosen: no answer"
    assert line in capsys.readouterr().err


def test_an_empty_corpus_is_parted_in_three_empty_tables(tmp_path: Path):
    assert cleaned(tmp_path, [], CleanParams(plant=0.5))["rows"] == 0
    assert [len(table) for table in tables(tmp_path)] == [0, 0, 0, 0]


def test_the_last_turn_of_an_answer_counts(tmp_path: Path, corpus: list[Sample]):
    several = (*answer("Yes."), Turn(role="user", content="Sure?"))
    rows = [row("Is it?", chosen=(*several, *answer(text))) for text in ("Yes.", "No.")]
    cleaned(tmp_path, [*corpus[:2], *rows, row("Is it?", "Yes.")])
    rewards = tables(tmp_path)[3]["reward"].to_pylist()[2:]
    assert len(set(rewards)) == 3


def test_a_killed_run_goes_on_where_it_was(
    tmp_path: Path, corpus: list[Sample], monkeypatch: pytest.MonkeyPatch
):
    params = CleanParams(plant=0.5, shard_rows=6)
    cleaned(tmp_path, corpus, params)
    wanted, whole, seen = tables(tmp_path), bulk.scored, []

    def score_and_die(*arguments: Any) -> Iterator[Any]:
        seen.append(len(arguments[2]))
        for scored in whole(*arguments):
            yield scored
            if len(seen) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(bulk, "scored", score_and_die)
    with pytest.raises(KeyboardInterrupt):
        cleaned(tmp_path, corpus, params)
    assert tables(tmp_path) == wanted, "the last good outputs stay"
    cleaned(tmp_path, corpus, params)
    assert seen == [6, 6, *(6, 6, 2, 6, 4)], "two of the six shards were done, the third was begun"
    assert tables(tmp_path) == wanted
    with pytest.raises(KeyboardInterrupt):
        seen.clear()
        cleaned(tmp_path, corpus, params)
    cleaned(
        tmp_path, corpus[1:], params
    )  # another corpus: what was scored is of no use, and stops nobody
    assert pq.read_metadata(tmp_path / "scores.parquet").num_rows == 19


def test_features_on_disk_are_used(tmp_path: Path, corpus: list[Sample]):
    cleaned(
        tmp_path, corpus, CleanParams(vision_cache=VisionCacheParams(disk=str(tmp_path / "store")))
    )
    assert any((tmp_path / "store").iterdir())


SCRIPT = """
import sys, json
from pathlib import Path
from ixc.stages.clean import run
from ixc.params import CleanParams
print(json.dumps(run(CleanParams(plant=0.5, shard_rows=3), *map(Path, sys.argv[1:]))))
"""


@pytest.mark.slow
def test_two_processes_part_a_corpus_as_one_does(tmp_path: Path, corpus: list[Sample]):
    wanted = cleaned(tmp_path, corpus, CleanParams(plant=0.5, shard_rows=3))
    alone = tables(tmp_path)
    (tmp_path / "stage.py").write_text(SCRIPT)
    paths = [str(tmp_path / name) for name in ("corpus.parquet", "media", "reward", *OUTPUTS)]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    ours = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, str(tmp_path / "stage.py"), *paths],
        env={**os.environ, **ours},
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(map(json.loads, done.stdout.splitlines()), key=len) == [{}, pytest.approx(wanted)]
    assert tables(tmp_path)[:3] == alone[:3]
