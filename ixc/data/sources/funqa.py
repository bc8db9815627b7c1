"""FunQA: what is funny, creative or magic in a video, told at length. CC BY-NC-SA 4.0; no commercial use.

Native: `*.json`, a list of `{"ID", "instruction", "visual_input", "output", "task"}`, the videos anywhere
below the folder. Tasks H1, C1 and M1 ask for a span of time, whose overlap would be the measure: `meta.task`.

Source: https://github.com/Jingkang50/FunQA, arXiv:2306.14899.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ixc.data.sources import Refused, Row, tables
from ixc.data.sources.answers import reference, user_prompt
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Locate, each, home, locator, take

LICENCE = Licence(name="CC BY-NC-SA 4.0", commercial=False)


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt per task, with a reference answer."""
    locate = locator(home(path), "video", ".mp4")
    yield from each(path, partial(_row, locate=locate), "**/*.json", records=tables.records)


def _row(entry: Entry, locate: Locate) -> Row:
    record = entry.record
    video = take(record, "visual_input", str)
    instruction = take(record, "instruction", str)
    return Row(
        id=take(record, "ID", str),
        domain="video",
        prompt=user_prompt(instruction),
        media=(locate(video),),
        group=video,
        meta={"task": take(record, "task", str)},
        **reference(take(record, "output", str)),
    )
