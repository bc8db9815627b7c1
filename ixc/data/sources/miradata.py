"""MiraData: clips of videos with long captions. Licence: none granted; no commercial use.

Native: `*.csv` with `index` (the clip's file without `.mp4`), `video_id`, `dense_caption` and other captions; later
tables have `clip_id` and `source_id` in its place. The clips, as the authors' script cuts them, lie anywhere below the
folder: `<index>.mp4`, or, by what the later tables have, `<source_id>_<video_id>-<clip_id>.mp4` or `<clip_id>.mp4`.

Source: https://github.com/mira-space/MiraData, arXiv:2407.06358.
"""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from ixc.data.sources import File, Refused, Row, tables
from ixc.data.sources.answers import reference, user_prompt
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Locate, Record, Unusable, each, home, locator, take

LICENCE = Licence(
    name="none granted", commercial=False, note="for information only, says the LICENSE file"
)
QUESTION = "Describe the film in detail."


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt per clip, with its dense caption."""
    locate = locator(home(path), "video", ".mp4")
    yield from each(path, partial(_row, locate=locate), "**/*.csv", records=tables.records)


def _row(entry: Entry, locate: Locate) -> Row:
    record = entry.record
    names = _names(record)
    video = _video(locate, names)
    group = take(record, "video_id", str)
    caption = take(record, "dense_caption", str)
    return Row(
        id=names[0],
        domain="video",
        prompt=user_prompt(QUESTION),
        media=(video,),
        group=group,
        **reference(caption.strip()),
    )


def _names(record: Record) -> list[str]:
    """What a clip's file may be called, without its suffix; the first is the clip's id."""
    if "clip_id" not in record:
        return [take(record, "index", str)]
    clip = take(record, "clip_id", str)
    source, video = record.get("source_id"), record.get("video_id")
    return [clip, f"{source}_{video}-{clip}", f"{video}-{clip}", f"{video}_{clip}"]


def _video(locate: Locate, names: list[str]) -> File:
    """The first file that is there; without any, the refusal names the first."""
    for name in names[1:]:
        with suppress(Unusable):
            return locate(f"{name}.mp4")
    return locate(f"{names[0]}.mp4")
