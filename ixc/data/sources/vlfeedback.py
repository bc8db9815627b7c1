"""VLFeedback: four answers about each of 80k images, rated by GPT-4V. No licence was stated; no commercial use.

Native: Parquet with `image`, or `vlfeedback_80k.jsonl` with `img_path` below `merged_images/`: `{"id", "prompt",
"completions": [{"model", "response", "annotations": {respect: {"Rating": str, "Rationale"}}}]}`.

Source: https://huggingface.co/datasets/MMInstruction/VLFeedback, arXiv:2312.10665.
"""

import random
from collections.abc import Iterator
from functools import partial

from ixc.data.sources import File, Refused, Row
from ixc.data.sources.conversations import place, turns
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, Unusable, each, take
from ixc.data.sources.ratings import Rule, best_and_other

LICENCE = Licence(name="none stated", commercial=False, note="later versions: CC-BY-4.0")
IMAGES = "merged_images"


def read(origin: Origin, seed: int, rejected: Rule = "worst") -> Iterator[Row | Refused]:
    """Ready pairs: the best-rated answer against a lower one."""
    yield from each(origin, partial(_row, rule=rejected, seed=seed))


def _row(entry: Entry, rule: Rule, seed: int) -> Row:
    image = _image(entry)
    rng = random.Random(f"{seed}/{entry.id}")
    best, other = best_and_other(entry.record, rule, rng)
    prompt = turns(take(entry.record, "prompt", str))
    return Row(
        id=entry.id,
        domain="general",
        prompt=place(prompt, [image]),
        media=(image,),
        chosen=best.text,
        rejected=other.text,
        meta={"ratings": [best.score, other.score]},
    )


def _image(entry: Entry) -> File:
    value = entry.record.get("image") or entry.record.get("img_path")
    try:
        return entry.image(value)
    except Unusable:
        if entry.folder is None or not isinstance(value, str):
            raise
        # The native names do not mention the folder that the archive unpacks into.
        return entry.image(f"{IMAGES}/{value}")
