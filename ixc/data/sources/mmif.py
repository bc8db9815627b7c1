"""MM-IFDPO-23k: instructions with constraints about images. Apache-2.0; commercial use allowed.

Native: JSON, a list of `{"images": [path], "conversations": [{"from", "value"}], "chosen": {"from", "value"},
"rejected"}`; `<image>` marks the image; the paths start at the folder, where the archives were unpacked.

Source: https://huggingface.co/datasets/ChrisDing1105/MMIF-23k, arXiv:2504.07957.
"""

from collections.abc import Iterator

from ixc.data.sources import Refused, Row
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, each
from ixc.data.sources.preferences import Columns, row

LICENCE = Licence(name="Apache-2.0", commercial=True, note="the pictures are of other sets")
COLUMNS = Columns(prompt="conversations")


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """Ready pairs, each about one image."""
    yield from each(origin, _row)


def _row(entry: Entry) -> Row:
    return row(entry, COLUMNS, "instruction")
