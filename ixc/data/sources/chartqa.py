"""ChartQA: questions on charts, by people and by machine. GPL-3.0; commercial use allowed.

Native: `<split>/<split>_{human,augmented}.json`, a list of `{"imgname", "query", "label"}`, the charts in
`<split>/png/`; or Parquet, the chart in `image`, with `query` and `label` (HuggingFaceM4/ChartQA, which has all splits)
or `question` and `answer` (lmms-lab's test split). By the set's own measure a number may be off by 5 %.

Source: https://github.com/vis-nlp/ChartQA, arXiv:2203.10244.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from ixc.data.sources import File, Refused, Row, tables
from ixc.data.sources.answers import short, user_prompt
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, Unusable, each, take

LICENCE = Licence(
    name="GPL-3.0", commercial=True, note="copyleft; the charts were collected from the web"
)
FILES = ("**/*_human.json", "**/*_augmented.json", "**/*.parquet")


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """A prompt per question."""
    return each(origin, _row, *FILES, records=tables.records)


def _row(entry: Entry) -> Row:
    record = entry.record
    has_image = "image" in record
    # Two copies of the set name their columns differently.
    if "question" in record:
        question_column, label_column = "question", "answer"
    else:
        question_column, label_column = "query", "label"

    answer = short(_label(take(record, label_column, object)))
    # By the set's own measure a number may be off by 5 %.
    if answer["gold"].check == "number":
        answer["gold"] = replace(answer["gold"], check="chart")
    question = take(record, question_column, str)
    chart = entry.image(record["image"]) if has_image else _chart(entry)
    return Row(
        id=entry.id,
        domain="text_rich",
        prompt=user_prompt(question),
        media=(chart,),
        group="" if has_image else str(record["imgname"]),
        **answer,
    )


def _chart(entry: Entry) -> File:
    folder = PurePosixPath(entry.file).parent
    name = take(entry.record, "imgname", str)
    return entry.image(f"{folder}/png/{name}")


def _label(value: object) -> object:
    """A copy of the set has each label in a list of one."""
    if not isinstance(value, list):
        return value
    if len(value) != 1:
        raise Unusable(f"label: {value!r}: expected one; remove the row")
    return value[0]
