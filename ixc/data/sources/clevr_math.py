"""CLEVR-Math: sums told about rendered scenes. CC BY 4.0; commercial use allowed.

Native, as `datasets` builds it: Parquet with `id`, `template`, `question`, `image`, `label` (a whole number).

Source: https://huggingface.co/datasets/dali-does/clevr-math, arXiv:2208.05358.
"""

from collections.abc import Iterator

from ixc.data.sources import Refused, Row
from ixc.data.sources.answers import asked, short
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Origin, media, take
from ixc.data.sources.tables import Entry, each

LICENCE = Licence(name="CC BY 4.0", commercial=True)


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """A prompt per question."""
    return each(origin, _rows, "**/*.parquet")


def _rows(entry: Entry) -> list[Row]:
    record = entry.record
    row = Row(
        id=entry.id,
        domain="reasoning",
        prompt=asked(take(record, "question", str)),
        media=(media(entry.folder, take(record, "image", object), "image"),),
        meta={"template": record.get("template")},
        **short(take(record, "label", int)),
    )
    return [row]
