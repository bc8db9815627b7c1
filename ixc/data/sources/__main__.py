"""`python -m ixc.data.sources [--rows N] READER PATH` shows what a reader makes of the files of a data set."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ixc.data.sources import READERS, BadSource, Refused, Row


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the first pairs, prompts, answers and refusals, and how many there are of each."""
    command = argparse.ArgumentParser(
        "python -m ixc.data.sources",
        description="Show what a reader makes of the files of a data set; nothing is written.",
    )
    command.add_argument("reader", choices=sorted(READERS), metavar="READER", help="its module")
    command.add_argument("path", type=Path, metavar="PATH", help="the data set's folder or file")
    command.add_argument("--rows", type=int, default=2, help="to print of each kind (default: 2)")
    options = command.parse_args(arguments)

    # Every row is read, as `collect` would: a broken one may be the last.
    counts: Counter[str] = Counter()
    try:
        for item in READERS[options.reader](options.path, 0):
            kind = _kind(item)
            counts[kind] += 1
            if counts[kind] <= options.rows:
                print(_described(item))
    except BadSource as error:
        command.error(str(error))
    print(" · ".join(f"{count:,} {kind}" for kind, count in counts.items()) or "nothing")


def _kind(item: Row | Refused) -> str:
    if isinstance(item, Refused):
        return "refused"
    if item.rejected:
        return "pairs"
    return "prompts" if item.answer is None else "prompts or answers"


def _described(item: Row | Refused) -> str:
    """An item, a field a line; empty fields are left out."""
    if isinstance(item, Refused):
        return f"refused {item.where}: {item.reason}\n"
    lines = [f"{item.id} ({item.domain}, {item.split or 'split by collect'})"]
    lines += [f"  {turn.role}: {turn.content}" for turn in item.prompt]
    lines += [f"  {file.kind}: {file.path or 'in the row'}" for file in item.media]
    for name in ("gold", "answer", "chosen", "rejected", "wrong", "group", "meta"):
        if value := getattr(item, name):
            lines.append(f"  {name}: {value}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
