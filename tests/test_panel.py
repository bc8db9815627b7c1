"""Several judges: the majority, agreement by textbook numbers, and biases known beforehand."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixc.data.samples import Verdict
from ixc.stages.judge.panel import (
    Opinion,
    agreement,
    biases,
    cohen_kappa,
    fleiss_kappa,
    majority,
    pairwise,
)
from ixc.stages.judge.store import Judgement, Winner

WORDS = st.sampled_from(["chosen", "rejected", "tie"])


def vote(winner: Any, judge: str = "m") -> Verdict:
    return Verdict(
        winner=winner,
        judge=judge,
        orders=(winner, winner),
        reason=f"{judge} says {winner}",
        cost=0.5,
    )


def judgement(winner: Winner) -> Judgement:
    return Judgement(
        key=winner, model="org/m", sample="s", order="reference_first", winner=winner, reason="r"
    )


def opinion(first: Winner, second: Winner, longer: int = 0) -> Opinion:
    return Opinion(judgement(first), judgement(second), longer)


@pytest.mark.parametrize(
    ("votes", "judges", "winner"),
    [
        ("c", 1, "chosen"),
        ("cc", 2, "chosen"),
        ("cr", 2, "tie"),  # split
        ("c", 2, None),  # the second may still object
        ("ccr", 3, "chosen"),
        ("cc", 3, "chosen"),  # the third cannot change it
        ("cr", 3, None),
        ("crt", 3, "tie"),
        ("tt", 3, "tie"),
        ("ccrr", 4, "tie"),
        ("", 1, None),
    ],
)
def test_a_majority_is_more_than_half_of_all_judges(
    votes: str, judges: int, winner: str | None
) -> None:
    names = {"c": "chosen", "r": "rejected", "t": "tie"}
    found = majority([vote(names[letter]) for letter in votes], judges)
    assert (found and found.winner) == winner


def test_a_joint_verdict_names_all_judges_and_adds_their_costs() -> None:
    found = majority([vote("rejected", "a"), vote("chosen", "b"), vote("chosen", "c")], 3)
    assert found == Verdict(
        winner="chosen",
        judge="a + b + c",
        orders=("rejected", "rejected", "chosen", "chosen", "chosen", "chosen"),
        reason="b says chosen",
        cost=1.5,
    )


def test_cohens_kappa_by_hand() -> None:
    # 50 grants, two readers: both yes 20, both no 15, only the first yes 5, only the second yes 10.
    # observed 35/50 = 0.7; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5; (0.7 - 0.5) / (1 - 0.5) = 0.4
    first = "y" * 20 + "n" * 15 + "y" * 5 + "n" * 10
    second = "y" * 20 + "n" * 15 + "n" * 5 + "y" * 10
    assert cohen_kappa(first, second) == pytest.approx(0.4)


def test_fleiss_kappa_by_hand() -> None:
    # The worked example of Wikipedia's article: 14 raters, 10 subjects, 5 categories; P = 0.378, P_e = 0.213
    table = [
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
        (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    ]  # fmt: skip
    ratings = [
        "".join(name * count for name, count in zip("abcde", row, strict=True)) for row in table
    ]
    assert fleiss_kappa(ratings) == pytest.approx(0.210, abs=5e-4)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1))
def test_kappa_is_at_most_one_and_knows_no_first_judge(rows: list[tuple[str, str]]) -> None:
    first, second = zip(*rows, strict=True)
    kappa, swapped = cohen_kappa(first, second), cohen_kappa(second, first)
    assert kappa == swapped or (kappa is not None and kappa == pytest.approx(swapped))
    assert kappa is None or -1 - 1e-9 <= kappa <= 1 + 1e-9
    if first == second:
        assert kappa is None if len({*first}) == 1 else kappa == pytest.approx(1)


def test_judges_who_only_know_one_word_have_no_kappa() -> None:
    assert cohen_kappa(["tie"] * 3, ["tie"] * 3) is None
    assert fleiss_kappa([["tie"] * 3] * 4) is None
    assert cohen_kappa([], []) is None and fleiss_kappa([]) is None
    assert agreement([[vote("tie"), vote("tie")]], 2) == {"llm/agreement": 1.0}


def test_agreement_counts_what_all_have_judged() -> None:
    rows = [[vote(a), vote(b)] for a, b in itertools.product(("chosen", "rejected"), repeat=2)]
    assert agreement([*rows, [vote("chosen")]], 2) == {"llm/agreement": 0.5, "llm/cohen_kappa": 0.0}
    three = [[vote("chosen")] * 3, [vote("rejected")] * 3]
    assert agreement(three, 3) == {"llm/agreement": 1.0, "llm/fleiss_kappa": pytest.approx(1.0)}
    assert agreement([[vote("chosen")]], 1) == {}


def test_the_odd_judge_is_told_by_pairs_of_judges() -> None:
    said = {"org/a": "crcr", "b": "crcr", "odd": "rcrc"}
    names = {"c": "chosen", "r": "rejected"}
    rows = [[vote(names[words[i]], judge) for judge, words in said.items()] for i in range(4)]
    found = pairwise([*rows, [vote("tie", "b"), vote("tie", "odd")]], list(said))
    # b and odd, all five: observed 1/5, by chance 2 * (2/5)^2 + (1/5)^2 = 9/25; (0.2 - 0.36) / 0.64 = -0.25
    assert found == {
        "llm/cohen_kappa/org-a/b": pytest.approx(1),
        "llm/cohen_kappa/org-a/odd": pytest.approx(-1),
        "llm/cohen_kappa/b/odd": pytest.approx(-0.25),
    }
    assert pairwise(rows, ["org/a", "b"]) == {}


def test_biases_by_hand() -> None:
    rows = [
        opinion("first", "first", longer=1),  # by position: no winner, so no word on length
        opinion("first", "second", longer=1),  # the reference, the longer
        opinion("second", "first", longer=1),  # the other, the shorter
        opinion("first", "second", longer=-1),  # the reference, the shorter
        opinion("tie", "tie", longer=1),
    ]
    # first shown wins 5, second 3 of 10 judgements; both orders agree on 4 of 5; longer wins 1, shorter 2 of 3
    assert biases({"org/m": rows}) == {
        "llm/org-m/consistency": 0.8,
        "llm/org-m/position_bias": pytest.approx(0.2),
        "llm/org-m/length_bias": pytest.approx(-1 / 3),
    }
    assert biases({"org/m": []}) == {}
