"""The code that a stage runs: the modules that `ixc.stages.<stage>` imports, one through another, and a digest of each.

Of a module every import counts, wherever in its file it stands, except those for type checkers alone. So do modules
that it names in a text, `"ixc.stages.judge.agreement"` or `f"ixc.data.sources.{name}"`, and, if it asks for `__file__`,
the files beside it that are no code. Within a module nothing is left out: what runs by way of a table or of `getattr`,
no name tells. A digest is of the syntax tree, which comments, docstrings and formatting do not change.
"""

import ast
from collections.abc import Collection
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

import ixc
from ixc.io.digests import digest

PACKAGE = "ixc"
PARAMS = f"{PACKAGE}.params"
"""No code here: what a stage has of it are values, and these are tracked as values."""
READERS = f"{PACKAGE}.data.sources."
"""How the readers' names begin: of these a stage runs those that its parameters name."""


class Module(NamedTuple):
    """What there is to know of a file."""

    digest: str
    names: set[str]
    """Of modules, and of what it imports of them; `__file__`, if it asks for that."""
    texts: set[str]
    """Those that are a module's name, or its beginning."""


class Code:
    """The package's code below `root`."""

    def __init__(self, root: Path = Path(ixc.__path__[0]).parent) -> None:
        self.root = root
        self.paths: dict[str, Path] = {}
        for path in (root / PACKAGE).rglob("*.py"):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            self.paths[name.removesuffix(".__init__")] = path

    def digests(self, stage: str, named: Collection[str] = ()) -> dict[str, str]:
        """A digest of each file that a stage runs, or may read as a part of its code, by the file's path.

        `named` are texts among the stage's parameters, some of which may name readers.

        Raises:
            LookupError: there is no module `ixc.stages.<stage>`.
        """
        found: dict[Path, str] = {}
        for name in self.reached(stage, named):
            path = self.paths[name]
            found[path] = self._module(name).digest
            if "__file__" in self._module(name).names:
                found |= {each: digest(each.read_bytes()) for each in _data(path.parent)}
        return {path.relative_to(self.root).as_posix(): found[path] for path in sorted(found)}

    def reached(self, stage: str, named: Collection[str] = ()) -> set[str]:
        """The names of the modules that the digests are of."""
        entry = f"{PACKAGE}.stages.{stage}"
        if entry not in self.paths:
            raise LookupError(
                f"{entry}: no such module below {self.root}; a stage is called like its module"
            )
        found, todo = set[str](), {entry}
        while todo:
            name = todo.pop()
            found.add(name)
            module = self._module(name)
            uses = {name.rpartition(".")[0], *module.names}  # its package is imported first
            for text in module.texts:
                begun = {each for each in self.paths if each.startswith(text)}
                uses |= {text + reader for reader in named} if text == READERS else begun
            todo |= (uses & self.paths.keys()) - found - {PARAMS}
        return found

    def _module(self, name: str) -> Module:
        path = self.paths[name]
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        return _parsed(path, package, path.read_text(encoding="utf-8"))


@cache
def _parsed(path: Path, package: str, text: str) -> Module:
    tree = ast.parse(text, str(path))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.If)
            and ast.unparse(node.test).removeprefix("typing.") == "TYPE_CHECKING"
        ):
            node.body = []  # it never runs
    found = Module(digest(canonical(tree)), set(), set())
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=imported):
                found.names.update(alias.name for alias in imported)
            case ast.ImportFrom(module=module, names=imported, level=level):
                origin = resolve_name("." * level + (module or ""), package)
                found.names.update([origin, *(f"{origin}.{alias.name}" for alias in imported)])
            case ast.Constant(value=str(value)) if value.startswith(f"{PACKAGE}."):
                found.texts.add(value)
            case ast.Name(id="__file__" as name):
                found.names.add(name)
    return found


def canonical(node: object) -> str:
    """A piece of a syntax tree as a text in which only what it does counts, in every version of Python the same.

    >>> one = canonical(ast.parse('def f(x):\\n    "Says."\\n    return (x  + 1)  # why'))
    >>> one == canonical(ast.parse("def f(x): return x + 1"))
    True
    """
    if isinstance(node, list):
        # without texts that stand alone: docstrings, also those under attributes
        texts = [
            isinstance(each, ast.Expr) and isinstance(getattr(each.value, "value", None), str)
            for each in node
        ]
        return f"[{','.join(canonical(each) for each, text in zip(node, texts, strict=True) if not text)}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [
        (name, value)
        for name, value in ast.iter_fields(node)
        if name not in ("ctx", "kind", "type_comment")
    ]
    # an empty field is left out: Python versions differ in which there are
    shown = [f"{name}={canonical(value)}" for name, value in fields if value not in (None, [])]
    return f"{type(node).__name__}({','.join(shown)})"


def _data(folder: Path) -> list[Path]:
    """The files in a folder, and below it, that are no code."""
    files = [
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    return [path for path in files if path.suffix != ".py" and not path.name.startswith(".")]
