"""The measure of a reward model: groups, swapped images, intervals, and the stage."""

import json
import math
import random
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from golden import GOLDEN

from ixc.data.samples import Media, Turn, answer, read_samples, write_samples
from ixc.engine.batching import OverBudget
from ixc.engine.scoring import score
from ixc.metrics import accuracy_interval, calibration_error
from ixc.models.ixc25 import IXCForRewardModel
from ixc.models.ixc25.folder import save
from ixc.params import BestOfNParams, CleanParams, EvaluateRMParams, GenerateParams
from ixc.stages import best_of_n, clean, evaluate_rm, generate
from ixc.stages.evaluate_rm import by_group, lengths, num_words, run, swap_media, swapped_metrics

RM_BENCH = GOLDEN / "paper_results" / "rm_bench_results.json"


def test_every_pair_is_in_the_groups_that_it_belongs_to():
    samples = [
        tiny.pair("a", "x", "y"),
        tiny.pair("b", "x", "y z"),
        tiny.pair("c", "x " * 65, "y", domain="safety"),
    ]
    assert by_group(samples) == {
        "all": [0, 1, 2],
        "text": [0, 1, 2],
        "domain:general": [0, 1],
        "domain:safety": [2],
        "source:test": [0, 1, 2],
        "length:to 16 words": [0, 1],
        "length:to 256 words": [2],
        "longer:neither": [0],
        "longer:rejected": [1],
        "longer:chosen": [2],
    }


def test_a_later_turn_counts_as_length_and_so_does_a_chinese_character():
    several = (*answer("One two."), Turn(role="user", content="Go on."), *answer("Three."))
    assert lengths(tiny.pair("a", "", "four words are here", chosen=several))[1] == "longer:chosen"
    assert lengths(tiny.pair("a", "答案是红色", "红色"))[1] == "longer:chosen"
    assert num_words(answer("The colour, 红, it is.")) == 6


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


def test_no_two_images_to_swap_leave_a_pair_as_it_is():
    red = Media(kind="image", path="red", sha256="red")
    alone = [tiny.pair("a", "x", "y", [red]), tiny.pair("b", "x", "y", [red])]
    assert swap_media(alone, random.Random(0)) == alone
    assert swapped_metrics(alone, [], []) == {"pairs_swapped/image": 0}


def test_the_interval_of_independent_pairs_is_wilsons():
    # Wilson, z = t of 99 degrees 1.984: (0.5 +- 1.984 * sqrt(0.0025 + 0.0000984)) / 1.0394, 1.0394 = 1 + z^2 / 100
    low, high = accuracy_interval([True, False] * 50, range(100), 20_000, np.random.default_rng(0))
    assert (low, high) == (pytest.approx(0.4027, abs=0.002), pytest.approx(0.5973, abs=0.002))


@pytest.mark.parametrize("number", [1, 2, 10, 1000])
def test_where_all_are_right_or_all_wrong_the_interval_is_no_point(number: int):
    rng = np.random.default_rng(0)
    low, high = accuracy_interval([True] * number, range(number), 100, rng)
    assert 0 < low < 1 and high == pytest.approx(1)
    assert accuracy_interval([False] * number, range(number), 100, rng) == (
        pytest.approx(0),
        pytest.approx(1 - low),
    )
    # ten pairs of each prompt say no more than one
    tenfold = accuracy_interval([True] * 10 * number, list(range(number)) * 10, 100, rng)
    assert tenfold == (pytest.approx(low), pytest.approx(1))


def test_pairs_of_one_prompt_are_not_independent():
    rng = np.random.default_rng(0)
    right = [True] * 70 + [False] * 30
    alone = accuracy_interval(right, range(100), 5000, rng)
    tenfold = accuracy_interval(
        [each for each in right for _ in range(10)], [i // 10 for i in range(1000)], 5000, rng
    )
    assert tenfold == pytest.approx(alone, abs=0.005)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("prompts", "accuracy", "alike"),
    [
        (30, 0.5, 0.2),
        (30, 0.9, 0.05),
        pytest.param(100, 0.7, 0.0, marks=SLOW),
        pytest.param(100, 0.7, 0.3, marks=SLOW),
        pytest.param(400, 0.7, 0.6, marks=SLOW),
        pytest.param(400, 0.9, 0.2, marks=SLOW),
    ],
)
def test_the_interval_covers_the_truth_in_95_of_100_cases(
    prompts: int, accuracy: float, alike: float
):
    """Of prompts with 1 to 11 pairs, whose accuracies are spread by a beta distribution of correlation `alike`."""
    rng, covered, repeats = np.random.default_rng(0), 0, 1000
    odds = (1 - alike) / max(alike, 1e-6)
    for _ in range(repeats):
        sizes = rng.integers(1, 12, prompts)
        chances = rng.beta(accuracy * odds, (1 - accuracy) * odds, prompts)
        prompt_of_pair = np.repeat(np.arange(prompts), sizes)
        right = rng.random(len(prompt_of_pair)) < chances[prompt_of_pair]
        low, high = accuracy_interval(right.tolist(), prompt_of_pair.tolist(), 200, rng)
        covered += low <= accuracy <= high
    assert 0.93 <= covered / repeats <= 0.97


@pytest.mark.skipif(not RM_BENCH.exists(), reason="the authors' released scores are not here")
def test_the_interval_of_the_released_scores_on_rm_bench():
    items = json.loads(RM_BENCH.read_text())
    pairs = [(i, c > r) for i, item in enumerate(items) for c, r in product(*item.values())]
    prompts, right = zip(*pairs, strict=True)
    assert np.mean(right) == pytest.approx(0.6875, abs=1e-4)
    got = accuracy_interval(right, prompts, 2000, np.random.default_rng(0))
    assert got == (pytest.approx(0.672, abs=1e-3), pytest.approx(0.703, abs=1e-3))


def test_equal_answers_get_equal_rewards_in_whatever_pair_they_stand(tmp_path: Path):
    red = tiny.image(tmp_path, "red")
    texts = [f"{word} one of them." for word in ("This", "That", "The other", "Which")]
    pairs = [
        tiny.pair("Which is red?", a, b, [red] if n % 2 else [])
        for n, (a, b) in enumerate(product(texts, texts))
    ]
    pairs += [tiny.pair("Another question, a longer one?", text, text) for text in texts]
    model = tiny.reward()
    rewards = score(
        model,
        tiny.vision_cache(model, tmp_path),
        pairs,
        [(p.chosen, p.rejected) for p in pairs],
        3,
        200,
    )
    known: dict[object, float] = {}
    for pair, row in zip(pairs, rewards, strict=True):
        for turns, reward in zip((pair.chosen, pair.rejected), row, strict=True):
            assert known.setdefault((pair.prompt, pair.media, turns), reward) == reward


def test_the_stage_scores_the_pairs_in_their_order(tmp_path: Path):
    media = [tiny.image(tmp_path / "media", c) for c in ("red", "blue")]
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
    assert (metrics["ties/text"], metrics["ties/all"], metrics["prompts/all"]) == (0, 0, 8)
    # "no" * i is one word but for i = 0: then there is none
    assert (metrics["length_only/all"], metrics["words_chosen/all"]) == ((7 * 0.5 + 1) / 8, 1)
    assert metrics["pairs_swapped/image"] == 5
    assert metrics["accuracy_low/all"] <= metrics["accuracy/all"] <= metrics["accuracy_high/all"]
    assert (
        "accuracy_swapped_media/image" in metrics and "accuracy_swapped_media/text" not in metrics
    )
    assert run(EvaluateRMParams(batch_size=3), *paths) == metrics
    with pytest.raises(OverBudget, match="tokens, more than max_tokens_per_microbatch 20"):
        run(EvaluateRMParams(max_tokens_per_microbatch=20), *paths)

    run(EvaluateRMParams(batch_size=3, precision="bf16"), *paths)
    half = tiny.vision_cache(tiny.reward().bfloat16(), tmp_path / "media")
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
    def load(folder: Path, device: torch.device, dtype: str, attention: str) -> None:
        assert (dtype, attention) == ("bf16", "sdpa")
        raise Stopped

    for name in {"load_policy", "load_scorer"} & vars(stage).keys():
        monkeypatch.setattr(stage, name, load)
    table = [tiny.pair("?", "a", "b", gold=tiny.match("a"), split="val")]
    write_samples(table, tmp_path / "table.parquet")
    folders = [tmp_path / name for name in ("media", "model", "more", "last", "unscored", "scores")]
    with pytest.raises(Stopped):
        stage.run(
            params, tmp_path / "table.parquet", *folders[: {best_of_n: 4, clean: 6}.get(stage, 3)]
        )
