"""NLVR: is a sentence true of a small generated picture? CC-BY-4.0; commercial use allowed with attribution.

Native: `{train,dev,test}*.json`, one JSON object a line, `{"sentence", "label": "true"|"false",
"identifier": "n-m", "directory", ...}`; the picture is `images/<directory>/<split>-<identifier>-0.png`.

Source: https://github.com/lil-lab/nlvr; A. Suhr, M. Lewis, J. Yeh, Y. Artzi, ACL 2017.
"""

from collections.abc import Iterator
from pathlib import Path

from ixc.data.samples import Gold, Turn
from ixc.data.sources import Refused, Row
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Record, Unusable, find, home, media, rows, take
from ixc.data.sources.phrases import opposite, sentence

LICENCE = Licence(name="CC-BY-4.0", commercial=True, note="with attribution")


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt per sentence and picture."""
    for file in find(path, "train*.json", "dev*.json", "test*.json"):
        split = file.stem.split("_")[0]
        yield from rows(file, lambda record, _, split=split: [_row(record, home(path), split)])


def _row(record: Record, folder: Path, split: str) -> Row:
    identifier, label = take(record, "identifier", str), take(record, "label", str)
    if label not in ("true", "false"):
        raise Unusable(f"label: {label!r}: neither 'true' nor 'false'; correct it")
    claim = sentence(take(record, "sentence", str))
    image = media(
        folder, f"images/{take(record, 'directory', str)}/{split}-{identifier}-0.png", "image"
    )
    other = opposite(label)
    return Row(
        id=f"{split}-{identifier}",
        domain="reasoning",
        prompt=(Turn(role="user", content=f"Is this true or false? {claim}"),),
        media=(image,),
        gold=Gold(check="match", value=label, others=(other,), answer=sentence(label)),
        wrong=(sentence(other),),
        group=f"{split}-{identifier.split('-')[0]}",  # up to four pictures were shown with one sentence
    )
