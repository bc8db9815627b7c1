"""Test-time scaling: the curve by hand, and the stage from files to files."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import tiny

from ixc.data.samples import Gold, read_samples, write_samples
from ixc.engine.batching import OverBudget
from ixc.engine.towers import UnequalModels
from ixc.models.ixc25.folder import save
from ixc.params import BestOfNParams, VisionCacheParams
from ixc.stages.best_of_n import correct, curve, run

OPEN = Gold(check="open", value="", answer="Anything.")
Split = Literal["train", "val"]
REWARDS = [[1.0, 2.0, 4.0, 3.0], [0.0, -1.0, 5.0, 6.0]]
RIGHT = [[1, 0, 1, 0], [0, 1, 0, 1]]
LENGTHS = [[10, 20, 30, 40], [1, 2, 3, 4]]


def test_the_curve_by_hand():
    got = curve((1, 2, 3, 4), REWARDS, RIGHT, LENGTHS)
    # n = 1: means of everything
    assert (got["gold/1"], got["reward/1"], got["length/1"]) == (0.5, 2.5, 13.75)
    # n = 2: of 6 sets each, the pick is 4 (right, 30) in 3, 3 (wrong, 40) in 2, 2 (wrong, 20) in 1
    # | 6 (right, 4) in 3, 5 (wrong, 3) in 2, 0 (wrong, 1) in 1; the oracle has 2 right ones, and fails in 1
    assert (got["gold/2"], got["oracle/2"]) == (pytest.approx(1 / 2), pytest.approx(5 / 6))
    assert (got["reward/2"], got["length/2"]) == (
        pytest.approx((20 + 28) / 12),
        pytest.approx((190 + 19) / 12),
    )
    # n = 3: of 4 sets each, 4 in 3, 3 in 1 | 6 in 3, 5 in 1; the oracle never fails
    assert (got["gold/3"], got["reward/3"], got["oracle/3"]) == (
        0.75,
        pytest.approx((15 + 23) / 8),
        1.0,
    )
    # n = 4: 4 (right, 30) | 6 (right, 4)
    assert (got["gold/4"], got["reward/4"], got["length/4"], got["oracle/4"]) == (
        1.0,
        5.0,
        17.0,
        1.0,
    )


def test_one_answer_is_its_own_oracle():
    got = curve((1,), REWARDS, RIGHT, LENGTHS)
    assert got["oracle/1"] == got["gold/1"]


def test_of_equal_rewards_the_first_answer_is_picked():
    assert curve((2,), [[1.0, 1.0]], [[1, 0]], [[3, 9]]) == {
        "gold/2": 1,
        "reward/2": 1,
        "length/2": 3,
        "oracle/2": 1,
    }


def test_correct_is_what_the_verifier_accepts():
    sample = tiny.sample("?", gold=tiny.match("red", "blue"))
    assert correct(sample, ["It is red.", "blue", "", "red or blue"]) == [1, 0, 0, 0]


def test_a_reward_model_with_another_tower_is_refused(tmp_path: Path):
    write_samples(
        [tiny.sample("Word?", gold=tiny.match("a"), split="val")], tmp_path / "prompts.parquet"
    )
    save(tiny.causal(), tiny.processor(), tmp_path / "chat")
    save(tiny.reward(), tiny.processor(), tmp_path / "reward")
    given = (
        tmp_path / "media",
        tmp_path / "chat",
        tmp_path / "reward",
        tmp_path / "scored.parquet",
    )
    with pytest.raises(UnequalModels, match=r"reward: its vision tower is not that of .*chat \("):
        run(BestOfNParams(), tmp_path / "prompts.parquet", *given)


@pytest.mark.parametrize("split", ["val", "train"])
def test_prompts_that_nobody_knows_an_answer_to_have_rewards(tmp_path: Path, split: Split):
    prompts = [tiny.sample("Unknown?", split=split), tiny.sample("Open?", gold=OPEN, split=split)]
    write_samples(prompts, tmp_path / "prompts.parquet")
    chat = tiny.causal()
    save(chat, tiny.processor(), tmp_path / "chat")
    save(tiny.with_tower_of(tiny.reward(), chat), tiny.processor(), tmp_path / "reward")
    paths = [
        tmp_path / name for name in ("prompts.parquet", "media", "chat", "reward", "scored.parquet")
    ]
    metrics = run(BestOfNParams(n=(1, 2), max_new_tokens=4), *paths)
    scored = list(read_samples(paths[-1]))
    if split == "train":
        assert (metrics, scored) == ({"prompts": 0}, [])
        return
    assert [len(s.rewards) for s in scored] == [2, 2] and not any(
        "correct" in s.meta for s in scored
    )
    assert metrics.keys() == {"prompts", "reward/1", "reward/2", "length/1", "length/2"}
    assert metrics["reward/2"] == pytest.approx(sum(max(s.rewards) for s in scored) / 2)


def test_the_stage_answers_held_out_prompts_that_can_be_checked(tmp_path: Path):
    red = tiny.image(tmp_path / "media", "red")
    write_samples(
        [
            tiny.sample("Colour?", [red], gold=tiny.match("red"), split="val"),
            tiny.sample("Word?", gold=tiny.match("a"), split="val"),
            tiny.sample("Seen?", gold=tiny.match("a"), split="train"),
            tiny.sample("Unknown?", split="val"),
        ],
        tmp_path / "prompts.parquet",
    )
    chat = tiny.causal()
    save(chat, tiny.processor(), tmp_path / "chat")
    save(tiny.with_tower_of(tiny.reward(), chat), tiny.processor(), tmp_path / "reward")
    params = BestOfNParams(
        n=(1, 2, 4), max_new_tokens=4, vision_cache=VisionCacheParams(disk=str(tmp_path / "store"))
    )
    paths = [
        tmp_path / name for name in ("prompts.parquet", "media", "chat", "reward", "scored.parquet")
    ]
    metrics = run(params, *paths)

    scored = list(read_samples(paths[-1]))
    assert [s.id for s in scored] == ["Colour?", "Word?"]
    assert metrics["prompts"] == 2
    assert all(len(s.candidates) == len(s.rewards) == len(s.meta["correct"]) == 4 for s in scored)
    assert metrics["reward/4"] == pytest.approx(sum(max(s.rewards) for s in scored) / 2)
    assert metrics["reward/1"] == pytest.approx(sum(sum(s.rewards) for s in scored) / 8)
    assert metrics["reward/1"] < metrics["reward/2"] < metrics["reward/4"]
    assert all(metrics[f"gold/{n}"] <= metrics[f"oracle/{n}"] for n in params.n)
    assert run(params, *paths) == metrics
    assert any((tmp_path / "store").iterdir())
    with pytest.raises(OverBudget, match="tokens, more than max_tokens_per_microbatch 20"):
        run(replace(params, max_tokens_per_microbatch=20), *paths)
