"""IFEval: instructions whose fulfilment a program can check. Apache-2.0; commercial use allowed.

Native: `*.jsonl`, `{"key": int, "prompt", "instruction_id_list": [str], "kwargs": [dict]}`, one `kwargs` per
instruction; some packagings pad them with nulls. There are no reference answers.
A public benchmark: a model trained on it must not be reported on it.

Source: https://github.com/josejg/instruction_following_eval, arXiv:2311.07911.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from ixc.data.samples import Gold, user_message
from ixc.data.sources import Refused, Row
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Record, Unusable, each, lines, take

LICENCE = Licence(name="Apache-2.0", commercial=True, note="a public benchmark")


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt per instruction."""
    yield from each(path, _row, "*.jsonl", records=lines)


def _row(entry: Entry) -> Row:
    record = entry.record
    ids = take(record, "instruction_id_list", list)
    kwargs = take(record, "kwargs", list)
    if not ids or len(ids) != len(kwargs):
        raise Unusable(
            f"{len(ids)} instructions, {len(kwargs)} kwargs; one kwargs object for each, at least one"
        )
    # Some packagings pad the arguments with nulls, which IFEval's checks do not take.
    constraints = []
    for id, padded in zip(ids, kwargs, strict=True):
        constraints.append({"id": id, "kwargs": _without_nulls(padded)})
    prompt = take(record, "prompt", str)
    return Row(
        id=str(take(record, "key", int)),
        domain="instruction",
        prompt=user_message(prompt),
        gold=Gold(check="constraints", value=json.dumps(constraints, ensure_ascii=False)),
    )


def _without_nulls(kwargs: Record) -> Record:
    if not isinstance(kwargs, dict):
        raise Unusable(f"kwargs: {kwargs!r}: expected an object for each instruction")
    return {name: value for name, value in kwargs.items() if value is not None}
