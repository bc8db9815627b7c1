"""The whole graph by `dvc repro`, in a copy of the repository: every stage for real, at a reduced size."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from real import REAL, needs_real

REPOSITORY = Path(__file__).parents[1]

pytestmark = pytest.mark.slow

SMALL: dict[str, dict[str, Any]] = {
    "bootstrap": {"steps": 20, "batch_size": 8},
    "generate": {"max_train": 60, "max_val": 40, "num_candidates": 2, "max_new_tokens": 12},
    "validate": {"max_rejected_share": 1.0, "min_pairs": 2},
    "train_rm": {"epochs": 1, "batch_size": 16},
    "evaluate_rm": {"batch_size": 16},
    "train_ppo": {
        "steps": 2,
        "batch_size": 16,
        "minibatch_size": 8,
        "answers_per_prompt": 2,
        "critic_warmup_steps": 1,
        "max_new_tokens": 12,
        "eval_prompts": 20,
        "eval_samples": 1,
    },
    "best_of_n": {"max_prompts": 20, "max_new_tokens": 12},
    "clean": {"batch_size": 16},
}
SUMMARY = {"rm", "best_of_n", "ppo", "clean"}


def shrunk(preset: str, limit: int, **collect: Any) -> dict[str, Any]:
    """A preset with few rows per source and few steps."""
    params = yaml.safe_load((REPOSITORY / "infra" / "params" / preset).read_text())
    for section, values in SMALL.items():
        params[section] |= values
    params["collect"] |= collect
    for source in params["collect"]["sources"]:
        source["limit"] = limit
    return params


def copy_of_the_repository(target: Path, params: dict[str, Any]) -> Path:
    """Tracked and new files as they are now, in a git and DVC repository of their own."""
    listed = git(REPOSITORY, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file() and name != "dvc.lock":
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, target / name)
    (target / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    git(target, "init", "-q")
    git(target, "add", "-A")
    git(
        target,
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@example.invalid",
        "commit",
        "-qm",
        "start",
    )
    return target


def git(folder: Path, *arguments: str) -> str:
    """Standard output of a git command."""
    return subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`dvc repro`, in a process group of its own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    tracking = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "OMP_NUM_THREADS": "2"}
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", *arguments],
        cwd=folder,
        env={
            **os.environ,
            **tracking,
            "PATH": path,
            "PYTHONPATH": str(folder),
            "DVC_NO_ANALYTICS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def repro(folder: Path, *arguments: str) -> str:
    """Run `dvc repro` to its end, which must be a good one."""
    process = start(folder, *arguments)
    output, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, output[-4000:]
    return output


def outputs(folder: Path) -> dict[str, dict[str, str]]:
    """Hashes of the outputs of each stage, from dvc.lock; but for its provenance, which names the run."""
    stages = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    return {
        name: {
            out["path"]: out["md5"]
            for out in stage["outs"]
            if not out["path"].startswith("metrics/provenance/")
        }
        for name, stage in stages.items()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The embedded default after one reduced run."""
    folder = copy_of_the_repository(
        tmp_path_factory.mktemp("embedded"), shrunk("laptop.yaml", limit=600)
    )
    repro(folder)
    yield folder


def test_the_embedded_default_yields_every_number_and_the_report(finished: Path):
    summary = json.loads((finished / "metrics" / "summary.json").read_text())
    assert set(summary) >= SUMMARY
    assert set(summary["rm"]["accuracy"]) >= {
        "all",
        "text",
        "image",
    }  # few rows: films may all be in training
    assert all(
        summary["best_of_n"]["gold"][n] <= summary["best_of_n"]["oracle"][n]
        for n in ("1", "2", "4", "8")
    )
    assert "<svg" in (finished / "reports" / "index.html").read_text()


def test_a_second_run_does_nothing(finished: Path):
    assert "Data and pipelines are up to date" in repro(finished)


def test_the_same_seed_gives_the_same_data_and_the_same_numbers(finished: Path):
    before = outputs(finished)
    repro(finished, "--force", "--no-run-cache")
    after = outputs(finished)
    for stage in (
        "collect",
        "bootstrap",
        "generate",
        "judge",
        "train_rm",
        "evaluate_rm",
        "train_ppo",
        "best_of_n",
    ):
        assert after[stage] == before[stage], stage


def test_a_killed_stage_leaves_its_last_outputs_and_is_completed_by_the_next_run(finished: Path):
    reward = finished / "models" / "reward" / "model.safetensors"
    before = reward.read_bytes()
    params = yaml.safe_load((finished / "params.yaml").read_text())
    params["train_rm"]["learning_rate"] = 1e-4
    (finished / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    process = start(finished, "train_rm")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("train_rm:"):  # its progress: it is in the middle of training
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert reward.read_bytes() == before

    time.sleep(1)
    repro(finished, "train_rm")
    assert reward.read_bytes() != before


@needs_real
def test_real_texts_images_and_videos_go_the_same_way(tmp_path: Path):
    params = shrunk("real-sample.yaml", limit=40, root=str(REAL))
    folder = copy_of_the_repository(tmp_path, params)
    repro(folder)
    metrics = json.loads((folder / "metrics" / "evaluate_rm.json").read_text())
    sources = {
        name.removeprefix("accuracy/source:")
        for name in metrics
        if name.startswith("accuracy/source:")
    }
    assert "hh_rlhf" in sources and len(sources) >= 3
    for source in sources:
        low, mean, high = (
            metrics[f"accuracy{end}/source:{source}"] for end in ("_low", "", "_high")
        )
        assert 0 <= low <= mean <= high <= 1
