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
        digests: dict[Path, str] = {}
        for name in self.reached(stage, named):
            path = self.paths[name]
            module = self._module(name)
            digests[path] = module.digest
            if "__file__" in module.names:
                for file in _data(path.parent):
                    digests[file] = digest(file.read_bytes())
        return {path.relative_to(self.root).as_posix(): digests[path] for path in sorted(digests)}

    def reached(self, stage: str, named: Collection[str] = ()) -> set[str]:
        """The names of the modules that the digests are of."""
        entry = f"{PACKAGE}.stages.{stage}"
        if entry not in self.paths:
            remedy = "a stage is called like its module"
            raise LookupError(f"{entry}: no such module below {self.root}; {remedy}")

        reached = set[str]()
        todo = {entry}
        while todo:
            name = todo.pop()
            reached.add(name)
            module = self._module(name)
            uses = {name.rpartition(".")[0], *module.names}  # its package is imported first
            for text in module.texts:
                # Of the readers only those that the parameters name are run.
                if text == READERS:
                    uses |= {text + reader for reader in named}
                else:
                    uses |= {each for each in self.paths if each.startswith(text)}
            todo |= (uses & self.paths.keys()) - reached - {PARAMS}
        return reached

    def _module(self, name: str) -> Module:
        path = self.paths[name]
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        return _parsed(path, package, path.read_text(encoding="utf-8"))


@cache
def _parsed(path: Path, package: str, text: str) -> Module:
    tree = ast.parse(text, str(path))
    for node in ast.walk(tree):
        if not isinstance(node, ast.If):
            continue
        condition = ast.unparse(node.test).removeprefix("typing.")
        if condition == "TYPE_CHECKING":
            node.body = []  # it never runs
    parsed = Module(digest(canonical(tree)), set(), set())
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=imported):
                parsed.names.update(alias.name for alias in imported)
            case ast.ImportFrom(module=module, names=imported, level=level):
                origin = resolve_name("." * level + (module or ""), package)
                parsed.names.update([origin, *(f"{origin}.{alias.name}" for alias in imported)])
            case ast.Constant(value=str(value)) if value.startswith(f"{PACKAGE}."):
                parsed.texts.add(value)
            case ast.Name(id="__file__" as name):
                parsed.names.add(name)
    return parsed


def canonical(node: object) -> str:
    """A piece of a syntax tree as a text in which only what it does counts, in every version of Python the same.

    >>> one = canonical(ast.parse('def f(x):\\n    "Says."\\n    return (x  + 1)  # why'))
    >>> one == canonical(ast.parse("def f(x): return x + 1"))
    True
    """
    if isinstance(node, list):
        # Without texts that stand alone: docstrings, also those under attributes.
        items = [canonical(each) for each in node if not _is_text(each)]
        return f"[{','.join(items)}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        # An empty field is left out: Python versions differ in which there are.
        if name not in ("ctx", "kind", "type_comment") and value not in (None, []):
            fields.append(f"{name}={canonical(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _is_text(node: object) -> bool:
    """Whether a statement is a text that stands alone."""
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


def _data(folder: Path) -> list[Path]:
    """The files in a folder, and below it, that are no code."""
    files = []
    for path in folder.rglob("*"):
        is_code = path.suffix == ".py" or "__pycache__" in path.parts
        if path.is_file() and not is_code and not path.name.startswith("."):
            files.append(path)
    return files
