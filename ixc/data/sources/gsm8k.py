"""GSM8K: word problems with worked solutions, and what four models answered. MIT; commercial use allowed.

Native: `test*.jsonl` or `train*.jsonl`, `{"question", "answer"}`, the value after `#### `; optional,
`example_model_solutions*.jsonl`, `{"question", "ground_truth", "<model>": {"is_correct", "solution"}}`.
A public benchmark: a model trained on it must not be reported on it.

Source: https://github.com/openai/grade-school-math, arXiv:2110.14168.
"""

import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from ixc.data.samples import Gold
from ixc.data.sources import Refused, Row
from ixc.data.sources.answers import user_prompt
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Record, Unusable, each, home, lines, matching, take

LICENCE = Licence(name="MIT", commercial=True, note="a public benchmark")

_SOLUTIONS = "example_model_solutions*.jsonl"
_CALCULATOR = re.compile(r"<<.*?>>")


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt with a number per problem; a right against a wrong model solution where there are both.

    In turn, for `limit` is to leave some of each.
    """
    problems = each(path, _problem, "test*.jsonl", "train*.jsonl", records=lines)
    folder = home(path)
    # The models' solutions are optional.
    has_solutions = bool(matching(folder, _SOLUTIONS))
    pairs = each(folder, _pairs, _SOLUTIONS, records=lines) if has_solutions else ()
    for problem, pair in zip_longest(problems, pairs):
        if problem is not None:
            yield problem
        if pair is not None:
            yield pair


def _problem(entry: Entry) -> Row:
    question = take(entry.record, "question", str)
    answer = take(entry.record, "answer", str)
    steps, marker, value = answer.rpartition("#### ")
    if not marker or not value.strip():
        raise Unusable("answer: no value after '#### '; add it or remove the row")
    # The verifier reads plain numbers.
    value = value.strip().replace(",", "")
    full = f"{plain(steps)}\nThe answer is {value}."
    return Row(
        id=entry.id,
        domain="reasoning",
        prompt=user_prompt(question),
        gold=Gold(check="number", value=value, answer=full),
        group=question,
    )


def _pairs(entry: Entry) -> list[Row]:
    question = take(entry.record, "question", str)
    right, wrong = _solutions(entry.record)
    if not right or not wrong:
        return []
    pair = Row(
        id=entry.id,
        domain="reasoning",
        prompt=user_prompt(question),
        chosen=right[0],
        rejected=wrong[0],
        group=question,
    )
    return [pair]


def _solutions(record: Record) -> tuple[list[str], list[str]]:
    """The right solutions of the models, and the wrong ones."""
    right: list[str] = []
    wrong: list[str] = []
    for value in record.values():
        if isinstance(value, dict) and "is_correct" in value:
            solution = plain(take(value, "solution", str))
            (right if value["is_correct"] else wrong).append(solution)
    if not right and not wrong:
        raise Unusable("no model's solution with is_correct; add one or remove the row")
    return right, wrong


def plain(solution: str) -> str:
    """A solution without calculator marks, its value in words.

    >>> plain("2 + 3 = <<2+3=5>>5 apples.\\nA: 5")
    '2 + 3 = 5 apples.\\nThe answer is 5.'
    """
    text = _CALCULATOR.sub("", solution).strip()
    return re.sub(r"(?:^|\n)A: (.+)$", r"\nThe answer is \1.", text).strip()
