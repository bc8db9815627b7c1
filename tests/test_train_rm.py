"""Bradley-Terry training, from files to files and on a task that can be learned."""

from pathlib import Path

import pytest
import tiny
import torch

from ixc.checkpoints import Checkpoints
from ixc.inference import score
from ixc.metrics import ignore
from ixc.model import IXCForCausalLM, IXCForRewardModel, IXCProcessor
from ixc.params import TrainRMParams
from ixc.samples import Sample, write_samples
from ixc.train_rm import run, train
from ixc.training import Diverged, Optimizer, save

PARAMS = TrainRMParams(epochs=20, batch_size=8, learning_rate=5e-3)


def pairs(root: Path) -> list[Sample]:
    """`good` beats `bad` in text; about a picture, its colour beats the other one."""
    media = {colour: tiny.picture(root, colour) for colour in ("red", "blue")}
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
    assert metrics["loss"] < 0.2 < curve[0]["loss"]

    model = IXCForRewardModel.from_pretrained(tmp_path / "reward")
    features = tiny.features(model, tmp_path)
    assert IXCProcessor.from_pretrained(tmp_path / "reward").ids == tiny.processor().ids
    answers = [(s.chosen[0].content, s.rejected[0].content) for s in samples]
    rewards = score(model, features, samples, answers, 4)
    assert all(chosen > rejected for chosen, rejected in rewards)
    flipped = score(model, features, samples, [(b, a) for a, b in answers], 4)
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


def test_centering_pulls_the_rewards_of_a_pair_around_zero(tmp_path: Path):
    samples = pairs(tmp_path)[:8]

    def middle(centering: float) -> float:
        model = IXCForRewardModel(tiny.config(initializer_range=0.2))
        model.load_state_dict(tiny.reward().state_dict())
        params = TrainRMParams(epochs=10, batch_size=8, learning_rate=5e-3, centering=centering)
        features = tiny.features(model, tmp_path)
        train(params, model, features, samples, ignore, Checkpoints(tmp_path / str(centering), {}))
        answers = [("good", "bad")] * 8
        return torch.tensor(score(model, features, samples, answers, 8)).sum(1).abs().mean().item()

    assert middle(1.0) < 0.5 < middle(0.0)


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
    free, frozen = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1), requires_grad=False)
    assert Optimizer([free, frozen], 1.0, steps=1).parameters == [free]
