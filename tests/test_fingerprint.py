"""What makes a stage stale: its parameters with all defaults, and the code that it runs, no more and no less."""

import ast
import importlib
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Call
from test_judge import CATS, judge
from test_pipeline import shrunk

from ixc import params
from ixc.io.fingerprint import Code, canonical
from ixc.params import load_params
from tasks.resolve import table

ROOT = Path(__file__).parents[1]
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = [name for name in GRAPH if name != "resolve"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code and the parameters, to be changed."""
    shutil.copytree(ROOT / "ixc", tmp_path / "ixc", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "infra" / "params" / "laptop.yaml", tmp_path / "params.yaml")
    return tmp_path


@pytest.fixture(scope="module")
def before() -> dict[str, dict[str, str]]:
    """Of the code as it is."""
    return digests(ROOT)


def digests(root: Path) -> dict[str, dict[str, str]]:
    code = Code(root)
    return {stage: code.digests(stage, {"embedded"}) for stage in STAGES}


def change(root: Path, path: str, old: str, new: str) -> None:
    text = (root / path).read_text()
    assert text.count(old) == 1, f"{path}: {old!r}"
    (root / path).write_text(text.replace(old, new))


COLLECT, VALIDATE, JUDGE = {"collect"}, {"validate"}, {"judge"}
TRAINED = {"train_rm", "train_ppo"}
EDITS: tuple[tuple[str, str, str, set[str]], ...] = (
    ("ixc/stages/judge/prompts/pairwise.md", "\n", "\nBe strict.\n", JUDGE),
    ("ixc/stages/judge/questions.py", "PROMPTS =", "OTHER = 1\nPROMPTS =", JUDGE),
    ("ixc/verifiers/rules.py", "import", "import os; import", JUDGE | {"train_ppo", "best_of_n"}),
    (
        "ixc/data/sources/embedded/videos.py",
        "FPS, FRAMES, SIDE = 8, 32,",
        "FPS, FRAMES, SIDE = 8, 33,",
        COLLECT,
    ),
    ("ixc/data/sources/kvqa.py", "LICENCE =", "OTHER = 1\nLICENCE =", set()),
    ("ixc/stages/collect/stage.py", "import", "import os; import", COLLECT),
    ("ixc/io/quarantine.py", "import", "import os; import", COLLECT | VALIDATE),
    ("ixc/stages/validate/rules.py", "import", "import os; import", VALIDATE),
    ("ixc/engine/losses.py", "F.logsigmoid(", "F.logsigmoid(0 + ", TRAINED),
    ("ixc/report/svg.py", "WIDTH, HEIGHT = 360, 196", "WIDTH, HEIGHT = 361, 196", set()),
    ("ixc/serve/api.py", "import", "import os; import", set()),
    ("ixc/new.py", "", "def new(): pass", set()),
)
"""Path, text, in its place, and the stages that run what was changed."""


def test_an_edit_reaches_the_stages_that_run_its_module_and_no_other(before: Any, copy: Path):
    (copy / "ixc" / "new.py").touch()
    for path, old, new, _ in EDITS:
        text = (copy / path).read_text()
        assert old in text, path
        (copy / path).write_text(text.replace(old, new, 1))
    after = digests(copy)
    found = {(stage, path) for stage in STAGES for path in changed(before[stage], after[stage])}
    assert found == {(stage, path) for path, _, _, stages in EDITS for stage in stages}


def test_comments_docstrings_and_formatting_reach_no_stage(before: Any, copy: Path):
    for path in sorted((copy / "ixc").rglob("*.py")):
        text = path.read_text()
        text = re.sub(r'^( *)"""[^"\\]*?"""$', r'\1"""Other words."""', text, flags=re.MULTILINE)
        path.write_text(f"# A comment.\n{text}\n\n\n# The end.\n")
    assert digests(copy) == before


DEFAULTS = {
    "max_length_ratio: float = Field(default=2.0": {"validate"},
    "memory_gb: float = Field(default=4.0": {
        "generate",
        "train_rm",
        "evaluate_rm",
        "train_ppo",
        "best_of_n",
        "clean",
    },
    "kl_coef: float = Field(default=0.05": {"train_ppo"},
    "max_chars: int = Field(default=200_000": {"collect"},
}


def test_a_changed_default_reaches_its_stages_alone(copy: Path, call: Call):
    found = in_a_process(copy, call)
    for old in DEFAULTS:
        change(copy, "ixc/params.py", old, f"{old}1")
    after = in_a_process(copy, call)
    expected = {
        (key.partition(":")[0], stage) for key, stages in DEFAULTS.items() for stage in stages
    }
    values = {
        (key, stage)
        for stage in STAGES
        for key in changed(found[stage]["params"], after[stage]["params"])
    }
    assert values == expected
    assert all(found[stage]["code"] == after[stage]["code"] for stage in STAGES)


def test_parameters_do_nothing_but_refuse():
    classes = [
        node
        for node in ast.parse((ROOT / "ixc" / "params.py").read_text()).body
        if isinstance(node, ast.ClassDef)
    ]
    methods = [part for each in classes for part in each.body if isinstance(part, ast.FunctionDef)]
    assert {ast.unparse(decorator) for each in methods for decorator in each.decorator_list} == {
        "model_validator(mode='after')"
    }
    returned = [node for each in methods for node in ast.walk(each) if isinstance(node, ast.Return)]
    assert {ast.unparse(node) for node in returned} == {"return self"}


def test_of_parameters_a_stage_runs_with_its_section_alone(before: Any):
    # what it imported or made beside it would be tracked nowhere: a constant, a function, a section with its defaults
    paths = {path for stage in STAGES for path in before[stage] if path.endswith(".py")}
    taken: set[str] = set()
    made: set[tuple[str, str]] = set()
    for path in paths:
        nodes = list(ast.walk(ast.parse((ROOT / path).read_text())))
        imports = [
            node
            for node in nodes
            if isinstance(node, ast.ImportFrom) and node.module == "ixc.params"
        ]
        names = {alias.name for node in imports for alias in node.names}
        calls = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
        taken |= names
        made |= {
            (path, name) for name in (names - {"BadParams"}) & calls if name.endswith("Params")
        }
    assert {name for name in taken if not isinstance(getattr(params, name), type)} == {
        "AttentionName",
        "Precision",
    }
    assert made == {("ixc/engine/vision_cache.py", "VisionCacheParams")}, (
        "a default that no stage leaves to it"
    )


def changed(one: Any, two: Any, key: str = "") -> set[str]:
    """The keys at the ends of two trees of one shape whose values differ."""
    if not isinstance(one, dict):
        return set() if one == two else {key}
    assert one.keys() == two.keys()
    return {end for name in one for end in changed(one[name], two[name], name)}


def in_a_process(copy: Path, call: Call) -> dict[str, Any]:
    """The table as `dvc repro` would write it there, for the parameters are imported from there too."""
    shutil.copytree(
        ROOT / "tasks",
        copy / "tasks",
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    ran = call(copy, "-B", "-m", "tasks.resolve", "params.yaml", "table.json", PYTHONPATH=str(copy))
    assert ran.returncode == 0, ran.stderr
    return yaml.safe_load((copy / "table.json").read_text())


def test_the_table_has_every_parameter_of_every_stage():
    found = table(ROOT / "params.yaml", ROOT)
    assert list(found) == STAGES
    assert found["validate"]["params"]["max_length_ratio"] == 2.0, (
        "a default that params.yaml does not name"
    )
    assert found["train_ppo"]["params"]["vision_cache"] == {
        "memory_gb": 4.0,
        "disk": None,
        "disk_gb": 50.0,
    }


def test_a_bad_parameter_is_one_line(tmp_path: Path, call: Call):
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("pairs_per_prompt: 3", "pairs_per_promt: 3"))
    ran = call(tmp_path, "-m", "tasks.resolve", "params.yaml", "table.json", PYTHONPATH=str(ROOT))
    assert ran.returncode == 1 and "judge.pairs_per_promt: unknown key" in ran.stderr
    assert "Traceback" not in ran.stderr and not (tmp_path / "table.json").exists()


# What runs is tracked


@contextmanager
def called() -> Iterator[set[str]]:
    """The files of `ixc` that something is called of meanwhile; parameters are tracked as values."""
    home = f"{ROOT}/"
    files: set[str] = set()

    def note(frame: Any, event: str, _: Any) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(f"{home}ixc/") and not path.endswith("/params.py"):
            files.add(path.removeprefix(home))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield files
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def test_what_judge_calls_is_tracked(before: Any, tmp_path: Path):
    with called() as files:
        judge(tmp_path, CATS)
    assert "ixc/verifiers/rules.py" in files
    assert files <= set(before["judge"])


@pytest.mark.slow
def test_what_any_stage_calls_is_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("infra").symlink_to(ROOT / "infra")
    Path("params.yaml").write_text(yaml.safe_dump(shrunk("laptop.yaml", limit=200)))
    sections, tracked = load_params(), table(Path("params.yaml"), ROOT)
    for stage in STAGES:
        run = importlib.import_module(f"ixc.stages.{stage}").run
        paths = map(Path, GRAPH[stage]["cmd"].split()[3:])
        with called() as files:
            run(getattr(sections, stage), *paths)
        assert any(path.startswith(f"ixc/stages/{stage}") for path in files)
        assert files <= set(tracked[stage]["code"]), stage


# The rules, each on a small package


def package(tmp_path: Path, files: Mapping[str, str]) -> Code:
    """A package `ixc` of these modules; `stage` is among the stages."""
    for name, text in files.items():
        path = tmp_path / "ixc" / f"{'stages/stage' if name == 'stage' else name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for folder in (
        tmp_path / "ixc",
        *(path for path in (tmp_path / "ixc").rglob("*") if path.is_dir()),
    ):
        (folder / "__init__.py").touch()
    return Code(tmp_path)


CASES: dict[str, tuple[dict[str, str], set[str]]] = {
    "one through another": (
        {"stage": "from ixc.a import f", "a": "import ixc.b", "b": "", "c": ""},
        {"a", "b"},
    ),
    "a module of a package": (
        {
            "stage": "from ixc import p\nimport ixc.q.a",
            "p/__init__": "from ixc.p.a import f",
            "p/a": "",
            "q/a": "",
        },
        {"p", "p.a", "q", "q.a"},
    ),
    "what a package runs first": (
        {
            "stage": "from ixc.p.a import f",
            "p/__init__": "import ixc.b",
            "p/a": "",
            "p/c": "",
            "b": "",
        },
        {"p", "p.a", "b"},
    ),
    "an import inside a function": (
        {"stage": "def run():\n    from ixc import a as b", "a": ""},
        {"a"},
    ),
    "relative imports": (
        {
            "stage": "from ..p.b import f",
            "p/__init__": "from . import d",
            "p/b": "from .c import g",
            "p/c": "from .. import a",
        }
        | {"p/d": "", "a": ""},
        {"p", "p.b", "p.c", "p.d", "a"},
    ),
    "a star": ({"stage": "from ixc.a import *", "a": ""}, {"a"}),
    "a name that is also a module": (
        {"stage": "from ixc.p import a", "p/a": "", "p/__init__": "a = 1"},
        {"p", "p.a"},
    ),
    "a module by its name": (
        {"stage": "__import__('ixc.p.a')", "p/a": "", "p/b": ""},
        {"p", "p.a"},
    ),
    "a module by part of its name": (
        {"stage": "def run(x): __import__(f'ixc.p.{x}')", "p/a": "", "p/b": "", "q/a": ""},
        {"p", "p.a", "p.b"},
    ),
    "a reader that the parameters name": (
        {
            "stage": "def run(x): __import__(f'ixc.data.sources.{x}')",
            "data/sources/a": "import ixc.b",
            "data/sources/c": "",
            "b": "",
        },
        {"data", "data.sources", "data.sources.a", "b"},
    ),
    "imports for types alone": (
        {
            "stage": "import typing\nif typing.TYPE_CHECKING:\n    from ixc.a import T\nelse:\n    import ixc.b",
            "a": "",
            "b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ixc.a",
        },
        {"b"},
    ),
    "a circle of imports": (
        {"stage": "import ixc.a", "a": "import ixc.b", "b": "import ixc.a"},
        {"a", "b"},
    ),
    "parameters, whose values are tracked": (
        {"stage": "from ixc.params import Params", "params": "import ixc.a", "a": ""},
        set(),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_imports_are_followed(tmp_path: Path, case: str):
    files, expected = CASES[case]
    reached = package(tmp_path, files).reached("stage", {"a"})
    assert reached == {
        "ixc",
        "ixc.stages",
        "ixc.stages.stage",
        *(f"ixc.{name}" for name in expected),
    }


def test_a_stage_without_a_module_is_named(tmp_path: Path):
    with pytest.raises(LookupError, match=r"ixc\.stages\.other: no such module"):
        package(tmp_path, {"stage": ""}).reached("other")


def test_files_beside_the_code_count_where_it_asks_for_them(tmp_path: Path):
    for text, sees in (("HOME = __file__", True), ("", False)):
        root = tmp_path / str(sees)
        package(root, {"stage": "import ixc.a.b", "a/b": text, "c": ""})
        (root / "ixc" / "a" / "texts").mkdir()
        (root / "ixc" / "a" / "texts" / "one.md").write_text("one")
        (root / "ixc" / "other.md").write_text("another's")
        found = Code(root).digests("stage")
        assert ("ixc/a/texts/one.md" in found) is sees and "ixc/other.md" not in found


def test_an_attribute_docstring_does_not_count_but_a_text_does():
    def of(text: str) -> str:
        return canonical(ast.parse(text))

    assert of('class A:\n    x: int = 1\n    """Words."""') == of("class A:\n    x: int = 1")
    assert of("def f(): return 'a'") != of("def f(): return 'b'")
    assert of("def f(): return 1") != of("def f(): return True")
