"""Where a flow's files are: the checkout itself, or a worktree of its own for a run with other parameters.

Worktrees share DVC's cache: what one run has computed the others restore, and runs never fight over files.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ixc.params import load_params
from tasks import resolve
from tasks.tracking import git

CODE = ("ixc", "tasks", "flows", "infra")
"""Folders of which a worktree gets what is not committed yet; larger ones may hold anything."""


class BadOverride(ValueError):
    """An override that is not `section.key=value`."""


@dataclass(frozen=True)
class Workspace:
    """One run's files, and what is known about their stages."""

    root: Path
    fresh: set[str] = field(default_factory=set)
    """Stages known to be up to date: no process is started for them."""
    outcomes: dict[str, str] = field(default_factory=dict)
    """What it took to bring a stage up to date, where it took something."""
    started: float = field(default_factory=time.monotonic)

    def changed(self, stage: str, outcome: str) -> None:
        """A stage has new outputs: from here on, ask DVC again."""
        self.fresh.clear()
        self.outcomes[stage] = outcome

    @property
    def wall_s(self) -> float | None:
        """Seconds so far, if every stage of the graph really ran."""
        ran = {stage for stage, outcome in self.outcomes.items() if outcome == "Completed"}
        if ran != set(stages(self.root)):
            return None
        return time.monotonic() - self.started


_current: ContextVar[Workspace | None] = ContextVar("workspace", default=None)


def current() -> Workspace:
    """The workspace of the flow that is running; outside of one, the current folder."""
    return _current.get() or Workspace(Path.cwd())


@contextmanager
def workspace(
    params: str | None = None,
    overrides: Sequence[str] = (),
    name: str | None = None,
) -> Iterator[Workspace]:
    """Where the stages called in this block run.

    Args:
        params: a parameter file to use instead of `params.yaml`, relative to the repository.
        overrides: `section.key=value`, on top of it.
        name: of the worktree that either of them needs, below `.runs/`; it stays, and is used again.
    """
    main = root = Path(git("rev-parse", "--show-toplevel") or Path.cwd())
    if params or overrides:
        root = _worktree(main, name or "run")
        source = main / params if params else root / "params.yaml"
        _write_params(root, source, overrides)
    here = Workspace(root, _fresh(root))
    token = _current.set(here)
    try:
        yield here
        if params or overrides:
            _dvc("exp", "save", "--force", "--name", root.name, root=root)
    finally:
        _current.reset(token)


def stages(root: Path) -> list[str]:
    """The stages of `dvc.yaml` that make something; not the one that only says what they depend on."""
    return [stage for stage in _graph(root) if stage != resolve.STAGE]


def tracked(root: Path) -> list[str]:
    """The stage that says what the others depend on, for it has to come first; none in a graph without it."""
    return [stage for stage in _graph(root) if stage == resolve.STAGE]


def _graph(root: Path) -> list[str]:
    return list(yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"])


def _worktree(main: Path, name: str) -> Path:
    """A worktree with what the main checkout holds now: uncommitted changes, and new files of code and presets too."""
    root = main / ".runs" / name
    if not root.exists():
        _git("worktree", "prune", root=main)
        _git("worktree", "add", "--quiet", "--detach", str(root), "HEAD", root=main)
        _dvc("cache", "dir", "--local", str(main / ".dvc" / "cache"), root=root)

    # What this worktree has computed is in its own lock file, which the checkout would replace.
    lock = root / "dvc.lock"
    own_lock = lock.read_bytes() if lock.exists() else None
    commit = git("rev-parse", "HEAD", root=main)
    _git("checkout", "--quiet", "--force", "--detach", commit, root=root)
    uncommitted = git("stash", "create", root=main)
    if uncommitted:
        _git("read-tree", "--reset", "-u", uncommitted, root=root)
    _copy_new(main, root)
    if own_lock is not None:
        lock.write_bytes(own_lock)
    return root


def _copy_new(main: Path, root: Path) -> None:
    """Files of the code that git does not know yet, and no longer those of an earlier run."""
    _git("clean", "--quiet", "--force", "-d", "--", *CODE, root=root)
    listed = _git("ls-files", "--others", "--exclude-standard", "-z", "--", *CODE, root=main)
    for name in filter(None, listed.split("\0")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(main / name, root / name)


def _write_params(root: Path, source: Path, overrides: Sequence[str]) -> None:
    tree = yaml.safe_load(source.read_text(encoding="utf-8"))
    for text in overrides:
        override(tree, text)
    path = root / "params.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    load_params(path)  # a wrong one is an error now, not in every stage


def override(tree: dict[str, Any], text: str) -> None:
    """Set one key of a parameter tree; the value is JSON, or else a string.

    >>> tree = {"seed": 0, "judge": {"seed": 0}}
    >>> override(tree, "judge.llm.timeout_s=2e1"); override(tree, "seed=7"); tree
    {'seed': 7, 'judge': {'seed': 7, 'llm': {'timeout_s': 20.0}}}

    Raises:
        BadOverride: the text is not `section.key=value`.
    """
    key, equals, value = text.partition("=")
    *parents, last = key.split(".")
    if not equals or not all([*parents, last]):
        remedy = "write section.key=value, as in train_rm.learning_rate=2e-5"
        raise BadOverride(f"override {text!r}: {remedy}")
    branch = tree
    for parent in parents:
        if not isinstance(branch.get(parent), dict):
            branch[parent] = {}
        branch = branch[parent]
    branch[last] = _value(value)
    # In the file every section's seed is an alias of the one at the top.
    if key == "seed":
        for section in tree.values():
            if isinstance(section, dict):
                section["seed"] = branch[last]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _fresh(root: Path) -> set[str]:
    """The stages that `dvc status` has nothing to say about; none while what they depend on is out of date itself."""
    status = _dvc("status", "--json", root=root)
    stale = set(json.loads(status or "{}"))
    if stale.intersection(tracked(root)):
        return set()
    return set(stages(root)) - stale


def _dvc(*arguments: str, root: Path) -> str:
    return _output([sys.executable, "-m", "dvc", *arguments], root)


def _git(*arguments: str, root: Path) -> str:
    return _output(["git", *arguments], root)


def _output(command: Sequence[str], root: Path) -> str:
    done = subprocess.run(
        command,
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = done.stderr.strip() or done.stdout.strip()
        raise RuntimeError(f"{root}: {' '.join(command)}: {reason}")
    return done.stdout
