"""The code that a stage runs, found by following names from `ixc.<stage>.run`; a digest of it, file by file.

What a digest sees: each function, class and constant that is reached, as its syntax tree without docstrings. What it
does not see: comments, formatting, the order of definitions, and neighbours in a file that nothing reaches.

Names are followed, values are not. So a class counts as a whole, and where names do not tell, more is taken rather than
less: a module that is passed on as a value, or imported by its name as a text, counts as a whole; statements that an
import runs (a registration, say) count wherever their module is imported; code that asks for `__file__` depends on the
files beside it that are not code.
"""

import ast
import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "ixc"
PARAMS = f"{PACKAGE}.params"
"""Its sections are tracked by their values, so their fields do not count as code."""
NAMED_BY_PARAMS = (f"{PACKAGE}.sources",)
"""Packages of which a stage runs the modules that its parameters name."""

WHOLE, IMPORT = "*", ""
"""In place of a name: all of a module, or what importing it runs."""
VALIDATORS = {"model_validator", "field_validator"}
"""They refuse values, and change none."""
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Symbol:
    """A top-level name of a module, or `WHOLE`, or `IMPORT`.

    `X()` stands for the fields of X, a section of parameters, with their defaults.
    """

    module: str
    name: str


@dataclass
class Module:
    """One parsed file."""

    name: str
    path: Path
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    """By name; a name that is bound twice has two statements."""
    imports: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """Module and name by the local name, wherever in the file; the name is empty for a module itself."""
    stars: list[str] = field(default_factory=list)
    """Modules of which everything is imported."""
    effects: list[ast.stmt] = field(default_factory=list)
    """Statements that an import runs, and that bind no single name."""
    runs: list[str] = field(default_factory=list)
    """Modules that importing this one imports."""

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


@dataclass
class References:
    """What one statement names."""

    symbols: list[Symbol] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    """Read beside it, perhaps; of these all bytes count, for they are no code."""
    prefixes: list[str] = field(default_factory=list)
    """Beginnings of modules' names, such as `ixc.sources.`."""


class Code:
    """The package's code below `root`, parsed once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        paths = sorted((root / PACKAGE).rglob("*.py"))
        self.modules = {name: _parse(name, path) for path in paths for name in [_name(path.relative_to(root))]}
        self._texts: dict[int, str] = {}
        self._references: dict[int, References] = {}

    def digests(self, stage: str, named: Collection[str] = ()) -> dict[str, str]:
        """A digest of each file that a stage runs something of, by the file's path.

        Args:
            stage: whose `run` is where the search begins.
            named: texts among the stage's parameters, some of which may name modules.

        Raises:
            LookupError: there is no `ixc.<stage>.run`.
        """
        symbols, files = self._search(stage, named)
        texts: dict[Path, list[str]] = {}
        for symbol in sorted(symbols, key=lambda symbol: (symbol.module, symbol.name)):
            lines = [self._text(statement) for statement in self._statements(symbol)]
            texts.setdefault(self.modules[symbol.module].path, []).extend(lines)
        parts = {path: "\n".join(lines).encode() for path, lines in texts.items() if lines}
        parts |= {path: path.read_bytes() for path in files}
        return {path.relative_to(self.root).as_posix(): _digest(parts[path]) for path in sorted(parts)}

    def reached(self, stage: str, named: Collection[str] = ()) -> set[Symbol]:
        """The names that the digests are made of."""
        return self._search(stage, named)[0]

    def _search(self, stage: str, named: Collection[str]) -> tuple[set[Symbol], set[Path]]:
        """All that is reached from a stage's `run`, and the files that are no code."""
        entry = f"{PACKAGE}.{stage}"
        if entry not in self.modules:
            raise LookupError(f"{entry}: no such module below {self.root}; a stage is called like its module")
        seen: set[Symbol] = set()
        files: set[Path] = set()
        todo = self._find(entry, "run")
        while todo:
            symbol = todo.pop()
            if symbol in seen or symbol.module not in self.modules:
                continue
            seen.add(symbol)
            todo += self._imported(symbol.module)
            if symbol.name == WHOLE:
                todo += [Symbol(symbol.module, name) for name in self.modules[symbol.module].definitions]
            for statement in self._statements(symbol):
                found = self._named_by(self.modules[symbol.module], statement)
                files.update(found.files)
                todo += found.symbols
                todo += [Symbol(name, WHOLE) for prefix in found.prefixes for name in self._beginning(prefix, named)]
        return seen, files

    def _find(self, module: str, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> list[Symbol]:
        """The definitions that a name of a module stands for, through however many imports."""
        if module not in self.modules or (module, name) in seen:
            return []
        here, seen = self.modules[module], seen | {(module, name)}
        runs = Symbol(module, IMPORT)
        if name in here.definitions:
            return [Symbol(module, name)]
        if name in here.imports:
            targets = here.imports[name]
            return [runs, *(found for target in targets for found in self._target(*target, seen))]
        if f"{module}.{name}" in self.modules:
            return [Symbol(f"{module}.{name}", WHOLE)]
        for star in here.stars:
            if found := self._find(star, name, seen):
                return [runs, *found]
        return [Symbol(module, WHOLE)]  # bound in a way that names do not tell

    def _target(self, module: str, name: str, seen: frozenset[tuple[str, str]]) -> list[Symbol]:
        return self._find(module, name, seen) if name else [Symbol(module, WHOLE)]

    def _imported(self, module: str) -> list[Symbol]:
        """What else runs when a module is imported: its packages, and the modules that it imports."""
        packages = [module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)]
        return [Symbol(name, IMPORT) for name in (*packages, *self.modules[module].runs, module)]

    def _statements(self, symbol: Symbol) -> list[ast.stmt]:
        module = self.modules[symbol.module]
        if symbol.name == IMPORT:
            return module.effects
        found = module.definitions.get(symbol.name.removesuffix("()"), [])
        return [part for each in found for part in _fields(each)] if symbol.name.endswith("()") else found

    def _beginning(self, prefix: str, named: Collection[str]) -> Iterator[str]:
        """The modules whose names begin so; of some packages, those alone that the parameters name."""
        package = prefix.rpartition(".")[0]
        for name in self.modules:
            end = name.removeprefix(f"{package}.").partition(".")[0]
            if name.startswith(prefix) and (package not in NAMED_BY_PARAMS or end in named):
                yield name

    def _text(self, statement: ast.stmt) -> str:
        if id(statement) not in self._texts:
            self._texts[id(statement)] = canonical(statement)
        return self._texts[id(statement)]

    def _named_by(self, module: Module, statement: ast.stmt) -> References:
        if id(statement) not in self._references:
            self._references[id(statement)] = self._references_of(module, statement)
        return self._references[id(statement)]

    def _references_of(self, module: Module, statement: ast.stmt) -> References:
        found = References()
        todo: list[ast.AST] = _counted(statement)
        while todo:
            node = todo.pop()
            if chain := _chain(node):
                found.symbols += self._resolve(module, chain)
                found.files += _beside(module.path) if chain[0] == "__file__" else []
                continue  # the names inside are those of the chain
            todo += ast.iter_child_nodes(node)
            match node:
                case ast.Call(func=function):  # a section that code makes itself takes its defaults from its fields
                    made = self._resolve(module, _chain(function))
                    found.symbols += [Symbol(PARAMS, f"{each.name}()") for each in made if each.module == PARAMS]
                case ast.Constant(value=str(text)) if text in self.modules:
                    found.symbols.append(Symbol(text, WHOLE))
                case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]) if text.startswith(f"{PACKAGE}."):
                    found.prefixes.append(text)
        return found

    def _resolve(self, module: Module, chain: Sequence[str]) -> list[Symbol]:
        """What `a.b.c` stands for: `a` is looked up here, `b` in the module that `a` is."""
        if not chain:
            return []
        first, *rest = chain
        if first in module.definitions:
            return [Symbol(module.name, first)]
        if first not in module.imports:
            stars = [star for star in module.stars if first in self.modules.get(star, module).definitions]
            return [Symbol(star, first) for star in stars]
        return [symbol for target in module.imports[first] for symbol in self._resolve_import(*target, rest)]

    def _resolve_import(self, module: str, name: str, rest: Sequence[str]) -> list[Symbol]:
        place = f"{module}.{name}" if name else module
        if place not in self.modules:
            return self._find(module, name)
        names = list(rest)
        while names and f"{place}.{names[0]}" in self.modules:
            place = f"{place}.{names.pop(0)}"
        return self._find(place, names[0]) if names else [Symbol(place, WHOLE)]


def canonical(node: ast.AST) -> str:
    """A statement as a text in which only what it does counts.

    >>> one = canonical(ast.parse('def f(x):\\n    "Says."\\n    return (x  + 1)  # why').body[0])
    >>> one == canonical(ast.parse("def f(x): return x + 1").body[0])
    True
    """
    return "".join(_canonical(part) for part in _counted(node))


def _canonical(node: object) -> str:
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if name not in ("ctx", "kind", "type_comment")]
    # an empty field is left out: Python versions differ in which there are
    shown = [f"{name}={_canonical(_without_docstring(value))}" for name, value in fields if value not in (None, [])]
    return f"{type(node).__name__}({','.join(shown)})"


def _without_docstring(value: object) -> object:
    """A body without the texts that stand alone in it: docstrings, also those under an attribute."""
    return [each for each in value if not _is_text(each)] if isinstance(value, list) else value


def _is_text(node: object) -> bool:
    alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return alone and isinstance(node.value.value, str)  # pyright: ignore[reportAttributeAccessIssue]


def _counted(node: ast.AST) -> list[ast.AST]:
    """The parts of a statement that count; of a section of parameters all but its fields and their limits."""
    if not getattr(node, "section", False):
        return [node]
    assert isinstance(node, ast.ClassDef)
    return [*node.bases, *(part for part in node.body if isinstance(part, Definition) and not _validates(part))]


def _fields(node: ast.AST) -> list[ast.stmt]:
    return [part for part in getattr(node, "body", []) if isinstance(part, ast.AnnAssign)]


def _validates(part: Definition) -> bool:
    return any(
        isinstance(call, ast.Call) and getattr(call.func, "id", "") in VALIDATORS for call in part.decorator_list
    )


def _parse(name: str, path: Path) -> Module:
    module = Module(name, path)
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            _note_import(module, node)
    for statement in tree.body:
        _note(module, statement)
    return module


def _note(module: Module, statement: ast.stmt) -> None:
    """Sort a top-level statement: a definition, an import, or something that an import runs."""
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            if isinstance(statement, ast.ClassDef) and module.name == PARAMS:
                setattr(statement, "section", True)  # noqa: B010 - a mark of ours
            module.definitions.setdefault(statement.name, []).append(statement)
            if _is_registered(module, statement):
                module.effects.append(statement)
        case ast.Assign(targets=targets) if names := _names(targets):
            for name in names:
                module.definitions.setdefault(name, []).append(statement)
        case ast.AnnAssign(target=ast.Name(id=name)):
            module.definitions.setdefault(name, []).append(statement)
        case ast.Import() | ast.ImportFrom():
            module.runs += [target if not name else f"{target}.{name}" for target, name in _targets(module, statement)]
            module.runs += [target for target, _ in _targets(module, statement)]
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            pass
        case _ if not _is_text(statement):
            module.effects.append(statement)


def _is_registered(module: Module, statement: Definition) -> bool:
    """Whether one of our own decorators may have kept it somewhere, by another way than its name."""
    calls = [each.func if isinstance(each, ast.Call) else each for each in statement.decorator_list]
    names = [chain[0] for call in calls if (chain := _chain(call))]
    return any(name in module.definitions or _is_ours(module.imports.get(name, [])) for name in names)


def _is_ours(targets: Sequence[tuple[str, str]]) -> bool:
    return any(target.partition(".")[0] == PACKAGE for target, _ in targets)


def _note_import(module: Module, node: ast.Import | ast.ImportFrom) -> None:
    for alias, (target, name) in zip(node.names, _targets(module, node), strict=True):
        if target.partition(".")[0] != PACKAGE:
            continue
        if alias.name == "*":
            module.stars.append(target)
        elif isinstance(node, ast.Import) and not alias.asname:  # `import ixc.a.b` binds `ixc`
            module.imports.setdefault(PACKAGE, []).append((PACKAGE, ""))
        else:
            module.imports.setdefault(alias.asname or alias.name, []).append((target, name))


def _targets(module: Module, node: ast.Import | ast.ImportFrom) -> list[tuple[str, str]]:
    """Module and name of what is imported; relative imports with the whole name of their module."""
    if isinstance(node, ast.Import):
        return [(alias.name, "") for alias in node.names]
    origin = node.module or ""
    if node.level:
        up = node.level - module.is_package
        home = module.name.rsplit(".", up)[0] if up else module.name
        origin = f"{home}.{origin}".rstrip(".")
    return [(origin, alias.name) for alias in node.names]


def _names(targets: Sequence[ast.expr]) -> list[str]:
    """The names that an assignment binds; none where it also sets something else, say an attribute."""
    flat: list[ast.expr] = []
    for target in targets:
        flat += target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
    return (
        [each.id for each in flat if isinstance(each, ast.Name)] if all(isinstance(e, ast.Name) for e in flat) else []
    )


def _chain(node: ast.AST) -> list[str]:
    """`a.b.c` as its names; empty for anything else, such as `f().b`."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else []


def _beside(path: Path) -> Iterator[Path]:
    """Files that are no code beside a module: in its folder, and in folders there that are no packages."""
    for each in sorted(path.parent.iterdir()):
        if each.is_dir() and each.name != "__pycache__" and not (each / "__init__.py").exists():
            yield from (file for file in sorted(each.rglob("*")) if file.is_file() and _is_data(file))
        elif each.is_file() and _is_data(each):
            yield each


def _is_data(file: Path) -> bool:
    return file.suffix not in (".py", ".pyc") and not file.name.startswith(".")


def _name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
