"""Batches: whole epochs, within their budget, of like length, the same again from any step on."""

from itertools import islice
from threading import get_ident
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixc.engine.batching import OverBudget, Plan, microbatches, prefetch

BATCH = st.sampled_from([{"batch_size": 7}, {"batch_tokens": 150}])
LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=60)


def plan(
    lengths: list[int], pairs: list[int] | None = None, epochs: float = 1.0, **options: Any
) -> Plan:
    names = [f"pair {i}" for i in range(len(lengths))]
    return Plan(lengths, pairs or [1] * len(lengths), names, epochs=epochs, **options)


@given(LENGTHS, st.integers(100, 400), st.integers(0, 3))
def test_an_epoch_has_every_row_once_and_no_step_exceeds_its_tokens(
    lengths: list[int], budget: int, seed: int
):
    steps = list(plan(lengths, batch_tokens=budget, seed=seed).steps())
    assert sorted(row for step in steps for row in step) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in step) <= budget for step in steps)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=60), st.integers(6, 20))
def test_no_step_exceeds_its_pairs(pairs: list[int], budget: int):
    steps = list(plan([9] * len(pairs), pairs, batch_size=budget).steps())
    assert sorted(row for step in steps for row in step) == list(range(len(pairs)))
    assert all(sum(pairs[row] for row in step) <= budget for step in steps)


@given(LENGTHS, st.sampled_from([0.3, 1.0, 2.5]), BATCH)
def test_a_plan_goes_on_at_any_step_as_if_it_had_not_stopped(
    lengths: list[int], epochs: float, batch: dict[str, Any]
):
    steps = list(plan(lengths, epochs=epochs, **batch).steps())
    assert len(steps) == len(plan(lengths, epochs=epochs, **batch))
    for start in range(len(steps) + 1):
        assert list(plan(lengths, epochs=epochs, **batch).steps(start)) == steps[start:]


def test_epochs_and_seeds_differ():
    steps = list(plan(list(range(1, 101)), epochs=2.0, batch_size=10).steps())
    assert steps[:10] != steps[10:]
    assert steps != list(plan(list(range(1, 101)), epochs=2.0, batch_size=10, seed=1).steps())


def test_rows_of_a_step_are_of_like_length_and_its_budget_is_used():
    lengths = [10 + i * i % 191 for i in range(3000)]
    steps = list(plan(lengths, batch_tokens=1600).steps())
    longest = sum(max(lengths[row] for row in step) * len(step) for step in steps)
    assert longest < 1.05 * sum(lengths)  # 1.9 in batches at random
    assert sum(lengths) > 0.9 * 1600 * len(steps)


@given(LENGTHS, st.integers(1, 5))
def test_the_processes_share_a_step_and_none_exceeds_the_budget(
    lengths: list[int], world_size: int
):
    shares = [
        microbatches(range(len(lengths)), lengths, 200, rank, world_size)
        for rank in range(world_size)
    ]
    batches = [batch for share in shares for batch in share]
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in batch) <= 200 for batch in batches)
    work = [sum(lengths[row] for batch in share for row in batch) for share in shares]
    assert max(work) - min(work) <= max(lengths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch_tokens": 50},
            r"pair 2 \(and 1 more\): 60 tokens, more than batch_tokens 50; raise it to 70",
        ),
        ({"batch_size": 3}, r"pair 1: 4 pairs, more than batch_size 3; raise it to 4"),
    ],
)
def test_a_row_that_fits_nowhere_is_named(options: dict[str, Any], message: str):
    with pytest.raises(OverBudget, match=message):
        plan([10, 20, 60, 70], [1, 4, 1, 1], **options)


def test_work_is_done_ahead_in_order_by_another_thread():
    made: list[int] = []
    doubled = prefetch(range(10), lambda i: (made.append(i), get_ident(), 2 * i)[1:], depth=2)
    first = next(doubled)
    assert first[1] == 0 and first[0] != get_ident()
    rest = list(doubled)
    assert [value for _, value in rest] == list(range(2, 20, 2)) and made == list(range(10))


def test_no_more_is_read_than_is_asked_for_and_errors_arrive_where_they_belong():
    def make(i: int) -> int:
        if i == 3:
            raise ValueError("three")
        return i

    taken: list[int] = []
    items = (taken.append(i) or i for i in range(100))
    results = prefetch(items, make, depth=2)
    assert list(islice(results, 3)) == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(taken) <= 6
