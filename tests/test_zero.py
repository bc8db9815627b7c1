"""What DeepSpeed is relied on for that a training of numbers alone does not show."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from ixc.engine import distributed
from ixc.engine.checkpoints import Checkpoints
from ixc.engine.optim import Diverged, Optimizer
from ixc.engine.preference_groups import compare
from ixc.engine.zero import ShardedOptimizer
from ixc.metrics import ignore
from ixc.models.ixc25 import IXCForRewardModel
from ixc.params import TrainRMParams
from ixc.stages import train_rm


def third_step_is_bad(root: Path, zero: Any) -> None:
    """A training of which nothing may change in its third step, in a process of its own."""
    steps: list[dict[str, torch.Tensor]] = []
    optimizers: list[Optimizer] = []
    optimizer_of, learn = train_rm.optimizer_of, train_rm.learn

    def look(params: TrainRMParams, model: IXCForRewardModel, *rest: Any) -> dict[str, float]:
        steps.append(optimizers[0].weights(model))
        return learn(params, model, *rest)

    def spoil(*given: Any) -> tuple[Any, torch.Tensor]:
        chosen, rejected = compare(*given)
        return tiny.BadGradient.apply(chosen) if len(steps) == 3 else chosen, rejected

    with pytest.MonkeyPatch.context() as patch, distributed.joined(alone=True):
        patch.setattr(
            train_rm,
            "optimizer_of",
            lambda *given: optimizers.append(optimizer_of(*given)) or optimizers[0],
        )
        patch.setattr(train_rm, "learn", look)
        patch.setattr(train_rm, "compare", spoil)
        model = tiny.reward()
        model.freeze_vision()
        params = TrainRMParams(epochs=4, batch_size=4, learning_rate=5e-3, zero=zero)
        pairs = [tiny.pair(f"{i}?", "good", "bad") for i in range(4)]
        with pytest.raises(
            Diverged, match=r"\d\?, \d\?, \d\?, \d\?: the gradient's norm is (nan|inf)"
        ):
            train_rm.train(
                params,
                model,
                tiny.vision_cache(model, root),
                pairs,
                ignore,
                Checkpoints(root / "state", {}),
            )
        assert isinstance(optimizers[0], ShardedOptimizer)
        after = optimizers[0].weights(model)
    assert any(not torch.equal(steps[1][name], value) for name, value in steps[2].items())
    assert all(torch.equal(after[name], value) for name, value in steps[2].items())


@pytest.mark.slow
@pytest.mark.parametrize("zero", [2, 3])
def test_a_gradient_that_is_no_number_changes_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero: int
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    process = multiprocessing.get_context("spawn").Process(
        target=third_step_is_bad, args=(tmp_path, zero)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
