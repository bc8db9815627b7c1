"""MiraData: clips of films with long captions. Licence: none granted; no commercial use.

Native: `*.csv` with `index` (the clip's file without `.mp4`), `video_id`, `dense_caption` and other captions; the
clips, as the authors' script cuts them, anywhere below the folder.

Source: https://github.com/mira-space/MiraData, arXiv:2407.06358.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ixc.sources import Refused, Row
from ixc.sources.answers import asked, reference
from ixc.sources.licences import Licence
from ixc.sources.native import home, take
from ixc.sources.tables import Entry, Locate, each, locator

LICENCE = Licence(name="none granted", commercial=False, note="for information only, says the LICENSE file")
QUESTION = "Describe the film in detail."


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt per clip, with its dense caption."""
    yield from each(path, partial(_rows, locate=locator(home(path), "video", ".mp4")), "**/*.csv")


def _rows(entry: Entry, locate: Locate) -> list[Row]:
    record, clip = entry.record, take(entry.record, "index", str)
    row = Row(
        id=clip,
        domain="video",
        prompt=asked(QUESTION),
        media=(locate(f"{clip}.mp4"),),
        group=take(record, "video_id", str),
        **reference(take(record, "dense_caption", str).strip()),
    )
    return [row]
