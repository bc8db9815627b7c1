"""CLEVR-Math: sums told about rendered scenes. CC BY 4.0; commercial use allowed.

Native, as `datasets` builds it: Parquet with `id`, `template`, `question`, `image`, `label` (a whole number).

Source: https://huggingface.co/datasets/dali-does/clevr-math, arXiv:2208.05358.
"""

from collections.abc import Iterator

from ixc.data.sources import Refused, Row
from ixc.data.sources.answers import short, user_prompt
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, each, take

LICENCE = Licence(name="CC BY 4.0", commercial=True)


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """A prompt per question."""
    return each(origin, _row, "**/*.parquet")


def _row(entry: Entry) -> Row:
    record = entry.record
    question = take(record, "question", str)
    image = take(record, "image", object)
    return Row(
        id=entry.id,
        domain="reasoning",
        prompt=user_prompt(question),
        media=(entry.image(image),),
        meta={"template": record.get("template")},
        **short(take(record, "label", int)),
    )
