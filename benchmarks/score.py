"""Scoring N answers to a question about a picture: ours against the official code's way, side by side.

The official way reads picture and prompt anew for every answer, one at a time, with eager attention. Ours reads them
once and all answers beside them. Same weights, same numbers (checked), one thread, fresh process each.

    python -m benchmarks.score
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from ixc.api import RewardModel
from ixc.model import IXCConfig, IXCForRewardModel, IXCProcessor
from ixc.model.processing import train_tokenizer

TILE = 112
ANSWERS = (1, 4, 16)
QUESTION = "What is to be seen here, and what would a careful person conclude from it? " * 4


def model() -> RewardModel:
    """Random weights; small enough for a CPU, wide enough that arithmetic outweighs overhead."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([QUESTION], 300)
    processor = IXCProcessor(tokenizer, TILE, 14, hd_num=9)
    ids: dict[str, Any] = {
        "image_token_id": processor.ids["image"],
        "eos_token_id": 2,
        "pad_token_id": 2,
        "bos_token_id": 1,
    }
    sizes: dict[str, Any] = {"vocab_size": 300, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6}
    heads: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 2, "plora_rank": 16, "tile_size": TILE}
    vision: dict[str, Any] = {"vision_hidden_size": 192, "vision_intermediate_size": 768, "vision_num_hidden_layers": 6}
    config = IXCConfig(**ids, **sizes, **heads, **vision, vision_num_attention_heads=6)
    return RewardModel(IXCForRewardModel(config), processor)


def ours(reward: RewardModel, chats: list[list[dict[str, str]]], picture: Image.Image) -> list[float]:
    """Prompt and picture once."""
    return reward.score(chats, [[picture]] * len(chats))


@torch.no_grad()
def official_way(reward: RewardModel, chats: list[list[dict[str, str]]], picture: Image.Image) -> list[float]:
    """Everything anew for every answer."""
    reward.model.set_attn_implementation("eager")
    return [reward.model(**reward.processor(chat, images=[picture])).logits.item() for chat in chats]


WAYS: dict[str, Callable[..., list[float]]] = {"ours": ours, "official way": official_way}


def measure(way: str, count: int, repeats: int = 3) -> None:
    """Print seconds of CPU time, peak memory and scores of one way; runs in its own process."""
    torch.set_num_threads(1)
    reward, picture = model(), Image.new("RGB", (640, 480), "teal")
    question = {"role": "user", "content": QUESTION}
    chats = [[question, {"role": "assistant", "content": f"{i}: a teal wall. " * 3}] for i in range(count)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scores = WAYS[way](reward, chats, picture)
    start = time.process_time()
    for _ in range(repeats):
        WAYS[way](reward, chats, picture)
    seconds = (time.process_time() - start) / repeats
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"seconds": seconds, "memory_mb": memory, "scores": scores}))


def main() -> None:
    """All ways and sizes, as a Markdown table."""
    print("| answers | official way, s | ours, s | ratio | official way, MiB | ours, MiB |\n|---|---|---|---|---|---|")
    for count in ANSWERS:
        runs = {way: _in_its_own_process(way, count) for way in WAYS}
        theirs, own = runs["official way"], runs["ours"]
        torch.testing.assert_close(torch.tensor(own["scores"]), torch.tensor(theirs["scores"]), rtol=0, atol=1e-5)
        ratio = theirs["seconds"] / own["seconds"]
        memory = f"{theirs['memory_mb']:.0f} | {own['memory_mb']:.0f}"
        print(f"| {count} | {theirs['seconds']:.2f} | {own['seconds']:.2f} | {ratio:.1f} | {memory} |")


def _in_its_own_process(way: str, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.score", way, str(count)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], int(sys.argv[2]))
    else:
        main()
