"""Sampling N answers to one prompt: ours, which reads and keeps the prompt once, against Transformers' `generate`.

Both are greedy, and must say the same. Same weights, one thread, a fresh process each; CPU time of the best run.

    python -m benchmarks.sample
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from ixc.inference import sample_tokens
from ixc.model import IXCConfig, IXCForCausalLM

NEW = 64
SIZES = ((512, 1), (512, 8), (2048, 1), (2048, 8))
"""Tokens of the prompt, and answers."""


def model() -> IXCForCausalLM:
    """Random weights; large enough that tokens are told apart."""
    torch.manual_seed(0)
    config = IXCConfig(
        vocab_size=1000,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        plora_rank=8,
        tile_size=28,
        vision_hidden_size=8,
        vision_num_hidden_layers=1,
        vision_num_attention_heads=1,
        image_token_id=3,
        pad_token_id=0,
        end_of_turn_token_id=1,
        eos_token_id=1,
    )
    return IXCForCausalLM(config).eval()


@torch.no_grad()
def ours(chat: IXCForCausalLM, prompt: list[int], count: int) -> list[list[int]]:
    """The prompt once; so cold that the likeliest token is drawn."""
    return sample_tokens(chat, [prompt], None, count, 1e-6, NEW, torch.Generator().manual_seed(0)).tolist()


def generate(chat: IXCForCausalLM, prompt: list[int], count: int) -> list[list[int]]:
    """A batch of `count` answers, as `num_return_sequences` makes it."""
    ids = torch.tensor([prompt] * count)
    told = chat.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
    return told[:, len(prompt) :].tolist()


WAYS: dict[str, Callable[..., list[list[int]]]] = {"ours": ours, "generate": generate}


def measure(way: str, length: int, count: int, repeats: int = 3) -> None:
    """Print seconds of CPU time and the answers of one way; runs in its own process."""
    torch.set_num_threads(1)
    chat, prompt = model(), torch.randint(10, 1000, (length,), generator=torch.Generator().manual_seed(2)).tolist()
    answers, seconds = WAYS[way](chat, prompt, count), []
    for _ in range(repeats):
        start = time.process_time()
        WAYS[way](chat, prompt, count)
        seconds.append(time.process_time() - start)
    print(json.dumps({"seconds": min(seconds), "answers": answers}))


def main() -> None:
    """All sizes, as a Markdown table."""
    print("| prompt | answers | generate, s | ours, s | ratio |\n|---|---|---|---|---|")
    for size in SIZES:
        runs = {way: _in_its_own_process(way, *size) for way in WAYS}
        if runs["ours"]["answers"] != runs["generate"]["answers"]:
            raise AssertionError(f"{size}: the two ways give different answers")
        theirs, own = runs["generate"]["seconds"], runs["ours"]["seconds"]
        print(f"| {size[0]} | {size[1]} | {theirs:.2f} | {own:.2f} | **{theirs / own:.2f}** |", flush=True)


def _in_its_own_process(way: str, length: int, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.sample", way, str(length), str(count)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
