"""SUTD-TrafficQA: choices on videos of traffic. Research only, on request; no commercial use.

Native: `R2_{train,test}.jsonl` (`R2_all.jsonl` repeats both), the first line the names of the columns, every other
line a list: `["record_id", "vid_id", "vid_filename", "perspective", "q_body", "q_type", "option0", ..., "option3",
"answer"]`; the answer is an index, empty options are missing; the videos anywhere below the folder.

Source: https://github.com/SUTDCV/SUTD-TrafficQA, arXiv:2103.15538.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ixc.data.sources import Refused, Row, tables
from ixc.data.sources.answers import choice, lettered
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Locate, Unusable, each, home, locator, take

LICENCE = Licence(name="research only", commercial=False, note="films on request from the authors")
FILES = ("**/*train*.jsonl", "**/*test*.jsonl")


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A choice per question."""
    locate = locator(home(path), "video", ".mp4", ".avi")
    yield from each(path, partial(_row, locate=locate), *FILES, records=tables.records)


def _row(entry: Entry, locate: Locate) -> Row:
    record = entry.record
    video = take(record, "vid_filename", str)
    question = take(record, "q_body", str)
    # Empty options are missing; `answer` counts them all the same.
    columns = [str(record.get(f"option{i}") or "").strip() for i in range(4)]
    indices = [i for i, text in enumerate(columns) if text]
    right = take(record, "answer", int)
    if right not in indices:
        raise Unusable(f"answer: {right!r}: not one of the options {indices}; correct it")
    options = [columns[i] for i in indices]
    return Row(
        id=str(take(record, "record_id", int)),
        domain="video",
        prompt=lettered(question, options),
        media=(locate(video),),
        group=video,
        meta={"kind": record.get("q_type"), "perspective": record.get("perspective")},
        **choice(options, indices.index(right)),
    )
