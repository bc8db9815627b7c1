"""Tulu-3-IF: instructions with checkable constraints, answered by an 8B model. ODC-BY; commercial use unclear.

Native: Parquet, `{"id", "prompt", "chosen": [{"role", "content"}], "rejected"}`; both are whole conversations. The
constraints stand in the prompt only.

Source: https://huggingface.co/datasets/allenai/tulu-3-IF-augmented-on-policy-8b, arXiv:2411.15124.
"""

from collections.abc import Iterator

from ixc.data.sources import Refused, Row
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, each
from ixc.data.sources.preferences import TEXTS, row

LICENCE = Licence(
    name="ODC-BY-1.0",
    commercial=False,
    note="parts were written by models with non-commercial terms",
)


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """Ready pairs."""
    yield from each(origin, _row)


def _row(entry: Entry) -> Row:
    return row(entry, TEXTS, "instruction")
