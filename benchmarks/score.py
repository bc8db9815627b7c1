"""Scoring N answers to a question about a picture: ours against the other ways, side by side.

The others read picture and prompt for every answer: all in one padded batch (TRL, LLaMA-Factory, ms-swift), one by one,
or, as the official code does, one by one with eager attention. Ours reads them once, and all answers beside them. Same
weights, same scores (checked), one thread, a fresh process each; CPU time of the best run.

    python -m benchmarks.score [--quick]
"""

import argparse
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks.reward import (
    SHAPE,
    Question,
    Shape,
    model,
    padded_rewards,
    questions,
    shown,
    tree_rewards,
)
from benchmarks.ways import Run, agree, cpu_seconds, head, mib, peak_bytes, row, side_by_side, start
from ixc.models.ixc25 import IXCForRewardModel

SHAPES = tuple(
    Shape(prefix, 64, answers, 1) for answers in (16, 4, 1) for prefix in (320, 1090, 2048)
)
QUICK = (Shape(64, 16, 2, 2, ragged=True),)
"""Whether everything works."""
RUNS = 3
"""The first is to warm up."""


def padded_batch(reward: IXCForRewardModel, data: list[Question]) -> Tensor:
    """All answers in one padded batch."""
    return padded_rewards(
        reward, [row for q in data for row in q.rows()], shown(data, len(data[0].group.responses))
    )


def one_by_one(reward: IXCForRewardModel, data: list[Question]) -> Tensor:
    """The answers one at a time."""
    return torch.cat(
        [padded_rewards(reward, [row], shown([q], 1)) for q in data for row in q.rows()]
    )


def official(reward: IXCForRewardModel, data: list[Question]) -> Tensor:
    """The same by the official code's attention."""
    reward.set_attn_implementation("eager")
    return one_by_one(reward, data)


WAYS = {
    "ours": tree_rewards,
    "padded batch": padded_batch,
    "one by one": one_by_one,
    "official": official,
}


@torch.inference_mode()
def measure(way: str, shape: dict[str, Any]) -> Run:
    """CPU seconds of the best run, memory and scores of one way."""
    reward, data = model().eval(), questions(Shape(**shape))
    before = peak_bytes()
    scores = WAYS[way](reward, data)
    peak = peak_bytes() - before
    seconds = [cpu_seconds(lambda: WAYS[way](reward, data)) for _ in range(RUNS - 1)]
    return {"seconds": min(seconds), "peak": peak, "scores": scores.tolist()}


def main() -> None:
    """All shapes, as a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does everything work?")
    options = parser.parse_args()
    others = [way for way in WAYS if way != "ours"]
    ratios = [f"{way} / ours" for way in ("best of the others", *others)]
    head(*SHAPE, *(f"{way}, s" for way in WAYS), *ratios, *(f"{way}, MiB" for way in WAYS))
    for shape in QUICK if options.quick else SHAPES:
        runs = side_by_side("benchmarks.score", WAYS, shape=asdict(shape))
        agree(runs, "scores")
        seconds = {way: run["seconds"] for way, run in runs.items()}
        theirs = [seconds[way] for way in others]
        times = [f"**{each / seconds['ours']:.2f}**" for each in (min(theirs), *theirs)]
        row(
            shape,
            *(f"{each:.3f}" for each in seconds.values()),
            *times,
            *(mib(run["peak"]) for run in runs.values()),
        )


if __name__ == "__main__":
    start(measure, main)
