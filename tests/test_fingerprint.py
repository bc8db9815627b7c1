"""What makes a stage stale: its parameters with all defaults, and the code that it runs, no more and no less."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Call

from tasks.fingerprint import Code, canonical
from tasks.resolve import table

ROOT = Path(__file__).parents[1]
STAGES = [name for name in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"] if name != "resolve"]


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


EDITS = (
    ("ixc/judging/prompts/pairwise.md", "\n", "\nBe strict.\n", "judge"),
    ("ixc/sources/embedded/films.py", "FPS, FRAMES", "OTHER = 1\nFPS, FRAMES", ""),
    ("ixc/sources/embedded/films.py", "FPS, FRAMES, SIDE = 8, 32,", "FPS, FRAMES, SIDE = 8, 33,", "collect"),
    ("ixc/losses.py", "F.logsigmoid(", "F.logsigmoid(0 + ", "train_rm"),
    ("ixc/report/svg.py", "WIDTH, HEIGHT = 360, 196", "WIDTH, HEIGHT = 361, 196", ""),
    ("ixc/sources/kvqa.py", "LICENCE =", "OTHER = 1\nLICENCE =", ""),
    ("ixc/api.py", "import", "import os; import", ""),
    ("ixc/new.py", "", "def new(): pass", ""),
)
"""Path, text, in its place, and the stage that runs what was changed."""


def test_an_edit_reaches_the_stages_that_run_it_and_no_neighbour(before: Any, copy: Path):
    (copy / "ixc" / "new.py").touch()
    for path, old, new, _ in EDITS:
        text = (copy / path).read_text()
        assert old in text, path
        (copy / path).write_text(text.replace(old, new, 1))
    after = digests(copy)
    found = {(stage, path) for stage in STAGES for path in changed(before[stage], after[stage])}
    assert found == {(stage, path) for path, _, _, stage in EDITS if stage}


def test_comments_docstrings_formatting_and_order_reach_no_stage(before: Any, copy: Path):
    for path in sorted((copy / "ixc").rglob("*.py")):
        text = path.read_text()
        text = re.sub(r'^( *)"""[^"\\]*?"""$', r'\1"""Other words."""', text, flags=re.MULTILINE)
        path.write_text(f"# A comment.\n{text}\n\n\n# The end.\n")
    assert digests(copy) == before


DEFAULTS = {
    "max_length_ratio: float = Field(default=2.0": {"validate"},
    "memory_gb: float = Field(default=4.0": {"generate", "train_rm", "evaluate_rm", "train_ppo", "best_of_n", "clean"},
    "kl_coef: float = Field(default=0.05": {"train_ppo"},
    "max_chars: int = Field(default=200_000": {"collect"},
}


def test_a_changed_default_reaches_its_stages_alone(copy: Path, call: Call):
    found = in_a_process(copy, call)
    for old in DEFAULTS:
        change(copy, "ixc/params.py", old, f"{old}1")
    after = in_a_process(copy, call)
    expected = {(key.partition(":")[0], stage) for key, stages in DEFAULTS.items() for stage in stages}
    values = {(key, stage) for stage in STAGES for key in changed(found[stage]["params"], after[stage]["params"])}
    assert values == expected
    # `Features` makes itself such a section where it is given none
    code = {stage for stage in STAGES if found[stage]["code"] != after[stage]["code"]}
    assert code <= DEFAULTS["memory_gb: float = Field(default=4.0"]


def changed(one: Any, two: Any, key: str = "") -> set[str]:
    """The keys at the ends of two trees of one shape whose values differ."""
    if not isinstance(one, dict):
        return set() if one == two else {key}
    assert one.keys() == two.keys()
    return {end for name in one for end in changed(one[name], two[name], name)}


def in_a_process(copy: Path, call: Call) -> dict[str, Any]:
    """The table as `dvc repro` would write it there, for the parameters are imported from there too."""
    shutil.copytree(ROOT / "tasks", copy / "tasks", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    ran = call(copy, "-B", "-m", "tasks.resolve", "params.yaml", "table.json", PYTHONPATH=str(copy))
    assert ran.returncode == 0, ran.stderr
    return yaml.safe_load((copy / "table.json").read_text())


def test_the_table_has_every_parameter_of_every_stage():
    found = table(ROOT / "params.yaml", ROOT)
    assert list(found) == STAGES
    assert found["validate"]["params"]["max_length_ratio"] == 2.0, "a default that params.yaml does not name"
    assert found["train_ppo"]["params"]["features"] == {"memory_gb": 4.0, "disk": None, "disk_gb": 50.0}


def test_a_bad_parameter_is_one_line(tmp_path: Path, call: Call):
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("pairs_per_prompt: 3", "pairs_per_promt: 3"))
    ran = call(tmp_path, "-m", "tasks.resolve", "params.yaml", "table.json", PYTHONPATH=str(ROOT))
    assert ran.returncode == 1 and "judge.pairs_per_promt: unknown key" in ran.stderr
    assert "Traceback" not in ran.stderr and not (tmp_path / "table.json").exists()


# The rules, each on a small package


def package(tmp_path: Path, files: Mapping[str, str]) -> Code:
    """A package `ixc` of these modules."""
    for name, text in files.items():
        path = tmp_path / "ixc" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for folder in {path.parent for path in (tmp_path / "ixc").rglob("*.py")}:
        (folder / "__init__.py").touch()
    return Code(tmp_path)


def reached(code: Code, *named: str) -> set[str]:
    """The names that the stage `stage` runs, as `module.name` without `ixc.`."""
    found = {f"{symbol.module}.{symbol.name}" for symbol in code.reached("stage", named) if symbol.name}
    return {name.removeprefix("ixc.") for name in found}


CASES: dict[str, tuple[dict[str, str], set[str]]] = {
    "a neighbour is not reached": (
        {"stage": "from ixc.a import f\ndef run(): f()", "a": "def f(): pass\ndef g(): pass"},
        {"stage.run", "a.f"},
    ),
    "through a package": (
        {"stage": "from ixc.p import f\ndef run(): f()", "p/__init__": "from ixc.p.a import f", "p/a": "def f(): pass"},
        {"stage.run", "p.a.f"},
    ),
    "an attribute of a module": (
        {"stage": "from ixc import a\ndef run(): a.f(1)", "a": "def f(x): return K\nK = 1\nL = 2"},
        {"stage.run", "a.f", "a.K"},
    ),
    "a whole name": (
        {"stage": "import ixc.p.a\ndef run(): ixc.p.a.f()", "p/a": "def f(): pass\ndef g(): pass"},
        {"stage.run", "p.a.f"},
    ),
    "an import inside a function": (
        {"stage": "def run():\n    from ixc.a import f as g\n    g()", "a": "def f(): pass"},
        {"stage.run", "a.f"},
    ),
    "a relative import": (
        {"stage": "from .p.b import f\ndef run(): f()", "p/b": "from .c import g\ndef f(): g()", "p/c": "def g(): 1"},
        {"stage.run", "p.b.f", "p.c.g"},
    ),
    "a star": (
        {"stage": "from ixc.a import *\ndef run(): f()", "a": "def f(): pass\ndef g(): pass"},
        {"stage.run", "a.f"},
    ),
    "a module as a value": (
        {"stage": "from ixc import a\ndef run(): getattr(a, 'f')()", "a": "def f(): pass\ndef g(): pass"},
        {"stage.run", "a.*", "a.f", "a.g"},
    ),
    "a module by its name": (
        {"stage": "import importlib\ndef run(): importlib.import_module('ixc.a')", "a": "def f(): pass"},
        {"stage.run", "a.*", "a.f"},
    ),
    "a module by part of its name": (
        {"stage": "def run(x): __import__(f'ixc.p.{x}')", "p/a": "def f(): pass", "p/b": "def g(): pass"},
        {"stage.run", "p.a.*", "p.a.f", "p.b.*", "p.b.g"},
    ),
    "a reader that the parameters name": (
        {"stage": "def run(x): __import__(f'ixc.sources.{x}')", "sources/a": "K = 1", "sources/b": "K = 1"},
        {"stage.run", "sources.a.*", "sources.a.K"},
    ),
    "a base class, a decorator, a default and an annotation": (
        {
            "stage": "from ixc.a import B, d, K, T\nclass C(B): pass\n@d\ndef run(x: T = K): C()",
            "a": "class B: pass\ndef d(f): return f\nK = 1\nclass T: pass\nclass U: pass",
        },
        {"stage.run", "stage.C", "a.B", "a.d", "a.K", "a.T"},
    ),
    "what our own decorator may have kept": (
        {
            "stage": "from ixc.a import ALL\ndef run(): ALL",
            "a": "ALL = []\ndef keep(x): ALL.append(x)\n@keep\ndef f(): g()\ndef g(): 1",
        },
        {"stage.run", "a.ALL", "a.keep", "a.g"},
    ),
    "what an import runs": (
        {
            "stage": "from ixc.a import f\ndef run(): f()",
            "a": "from ixc.b import T\ndef f(): 1\ndef g(): 1\nT.update(g=g)",
            "b": "T = {}",
        },
        {"stage.run", "a.f", "a.g", "b.T"},
    ),
    "imports for types alone": (
        {
            "stage": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ixc.a import T\ndef run(): 1",
            "a": "T = 1",
        },
        {"stage.run"},
    ),
    "a name bound in branches": (
        {
            "stage": "from ixc.a import f\ndef run(): f()",
            "a": "try:\n    import x\n    f = x\nexcept ImportError:\n    f = None",
        },
        {"stage.run", "a.*"},
    ),
    "a circle of imports": (
        {
            "stage": "from ixc.a import f\ndef run(): f()",
            "a": "from ixc.b import g\ndef f(): g()",
            "b": "from ixc.a import f\ndef g(): f()",
        },
        {"stage.run", "a.f", "b.g"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_names_are_followed(tmp_path: Path, case: str):
    files, expected = CASES[case]
    assert reached(package(tmp_path, files), "a") == expected


def test_files_beside_the_code_count_where_it_asks_for_them(tmp_path: Path):
    asks = "from pathlib import Path\nHOME = Path(__file__).parent\ndef f(): return HOME\ndef g(): pass"
    for user, sees in (("f", True), ("g", False)):
        root = tmp_path / user
        package(root, {"stage": f"from ixc.a.b import {user}\ndef run(): {user}()", "a/b": asks, "a/c/d": ""})
        (root / "ixc" / "a" / "texts").mkdir()
        (root / "ixc" / "a" / "texts" / "one.md").write_text("one")
        (root / "ixc" / "a" / "c" / "other.md").write_text("another package's")
        found = Code(root).digests("stage")
        assert ("ixc/a/texts/one.md" in found) is sees and "ixc/a/c/other.md" not in found


def test_a_section_made_by_code_counts_with_its_defaults(tmp_path: Path):
    params = "class Section:\n    size: int = SIZE\n    def double(self): return 2 * self.size\nSIZE = 3"
    uses, makes = "def run(x: Section): x.double()", "def run(): Section()"
    used, made = (
        package(tmp_path / str(place), {"stage": f"from ixc.params import Section\n{run}", "params": params})
        for place, run in enumerate((uses, makes))
    )
    assert reached(used) == {"stage.run", "params.Section"}, "its values are tracked as values"
    assert reached(made) == {"stage.run", "params.Section", "params.Section()", "params.SIZE"}


def test_a_moved_definition_is_the_same_and_another_stage_is_named(tmp_path: Path):
    one = package(tmp_path / "1", {"stage": "def run(): f(g)\ndef f(x): 1\ndef g(): 2"})
    two = package(tmp_path / "2", {"stage": "def g(): 2\n\n\ndef f(x):\n    1\n\ndef run(): f(g)\ndef new(): 3"})
    assert one.digests("stage") == two.digests("stage")
    with pytest.raises(LookupError, match=r"ixc\.other: no such module"):
        one.digests("other")


def test_an_attribute_docstring_does_not_count_but_a_text_does():
    import ast

    def of(text: str) -> str:
        return canonical(ast.parse(text).body[0])

    assert of('class A:\n    x: int = 1\n    """Words."""') == of("class A:\n    x: int = 1")
    assert of("def f(): return 'a'") != of("def f(): return 'b'")
    assert of("def f(): return 1") != of("def f(): return True")
