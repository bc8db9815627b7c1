"""Scoring a table: every row once, in its place, whatever happens on the way."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch

from ixc.data.samples import BadRecord, Media, Sample, read_samples, write_samples
from ixc.engine.checkpoints import OtherRun
from ixc.engine.scoring import score
from ixc.engine.vision_cache import VisionCache
from ixc.metrics import BadScore, Metrics
from ixc.models.ixc25 import IXCForRewardModel, IXCProcessor
from ixc.models.ixc25.folder import save
from ixc.serve import bulk
from ixc.serve.bulk import NOT_SCORED, score_table
from ixc.serve.cli import main
from ixc.serve.shards import Scored


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Candidates, pairs and single answers, with images and without, and rows that cannot be scored."""
    red = tiny.image(tmp_path / "media", "red")
    gone = Media(kind="image", path="gone.png", sha256="0" * 64)
    rows = [
        tiny.sample("Several?", [red], candidates=("Red.", "Blue.", "I do not know.")),
        tiny.pair("Which?", "good", "rather bad"),
        tiny.pair("Lost?", "good", "bad", [gone]),
        tiny.sample("Unanswered?"),
        replace(tiny.pair("One?", "good", "bad", [red]), rejected=()),
        tiny.pair("Endless?", "good " * 300, "bad"),
        tiny.pair("No place? <ImageHere>", "good", "bad"),
    ]
    return [replace(row, id=f"{row.id} {i}") for i in range(5) for row in rows]


def scored(
    root: Path,
    samples: list[Sample],
    model: IXCForRewardModel | None = None,
    name: str = "tiny",
    **options: int,
) -> Metrics:
    write_samples(samples, root / "in.parquet")
    model = model or tiny.reward()
    vision_cache = tiny.vision_cache(model, root / "media")
    sizes = {"shard_rows": 4, "max_tokens_per_microbatch": 600, **options}
    numbers = score_table(
        model, vision_cache, root / "in.parquet", root / "out.parquet", model_name=name, **sizes
    )
    assert not vision_cache.waiting and not vision_cache.uses
    return numbers


def test_every_row_keeps_its_place_and_gets_what_it_would_get_alone(
    tmp_path: Path, samples: list[Sample]
):
    assert scored(tmp_path, samples) == {"rows": 35, NOT_SCORED: 20}
    found = list(read_samples(tmp_path / "out.parquet"))
    assert [replace(row, rewards=(), meta={}) for row in found] == samples
    model = tiny.reward()
    for row, sample in zip(found[:7], samples, strict=False):
        if NOT_SCORED not in row.meta:
            answers = bulk.candidates_or_pair(sample)
            [alone] = score(
                model, tiny.vision_cache(model, tmp_path / "media"), [sample], [answers], 1
            )
            assert row.rewards == pytest.approx(alone, abs=1e-5)
    assert [len(row.rewards) for row in found[:7]] == [3, 2, 0, 0, 1, 0, 0]
    assert list(tmp_path.glob(".*")) == []


def test_what_cannot_be_scored_says_why(tmp_path: Path, samples: list[Sample]):
    scored(tmp_path, samples)
    told = {row.id: row.meta.get(NOT_SCORED, "") for row in read_samples(tmp_path / "out.parquet")}
    assert "gone.png: no such file" in told["Lost? 0"]
    assert "no answer" in told["Unanswered? 1"]
    assert "tokens, more than 600; raise --max-tokens-per-microbatch" in told["Endless? 2"]
    assert "0 images" in told["No place? <ImageHere> 3"]


@pytest.mark.parametrize("shard_rows", [1, 7, 1000])
def test_shards_change_no_row(tmp_path: Path, samples: list[Sample], shard_rows: int):
    scored(tmp_path, samples, shard_rows=shard_rows)
    in_shards = [row.rewards for row in read_samples(tmp_path / "out.parquet")]
    scored(tmp_path, samples)
    for row, rewards in zip(read_samples(tmp_path / "out.parquet"), in_shards, strict=True):
        assert row.rewards == pytest.approx(rewards, abs=1e-5)


def test_equal_answers_get_equal_rewards_in_whatever_shard_they_stand(tmp_path: Path):
    red = tiny.image(tmp_path / "media", "red")
    copies = [tiny.pair("Which?", "a good one", "a good one", [red], id=f"{i}") for i in range(6)]
    others = [tiny.pair(f"Number {i}?", "good " * i, "bad", id=f"other {i}") for i in range(6)]
    rows = [row for pair in zip(copies, others, strict=True) for row in pair]
    scored(tmp_path, rows, shard_rows=3)
    found = [row.rewards for row in read_samples(tmp_path / "out.parquet")]
    assert len({reward for rewards in found[::2] for reward in rewards}) == 1
    assert len({rewards[0] for rewards in found[1::2]}) == 6


def test_candidates_of_more_than_a_pass_are_read_in_several(tmp_path: Path):
    [row] = rows = [tiny.sample("Many?", candidates=tuple("good " * i for i in range(40)))]
    assert scored(tmp_path, rows, max_tokens_per_microbatch=300)[NOT_SCORED] == 0
    model = tiny.reward()
    [wanted] = score(model, tiny.vision_cache(model, tmp_path), [row], [row.candidates], 1)
    assert next(read_samples(tmp_path / "out.parquet")).rewards == pytest.approx(wanted, abs=1e-5)


def test_what_is_no_sample_keeps_its_place_and_all_columns_come_out_as_they_came(tmp_path: Path):
    good = [
        tiny.pair(f"{i}?", "good", "bad", meta={NOT_SCORED: "once", "kept": i}) for i in range(3)
    ]
    write_samples([*good, replace(good[0], chosen=())], tmp_path / "plain.parquet")
    table = pq.read_table(tmp_path / "plain.parquet")
    records = table.append_column("licence", pa.array(list("abcd"))).to_pylist()
    records[1] |= {"domain": "cooking", "meta": "no JSON"}
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "in.parquet")
    model, paths = tiny.reward(), (tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert score_table(model, tiny.vision_cache(model, tmp_path), *paths, model_name="") == {
        "rows": 4,
        NOT_SCORED: 2,
    }
    came, went = (pq.read_table(path).to_pylist() for path in paths)
    for before, after in zip(came, went, strict=True):
        assert {**before, "meta": "", "rewards": []} == {**after, "meta": "", "rewards": []}
    assert [len(row["rewards"]) for row in went] == [2, 0, 2, 0]
    assert json.loads(went[0]["meta"]) == {"kept": 0}, "the reason of an earlier call is gone"
    told = json.loads(went[1]["meta"])
    assert "row 1: meta" in told[NOT_SCORED] and told["meta"] == "no JSON"
    assert "no answer" in json.loads(went[3]["meta"])[NOT_SCORED], (
        "the only reward would be taken for that of chosen"
    )


def test_a_row_of_no_utf_8_keeps_its_place(tmp_path: Path):
    write_samples([tiny.pair(f"{i}?", "good", "bad") for i in range(2)], tmp_path / "plain.parquet")
    table = pq.read_table(tmp_path / "plain.parquet")
    metas = pa.array([b"{}", b'{"by": "Andr\xe9"}'], pa.binary())
    damaged = pa.StringArray.from_buffers(2, *metas.buffers()[1:])
    table = table.set_column(table.schema.get_field_index("meta"), "meta", damaged)
    pq.write_table(table, tmp_path / "in.parquet")
    model, paths = tiny.reward(), (tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert score_table(model, tiny.vision_cache(model, tmp_path), *paths, model_name="") == {
        "rows": 2,
        NOT_SCORED: 1,
    }
    good, bad = pq.read_table(tmp_path / "out.parquet", columns=["meta", "rewards"]).to_pylist()
    assert len(good["rewards"]) == 2 and "by" in json.loads(bad["meta"]) and not bad["rewards"]


@pytest.fixture
def killed_after_3(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every shard that is scored; the fourth is never finished."""
    whole, seen = bulk.scored, []

    def score_and_die(*arguments: object) -> Iterator[Scored]:
        seen.append(len(arguments[2]))  # pyright: ignore[reportArgumentType]
        for row in whole(*arguments):  # pyright: ignore[reportArgumentType]
            yield row
            if len(seen) == 4:
                raise KeyboardInterrupt

    monkeypatch.setattr(bulk, "scored", score_and_die)
    return seen


def test_a_killed_call_goes_on_with_the_shard_that_it_had_not_finished(
    tmp_path: Path, samples: list[Sample], killed_after_3: list[int]
):
    with pytest.raises(KeyboardInterrupt):
        scored(tmp_path, samples)
    assert not (tmp_path / "out.parquet").exists()
    assert scored(tmp_path, samples)["rows"] == 35
    assert len(killed_after_3) == 4 + 9 - 3
    assert [row.id for row in read_samples(tmp_path / "out.parquet")] == [s.id for s in samples]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"shard_rows": 5}, "shard_rows was 4, is 5"), ({"table": 1}, "table was '")],
)
def test_shards_of_another_call_are_refused(
    tmp_path: Path,
    samples: list[Sample],
    killed_after_3: list[int],
    change: dict[str, Any],
    message: str,
):
    with pytest.raises(KeyboardInterrupt):
        scored(tmp_path, samples)
    with pytest.raises(OtherRun, match=message):
        scored(tmp_path, samples[change.pop("table", 0) :], **change)


def test_what_the_rewards_depend_on_must_be_the_same(
    tmp_path: Path, samples: list[Sample], killed_after_3: list[int]
):
    with pytest.raises(KeyboardInterrupt):
        scored(tmp_path, samples)
    with pytest.raises(OtherRun, match="dtype was 'float32', is 'bfloat16'; set it back"):
        scored(tmp_path, samples, tiny.reward().bfloat16())
    model, again = tiny.reward(), (tmp_path / "in.parquet", tmp_path / "out.parquet")
    sizes = {"model_name": "tiny", "shard_rows": 4, "max_tokens_per_microbatch": 600}
    with pytest.raises(OtherRun, match=r"media_root was '.*media', is '.*other'"):
        score_table(model, tiny.vision_cache(model, tmp_path / "other"), *again, **sizes)
    finer = IXCProcessor(tiny.processor().tokenizer, tiny.TILE, tiny.PATCH, hd_num=1)
    with pytest.raises(OtherRun, match="processor was '"):
        score_table(model, VisionCache(model, finer, tmp_path / "media"), *again, **sizes)


def test_a_kill_amid_the_tidying_gives_nobody_anothers_rewards(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
):
    other = tiny.shaken(tiny.reward(), 7)
    scored(tmp_path, samples, other)
    wanted = [row.rewards for row in read_samples(tmp_path / "out.parquet")]

    def half(folder: Path, **_: object) -> None:
        for about in Path(folder).glob("about.json"):
            about.unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            scored(tmp_path, samples)
    scored(tmp_path, samples, other, "the other")
    assert [row.rewards for row in read_samples(tmp_path / "out.parquet")] == wanted
    assert list(tmp_path.glob(".*")) == []


def test_shards_of_nobody_knows_whom_are_not_taken(
    tmp_path: Path, samples: list[Sample], killed_after_3: list[int]
):
    with pytest.raises(KeyboardInterrupt):
        scored(tmp_path, samples)
    (tmp_path / ".out.parquet.shards" / "about.json").unlink()
    scored(tmp_path, samples)
    assert len(killed_after_3) == 4 + 9


def test_a_row_that_cannot_be_scored_costs_no_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    red = tiny.image(tmp_path / "media", "red")
    monkeypatch.delattr(IXCProcessor, "load")
    rows = [tiny.pair("Endless?", "good " * 300, "bad", [red]), tiny.sample("Unanswered?", [red])]
    assert scored(tmp_path, rows) == {"rows": 2, NOT_SCORED: 2}


def test_a_video_is_decoded_once_and_kept_only_for_a_row_that_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    videos, decoded = [tiny.image(tmp_path / "media", colour) for colour in ("red", "blue")], []
    still = IXCProcessor.load

    def load(processor: IXCProcessor, root: Path, media: Media, hd_num: int) -> object:
        decoded.append(media.path)
        return still(processor, root, replace(media, kind="image"), hd_num)

    monkeypatch.setattr(IXCProcessor, "load", load)
    shown = [replace(video, kind="video") for video in videos]
    rows = [
        tiny.pair("Endless?", "good " * 300, "bad", shown[:1]),
        tiny.pair("Which?", "good", "bad", shown[1:]),
    ]
    assert scored(tmp_path, rows) == {"rows": 2, NOT_SCORED: 1}
    assert sorted(decoded) == sorted(video.path for video in videos)


def test_an_empty_table_becomes_an_empty_table(tmp_path: Path):
    assert scored(tmp_path, []) == {"rows": 0, NOT_SCORED: 0}
    assert list(read_samples(tmp_path / "out.parquet")) == []


def test_a_table_is_not_written_over_itself(tmp_path: Path):
    model = tiny.reward()
    with pytest.raises(BadRecord, match="name another file"):
        score_table(
            model, tiny.vision_cache(model, tmp_path), tmp_path / "a", tmp_path / "a", model_name=""
        )


def command(root: Path, samples: list[Sample]) -> list[str]:
    """`ixc score` on the samples."""
    write_samples(samples, root / "in.parquet")
    save(tiny.reward(), tiny.processor(), root / "reward")
    paths = (
        "--in",
        root / "in.parquet",
        "--out",
        root / "out.parquet",
        "--media-root",
        root / "media",
    )
    return [
        "score",
        *map(str, (root / "reward", *paths)),
        "--shard-rows",
        "4",
        "--max-tokens-per-microbatch",
        "600",
        "--json",
    ]


def test_the_command_scores_a_table_and_its_status_tells_of_rows_that_were_not(
    tmp_path: Path, samples: list[Sample], capsys: pytest.CaptureFixture[str]
):
    arguments = command(tmp_path, samples)
    capsys.readouterr()  # saving a model imports libraries that print
    assert main(arguments) == 3
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"rows": 35, NOT_SCORED: 20}
    assert printed.err.splitlines()[-1].startswith("ixc score: 20 of 35 rows not scored")
    assert main(command(tmp_path, samples[:2])) == 0


def test_a_wrong_folder_of_media_is_said_in_one_line(
    tmp_path: Path, samples: list[Sample], capsys: pytest.CaptureFixture[str]
):
    usual = command(tmp_path, [samples[0], samples[1], replace(samples[0], id="again")])
    (tmp_path / "wrong").mkdir()
    at = usual.index("--media-root") + 1
    assert main([*usual[:at], str(tmp_path / "wrong"), *usual[at + 1 :]]) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(
        r"2 of 3 rows not scored \(media from .*wrong\); most often: .*red-28x28.png: no such file",
        last,
    )
    assert main([*usual[:at], str(tmp_path / "nowhere"), *usual[at + 1 :]]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err.splitlines()[-1]


def test_options_change_how_a_table_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wide = tiny.image(tmp_path / "media", "red", (112, 28))
    found = []
    for how in ([], ["--image-budget", "1"]):
        assert main([*command(tmp_path, [tiny.pair("Which?", "good", "bad", [wide])]), *how]) == 0
        found += [row.rewards for row in read_samples(tmp_path / "out.parquet")]
    assert found[0] != pytest.approx(found[1], abs=1e-4)


def test_a_reward_that_is_no_number_is_named(tmp_path: Path, samples: list[Sample]):
    broken = tiny.reward()
    with torch.no_grad():
        broken.score.weight.fill_(float("nan"))
    assert scored(tmp_path, samples[:2], broken) == {"rows": 2, NOT_SCORED: 2}
    for row in read_samples(tmp_path / "out.parquet"):
        assert row.rewards == () and "score nan: no number" in row.meta[NOT_SCORED]
    with pytest.raises(BadScore, match=r"Which.*score nan"):
        score(broken, tiny.vision_cache(broken, tmp_path / "media"), [samples[1]], [["good"]], 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--in", "IN"], "--in goes with --out"),
        (["--in", "IN", "--out", "out", "--question", "Why?"], "without chats or a question"),
        (["--in", "TEXT", "--out", "out"], "not a Parquet file"),
        (["--in", "absent.parquet", "--out", "out"], "absent.parquet"),
        (
            ["--in", "CHATS", "--out", "out"],
            "a table of chats, not of the pipeline's samples; give it without --in",
        ),
        (
            ["--in", "IN", "--out", "out", "--max-length", "9"],
            "--max-tokens-per-microbatch is its bound",
        ),
    ],
)
def test_a_table_that_cannot_be_read_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    usual = command(tmp_path, [])
    (tmp_path / "text").write_text("hello")
    pq.write_table(pa.table({"messages": [[{"role": "user", "content": "a"}]]}), tmp_path / "chats")
    files = {
        "CHATS": str(tmp_path / "chats"),
        "IN": str(tmp_path / "in.parquet"),
        "TEXT": str(tmp_path / "text"),
        "out": str(tmp_path / "out"),
    }
    assert main([*usual[:2], *(files.get(argument, argument) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_two_processes_score_each_row_once(tmp_path: Path, samples: list[Sample]):
    scored(tmp_path, samples)
    wanted = [row.rewards for row in read_samples(tmp_path / "out.parquet")]
    (tmp_path / "out.parquet").unlink()
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    call = [*torchrun, "-m", "ixc.serve.cli", *command(tmp_path, samples)]
    ours = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        call, env={**os.environ, **ours}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1  # torchrun's own for whatever its processes end with
    assert json.loads(done.stdout.splitlines()[-1]) == {"rows": 35, NOT_SCORED: 20}
    for row, rewards in zip(read_samples(tmp_path / "out.parquet"), wanted, strict=True):
        assert row.rewards == pytest.approx(rewards, abs=1e-5)
