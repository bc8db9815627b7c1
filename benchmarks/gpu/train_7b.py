"""Reward training at full size, random bf16 weights: pairs per second, memory, share of the GPU's peak.

Pairs about one picture each, prompt and picture once per pair or, with `--separate`, once per answer. Not yet run.

    python -m benchmarks.gpu.train_7b [--separate] [--pairs 2] [--checkpointing] PICTURE [PICTURE ...]
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from benchmarks.gpu.score_7b import PEAK, PROMPT, build, weights_used
from ixc.losses import bradley_terry_loss
from ixc.model import IXCConfig, IXCForRewardModel, Tree, collate
from ixc.model.pictures import partition, to_tiles

ANSWER = 300
STEPS = 5


def rewards_of(model: IXCForRewardModel, trees: list[Tree], pictures: list[tuple[Tensor, int]]) -> Tensor:
    """Rewards of all branches; the frozen tower keeps nothing for the backward pass."""
    batch = collate(trees).to("cuda")
    hidden = model.model(**batch.inputs(), features=torch.cat(model.encode_pictures(pictures)))
    return model.scores(batch.pool(hidden, model.config.pooling))


def read(model: IXCForRewardModel, path: str) -> tuple[tuple[Tensor, int], list[int]]:
    """A picture's tiles with their rows, and a prompt about it."""
    picture = Image.open(path).convert("RGB")
    place = partition(*picture.size, 9, 560)
    shown = (to_tiles(picture, place, 560).to("cuda", torch.bfloat16), place.rows)
    with torch.no_grad():
        [tokens] = model.encode_pictures([shown])
    return shown, [1, *[model.config.image_token_id] * len(tokens), *range(1000, 1000 + PROMPT)]


def measure(model: IXCForRewardModel, path: str, pairs: int, separate: bool) -> dict[str, float | str]:
    """Whole steps: forward, backward, AdamW."""
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-6, fused=True)
    shown, prefix = read(model, path)
    answers = [list(range(start, start + ANSWER)) for start in range(2000, 2000 + 2 * pairs)]
    both = [Tree(prefix, answers[n : n + 2]) for n in range(0, 2 * pairs, 2)]
    trees = [Tree(prefix, [answer]) for answer in answers] if separate else both
    pictures = [shown] * len(trees)

    def step() -> None:
        optimizer.zero_grad()
        rewards = rewards_of(model, trees, pictures)
        chosen, rejected = rewards.unflatten(0, (-1, 2)).unbind(1)
        bradley_terry_loss(chosen, rejected).backward()
        optimizer.step()

    step()
    torch.cuda.reset_peak_memory_stats()
    seconds = _seconds(step)
    tokens = sum(len(tree.prefix) + sum(map(len, tree.branches)) for tree in trees)
    language, vision = weights_used(model)
    operations = 6 * language * tokens + 2 * vision * 1601 * len(shown[0]) * len(trees)
    name = torch.cuda.get_device_name()
    return {
        "device": name,
        "layout": "separate" if separate else "trees",
        "tokens": tokens,
        "seconds": seconds,
        "pairs_per_second": pairs / seconds,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
        "mfu": operations / seconds / next((value for key, value in PEAK.items() if key in name), float("nan")),
    }


def _seconds(step: Callable[[], None]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / STEPS


def main() -> None:
    """One JSON line per picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--pairs", type=int, default=2, help="per step")
    parser.add_argument("--separate", action="store_true", help="prompt and picture once per answer")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    options = parser.parse_args()
    model = build(IXCConfig(), "cuda").train()
    model.freeze_vision()
    if options.checkpointing:
        model.gradient_checkpointing_enable()
    for path in options.pictures:
        print(json.dumps({"picture": path, **measure(model, path, options.pairs, options.separate)}))


if __name__ == "__main__":
    main()
