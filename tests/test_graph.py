"""What `dvc.yaml`, `params.yaml`, the modules and the flow say about the stages agrees."""

import ast
import importlib
import inspect
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from conftest import Call

from ixc.params import Params, load_params
from tasks.workspace import stages

ROOT = Path(__file__).parents[1]
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = [stage for stage in GRAPH if stage != "resolve"]
TABLE = "data/stages.json"
"""What each stage depends on beside its data, as `resolve` writes it."""
PRESETS = sorted((ROOT / "infra" / "params").glob("*.yaml"))


def outputs(stage: str) -> list[str]:
    outs = [
        *GRAPH[stage].get("outs", []),
        *GRAPH[stage].get("metrics", []),
        *GRAPH[stage].get("plots", []),
    ]
    return [next(iter(out)) if isinstance(out, dict) else out for out in outs]


def calls(path: Path) -> list[str]:
    """The names called in a flow, in the order of the text."""
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = [(node.lineno, node.func.id) for node in found if isinstance(node.func, ast.Name)]
    return [name for _, name in sorted(names) if name in STAGES]


def test_every_stage_has_a_section_of_its_name():
    assert [field.name for field in fields(Params) if field.name != "seed"] == STAGES
    assert stages(ROOT) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_one_name_in_four_places(stage: str):
    assert GRAPH[stage]["cmd"].split()[:3] == ["python", "-m", f"tasks.{stage}"]
    assert GRAPH[stage]["params"] == [{TABLE: [stage]}]
    assert callable(getattr(importlib.import_module(f"tasks.{stage}"), stage))
    assert callable(importlib.import_module(f"ixc.stages.{stage}").run)


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_names_as_many_paths_as_run_takes(stage: str):
    run = importlib.import_module(f"ixc.stages.{stage}").run
    kinds = {name: each.kind for name, each in inspect.signature(run).parameters.items()}
    names = [name for name, kind in kinds.items() if kind is not inspect.Parameter.KEYWORD_ONLY]
    assert names[0] == "params" and kinds["log"] is inspect.Parameter.KEYWORD_ONLY
    assert len(names) - 1 == len(GRAPH[stage]["cmd"].split()) - 3


@pytest.mark.parametrize("stage", STAGES)
def test_a_command_reads_its_dependencies_and_writes_its_outputs(stage: str):
    paths = GRAPH[stage]["cmd"].split()[3:]
    data = [dep for dep in GRAPH[stage].get("deps", []) if not dep.startswith("${")]
    results = [out for out in outputs(stage) if not out.startswith("metrics/")]
    assert paths == [*data, *results]


def test_the_flow_calls_every_stage_after_what_it_reads():
    made: set[str] = set()
    order = calls(ROOT / "flows" / "align.py")
    assert sorted(order) == sorted(STAGES)
    assert (
        calls(ROOT / "flows" / "reward_model.py") + calls(ROOT / "flows" / "applications.py")
        == order
    )
    for stage in order:
        reads = {dep for dep in GRAPH[stage].get("deps", []) if not dep.startswith("${")}
        assert reads <= made, f"{stage} is called before {reads - made} is there"
        made |= set(outputs(stage))


def test_code_and_parameters_are_tracked_by_the_table_alone():
    assert [
        dep
        for stage in STAGES
        for dep in GRAPH[stage].get("deps", [])
        if dep.endswith(".py") or "ixc" in dep
    ] == []
    assert GRAPH["resolve"]["cmd"].split() == [
        "python",
        "-m",
        "tasks.resolve",
        "params.yaml",
        TABLE,
    ]
    assert [next(iter(out)) for out in GRAPH["resolve"]["outs"]] == [TABLE]
    assert {"params.yaml", "ixc", "tasks/resolve.py"} == set(GRAPH["resolve"]["deps"])


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_complete_and_valid(path: Path):
    load_params(path)
    told = yaml.safe_load(path.read_text())
    for dep in (
        dep[2:-1]
        for stage in STAGES
        for dep in GRAPH[stage].get("deps", [])
        if dep.startswith("${")
    ):
        section, key = dep.split(".")
        assert (ROOT / told[section][key]).exists()


def test_validate_runs_again_when_a_benchmark_changes(project: Path, call: Call):
    [place] = [dep for dep in GRAPH["validate"]["deps"] if dep.startswith("${")]
    graph = {
        "stages": {"validate": {"cmd": "echo x >> ran", "deps": [place], "params": ["validate"]}}
    }
    (project / "dvc.yaml").write_text(yaml.safe_dump(graph))
    folder = project / "infra" / "benchmarks"
    folder.mkdir(parents=True)
    (project / "elsewhere.txt").write_text("What is it?")

    def runs() -> int:
        assert call(project, "-m", "dvc", "repro").returncode == 0
        return len((project / "ran").read_text().split())

    assert (runs(), runs()) == (1, 1)
    (folder / "b.txt").symlink_to(project / "elsewhere.txt")
    assert (runs(), runs()) == (2, 2)
    (project / "elsewhere.txt").write_text("Who is it?")
    assert runs() == 3


def test_the_committed_parameters_are_the_laptop_preset():
    assert (ROOT / "params.yaml").read_text() == (
        ROOT / "infra" / "params" / "laptop.yaml"
    ).read_text()


ECHO = """
stages:
  resolve:
    cmd: python -m tasks.resolve params.yaml data/stages.json
    deps: [params.yaml, ixc]
    outs: [data/stages.json]
"""


@pytest.mark.slow
def test_dvc_runs_what_an_edit_makes_stale_and_nothing_else(project: Path, call: Call):
    # every stage of the graph, with commands that take no time
    graph = yaml.safe_load(ECHO)
    for stage in STAGES:
        graph["stages"][stage] = {"cmd": f"echo {stage} >> ran", "params": [{TABLE: [stage]}]}
    (project / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))
    for name in ("ixc", "tasks"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "ran").touch()

    def runs() -> set[str]:
        (project / "ran").write_text("")
        done = call(project, "-B", "-m", "dvc", "repro", PYTHONPATH=str(project))
        assert done.returncode == 0, done.stderr
        return set((project / "ran").read_text().split())

    def edit(path: str, old: str, new: str) -> None:
        text = (project / path).read_text()
        assert old in text
        (project / path).write_text(text.replace(old, new))

    assert runs() == set(STAGES)
    edit(
        "ixc/params.py",
        "max_length_ratio: float = Field(default=2.0",
        "max_length_ratio: float = Field(default=9.0",
    )
    assert runs() == {"validate"}
    edit("ixc/report/svg.py", "import math\n", "import math  # a comment\n")
    edit("ixc/stages/judge/prompts/pairwise.md", "\n", "\n\n")
    edit("params.yaml", "pairs_per_prompt: 3", "pairs_per_prompt: 3  # as before")
    assert runs() == {"judge"}
    edit("params.yaml", "eval_prompts: 600", "eval_prompts: 601")
    assert runs() == {"train_ppo"}
