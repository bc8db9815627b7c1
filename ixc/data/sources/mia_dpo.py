"""MIA-DPO: questions about one of several images. CC-BY-NC-4.0 by its authors' text; no commercial use.

Native: `dpo_27k.json`, a list of `{"id", "image": path or [path], "prompt", "chosen", "rejected", "gt"}`; a collage is
one image. `<image-placeholder>` marks images in the prompt; the paths start at the folder.

Source: https://huggingface.co/datasets/laolao77/MIA-DPO, arXiv:2410.17637.
"""

from collections.abc import Iterator

from ixc.data.sources import Refused, Row
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, each
from ixc.data.sources.preferences import Columns, row

LICENCE = Licence(
    name="CC-BY-NC-4.0",
    commercial=False,
    note="the hub's tag says Apache-2.0, its authors' text does not",
)
COLUMNS = Columns(images="image", id="")  # nothing says that its ids are unique


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """Ready pairs, each about one to five images."""
    yield from each(origin, _row)


def _row(entry: Entry) -> Row:
    return row(entry, COLUMNS, "general")
