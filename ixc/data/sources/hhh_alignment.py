"""HHH alignment: 221 hand-made pairs, harmless, helpful, honest and other. Apache-2.0; commercial use allowed.

Native: `task.json` of BIG-bench, `{"examples": [{"input", "target_scores": {answer: 0 or 1}}]}`; or the hub's form,
`{"input", "targets": {"choices": [str, str], "labels": [int, int]}}`, 1 for the better answer.
An evaluation set, part of RewardBench's older prior sets: all of it is held out.

Source: https://huggingface.co/datasets/HuggingFaceH4/hhh_alignment, arXiv:2112.00861.
"""

from collections.abc import Iterator
from pathlib import Path

from ixc.data.samples import Turn
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
    tasks = matching(home(origin), "**/task.json") if isinstance(origin, Path) else []
    for file in tasks:
        yield from _task(file, file.parent.name)
    if not tasks:
        yield from each(origin, lambda entry: [_row(entry)])


def _task(file: Path, name: str) -> Iterator[Row | Refused]:
    content = document(file)
    if isinstance(content, Refused):
        yield content
        return
    if not isinstance(examples := content.get("examples"), list):
        yield Refused(where=file.name, reason="no list 'examples'; is it BIG-bench's task file?")
        return
    for number, example in enumerate(examples, start=1):
        yield from attempt(
            lambda record, number: [_row(Entry(record, f"{name}/{number}", None))],
            example,
            number,
            file.name,
        )


def _row(entry: Entry) -> Row:
    prompt, (chosen, rejected) = take(entry.record, "input", str), _answers(entry.record)
    turn = Turn(role="user", content=prompt)
    return Row(
        id=entry.id,
        domain="safety",
        prompt=(turn,),
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
        scores = dict(
            zip(take(targets, "choices", list), take(targets, "labels", list), strict=True)
        )
    if sorted(scores.values()) != [0, 1]:
        raise Unusable(
            f"labels {list(scores.values())}: expected a 1 for one of two answers and a 0 for the other"
        )
    rejected, chosen = sorted(scores, key=lambda text: scores[text])
    return chosen, rejected
