"""Several processes do what one does: the same numbers, also after one of them was killed."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from ixc import distributed
from ixc.model import IXCForCausalLM, IXCForRewardModel
from ixc.samples import write_samples
from ixc.training import save

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
    """A base model, and pairs with pictures and without; the first is alone in having one, for a while."""
    torch.manual_seed(0)
    save(IXCForCausalLM(tiny.config(initializer_range=0.2)), tiny.processor(), tmp_path / "base")
    media = [tiny.picture(tmp_path, colour) for colour in ("red", "blue")]
    pairs = [tiny.pair(f"{i}?", "good", "bad " * (i % 7), [media[i % 2]] if i % 5 == 0 else []) for i in range(30)]
    write_samples(pairs, tmp_path / "pairs.parquet")
    return tmp_path


def trained(folder: Path, name: str, processes: int, *kill: int, **options: object) -> Curve | None:
    """The curve of a training by so many processes; None if it was killed."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    alone = [sys.executable] if processes == 1 else torchrun
    ours = {"PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    call = [*alone, str(SCRIPT), str(folder), name, json.dumps(options), *map(str, kill)]
    done = subprocess.run(call, env={**os.environ, **ours}, capture_output=True, text=True, check=False)
    curve = folder / f"{name}.json"
    assert done.returncode == 0 or kill, done.stderr
    return json.loads(curve.read_text()) if curve.exists() else None


def same(one: Curve | None, other: Curve | None) -> None:
    assert one is not None and other is not None
    for mine, yours in zip(one, other, strict=True):
        assert mine == pytest.approx(yours, rel=1e-4, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_learn_what_one_learns_and_save_it(folder: Path, shard: bool):
    same(trained(folder, "two", 2, shard_optimizer=shard), trained(folder, "one", 1))
    two, one = (IXCForRewardModel.from_pretrained(folder / name).state_dict() for name in ("two", "one"))
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_a_killed_process_changes_no_curve_whoever_goes_on(folder: Path):
    wanted = trained(folder, "whole", 1)
    rng = random.Random(0)
    for processes, step, shard in ((2, 1, False), (2, 3, True), (1, rng.randint(4, 6), False)):
        assert trained(folder, "killed", processes, step, rng.randrange(processes), shard_optimizer=shard) is None
    same(trained(folder, "killed", 2, shard_optimizer=True), wanted)
