"""SUTD-TrafficQA: choices on films of traffic. Research only, on request; no commercial use.

Native: `R2_{train,test}.jsonl` (`R2_all.jsonl` repeats both), the first line the names of the columns, every other
line a list: `["record_id", "vid_id", "vid_filename", "perspective", "q_body", "q_type", "option0", ..., "option3",
"answer"]`; the answer is an index, empty options are missing; the films anywhere below the folder.

Source: https://github.com/SUTDCV/SUTD-TrafficQA, arXiv:2103.15538.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ixc.data.sources import Refused, Row
from ixc.data.sources.answers import choice, lettered
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Unusable, home, take
from ixc.data.sources.tables import Entry, Locate, each, locator

LICENCE = Licence(name="research only", commercial=False, note="films on request from the authors")


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A choice per question."""
    locate = locator(home(path), "video", ".mp4", ".avi")
    yield from each(path, partial(_rows, locate=locate), "**/*train*.jsonl", "**/*test*.jsonl")


def _rows(entry: Entry, locate: Locate) -> list[Row]:
    record, video = entry.record, take(entry.record, "vid_filename", str)
    options = {i: str(record.get(f"option{i}") or "").strip() for i in range(4)}
    given = [i for i in options if options[i]]
    right = take(record, "answer", int)
    if right not in given:
        raise Unusable(f"answer: {right!r}: not one of the options {given}; correct it")
    listed = [options[i] for i in given]
    row = Row(
        id=str(take(record, "record_id", int)),
        domain="video",
        prompt=lettered(take(record, "q_body", str), listed),
        media=(locate(video),),
        group=video,
        meta={"kind": record.get("q_type"), "perspective": record.get("perspective")},
        **choice(listed, given.index(right)),
    )
    return [row]
