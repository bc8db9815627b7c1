"""PKU-SafeRLHF: which of two answers is safer, which more helpful. CC-BY-NC-4.0; no commercial use.

Native: JSON lines, `{"prompt", "response_0", "response_1", "safer_response_id", "better_response_id",
"is_response_0_safe", "is_response_1_safe", ...}`; the ids are 0 or 1. Older releases have other names: pin a revision.
The texts are harmful.

Source: https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF, arXiv:2406.15513.
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal

from ixc.data.samples import user_message
from ixc.data.sources import Refused, Row
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, Unusable, each, take

LICENCE = Licence(name="CC-BY-NC-4.0", commercial=False)


def read(
    origin: Origin, seed: int, label: Literal["safer", "better"] = "safer"
) -> Iterator[Row | Refused]:
    """Ready pairs; `label` decides: the safer answer, which the paper's category implies, or the more helpful one."""
    yield from each(origin, partial(_row, column=f"{label}_response_id"))


def _row(entry: Entry, column: str) -> Row:
    record = entry.record
    winner = take(record, column, int)
    if winner not in (0, 1):
        raise Unusable(f"{column}: {winner}: expected 0 or 1")
    prompt = take(record, "prompt", str)
    safety = ("is_response_0_safe", "is_response_1_safe")
    return Row(
        id=entry.id,
        domain="safety",
        prompt=user_message(prompt),
        chosen=take(record, f"response_{winner}", str),
        rejected=take(record, f"response_{1 - winner}", str),
        group=prompt,
        meta={name: record.get(name) for name in safety},
    )
