"""What DVC tracks of every stage, in one table: its parameters with all defaults, and digests of the modules it runs.

`python -m tasks.resolve params.yaml data/stages.json` writes it; `dvc repro` does so whenever parameters or code have
changed, before it looks at the other stages.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ixc.io.fingerprint import Code
from ixc.params import BadParams, load_params, resolved
from tasks.report import write_json

STAGE = "resolve"
"""Its name in `dvc.yaml`."""


def table(params: Path, root: Path = Path()) -> dict[str, dict[str, Any]]:
    """By stage: `params`, the whole section, and `code`, a digest by file.

    Args:
        params: a complete parameter file.
        root: the folder that `ixc` lies in.

    Raises:
        BadParams: the parameter file is not what its schema says.
    """
    code = Code(root)
    sections = resolved(load_params(params))
    rows = {}
    for stage, section in sections.items():
        # Of the readers only those that this section names.
        digests = code.digests(stage, set(_texts(section)))
        rows[stage] = {"params": section, "code": digests}
    return rows


def _texts(tree: Any) -> Iterator[str]:
    """Every text in a section: some name a module, as `collect.sources[].reader` does."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict | list):
        values = tree.values() if isinstance(tree, dict) else tree
        for value in values:
            yield from _texts(value)


def main(params: Path, out: Path) -> int:
    """Write the table; the exit code: 1 where the parameters are wrong, which trying again cannot help."""
    try:
        write_json(table(params), out)
    except (BadParams, SyntaxError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m tasks.resolve PARAMS TABLE")
    sys.exit(main(*map(Path, sys.argv[1:])))
