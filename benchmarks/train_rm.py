"""Reward training: ours against what others do, side by side on the same model, data and threads.

The others' layout is a padded batch: every sequence whole, its picture through the tower for every row, as TRL,
LLaMA-Factory and ms-swift do. It stands here twice: as a plain loop, and as TRL's `RewardTrainer` with our model class
and a collator that brings the pictures, which it lacks. Ours reads prompt and picture once per question. All learn from
all pairs of a question's answers. Every run is a fresh process with one thread; the number is CPU time of the best
step. The rewards of the first step are checked to be equal.

    python -m benchmarks.train_rm [--trl PYTHON] [--quick]       PYTHON: of an environment with `trl`
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.reward import (
    SHAPE,
    VOCABULARY,
    Question,
    Shape,
    model,
    padded_ids,
    padded_rewards,
    questions,
    shown,
    tree_rewards,
)
from benchmarks.ways import Run, agree, cpu_seconds, head, mib, peak_bytes, row, side_by_side, start
from ixc.engine.losses import bradley_terry_loss
from ixc.models.ixc25 import IXCForRewardModel

SHAPES = (
    Shape(320, 64, 2, 4),
    Shape(1090, 64, 2, 1),
    Shape(2048, 64, 2, 1),
    Shape(320, 64, 4, 1),
    Shape(1090, 128, 2, 8, ragged=True),
    Shape(64, 64, 2, 8),
    Shape(64, 256, 2, 4),
    Shape(512, 64, 2, 2),
    Shape(512, 256, 2, 2),
    Shape(2048, 256, 2, 1),
)
QUICK = (Shape(64, 16, 2, 2), Shape(64, 16, 2, 2, ragged=True))
"""Whether everything works."""
STEPS = 5
"""The first is to warm up."""
LEARNING_RATE, MAX_GRAD_NORM = 1e-5, 1.0


class Steps(NamedTuple):
    """How some steps went."""

    rewards: Tensor
    """Of the first: of all better answers, then of all worse ones."""
    seconds: list[float]


def ours(reward: IXCForRewardModel, data: list[Question]) -> tuple[Tensor, Tensor]:
    """Rewards of the better and of the worse answer of all pairs."""
    rewards = tree_rewards(reward, data).unflatten(0, (len(data), -1))
    better, worse = torch.tensor(list(combinations(range(rewards.shape[1]), 2))).unbind(1)
    return rewards[:, better].flatten(), rewards[:, worse].flatten()


def padded(reward: IXCForRewardModel, data: list[Question]) -> tuple[Tensor, Tensor]:
    """The same by the others' layout: all better answers, then all worse ones, in one padded batch."""
    pairs = [pair for q in data for pair in combinations(q.rows(), 2)]
    better, worse = (list(rows) for rows in zip(*pairs, strict=True))
    images = shown(data, len(pairs) // len(data))
    twice = {name: torch.cat([x, x]) for name, x in images.items()}
    rewards = padded_rewards(reward, better + worse, twice)
    return rewards[: len(pairs)], rewards[len(pairs) :]


PAIRS = {"ours": ours, "padded": padded}


def plain_steps(way: str, reward: IXCForRewardModel, data: list[Question]) -> Steps:
    """A plain loop."""
    trained = [weights for weights in reward.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(trained, LEARNING_RATE, fused=True)
    seen: list[Tensor] = []

    def step() -> None:
        chosen, rejected = PAIRS[way](reward, data)
        seen.append(torch.cat([chosen, rejected]).detach())
        loss = bradley_terry_loss(chosen, rejected)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()

    seconds = [cpu_seconds(step) for _ in range(STEPS)]
    return Steps(seen[0], seconds)


def trl_steps(reward: IXCForRewardModel, data: list[Question]) -> Steps:
    """TRL's `RewardTrainer`, its defaults but for gradient checkpointing, which is off, and the order of the data."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl.trainer.reward_config import RewardConfig  # pyright: ignore[reportMissingImports]
    from trl.trainer.reward_trainer import RewardTrainer  # pyright: ignore[reportMissingImports]

    pairs = [(n, *pair) for n, q in enumerate(data) for pair in combinations(q.rows(), 2)]
    rows = [
        {"chosen_ids": a.tolist(), "rejected_ids": b.tolist(), "question": n} for n, a, b in pairs
    ] * STEPS

    def batch(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids = [torch.tensor(e[side]) for side in ("chosen_ids", "rejected_ids") for e in examples]
        return {
            **padded_ids(ids),
            **shown([data[e["question"]] for _ in range(2) for e in examples], 1),
        }

    class Clock(TrainerCallback):
        at: list[float] = []

        def on_step_end(self, *told: Any, **more: Any) -> None:
            self.at.append(time.process_time())

    words = {"</s>": 2, **{str(i): i for i in range(3, VOCABULARY)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, "</s>")), eos_token="</s>", pad_token="</s>"
    )
    seen: list[Tensor] = []
    reward.register_forward_hook(lambda _, __, out: seen.append(out.logits[:, 0].detach()))
    with tempfile.TemporaryDirectory() as folder:
        args = RewardConfig(
            folder,
            per_device_train_batch_size=len(pairs),
            max_steps=STEPS,
            max_length=None,
            learning_rate=LEARNING_RATE,
            max_grad_norm=MAX_GRAD_NORM,
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            remove_unused_columns=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        given = {"processing_class": tokenizer, "callbacks": [Clock()]}
        begin = time.process_time()
        RewardTrainer(reward, args, batch, Dataset.from_list(rows), **given).train()
    return Steps(seen[0], [after - before for before, after in pairwise([begin, *Clock.at])])


def kept_for_backward(reward: IXCForRewardModel, compute: Callable[[], Any]) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights not counted."""
    weights = {x.untyped_storage().data_ptr() for x in reward.parameters()}
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        alive = compute()
    del alive
    return sum(kept.values())


def measure(way: str, shape: dict[str, Any]) -> Run:
    """CPU seconds of the best step, memory and rewards of one way."""
    reward, data = model(), questions(Shape(**shape))
    if way == "trl":
        import trl.trainer.reward_trainer  # noqa: F401 # pyright: ignore[reportMissingImports] - its size is not counted
    before = peak_bytes()
    steps = trl_steps(reward, data) if way == "trl" else plain_steps(way, reward, data)
    peak = peak_bytes() - before
    kept = 0 if way == "trl" else kept_for_backward(reward, lambda: PAIRS[way](reward, data))
    return {
        "seconds": min(steps.seconds[1:]),
        "peak": peak,
        "kept": kept,
        "rewards": steps.rewards.tolist(),
    }


def main() -> None:
    """All shapes, as a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--trl", metavar="PYTHON", default="", help="interpreter of an environment with `trl`"
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does everything work?")
    options = parser.parse_args()
    others = ["padded", "trl"] if options.trl else ["padded"]
    ways = ["ours", *others]
    columns = [
        *(f"{way}, s" for way in ways),
        *(f"{way} / ours" for way in others),
        *(f"{way}, MiB" for way in ways),
    ]
    head(*SHAPE, *columns, "activations of padded, MiB", "of ours, MiB", "ours / padded")
    for shape in QUICK if options.quick else SHAPES:
        runs = side_by_side("benchmarks.train_rm", ways, options.trl, shape=asdict(shape))
        agree(runs, "rewards")
        own, kept = runs["ours"], [runs[way]["kept"] for way in ("padded", "ours")]
        seconds = [f"{run['seconds']:.3f}" for run in runs.values()]
        ratios = [f"**{runs[way]['seconds'] / own['seconds']:.2f}**" for way in others]
        memory = [mib(run["peak"]) for run in runs.values()]
        row(shape, *seconds, *ratios, *memory, *map(mib, kept), f"{kept[1] / kept[0]:.2f}")


if __name__ == "__main__":
    start(measure, main)
