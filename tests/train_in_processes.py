"""What the processes of `test_distributed` run: a training, killed after a step of one of them if asked to be.

torchrun --nproc_per_node 2 tests/train_in_processes.py FOLDER NAME OPTIONS [KILL_AFTER KILLED_RANK]
"""

import json
import os
import signal
import sys
from pathlib import Path

from ixc import distributed, train_rm
from ixc.params import TrainRMParams

root, name = Path(sys.argv[1]), sys.argv[2]
kill_after, killed = (int(argument) for argument in (*sys.argv[4:], -1, -1)[:2])
USUAL = {"epochs": 2, "batch_size": 8, "pass_tokens": 400, "learning_rate": 5e-3}
WATCHED = {"checkpoint_every": 2, "held_out": 0.2, "validate_every": 2}
params = TrainRMParams(**USUAL, **WATCHED, **json.loads(sys.argv[3]))
curve: list[dict[str, float]] = []


def log(numbers: dict[str, float], step: int) -> None:
    """Keep the curve, or die."""
    curve.append(numbers)
    if step + 1 == kill_after and distributed.rank() == killed:
        os.kill(os.getpid(), signal.SIGKILL)


train_rm.run(params, root / "pairs.parquet", root, root / "base", root / name, log=log)
if distributed.rank() == 0:
    (root / f"{name}.json").write_text(json.dumps(curve))
