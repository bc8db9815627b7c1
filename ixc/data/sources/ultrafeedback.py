"""UltraFeedback: four answers to each of 64k instructions, rated by GPT-4. MIT; commercial use allowed.

Native: JSON lines or Parquet, `{"source", "instruction", "completions": [{"model", "response", "annotations":
{respect: {"Rating": str, ...}}}]}`. The binarised form, `{"prompt", "chosen": [{"role", "content"}], "rejected"}`, is
read too (`split: train_prefs` on the hub), but for ties, by `score_chosen` and `score_rejected`.

Source: https://github.com/OpenBMB/UltraFeedback, arXiv:2310.01377.
"""

import random
from collections.abc import Iterator
from functools import partial

from ixc.data.samples import user_message
from ixc.data.sources import Refused, Row
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, Unusable, each, take
from ixc.data.sources.preferences import TEXTS, row
from ixc.data.sources.ratings import Rule, best_and_other

LICENCE = Licence(name="MIT", commercial=True)


def read(origin: Origin, seed: int, rejected: Rule = "random") -> Iterator[Row | Refused]:
    """Ready pairs: the best-rated answer against a lower one."""
    yield from each(origin, partial(_row, rule=rejected, seed=seed))


def _row(entry: Entry, rule: Rule, seed: int) -> Row:
    record = entry.record
    if "completions" not in record:
        return _binarised(entry)
    prompt = take(record, "instruction", str)
    rng = random.Random(f"{seed}/{entry.id}")
    best, other = best_and_other(record, rule, rng)
    return Row(
        id=entry.id,
        domain="general",
        prompt=user_message(prompt),
        chosen=best.text,
        rejected=other.text,
        group=prompt,
        meta={"ratings": [best.score, other.score], "source": record.get("source")},
    )


def _binarised(entry: Entry) -> Row:
    chosen = entry.record.get("score_chosen")
    rejected = entry.record.get("score_rejected")
    if chosen is not None and rejected is not None and not chosen > rejected:
        raise Unusable(
            f"score_chosen: {chosen}: not above score_rejected, {rejected}: a tie is no pair; remove the row"
        )
    return row(entry, TEXTS, "general")
