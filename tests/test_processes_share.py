"""Stages that compute, on two processes: what they write and measure is what one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from ixc.data.samples import read_samples, write_samples
from ixc.models.ixc25.folder import save

SCRIPT = """
import json, sys
from pathlib import Path
from ixc.stages import best_of_n
from ixc.engine import distributed
from ixc.stages import evaluate_rm
from ixc.stages import generate
from ixc.params import BestOfNParams, EvaluateRMParams, GenerateParams

here, out = Path(sys.argv[1]), Path(sys.argv[2])
prompts, pairs, chat, reward = (here / name for name in ("prompts.parquet", "pairs.parquet", "chat", "reward"))
generating = GenerateParams(num_candidates=3, max_new_tokens=5, batch_size=2)
evaluating = EvaluateRMParams(batch_size=2, num_resamples=10)
picking = BestOfNParams(n=(1, 2), max_new_tokens=4, batch_size=2)
with distributed.joined():
    metrics = [
        generate.run(generating, prompts, here, chat, out / "candidates.parquet"),
        evaluate_rm.run(evaluating, pairs, here, reward, out / "pairs.parquet"),
        best_of_n.run(picking, prompts, here, chat, reward, out / "best_of_n.parquet"),
    ]
print(json.dumps(metrics))
"""
TABLES = ("candidates", "pairs", "best_of_n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = [
        tiny.image(tmp_path, name, (60, 30 + 20 * i))
        for i, name in enumerate(("red", "blue", "green"))
    ]
    texts = [
        tiny.sample(f"Word {'and more ' * i}?", gold=tiny.match("a"), split="val") for i in range(5)
    ]
    shown = [tiny.sample("What is it?", [p], gold=tiny.match("red"), split="val") for p in images]
    write_samples([*texts, *shown], tmp_path / "prompts.parquet")
    pairs = [tiny.pair(f"q{i}", "yes", "no " * (i + 1)) for i in range(6)]
    write_samples(pairs, tmp_path / "pairs.parquet")
    chat = tiny.causal()
    save(chat, tiny.processor(), tmp_path / "chat")
    save(tiny.with_tower_of(tiny.reward(), chat), tiny.processor(), tmp_path / "reward")
    return tmp_path


def started(folder: Path, processes: int) -> list[list[dict[str, float]]]:
    """What every process returned, stage by stage, the one with the most first."""
    (folder / "stages.py").write_text(SCRIPT)
    out = folder / f"by-{processes}"
    out.mkdir()
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [
        sys.executable,
        *(torchrun if processes > 1 else []),
        str(folder / "stages.py"),
        str(folder),
        str(out),
    ]
    ours = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env={**os.environ, **ours}, stdout=subprocess.PIPE, text=True, check=True
    )
    return sorted(map(json.loads, done.stdout.splitlines()), key=lambda line: -len(line[1]))


@pytest.mark.slow
def test_two_processes_write_and_measure_what_one_does(folder: Path) -> None:
    [[generated, evaluated, picked]] = started(folder, 1)
    first, second = started(folder, 2)
    assert first == [generated, pytest.approx(evaluated, nan_ok=True), pytest.approx(picked)]
    assert second == [generated, {}, pytest.approx(picked)]
    for name in TABLES:
        alone, shared = (list(read_samples(folder / f"by-{n}" / f"{name}.parquet")) for n in (1, 2))
        assert [(s.id, s.candidates, s.chosen) for s in shared] == [
            (s.id, s.candidates, s.chosen) for s in alone
        ]
        assert [s.rewards for s in shared] == [pytest.approx(s.rewards, abs=1e-5) for s in alone]
        assert list((folder / "by-2").glob(".*")) == []
