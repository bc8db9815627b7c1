"""ChartQA: questions on charts, by people and by machine. GPL-3.0; commercial use allowed.

Native: `<split>/<split>_{human,augmented}.json`, a list of `{"imgname", "query", "label"}`, the charts in
`<split>/png/`; or Parquet, the chart in `image`, with `query` and `label` (HuggingFaceM4/ChartQA, which has all splits)
or `question` and `answer` (lmms-lab's test split). By the set's own measure a number may be off by 5 %.

Source: https://github.com/vis-nlp/ChartQA, arXiv:2203.10244.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from ixc.data.sources import File, Refused, Row
from ixc.data.sources.answers import asked, short
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Origin, Unusable, media, take
from ixc.data.sources.tables import Entry, each

LICENCE = Licence(
    name="GPL-3.0", commercial=True, note="copyleft; the charts were collected from the web"
)


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """A prompt per question."""
    return each(origin, _rows, "**/*_human.json", "**/*_augmented.json", "**/*.parquet")


def _rows(entry: Entry) -> list[Row]:
    record, stored = entry.record, "image" in entry.record
    asks, answers = ("question", "answer") if "question" in record else ("query", "label")
    answer = short(_label(take(record, answers, object)))
    if answer["gold"].check == "number":
        answer["gold"] = replace(answer["gold"], check="chart")
    row = Row(
        id=entry.id,
        domain="text_rich",
        prompt=asked(take(record, asks, str)),
        media=(media(entry.folder, record["image"], "image") if stored else _chart(entry),),
        group="" if stored else str(record["imgname"]),
        **answer,
    )
    return [row]


def _chart(entry: Entry) -> File:
    name = f"{PurePosixPath(entry.file).parent}/png/{take(entry.record, 'imgname', str)}"
    return media(entry.folder, name, "image")


def _label(value: object) -> object:
    """A copy of the set has each label in a list of one."""
    if not isinstance(value, list):
        return value
    if len(value) != 1:
        raise Unusable(f"label: {value!r}: expected one; remove the row")
    return value[0]
