"""A stage in several processes: they know of each other, fail as one, and share the work without changing it."""

import json
import os
import time
from pathlib import Path

import pytest
import tiny

from ixc.data.samples import write_samples
from tasks.processes import in_processes

TRAIN = """
import json, os, sys
from pathlib import Path
from pydantic import TypeAdapter
from ixc.stages.bootstrap import run
from ixc.params import BootstrapParams

root, curve = Path(sys.argv[1]), []
params = TypeAdapter(BootstrapParams).validate_json(sys.argv[2])
run(params, root / "prompts.parquet", root, root / "base", log=lambda numbers, step: curve.append(numbers["loss"]))
Path(root, f"{os.environ['WORLD_SIZE']}-{os.environ['RANK']}.json").write_text(json.dumps(curve))
"""


def test_processes_know_their_place_and_share_the_cores(tmp_path: Path):
    told = "' '.join(os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'OMP_NUM_THREADS'))"
    write = f"import os, sys; open(os.path.join(sys.argv[1], os.environ['LOCAL_RANK']), 'w').write({told})"
    assert in_processes(["-c", write, str(tmp_path)], 2) == 0
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert [(tmp_path / rank).read_text() for rank in "01"] == [
        f"{rank} 2 {threads}" for rank in "01"
    ]


def test_the_failure_of_one_ends_all_with_its_exit_code():
    start = time.monotonic()
    fails = "import os, sys, time; sys.exit(70) if os.environ['RANK'] == '1' else time.sleep(60)"
    assert in_processes(["-c", fails], 2) == 70
    assert time.monotonic() - start < 30


def test_bad_input_of_one_explains_the_crash_of_the_other():
    assert (
        in_processes(["-c", "import os, sys; sys.exit(70 if os.environ['RANK'] == '0' else 1)"], 2)
        == 1
    )


def test_the_base_model_learns_the_same_in_two_processes_as_in_one(tmp_path: Path):
    seen = [tiny.image(tmp_path, colour) for colour in ("red", "blue")]
    shown = [tiny.sample("Which?", [each], id=each.sha256, gold=tiny.match("red")) for each in seen]
    texts = [
        tiny.sample(f"Say {word}.", id=word, gold=tiny.match(word))
        for word in ("yes", "no", "so", "or")
    ]
    write_samples([*shown, *texts], tmp_path / "prompts.parquet")
    told = {
        "architecture": tiny.ARCHITECTURE,
        "steps": 6,
        "batch_size": 3,
        "noise": 0.5,
        "noise_from": 0.5,
    }
    for processes in (1, 2):
        assert in_processes(["-c", TRAIN, str(tmp_path), json.dumps(told)], processes) == 0
    one, two, other = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")
    )
    assert two == other
    assert two == pytest.approx(one, abs=1e-4)
