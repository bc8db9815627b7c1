"""Your own data, as JSON lines; licence and commercial use are what you know of them.

One object a line: `prompt` (a text, or the turns `[{"role", "content"}]`), and either `chosen` and `rejected`
(a pair, each a text or one assistant turn) or `answer` (a reference answer; a prompt whose answers a judge
compares). Optional: `id`, `domain` (of `ixc.samples.Domain`, else `general`), `images` and `videos` (names
relative to the file's folder). It is TRL's preference format with media. Where there are several
pictures, `<ImageHere>` in the prompt marks the place of each.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from ixc.samples import Domain, Gold, Turn
from ixc.sources import Refused, Row
from ixc.sources.native import Record, Unusable, find, home, media, rows, take


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """Pairs and prompts, as each line has it."""
    for file in find(path, "*.jsonl", "*.jsonl.gz"):
        name = file.name.removesuffix(".gz").removesuffix(".jsonl")
        yield from rows(file, lambda record, number, name=name: [_row(record, f"{name}/{number}", home(path))])


def _row(record: Record, id: str, folder: Path) -> Row:
    domain = record.get("domain", "general")
    if domain not in get_args(Domain):
        raise Unusable(f"domain: {domain!r}: not one of {', '.join(get_args(Domain))}")
    files = [media(folder, name, "image") for name in record.get("images", [])]
    files += [media(folder, name, "video") for name in record.get("videos", [])]
    chosen, rejected, answer = (_text(record.get(name, "")) for name in ("chosen", "rejected", "answer"))
    return Row(
        id=str(record.get("id", id)),
        domain=domain,
        prompt=_turns(take(record, "prompt", object)),
        media=tuple(files),
        gold=Gold(check="open", value=answer, answer=answer) if answer else None,
        chosen=chosen,
        rejected=rejected,
    )


def _turns(prompt: Any) -> tuple[Turn, ...]:
    if isinstance(prompt, str):
        return (Turn(role="user", content=prompt),)
    return tuple(Turn(**turn) for turn in prompt)


def _text(answer: Any) -> str:
    """An answer that is a text, or a list of one assistant turn."""
    if isinstance(answer, str):
        return answer
    [turn] = answer
    return take(turn, "content", str)
