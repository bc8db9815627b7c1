"""The benchmarks count right, and the ways that they hold beside each other compute the same."""

from itertools import chain
from pathlib import Path

import pytest
import torch

from benchmarks import batches, plot, reward, sample, score, train_rm
from benchmarks.batches import Row

ROWS = batches.mix(400, 2)


def test_padding_by_hand():
    # rows of 3 and 1 together, one of 2 alone: 2 x 3 + 1 x 2 computed for 6
    count = batches.padded([3, 1, 2], [[0, 1], [2]])
    assert count == (6, 8) and count.padding == 0.25


def test_others_compute_every_sequence_whole():
    rows = [Row(10, (2, 4), None), Row(5, (1, 1), None)]
    assert batches.theirs(rows, by_length=True) == (12 + 14 + 6 + 6, 4 * 14)
    assert batches.packed(rows, [[0, 1]]) == (16 + 7, 16 + 7)


@pytest.mark.parametrize("way", [batches.training, batches.scoring, batches.sampling])
def test_every_row_of_the_mix_is_in_one_batch(way: batches.Way):
    assert sorted(chain(*way(ROWS))) == list(range(len(ROWS)))


def test_the_mix_has_texts_and_images_of_all_sizes_and_little_of_it_is_padding():
    tiles = {row.place.rows * row.place.columns for row in ROWS if row.place}
    assert tiles >= {1, 6, 8} and any(row.place is None for row in ROWS)
    assert batches.packed(ROWS, batches.training(ROWS)).padding < 0.05
    assert batches.packed(ROWS, batches.scoring(ROWS)).padding < 0.05
    assert batches.theirs(ROWS, by_length=False).padding > 0.3


@pytest.mark.parametrize("shape", train_rm.QUICK)
def test_all_ways_of_training_have_the_same_rewards(shape: reward.Shape):
    model, data = reward.model(), reward.questions(shape)
    ours, padded = (torch.cat(way(model, data)) for way in (train_rm.ours, train_rm.padded))
    torch.testing.assert_close(ours, padded, rtol=0, atol=1e-5)


def test_all_ways_of_scoring_have_the_same_scores():
    model, data = reward.model(), reward.questions(score.QUICK[0])
    with torch.no_grad():
        ours, *others = (way(model, data) for way in score.WAYS.values())
    for other in others:
        torch.testing.assert_close(other, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_all_ways_of_sampling_say_the_same(count: int):
    chat = sample.model()
    assert sample.ours(chat, [20, 30, 40], count, 3) == sample.generate(
        chat, [20, 30, 40], count, 3
    )


def test_the_plot_shows_what_the_tables_have_in_bold(tmp_path: Path):
    table = "| answers | ours, s | naive, s | naive / ours |\n|---|---|---|---|\n| 4 | 1.0 | 2.5 | **2.50** |\n"
    found = list(plot.ratios(f"# All\n\n## One\n\n{table}\nText.\n\n## Two\n\n{table}"))
    assert found == [plot.Ratio(section, "4", "naive", 2.5) for section in ("One", "Two")]
    plot.draw(found, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")
