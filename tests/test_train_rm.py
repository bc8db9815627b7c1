"""Bradley-Terry training, from files to files and on a task that can be learned."""

import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from ixc.data.samples import Sample, write_samples
from ixc.engine.batching import OverBudget
from ixc.engine.checkpoints import Checkpoints
from ixc.engine.losses import bradley_terry_loss
from ixc.engine.optim import Diverged, Optimizer
from ixc.engine.preference_groups import (
    MicroBatch,
    NoPairs,
    compare,
    measured,
    preference_groups,
    prefix_group,
    read,
    split,
)
from ixc.engine.scoring import score
from ixc.engine.trainer import Share
from ixc.engine.vision_cache import VisionCache
from ixc.engine.zero import NoDeepSpeed, import_deepspeed
from ixc.metrics import ignore
from ixc.models.ixc25 import IXCForCausalLM, IXCForRewardModel, IXCProcessor
from ixc.models.ixc25.folder import save
from ixc.params import TrainRMParams
from ixc.stages.train_rm import History, Tally, run, share_of, train

PARAMS = TrainRMParams(epochs=20, batch_size=8, learning_rate=5e-3)


def pairs(root: Path) -> list[Sample]:
    """`good` beats `bad` in text; about a picture, its colour beats the other one."""
    media = {colour: tiny.image(root, colour) for colour in ("red", "blue")}
    text = [tiny.pair(f"Number {i}?", "good", "bad") for i in range(8)]
    shown = [
        tiny.pair(f"Colour {i}?", colour, other, [media[colour]])
        for i in range(4)
        for colour, other in (("red", "blue"), ("blue", "red"))
    ]
    return text + shown


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save(
        IXCForCausalLM(tiny.config(hidden_size=32, initializer_range=0.2)),
        tiny.processor(),
        tmp_path / "base",
    )
    return tmp_path / "base"


def test_a_separable_task_is_learned_and_the_result_is_on_disk(base: Path, tmp_path: Path):
    samples, curve = pairs(tmp_path), []
    write_samples(samples, tmp_path / "pairs.parquet")
    metrics = run(
        PARAMS,
        tmp_path / "pairs.parquet",
        tmp_path,
        base,
        tmp_path / "reward",
        log=lambda m, i: curve.append(m),
    )
    assert metrics["pairs"] == 16
    assert (len(curve), metrics["accuracy"]) == (40, 1.0)
    assert metrics["padding_share"] == 0
    assert metrics["loss"] < 0.2 < curve[0]["loss"]

    model = IXCForRewardModel.from_pretrained(tmp_path / "reward")
    vision_cache = tiny.vision_cache(model, tmp_path)
    assert IXCProcessor.from_pretrained(tmp_path / "reward").ids == tiny.processor().ids
    answers = [(s.chosen[0].content, s.rejected[0].content) for s in samples]
    rewards = score(model, vision_cache, samples, answers, 4)
    assert all(chosen > rejected for chosen, rejected in rewards)
    flipped = score(model, vision_cache, samples, [(b, a) for a, b in answers], 4)
    torch.testing.assert_close(torch.tensor(flipped).flip(1), torch.tensor(rewards))


def test_training_freezes_the_vision_and_moves_the_rest(base: Path, tmp_path: Path):
    write_samples(pairs(tmp_path), tmp_path / "pairs.parquet")
    params = TrainRMParams(epochs=0.5, batch_size=8, learning_rate=5e-3, pooling="mean")
    run(params, tmp_path / "pairs.parquet", tmp_path, base, tmp_path / "reward")
    before = IXCForCausalLM.from_pretrained(base).state_dict()
    reward = IXCForRewardModel.from_pretrained(tmp_path / "reward")
    assert reward.config.pooling == "mean"
    for name, weights in reward.state_dict().items():
        if name.startswith(("vit.", "vision_proj.", "plora_")):
            assert torch.equal(weights, before[name]), name
        elif name.endswith("wqkv.weight"):
            assert not torch.equal(weights, before[name]), name


def test_equal_seeds_give_equal_weights_and_another_seed_others(base: Path, tmp_path: Path):
    write_samples(pairs(tmp_path), tmp_path / "pairs.parquet")

    def weights(seed: int, folder: str) -> bytes:
        params = TrainRMParams(epochs=1, batch_size=4, learning_rate=1e-3, seed=seed)
        run(params, tmp_path / "pairs.parquet", tmp_path, base, tmp_path / folder)
        return (tmp_path / folder / "model.safetensors").read_bytes()

    assert weights(0, "a") == weights(0, "b") != weights(1, "c")


def fresh() -> IXCForRewardModel:
    """A model of always the same weights, to be trained."""
    model = IXCForRewardModel(tiny.config(initializer_range=0.2))
    model.load_state_dict(tiny.reward().state_dict())
    model.freeze_vision()
    return model


def history(
    root: Path, samples: list[Sample], model: IXCForRewardModel | None = None, **options: Any
) -> History:
    """The numbers of a training in memory."""
    params = TrainRMParams(**({"epochs": 2, "batch_size": 8, "learning_rate": 5e-3} | options))
    model = model or fresh()
    return train(
        params,
        model,
        tiny.vision_cache(model, root),
        samples,
        ignore,
        Checkpoints(root / "state", {}),
    )[0]


def test_centering_pulls_the_rewards_of_a_pair_around_zero(tmp_path: Path):
    samples = pairs(tmp_path)[:8]

    def middle(centering: float) -> float:
        model = fresh()
        history(tmp_path, samples, model, epochs=10, centering=centering)
        answers = [("good", "bad")] * 8
        rewards = score(model, tiny.vision_cache(model, tmp_path), samples, answers, 8)
        return torch.tensor(rewards).sum(1).abs().mean().item()

    assert middle(1.0) < 0.5 < middle(0.0)


def same(one: History, other: History, **tolerance: Any) -> None:
    """Two trainings had the same numbers."""
    for mine, yours in zip(one, other, strict=True):
        assert mine == pytest.approx(yours, **(tolerance or {"rel": 1e-4, "abs": 1e-5}))


@pytest.mark.parametrize(
    "options", [{"max_tokens_per_microbatch": 200}, {"gradient_checkpointing": True}]
)
def test_what_saves_memory_changes_no_number(base: Path, tmp_path: Path, options: dict[str, Any]):
    samples = pairs(tmp_path)
    write_samples(samples, tmp_path / "pairs.parquet")

    def curve(name: str, **options: Any) -> History:
        curve: History = []
        params = TrainRMParams(epochs=2, batch_size=8, learning_rate=5e-3, centering=0.1, **options)
        paths = (tmp_path / "pairs.parquet", tmp_path, base, tmp_path / name)
        run(params, *paths, log=lambda numbers, step: curve.append(numbers))
        return curve

    same(curve("b", **options), curve("a"))


def test_bf16_learns_too_and_leaves_the_weights_in_fp32(tmp_path: Path):
    model = fresh()
    model.compute_in_bf16()
    reduced, exact = history(tmp_path, pairs(tmp_path), model), history(tmp_path, pairs(tmp_path))
    assert reduced != exact
    same(reduced, exact, rel=0.3, abs=0.3)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def rivals(root: Path) -> list[Sample]:
    """Three answers to a question about a picture, every two of them a pair; and a pair about another."""
    red = tiny.image(root, "red")
    ranked = ["red", "rather red", "blue"]
    found = [
        tiny.pair("Colour?", good, bad, [red], id=f"c#{i}")
        for i, (good, bad) in enumerate(
            (a, b) for n, a in enumerate(ranked) for b in ranked[n + 1 :]
        )
    ]
    return [*found, tiny.pair("And?", "good", "bad")]


def test_all_pairs_of_a_prompt_from_one_row_cost_what_they_cost_one_by_one(tmp_path: Path):
    samples = rivals(tmp_path)
    same(history(tmp_path, samples, by_prompt=True), history(tmp_path, samples))


def test_a_prompt_with_three_answers_is_read_once(tmp_path: Path):
    vision_cache = tiny.vision_cache(fresh(), tmp_path)
    alone, together = (
        [prefix_group(vision_cache, c) for c in preference_groups(rivals(tmp_path), kind)]
        for kind in (False, True)
    )
    assert [len(group.responses) for group in alone] == [2, 2, 2, 2]
    assert [len(group.responses) for group in together] == [3, 2]
    first = preference_groups(rivals(tmp_path), True)[0]
    assert list(zip(first.chosen, first.rejected, strict=True)) == [(0, 1), (0, 2), (1, 2)]


def test_a_step_of_tokens_is_learned_from_too(tmp_path: Path):
    numbers = history(tmp_path, pairs(tmp_path), batch_size=None, batch_tokens=600, epochs=20)
    assert numbers[-1]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("key", "held_out"),
    [("max_tokens_per_microbatch", 0.0), ("batch_tokens", 0.0), ("max_tokens_per_microbatch", 0.5)],
)
def test_a_pair_longer_than_the_budget_is_named_before_anything_is_learned(
    tmp_path: Path, key: str, held_out: float
):
    samples = [*pairs(tmp_path), tiny.pair("Long?", "word " * 200, "bad", id="the long one")]
    options: dict[str, Any] = {"batch_size": None, "batch_tokens": 4000} | {key: 300}
    with pytest.raises(OverBudget, match=rf"the long one: [\d,]+ tokens, more than .*{key} 300"):
        history(tmp_path, samples, **options, held_out=held_out)


def test_a_loss_that_is_no_number_names_its_pairs(tmp_path: Path):
    model = fresh()
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    with pytest.raises(Diverged, match=r"Number \d\?.*: the loss is nan"):
        history(tmp_path, pairs(tmp_path)[:8], model)


def test_of_several_passes_the_one_with_the_bad_loss_is_named_and_no_weight_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, named = fresh(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def second_is_bad(
        model: IXCForRewardModel, vision_cache: VisionCache, batch: MicroBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        named.append([preference_group.sample.id for preference_group in batch.preference_groups])
        chosen, rejected = compare(model, vision_cache, batch)
        return chosen * (math.nan if len(named) == 2 else 1.0), rejected

    monkeypatch.setattr("ixc.stages.train_rm.compare", second_is_bad)
    with pytest.raises(Diverged) as caught:
        history(tmp_path, pairs(tmp_path)[:8], model, max_tokens_per_microbatch=120)
    assert len(named) > 2
    assert str(caught.value).startswith(f"{', '.join(named[1])}: the loss is nan")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_gradient_that_is_no_number_names_the_step_and_changes_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, samples = fresh(), pairs(tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def bad(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        chosen, rejected = compare(*given)
        return tiny.BadGradient.apply(chosen), rejected  # pyright: ignore[reportReturnType]

    monkeypatch.setattr("ixc.stages.train_rm.compare", bad)
    with pytest.raises(Diverged) as caught:
        history(tmp_path, samples, model, batch_size=12)
    names, _, told = str(caught.value).partition(": ")
    ids = names.split(", ")
    assert set(ids[:8]) <= {sample.id for sample in samples} and ids[8:] == ["and 4 more"]
    assert told.startswith("the gradient's norm is nan")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_pairs_of_a_prompt_or_a_image_are_held_out_together(tmp_path: Path):
    samples = [*rivals(tmp_path), *(tiny.pair(f"{i % 30}?", "good", str(i)) for i in range(90))]
    training, held_out = split(samples, 0.3, seed=0)
    assert len(training) + len(held_out) == len(samples) and 15 < len(held_out) < 45
    assert not {s.prompt for s in training} & {s.prompt for s in held_out}
    assert split(samples, 0.0, seed=0) == (samples, [])


@pytest.mark.parametrize(("count", "share"), [(0, 0.0), (1, 0.01), (1, 0.99)])
def test_nothing_to_train_on_or_to_look_at_is_refused(tmp_path: Path, count: int, share: float):
    with pytest.raises(NoPairs, match=f"train_rm.held_out: {share}: "):
        history(tmp_path, pairs(tmp_path)[:count], held_out=share)


def test_early_stopping_gives_back_the_weights_that_did_best(tmp_path: Path):
    """Labels at random: what is learned of them is wrong elsewhere."""
    rng = random.Random(0)
    answers = [rng.sample(["yes", "no", "maybe"], 2) for _ in range(40)]
    samples = [tiny.pair(f"{i}?", good, bad) for i, (good, bad) in enumerate(answers)]
    options: dict[str, Any] = {"held_out": 0.3, "validate_every": 1, "patience": 3, "epochs": 30}
    model = fresh()
    losses = [step["held_out_loss"] for step in history(tmp_path, samples, model, **options)]
    assert len(losses) == losses.index(min(losses)) + 4 < 30 * 3

    _, held_out = split(samples, 0.3, seed=0)
    pairs_held_out = [(s.chosen[0].content, s.rejected[0].content) for s in held_out]
    rewards = torch.tensor(
        score(model, tiny.vision_cache(model, tmp_path), held_out, pairs_held_out, 4)
    )
    assert bradley_terry_loss(rewards[:, 0], rewards[:, 1]).item() == pytest.approx(
        min(losses), rel=1e-4
    )


def test_a_batch_is_asked_for_in_one_way():
    with pytest.raises(ValueError, match="give batch_size"):
        TrainRMParams()
    with pytest.raises(ValueError, match="give batch_size"):
        TrainRMParams(batch_size=8, batch_tokens=800)
    with pytest.raises(ValueError, match="patience needs held_out"):
        TrainRMParams(batch_size=8, patience=2)


@pytest.mark.parametrize(("offload", "zero", "needed"), [("optimizer", 1, 2), ("weights", 2, 3)])
def test_only_what_is_shared_out_can_be_offloaded(offload: Any, zero: Any, needed: int):
    with pytest.raises(ValueError, match=f"offload: '{offload}' needs zero: {needed}, not {zero}"):
        TrainRMParams(batch_size=8, offload=offload, zero=zero)


def test_without_deepspeed_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(
        NoDeepSpeed, match=r"train_rm.zero: 2 and 3 need DeepSpeed .*pip install 'ixc\[deepspeed\]'"
    ):
        import_deepspeed()


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=20),
    st.integers(1, 4),
    st.sampled_from([0, 1, 2, 3]),
)
def test_processes_share_every_row_once_and_pass_together_where_they_must(
    lengths: list[int], world: int, zero: Any
):
    params, rows = (
        TrainRMParams(batch_size=8, max_tokens_per_microbatch=50, zero=zero),
        list(range(len(lengths))),
    )
    shares: list[Share] = []
    for rank in range(world):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RANK", str(rank))
            patch.setenv("WORLD_SIZE", str(world))
            shares.append(share_of(params, rows, lengths))
    assert (
        sorted(row for each in shares for mine in each.microbatches[: each.counted] for row in mine)
        == rows
    )
    if zero < 2:
        assert all(len(each.microbatches) == each.counted for each in shares)
    else:
        assert len({len(each.microbatches) for each in shares}) == 1


def test_what_is_computed_for_company_and_waited_for_is_told(tmp_path: Path):
    rows, vision_cache = (
        preference_groups(pairs(tmp_path)[7:9], False),
        tiny.vision_cache(fresh(), tmp_path),
    )
    lengths = measured(vision_cache, rows, 1000)

    def slowly() -> Iterator[MicroBatch]:
        for batch in ([0, 1], [0]):
            sleep(0.05)
            yield read(vision_cache, [rows[i] for i in batch])

    tally = Tally(vision_cache)
    coming = vision_cache.timed(slowly())
    assert [
        len(batch.preference_groups)
        for batch in tally.take(coming, Share([[0, 1], [0]], counted=1), lengths)
    ] == [
        2,
        1,
    ]
    sleep(0.1)
    told = tally.waste()
    assert told.padding == pytest.approx(lengths[0] / (2 * lengths[0] + lengths[1]))
    assert 0.2 < told.waiting < 0.8  # 0.1 s of about 0.2


def test_what_a_step_waits_for_a_image_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """0.1 s of about 0.2; the tower's time is none of it."""
    vision_cache, samples = tiny.vision_cache(fresh(), tmp_path), pairs(tmp_path)[8:9]
    load, encode = IXCProcessor.load, vision_cache.model.encode_images
    monkeypatch.setattr(IXCProcessor, "load", lambda *given: sleep(0.1) or load(*given))
    monkeypatch.setattr(
        vision_cache.model, "encode_images", lambda given: sleep(0.1) or encode(given)
    )
    tally = Tally(vision_cache)
    vision_cache.concat_features(samples)
    assert 0.2 < tally.waste().waiting < 0.8
    assert 0.09 < vision_cache.waited < 0.19


# What every training loop shares


def test_warm_up_rises_to_the_peak_and_falls_to_a_tenth():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = Optimizer([weight], 1.0, steps=100, warmup=0.1)
    rates = [optimizer.step((weight - 1).square().sum())["learning_rate"] for _ in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_a_loss_that_is_not_finite_updates_nothing():
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(Diverged, match="the loss is nan: lower the learning rate"):
        Optimizer([weight], 1.0, steps=1).step(weight.sum() * float("nan"))
    assert weight.item() == 1


def test_frozen_weights_are_not_the_optimizers():
    free, frozen = (
        torch.nn.Parameter(torch.ones(1)),
        torch.nn.Parameter(torch.ones(1), requires_grad=False),
    )
    assert Optimizer([free, frozen], 1.0, steps=1).parameters == [free]


def test_the_rate_falls_to_the_share_that_was_asked_for():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = Optimizer([weight], 1.0, steps=50, warmup=0.0, final_rate=0.0)
    rates = [optimizer.step((weight - 1).square().sum())["learning_rate"] for _ in range(50)]
    assert rates[-1] == pytest.approx(0.0, abs=1e-2) and rates[0] == 1.0


def test_a_loss_in_parts_updates_as_the_whole():
    one, other = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    whole, parts = Optimizer([one], 0.1, steps=2), Optimizer([other], 0.1, steps=2)
    for _ in range(2):
        norms = [whole.step(one.square().sum())["grad_norm"]]
        for i in range(3):
            parts.backward(other[i].square())
        norms.append(parts.update()["grad_norm"])
        assert norms[0] == pytest.approx(norms[1])
    torch.testing.assert_close(one, other)


def test_a_gradient_that_is_not_finite_updates_nothing():
    weight = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(Diverged, match="the gradient's norm is"):
        Optimizer([weight], 1.0, steps=1).step(weight.sqrt().sum())
    assert weight.item() == 0
