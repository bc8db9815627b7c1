"""The measure of a reward model: groups, swapped pictures, intervals, and the stage."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from ixc import best_of_n, clean, evaluate_rm, generate
from ixc.batches import OverBudget
from ixc.evaluate_rm import by_group, interval, run, swap_media
from ixc.inference import score
from ixc.metrics import calibration_error
from ixc.model import IXCForRewardModel
from ixc.model.folder import save
from ixc.params import BestOfNParams, CleanParams, EvaluateRMParams, GenerateParams
from ixc.samples import Media, answer, read_samples, write_samples


def test_every_pair_is_in_the_groups_that_it_belongs_to():
    samples = [tiny.pair("a", "x", "y"), tiny.pair("b", "x", "y z"), tiny.pair("c", "x " * 65, "y", domain="safety")]
    assert by_group(samples, [(2.0, 1.0), (1.0, 1.0), (0.0, 1.0)]) == {
        "all": [1.0, 0.0, -1.0],
        "text": [1.0, 0.0, -1.0],
        "domain:general": [1.0, 0.0],
        "domain:safety": [-1.0],
        "source:test": [1.0, 0.0, -1.0],
        "length:to 16 words": [1.0, 0.0],
        "length:to 256 words": [-1.0],
        "longer:neither": [1.0],
        "longer:rejected": [0.0],
        "longer:chosen": [-1.0],
    }


def test_calibration_by_hand():
    # sigmoid(ln 3) = 3/4, in the bin from 0.75; sigmoid(ln 1.5) = 0.6, in the bin from 0.6
    # (|3 * 0.75 - 2| + |1 * 0.6 - 0|) / 4 = 0.2125
    three, half_more = math.log(3) + 1e-9, math.log(1.5) + 1e-9
    assert calibration_error([three, three, -three, -half_more]) == pytest.approx(0.2125)


def test_a_model_that_knows_how_sure_it_is_has_no_calibration_error():
    rng = np.random.default_rng(0)
    claims = rng.uniform(0, 4, 200_000)
    right = rng.uniform(size=claims.size) < 1 / (1 + np.exp(-claims))
    margins = np.where(right, claims, -claims)
    assert calibration_error(margins.tolist()) < 0.005
    assert calibration_error((5 * margins).tolist()) > 0.1  # five times too sure


def test_swapped_media_are_those_of_another_prompt_of_the_domain():
    red, blue, green = (Media(kind="image", path=c, sha256=c) for c in ("red", "blue", "green"))
    samples = [
        tiny.pair("a", "x", "y", [red]),
        tiny.pair("b", "x", "y", [blue]),
        tiny.pair("c", "x", "y", [green], domain="safety"),
        tiny.pair("d", "x", "y"),
    ]
    got = swap_media(samples, random.Random(0))
    assert [s.media for s in got] == [(blue,), (red,), (green,), ()]


def test_the_interval_of_a_sure_thing_is_a_point_and_that_of_a_coin_is_wide():
    rng = np.random.default_rng(0)
    assert interval([True] * 10, 1000, rng) == (1.0, 1.0)
    low, high = interval([True, False] * 50, 5000, rng)
    # 1.96 * sqrt(0.25 / 100) = 0.098
    assert (low, high) == (pytest.approx(0.402, abs=0.015), pytest.approx(0.598, abs=0.015))


def test_the_stage_scores_the_pairs_in_their_order(tmp_path: Path):
    media = [tiny.picture(tmp_path / "media", c) for c in ("red", "blue")]
    pairs = [tiny.pair(f"{i}?", "yes", "no" * i, [media[i % 2]] if i > 2 else []) for i in range(8)]
    write_samples(pairs, tmp_path / "val.parquet")
    save(tiny.reward(), tiny.processor(), tmp_path / "reward")
    paths = [tmp_path / name for name in ("val.parquet", "media", "reward", "scored.parquet")]
    metrics = run(EvaluateRMParams(batch_size=3), *paths)

    scored = list(read_samples(paths[-1]))
    assert [s.id for s in scored] == [s.id for s in pairs]
    right = [s.rewards[0] > s.rewards[1] for s in scored]
    assert metrics["accuracy/all"] == pytest.approx(sum(right) / 8)
    assert metrics["accuracy/image"] == pytest.approx(sum(right[3:]) / 5)
    assert (metrics["pairs"], metrics["pairs/image"], metrics["pairs/text"]) == (8, 5, 3)
    margins = [s.rewards[0] - s.rewards[1] for s in scored]
    assert metrics["margin/all"] == pytest.approx(sum(margins) / 8)
    assert metrics["ece/image"] == pytest.approx(calibration_error(margins[3:]))
    assert metrics["accuracy_low/all"] <= metrics["accuracy/all"] <= metrics["accuracy_high/all"]
    assert "accuracy_swapped_media/image" in metrics and "accuracy_swapped_media/text" not in metrics
    assert run(EvaluateRMParams(batch_size=3), *paths) == metrics
    with pytest.raises(OverBudget, match="tokens, more than pass_tokens 20"):
        run(EvaluateRMParams(pass_tokens=20), *paths)

    run(EvaluateRMParams(batch_size=3, precision="bf16"), *paths)
    half = tiny.features(tiny.reward().bfloat16(), tmp_path / "media")
    assert isinstance(half.model, IXCForRewardModel)
    wanted = score(half.model, half, pairs, [("yes", "no" * i) for i in range(8)], 3)
    assert [list(s.rewards) for s in read_samples(paths[-1])] == wanted


class Stopped(Exception):
    """The stage has come to loading its first model."""


@pytest.mark.parametrize(
    ("stage", "params"),
    [
        (generate, GenerateParams(precision="bf16", attention="sdpa")),
        (evaluate_rm, EvaluateRMParams(precision="bf16", attention="sdpa")),
        (best_of_n, BestOfNParams(precision="bf16", attention="sdpa")),
        (clean, CleanParams(precision="bf16", attention="sdpa")),
    ],
)
def test_models_that_are_only_read_are_loaded_in_the_precision_asked_for(
    stage: Any, params: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def load(folder: Path, kind: type, device: torch.device, dtype: str, attention: str) -> None:
        assert (dtype, attention) == ("bf16", "sdpa")
        raise Stopped

    monkeypatch.setattr(stage, "load", load)
    write_samples([tiny.sample("?", gold=tiny.match("a"), split="val", chosen=answer("a"))], tmp_path / "table.parquet")
    folders = [tmp_path / name for name in ("media", "model", "more", "last")]
    with pytest.raises(Stopped):
        stage.run(params, tmp_path / "table.parquet", *folders[: 4 if stage in (best_of_n, clean) else 3])
