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
    """One answer, its authors' mark, and ours."""

    id: str
    known: str
    answer: str
    author_mark: str | bool
    our_mark: str | bool | None


def gsm8k(root: Path) -> Iterator[Marked]:
    """Solutions of four models, marked by the authors of GSM8K."""
    path = root / "gsm8k" / "example_model_solutions_sample.jsonl"
    for number, row in enumerate(_rows(path), 1):
        gold = Gold(check="number", value=row["ground_truth"].split("A: ")[-1])
        # A row has a solution for each model, beside the question and the truth.
        for name, solution in row.items():
            if isinstance(solution, dict):
                answer, is_correct = solution["solution"], solution["is_correct"]
                yield _verified(f"{number}/{name}", gold, answer, is_correct)


def math_vision(root: Path) -> Iterator[Marked]:
    """Answers of several models, marked by the authors of MATH-Vision.

    What remains is theirs or unknowable: `(C) South.` counts as wrong there, `(E)` for option D as right.
    """
    folder = root / "math_vision"
    problems = {row["id"]: row for row in _rows(folder / "test_sample.jsonl")}
    for path in sorted((folder / "outputs").glob("*.jsonl")):
        for row in _rows(path):
            gold = _known(problems[row["id"]])
            id = f"{row['id']}/{path.stem}"
            yield _verified(id, gold, row["response"], row["correct"])


def _known(problem: dict[str, Any]) -> Gold:
    """The right answer to a problem of MATH-Vision: an option with its letter, or a number."""
    lettered = zip(ascii_uppercase, problem["options"], strict=False)
    options = [f"{letter}. {text}" for letter, text in lettered]
    right = [option for option in options if option[0] == problem["answer"]]
    # A problem without options is answered by a number.
    if not right:
        return Gold(check="number", value=problem["answer"])
    others = tuple(option for option in options if option != right[0])
    return Gold(check="choice", value=right[0], others=others)


def wildvision(root: Path) -> Iterator[Marked]:
    """GPT-4o's judgements in words, and the verdict that the authors of WildVision-Bench read in them."""
    folder = root / "wildvision_judgements" / "judgements"
    for path in sorted(folder.glob("*.jsonl")):
        for row in _rows(path):
            id = f"{row['question_id']}/{path.stem}"
            for game in row["games"]:
                text = game["judgment"]
                # The label as it was written, but only where our reader makes a verdict of it.
                our_mark = label(text) if parse(text) else None
                yield Marked(id, "", text, game["score"], our_mark)


def _verified(id: str, gold: Gold, answer: str, right: bool) -> Marked:
    """An answer with its authors' mark, and our verifier's."""
    known = f"{gold.check} {gold.value}"
    our_mark = check(gold, answer) == 1.0
    return Marked(id, known, answer, right, our_mark)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


SETS: dict[str, Callable[[Path], Iterator[Marked]]] = {
    "gsm8k": gsm8k,
    "math_vision": math_vision,
    "wildvision_judgements": wildvision,
}


def report(name: str, marked: list[Marked]) -> str:
    """The share that agrees, and a line for each that does not: id, known value, both marks, the answer's end."""
    apart = [answer for answer in marked if answer.our_mark != answer.author_mark]
    total, agreeing = len(marked), len(marked) - len(apart)
    share = 1 - len(apart) / total
    lines = [f"{name}: {agreeing} of {total} agree ({share:.2%})"]
    for answer in apart:
        # The end says which value an answer settles on.
        end = " ".join(answer.answer.split())[-80:]
        marks = f"theirs {answer.author_mark}, ours {answer.our_mark}"
        lines.append(f"  {answer.id}: {answer.known}: {marks}: ...{end}")
    return "\n".join(lines)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for name, read in SETS.items():
        if (root / name).exists():
            print(report(name, list(read(root))))
