"""What the processes of `test_distributed` run: trainings one after another, each killed at some step or not.

python tests/train_in_processes.py FOLDER PLAN      every training in as many forked processes as it says
torchrun ... tests/train_in_processes.py FOLDER PLAN       these processes are the training's, and there is but one

PLAN is a JSON list of {"stage": ..., "name": ..., "processes": ..., "options": {...}, "kill": [after this step, this
rank]}.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import tiny

from ixc.engine import distributed
from ixc.engine.zero import import_deepspeed
from ixc.metrics import Log
from ixc.params import BootstrapParams, TrainPPOParams, TrainRMParams
from ixc.stages import bootstrap, train_ppo, train_rm

USUAL: dict[str, dict[str, Any]] = {
    "bootstrap": {
        "architecture": tiny.ARCHITECTURE,
        "steps": 24,
        "batch_size": 3,
        "learning_rate": 1e-2,
        "noise": 0.5,
        "noise_from": 0.5,
        "checkpoint_every": 2,
    },
    "train_rm": {
        "epochs": 2,
        "batch_size": 8,
        "max_tokens_per_microbatch": 400,
        "learning_rate": 5e-3,
        "checkpoint_every": 2,
        "held_out": 0.2,
        "validate_every": 2,
    },
    "train_ppo": {
        "steps": 24,
        "batch_size": 12,
        "answers_per_prompt": 2,
        "minibatch_size": 6,
        "sampling_batch_size": 2,
        "max_new_tokens": 3,
        "learning_rate": 1e-3,
        "critic_learning_rate": 1e-3,
        "eval_samples": 1,
        "checkpoint_every": 2,
    },
}


def run(stage: str, root: Path, name: str, options: dict[str, Any], log: Log) -> dict[str, Any]:
    """A training on what the test has put into `root`; its model is called `name`."""
    given: dict[str, Any] = {**USUAL[stage], **options}
    prompts, pairs, base, model = (
        root / place for place in ("prompts.parquet", "pairs.parquet", "base", name)
    )
    if stage == "bootstrap":
        return bootstrap.run(BootstrapParams(**given), prompts, root, model, log=log)
    if stage == "train_rm":
        return train_rm.run(TrainRMParams(**given), pairs, root, base, model, log=log)
    params = TrainPPOParams(**given)
    return train_ppo.run(params, prompts, pairs, root, base, root / "judge", model, log=log)


def train(stage: str, root: Path, name: str, options: dict[str, Any], kill: list[int]) -> None:
    """One training; the first of its processes keeps the curve, and the metrics of the stage at its end."""
    curve: list[dict[str, float]] = []

    def log(numbers: dict[str, float], step: int) -> None:
        curve.append(numbers)
        if [step + 1, distributed.rank()] == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    metrics = run(stage, root, name, options, log)
    metrics.pop("padding_share", None)  # it depends on how many processes there are
    if distributed.rank() == 0:
        (root / f"{name}.json").write_text(json.dumps([*curve, metrics]))


def as_rank(rank: int, processes: int, port: int, *run: Any) -> None:
    """One of several processes, as torchrun would have started it."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    train(*run)


def together(
    processes: int, stage: str, root: Path, name: str, options: dict[str, Any], kill: list[int]
) -> None:
    """Start the processes; when one of them dies, end the others, as torchrun would."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ranks = [
        fork.Process(target=as_rank, args=(rank, processes, port, stage, root, name, options, kill))
        for rank in range(processes)
    ]
    for each in ranks:
        each.start()
    while alive := [each for each in ranks if each.is_alive()]:
        wait([each.sentinel for each in alive])
        if any(each.exitcode for each in ranks):
            for each in ranks:
                each.kill()
    codes = [each.exitcode for each in ranks]
    if codes[kill[1]] != -signal.SIGKILL if kill else any(codes):
        sys.exit(f"{name}: exit codes {codes}")


if __name__ == "__main__":
    folder, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
    if any(each["options"].get("zero", 0) >= 2 for each in plan):
        import_deepspeed()
    for each in plan:
        kill = each.get("kill", [])
        arguments = (each["stage"], folder, each["name"], each["options"], kill)
        if "RANK" in os.environ:
            train(*arguments)
        else:
            together(each["processes"], *arguments)
