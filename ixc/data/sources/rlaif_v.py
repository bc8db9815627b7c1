"""RLAIF-V: answers about images, one with fewer hallucinations. CC-BY-NC-4.0; no commercial use.

Native: Parquet, `{"image": bytes, "question", "chosen", "rejected", "ds_name", "origin_dataset", "idx", ...}`.

Source: https://huggingface.co/datasets/openbmb/RLAIF-V-Dataset, arXiv:2405.17220.
"""

from collections.abc import Iterator

from ixc.data.sources import Refused, Row
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, each
from ixc.data.sources.preferences import Columns, row

LICENCE = Licence(name="CC-BY-NC-4.0", commercial=False)
COLUMNS = Columns(prompt="question", images="image")
IGNORE = ("image_path",)  # where the image in the row was


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """Ready pairs, each about one image."""
    yield from each(origin, _row)


def _row(entry: Entry) -> Row:
    return row(entry, COLUMNS, "general", IGNORE)
