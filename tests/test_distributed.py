"""Several processes do what one does: the same numbers, also after one of them was killed."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from ixc.data.samples import write_samples
from ixc.engine import distributed
from ixc.models.ixc25 import IXCForCausalLM, IXCForRewardModel
from ixc.models.ixc25.folder import save

SCRIPT = Path(__file__).with_name("train_in_processes.py")
Curve = list[dict[str, float]]


def test_alone_there_is_nobody_to_wait_for():
    weight = torch.nn.Parameter(torch.ones(2))
    with distributed.joined():
        distributed.sum_gradients([weight])
        assert weight.grad is None
        assert distributed.gathered("x") == ["x"]
        assert distributed.summed(torch.ones(2)).tolist() == [1.0, 1.0]
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base and a reward model; pairs with images and without, the first is alone in having one, for a while; prompts
    with an answer, half of which pairs were made of."""
    torch.manual_seed(0)
    base = IXCForCausalLM(tiny.config(initializer_range=0.2))
    save(base, tiny.processor(), tmp_path / "base")
    save(tiny.with_tower_of(tiny.reward(), base), tiny.processor(), tmp_path / "judge")
    media = [tiny.image(tmp_path, colour) for colour in ("red", "blue")]
    prompts, pairs = [], []
    for i in range(30):
        images = [media[i % 2]] if i % 5 == 0 else []
        known = {
            "id": f"{i}?",
            "gold": tiny.match("good"),
            "split": "val" if i % 6 == 1 else "train",
        }
        prompts.append(tiny.sample(f"{i}?", images, **known))
        pairs.append(tiny.pair(f"{i}?", "good", "bad " * (i % 7), images, prompt_id=f"{i}?"))
    write_samples(prompts, tmp_path / "prompts.parquet")
    write_samples(pairs, tmp_path / "pairs.parquet")
    return tmp_path


def run(folder: Path, *plan: dict[str, Any], torchrun: int = 0) -> list[Curve | None]:
    """The curves of trainings one after another, each in its own processes, and the metrics of the stage at their ends;
    None for those that were killed."""
    start = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(torchrun)]
        if torchrun
        else []
    )
    ours = {
        "PYTHONPATH": str(SCRIPT.parents[1]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    call = [sys.executable, *start, str(SCRIPT), str(folder), json.dumps(plan)]
    done = subprocess.run(
        call, env={**os.environ, **ours}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    curves = [folder / f"{each['name']}.json" for each in plan]
    return [json.loads(curve.read_text()) if curve.exists() else None for curve in curves]


def training(
    name: str, processes: int, *kill: int, stage: str = "train_rm", **options: Any
) -> dict[str, Any]:
    """An entry of a plan; `kill`: after which step, and which of the processes."""
    where = {"stage": stage, "name": name, "processes": processes}
    return {**where, "options": options, "kill": kill}


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return IXCForRewardModel.from_pretrained(folder / name).state_dict()


def same(one: Curve | None, other: Curve | None) -> None:
    assert one is not None and other is not None
    for mine, yours in zip(one, other, strict=True):
        assert mine == pytest.approx(yours, rel=1e-4, abs=1e-4)


WAYS: list[dict[str, Any]] = [
    {"zero": 0},
    {"zero": 1},
    {"zero": 2},
    {"zero": 3},
    {"zero": 2, "offload": "optimizer"},
    {"zero": 3, "offload": "weights"},
]


LORA = {"lora": {"rank": 2}, "gradient_checkpointing": True}


@pytest.mark.slow
@pytest.mark.parametrize(("ways", "more"), [(WAYS, {}), (WAYS[2:4], LORA)], ids=["all", "lora"])
def test_however_many_processes_share_out_whatever_they_learn_and_save_the_same(
    folder: Path, ways: list[dict[str, Any]], more: dict[str, Any]
):
    shared = [training(f"way{i}", 2, **way, **more) for i, way in enumerate(ways)]
    offloaded = training("offloaded", 1, zero=3, offload="weights", **more)
    wanted, *curves = run(folder, training("alone", 1, **more), *shared, offloaded)
    whole = weights(folder, "alone")
    for entry, curve in zip([*shared, offloaded], curves, strict=True):
        same(curve, wanted)
        mine = weights(folder, entry["name"])
        assert mine.keys() == whole.keys()
        for key, value in whole.items():
            torch.testing.assert_close(
                mine[key], value, rtol=1e-2, atol=1e-3, msg=f"{entry}: {key}"
            )


@pytest.mark.slow
def test_in_bf16_too_all_learn_the_same(folder: Path):
    wanted, *curves = run(
        folder, *(training(f"zero{zero}", 1, zero=zero, precision="bf16") for zero in (0, 2, 3))
    )
    for curve in curves:
        same(curve, wanted)


@pytest.mark.slow
def test_torchrun_starts_what_the_other_tests_fork(folder: Path):
    [two], [one] = (
        run(folder, training("two", 2, zero=3), torchrun=2),
        run(folder, training("one", 1)),
    )
    same(two, one)


@pytest.mark.slow
def test_twenty_kills_at_random_steps_change_no_curve_whoever_goes_on(folder: Path):
    rng = random.Random(0)
    long: dict[str, Any] = {"epochs": 6, "checkpoint_every": 1}
    plan = [training("whole", 1, **long)]
    for step in sorted(rng.randint(1, 22) for _ in range(20)):
        processes, way = rng.choice((1, 2)), rng.choice(WAYS)
        plan.append(training("killed", processes, step, rng.randrange(processes), **long, **way))
    wanted, *killed = run(folder, *plan)
    assert killed == [None] * 20
    [curve] = run(folder, training("killed", 2, zero=1, **long))
    same(curve, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 3])
def test_a_killed_process_changes_no_curve_where_states_are_seldom(folder: Path, zero: int):
    kills = [
        training("killed", 2, step, rank, zero=zero) for step, rank in ((1, 0), (5, 1), (7, 0))
    ]
    curves = run(folder, training("whole", 1), *kills, training("killed", 1, zero=0))
    same(curves[-1], curves[0])


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 3])
def test_a_loss_that_is_no_number_ends_all_processes_and_leaves_the_last_state(
    folder: Path, zero: int
):
    bad = training("bad", 2, zero=zero, learning_rate=1e30, max_grad_norm=1e30, warmup=0.9)
    with pytest.raises(
        AssertionError, match=r"Diverged: .*the (loss|gradient's norm) is (nan|inf)"
    ):
        run(folder, bad)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "every"), [("bootstrap", 1), ("train_ppo", 1), ("train_ppo", 3)])
def test_twenty_kills_at_random_steps_change_no_curve_of_either_stage(
    folder: Path, stage: str, every: int
):
    rng = random.Random(0)
    options = {"stage": stage, "checkpoint_every": every}
    plan = [training("whole", 1, **options)]
    for step in sorted(rng.randint(1, 23) for _ in range(20)):
        processes = rng.choice((1, 2))
        plan.append(training("killed", processes, step, rng.randrange(processes), **options))
    wanted, *killed = run(folder, *plan)
    assert killed == [None] * 20
    [curve] = run(folder, training("killed", 2, **options))
    same(curve, wanted)


@pytest.mark.slow
def test_ppo_learns_the_same_in_two_processes_as_in_one(folder: Path):
    options = {"stage": "train_ppo", "steps": 6}
    ways = [{"zero": zero} for zero in (0, 1, 2)]
    shared = [training(f"way{i}", 2, **way, **options) for i, way in enumerate(ways)]
    wanted, *curves = run(folder, training("alone", 1, **options), *shared)
    for curve in curves:
        same(curve, wanted)
    # as many answers of as many tokens: the same rollouts, not only such as are alike
    assert wanted is not None
    lengths = [step["length"] for step in wanted[:-1]]
    for curve in curves:
        assert curve is not None and [step["length"] for step in curve[:-1]] == lengths
