"""Options read in free answers, as a person marked them; half of the answers are Chinese."""

import json
import re
import time
from pathlib import Path

import pytest
from real import REAL, needs_real

from ixc.data.samples import Gold
from ixc.stages.judge.agreement import math_vision
from ixc.verifiers.choices import read_option
from ixc.verifiers.rules import check

FILE = Path(__file__).with_name("choices.jsonl")
"""First the questions (right letter, then the options' texts), then rows of question, answer, mark."""
QUESTIONS, *ANSWERS = map(json.loads, FILE.read_text(encoding="utf-8").splitlines())


def gold(question: str) -> Gold:
    right, *texts = QUESTIONS["questions"][question]
    options = [
        f"{letter}. {text}" if text else letter
        for letter, text in zip("ABCDE", texts, strict=False)
    ]
    known = next(option for option in options if option[0] == right)
    return Gold(
        check="choice", value=known, others=tuple(option for option in options if option != known)
    )


def test_hand_marked_answers_are_marked_so() -> None:
    chinese = sum(re.search(r"[\u4e00-\u9fff]", answer) is not None for _, answer, _ in ANSWERS)
    assert len(ANSWERS) >= 300 and chinese >= 0.45 * len(ANSWERS)
    apart = [
        (name, answer, mark)
        for name, answer, mark in ANSWERS
        if (check(gold(name), answer) == 1.0) != mark
    ]
    assert len(apart) <= 0.01 * len(ANSWERS), apart


def test_the_letter_alone_is_right_that_a_person_reads() -> None:
    """Every option in turn is taken for the right one; `null`: the answer settles on none."""
    head, *rows = map(
        json.loads,
        FILE.with_name("choices_by_letter.jsonl").read_text(encoding="utf-8").splitlines(),
    )
    apart = []
    for question, answer, letter in rows:
        texts = head["questions"][question]
        options = [
            f"{name}. {text}" if text else name for name, text in zip("ABCDE", texts, strict=False)
        ]
        right = [option[0] for option in options if check(among(option, options), answer) == 1.0]
        apart += [(answer, letter, right)] if right != ([letter] if letter else []) else []
    assert len(rows) > 150 and len(apart) <= 0.01 * len(rows), apart


def among(right: str, options: list[str]) -> Gold:
    return Gold(
        check="choice", value=right, others=tuple(option for option in options if option != right)
    )


def test_the_other_options_are_hardly_needed() -> None:
    apart = []
    for name, answer, mark in ANSWERS:
        alone = Gold(check="choice", value=gold(name).value)
        apart += [(name, answer, mark)] if (check(alone, answer) == 1.0) != mark else []
    assert len(apart) <= 0.02 * len(ANSWERS), (
        apart
    )  # what excludes three of four cannot be read without the four


@pytest.mark.parametrize(
    ("value", "answer", "right"),
    [
        ("C. 45°", "答案为C", True),
        ("C. 45°", "本题选C。", True),
        ("C. 45°", "因为点A和点B在圆上，所以∠C=60°", False),
        ("C. 3/4", "The bars A, B, C, and D are compared. The answer is: \\frac{15}{17}", False),
        ("C. 7", "Vitamin C. The answer is 3.", False),
        ("C. 7", "It is not C.", False),
        ("C. 7", "(A) is wrong. (C) is right because (B) is too small.", True),
        ("Ｃ、45°", "选Ｃ", True),
    ],
)
def test_a_letter_counts_by_what_stands_around_it(value: str, answer: str, right: bool) -> None:
    assert (check(Gold(check="choice", value=value), answer) == 1.0) == right


TICKED = "- **A. a cat** ❌ no whiskers\n- **B. a fish** ✅ fins\n- **C. a bird** ❌ no wings\n- **D. a dog** ❌ no fur"


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        (TICKED, "B"),
        (TICKED.replace("**", ""), "B"),
        ("A: 小猫 ✗ B: 小狗", None),
        ("A、猫 ✗\nB、鱼 ✗\nC、鸟 ✓\nD、狗 ✗", "C"),
        ("B) 15\n\nExplanation: A) is 12, C) is 18, D) is 20.", "B"),
        ("A) 12\nB) 15\nC) 18", None),
        ("Between C and D, D is the better choice.", "D"),
    ],
)
def test_ticks_and_repeated_options(answer: str, letter: str | None) -> None:
    assert read_option(answer, "ABCD").letter == letter


@pytest.mark.parametrize(
    ("value", "others"), [("②③", ("①②", "①②③")), ("15 cm", ("5 cm",)), ("red", ("dark red",))]
)
def test_between_chinese_and_other_writing_no_space_is_needed(
    value: str, others: tuple[str, ...]
) -> None:
    gold = Gold(check="match", value=value, others=others)
    assert check(gold, f"所以正确的是{value}。") == 1.0 and check(gold, f"是{others[-1]}的") == 0.0


@pytest.mark.parametrize(
    "answer", ["The answer is B or C.", "选A、C", "Both (A) and (C) hold.", "答案可能是A或C。"]
)
def test_who_names_two_settles_on_none(answer: str) -> None:
    assert read_option(answer).letter is None and read_option(answer).several
    assert check(Gold(check="choice", value="C. 7", others=("A. 5", "B. 6")), answer) is None


def test_options_that_are_only_repeated_decide_nothing() -> None:
    assert check(Gold(check="choice", value="C. 7"), "A. 5, B. 6, C. 7, D. 8") is None


THEIR_MISTAKES = {
    *(
        "247",
        "775",
        "865",
        "1175",
        "1727",
        "1",
        "511",
        "893",
        "937",
        "1291",
        "1468",
        "689",
        "749",
        "1120",
        "1444",
    ),
    *("1937", "1984", "2180", "2655", "742"),
}
"""Problems of which the authors marked some answer wrongly: `(C) South.` as wrong, `(E)` for option D as right."""


@needs_real
def test_where_the_authors_of_math_vision_are_right_we_are() -> None:
    marked = [one for one in math_vision(REAL) if one.id.split("/")[0] not in THEIR_MISTAKES]
    apart = [one for one in marked if one.our_mark != one.author_mark]
    assert len(marked) > 1500 and len(apart) <= 0.005 * len(marked), apart


def test_long_answers_take_no_time() -> None:
    text = "Let A and B be points, so (A) is not what we want, because angle C = 45. " * 400
    start = time.process_time()
    check(gold("angle"), text + "故选C")
    assert time.process_time() - start < 2.0
