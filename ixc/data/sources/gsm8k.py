"""GSM8K: word problems with worked solutions, and what four models answered. MIT; commercial use allowed.

Native: `test*.jsonl` or `train*.jsonl`, `{"question", "answer"}`, the value after `#### `; optional,
`example_model_solutions*.jsonl`, `{"question", "ground_truth", "<model>": {"is_correct", "solution"}}`.
A public benchmark: a model trained on it must not be reported on it.

Source: https://github.com/openai/grade-school-math, arXiv:2110.14168.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from pathlib import Path

from ixc.data.samples import Gold, Turn
from ixc.data.sources import Refused, Row
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Record, Unusable, find, home, matching, rows, take

LICENCE = Licence(name="MIT", commercial=True, note="a public benchmark")

_CALCULATOR = re.compile(r"<<.*?>>")


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt with a number per problem; a right against a wrong model solution where there are both.

    In turn, for `limit` is to leave some of each.
    """
    solved = matching(home(path), "example_model_solutions*.jsonl")
    for each in zip_longest(
        _all(find(path, "test*.jsonl", "train*.jsonl"), _problem), _all(solved, _pair)
    ):
        yield from (item for item in each if item is not None)


def _all(
    files: Iterable[Path], make: Callable[[Record, str], list[Row]]
) -> Iterator[Row | Refused]:
    for file in files:
        yield from rows(
            file, lambda record, number, name=file.stem: make(record, f"{name}/{number}")
        )


def _problem(record: Record, id: str) -> list[Row]:
    question, answer = take(record, "question", str), take(record, "answer", str)
    steps, marker, value = answer.rpartition("#### ")
    if not marker or not value.strip():
        raise Unusable("answer: no value after '#### '; add it or remove the row")
    value = value.strip().replace(",", "")
    full = f"{plain(steps)}\nThe answer is {value}."
    gold = Gold(check="number", value=value, answer=full)
    return [Row(id=id, domain="reasoning", prompt=_prompt(question), gold=gold, group=question)]


def _pair(record: Record, id: str) -> list[Row]:
    question = take(record, "question", str)
    marked = [
        value for value in record.values() if isinstance(value, dict) and "is_correct" in value
    ]
    if not marked:
        raise Unusable("no model's solution with is_correct; add one or remove the row")
    right = [plain(take(value, "solution", str)) for value in marked if value["is_correct"]]
    wrong = [plain(take(value, "solution", str)) for value in marked if not value["is_correct"]]
    if not right or not wrong:
        return []
    pair = Row(
        id=id,
        domain="reasoning",
        prompt=_prompt(question),
        chosen=right[0],
        rejected=wrong[0],
        group=question,
    )
    return [pair]


def _prompt(question: str) -> tuple[Turn, ...]:
    return (Turn(role="user", content=question.strip()),)


def plain(solution: str) -> str:
    """A solution without calculator marks, its value in words.

    >>> plain("2 + 3 = <<2+3=5>>5 apples.\\nA: 5")
    '2 + 3 = 5 apples.\\nThe answer is 5.'
    """
    text = _CALCULATOR.sub("", solution).strip()
    return re.sub(r"(?:^|\n)A: (.+)$", r"\nThe answer is \1.", text).strip()
