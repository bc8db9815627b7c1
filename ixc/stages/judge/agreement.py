"""How far the verifiers agree with those who marked real answers by hand or by their own rule.

`python -m ixc.stages.judge.agreement ../shared/data` prints the share, and every disagreement, for the answers of
GSM8K's authors (`is_correct`) and of MATH-Vision's (`correct`), and for WildVision-Bench's verdicts of GPT-4o
what the reader of verdicts makes of them.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

from ixc.data.samples import Gold
from ixc.stages.judge.questions import label, parse
from ixc.verifiers.rules import check


class Marked(NamedTuple):
    """One answer, what its authors say of it, and what we say."""

    id: str
    known: str
    answer: str
    theirs: str | bool
    ours: str | bool | None


def gsm8k(root: Path) -> Iterator[Marked]:
    """Solutions of four models, marked by the authors of GSM8K."""
    for number, row in enumerate(_rows(root / "gsm8k" / "example_model_solutions_sample.jsonl"), 1):
        gold = Gold(check="number", value=row["ground_truth"].split("A: ")[-1])
        for name, solution in row.items():
            if isinstance(solution, dict):
                yield _verified(
                    f"{number}/{name}", gold, solution["solution"], solution["is_correct"]
                )


def math_vision(root: Path) -> Iterator[Marked]:
    """Answers of several models, marked by the authors of MATH-Vision.

    What remains is theirs or unknowable: `(C) South.` counts as wrong there, `(E)` for option D as right.
    """
    problems = {row["id"]: row for row in _rows(root / "math_vision" / "test_sample.jsonl")}
    for path in sorted((root / "math_vision" / "outputs").glob("*.jsonl")):
        for row in _rows(path):
            problem = problems[row["id"]]
            yield _verified(
                f"{row['id']}/{path.stem}", _known(problem), row["response"], row["correct"]
            )


def _known(problem: dict[str, Any]) -> Gold:
    options = [
        f"{letter}. {text}"
        for letter, text in zip(ascii_uppercase, problem["options"], strict=False)
    ]
    right = next((option for option in options if option[0] == problem["answer"]), None)
    if right is None:
        return Gold(check="number", value=problem["answer"])
    return Gold(
        check="choice", value=right, others=tuple(option for option in options if option != right)
    )


def wildvision(root: Path) -> Iterator[Marked]:
    """GPT-4o's judgements in words, and the verdict that the authors of WildVision-Bench read in them."""
    for path in sorted((root / "wildvision_judgements" / "judgements").glob("*.jsonl")):
        for row in _rows(path):
            for game in row["games"]:
                ours = label(game["judgment"]) if parse(game["judgment"]) else None
                yield Marked(
                    f"{row['question_id']}/{path.stem}", "", game["judgment"], game["score"], ours
                )


def _verified(id: str, gold: Gold, answer: str, right: bool) -> Marked:
    return Marked(id, f"{gold.check} {gold.value}", answer, right, check(gold, answer) == 1.0)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


SETS: dict[str, Callable[[Path], Iterator[Marked]]] = {
    "gsm8k": gsm8k,
    "math_vision": math_vision,
    "wildvision_judgements": wildvision,
}


def report(name: str, marked: list[Marked]) -> str:
    """The share that agrees, and a line for each that does not: id, known value, both marks, the answer's end."""
    apart = [one for one in marked if one.ours != one.theirs]
    lines = [
        f"{name}: {len(marked) - len(apart)} of {len(marked)} agree ({1 - len(apart) / len(marked):.2%})"
    ]
    for one in apart:
        end = " ".join(one.answer.split())[-80:]
        lines.append(f"  {one.id}: {one.known}: theirs {one.theirs}, ours {one.ours}: ...{end}")
    return "\n".join(lines)


if __name__ == "__main__":
    for name, marked in SETS.items():
        if (Path(sys.argv[1]) / name).exists():
            print(report(name, list(marked(Path(sys.argv[1])))))
