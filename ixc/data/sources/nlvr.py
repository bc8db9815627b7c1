"""NLVR: is a sentence true of a small generated image? CC-BY-4.0; commercial use allowed with attribution.

Native: `{train,dev,test}*.json`, one JSON object a line, `{"sentence", "label": "true"|"false",
"identifier": "n-m", "directory", ...}`; the image is `images/<directory>/<split>-<identifier>-0.png`.

Source: https://github.com/lil-lab/nlvr; A. Suhr, M. Lewis, J. Yeh, Y. Artzi, ACL 2017.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ixc.data.samples import Gold, user_message
from ixc.data.sources import Refused, Row
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Unusable, each, lines, take
from ixc.data.sources.phrases import opposite, sentence

LICENCE = Licence(name="CC-BY-4.0", commercial=True, note="with attribution")
FILES = ("train*.json", "dev*.json", "test*.json")


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt per sentence and image."""
    yield from each(path, _row, *FILES, records=lines)


def _row(entry: Entry) -> Row:
    record = entry.record
    identifier = take(record, "identifier", str)
    label = take(record, "label", str)
    if label not in ("true", "false"):
        raise Unusable(f"label: {label!r}: neither 'true' nor 'false'; correct it")
    claim = sentence(take(record, "sentence", str))
    split = PurePosixPath(entry.file).stem.split("_")[0]
    folder = f"images/{take(record, 'directory', str)}"
    image = f"{folder}/{split}-{identifier}-0.png"
    other = opposite(label)
    return Row(
        id=f"{split}-{identifier}",
        domain="reasoning",
        prompt=user_message(f"Is this true or false? {claim}"),
        media=(entry.image(image),),
        gold=Gold(
            check="match",
            value=label,
            others=(other,),
            answer=sentence(label),
        ),
        wrong=(sentence(other),),
        # Up to four images were shown with one sentence.
        group=f"{split}-{identifier.split('-')[0]}",
    )
