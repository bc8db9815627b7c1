"""SHP: which of two comments under a Reddit post was voted higher. Licence unclear; no commercial use.

Native: JSON lines in `<subreddit>/{train,validation,test}.json`, `{"post_id", "domain", "history", "human_ref_A",
"human_ref_B", "labels": 1 for A or 0 for B, "score_ratio", ...}`.

Source: https://huggingface.co/datasets/stanfordnlp/SHP; K. Ethayarajh, Y. Choi, S. Swayamdipta, ICML 2022.
"""

from collections.abc import Iterator
from functools import partial
from typing import Annotated

from pydantic import Field

from ixc.data.samples import user_message
from ixc.data.sources import Refused, Row
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, Unusable, each, take

LICENCE = Licence(
    name="unclear", commercial=False, note="the card said MIT, then pointed to Reddit's terms"
)


def read(
    origin: Origin, seed: int, min_score_ratio: Annotated[float, Field(ge=1)] = 1.0
) -> Iterator[Row | Refused]:
    """Ready pairs; those with a smaller ratio of votes are refused: the authors advise 2."""
    yield from each(origin, partial(_row, min_score_ratio=min_score_ratio))


def _row(entry: Entry, min_score_ratio: float) -> Row:
    record = entry.record
    label = take(record, "labels", int)
    if label not in (0, 1):
        raise Unusable(f"labels: {label}: expected 1 (A is preferred) or 0 (B)")
    ratio = record.get("score_ratio")
    is_clear = isinstance(ratio, int | float) and ratio >= min_score_ratio
    if min_score_ratio > 1 and not is_clear:
        raise Unusable(f"score_ratio: {ratio}: below options.min_score_ratio")
    winner, loser = ("A", "B") if label else ("B", "A")
    post = take(record, "history", str)
    return Row(
        id=entry.id,
        domain="safety",  # as the paper's table 1 has it
        prompt=user_message(post),
        chosen=take(record, f"human_ref_{winner}", str),
        rejected=take(record, f"human_ref_{loser}", str),
        group=take(record, "post_id", str),
        meta={"subreddit": record.get("domain"), "score_ratio": ratio},
    )
