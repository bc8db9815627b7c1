"""HHH alignment: 221 hand-made pairs, harmless, helpful, honest and other. Apache-2.0; commercial use allowed.

Native: `task.json` of BIG-bench, `{"examples": [{"input", "target_scores": {answer: 0 or 1}}]}`; or the hub's form,
`{"input", "targets": {"choices": [str, str], "labels": [int, int]}}`, 1 for the better answer.
An evaluation set, part of RewardBench's older prior sets: all of it is held out.

Source: https://huggingface.co/datasets/HuggingFaceH4/hhh_alignment, arXiv:2112.00861.
"""

from collections.abc import Iterator
from pathlib import Path

from ixc.data.samples import user_message
from ixc.data.sources import Refused, Row
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import (
    Entry,
    Origin,
    Record,
    Unusable,
    attempt,
    document,
    each,
    home,
    matching,
    take,
)

LICENCE = Licence(name="Apache-2.0", commercial=True, note="a public benchmark")


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """Ready pairs."""
    # BIG-bench's files, or any file or hub with the other form.
    tasks = matching(home(origin), "**/task.json") if isinstance(origin, Path) else []
    for file in tasks:
        yield from _task(file)
    if not tasks:
        yield from each(origin, _entry_row)


def _entry_row(entry: Entry) -> Row:
    return _row(entry.record, entry.id)


def _task(file: Path) -> Iterator[Row | Refused]:
    """The rows of BIG-bench's form."""
    content = document(file)
    if isinstance(content, Refused):
        yield content
        return
    examples = content.get("examples")
    if not isinstance(examples, list):
        yield Refused(where=file.name, reason="no list 'examples'; is it BIG-bench's task file?")
        return

    def row(record: Record, number: int) -> Row:
        return _row(record, f"{file.parent.name}/{number}")

    for number, example in enumerate(examples, start=1):
        yield from attempt(row, example, number, file.name)


def _row(record: Record, id: str) -> Row:
    prompt = take(record, "input", str)
    chosen, rejected = _answers(record)
    return Row(
        id=id,
        domain="safety",
        prompt=user_message(prompt),
        chosen=chosen,
        rejected=rejected,
        group=prompt,
        split="val",
    )


def _answers(record: Record) -> tuple[str, str]:
    """The better answer and the other one."""
    if "target_scores" in record:
        scores = take(record, "target_scores", dict)
    else:
        targets = take(record, "targets", dict)
        answers = take(targets, "choices", list)
        labels = take(targets, "labels", list)
        scores = dict(zip(answers, labels, strict=True))
    if sorted(scores.values()) != [0, 1]:
        raise Unusable(
            f"labels {list(scores.values())}: expected a 1 for one of two answers and a 0 for the other"
        )
    rejected, chosen = sorted(scores, key=lambda text: scores[text])
    return chosen, rejected
