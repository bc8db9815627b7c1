"""Sampling N answers to one prompt: ours, which reads and keeps the prompt once, against Transformers' `generate`.

Both draw the likeliest token, and must say the same. Same weights, one thread, a fresh process each; CPU time of the
best run.

    python -m benchmarks.sample [--quick]
"""

import argparse
from collections.abc import Callable

import torch

from benchmarks.ways import Run, cpu_seconds, head, mib, peak_bytes, row, side_by_side, start
from ixc.engine.sampling import sample_tokens
from ixc.models.ixc25 import IXCConfig, IXCForCausalLM

SIZES = ((512, 8, 64), (2048, 8, 64), (512, 1, 64), (2048, 1, 64))
"""Tokens of the prompt, answers, new tokens of each."""
QUICK = ((32, 2, 4),)
"""Whether everything works."""
RUNS = 3
"""The first is to warm up."""


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
def ours(chat: IXCForCausalLM, prompt: list[int], count: int, new: int) -> list[list[int]]:
    """The prompt once; so cold that the likeliest token is drawn."""
    return sample_tokens(
        chat, [prompt], None, count, 1e-6, new, torch.Generator().manual_seed(0)
    ).tolist()


def generate(chat: IXCForCausalLM, prompt: list[int], count: int, new: int) -> list[list[int]]:
    """Transformers' way; of the `top_k` of 1 the likeliest token is drawn."""
    ids = torch.tensor([prompt])
    cold = {"do_sample": True, "top_k": 1, "num_return_sequences": count, "max_new_tokens": new}
    return chat.generate(ids, attention_mask=torch.ones_like(ids), **cold)[
        :, len(prompt) :
    ].tolist()


WAYS: dict[str, Callable[..., list[list[int]]]] = {"ours": ours, "generate": generate}


def measure(way: str, prompt: int, count: int, new: int) -> Run:
    """CPU seconds of the best run, memory and answers of one way."""
    chat, ids = (
        model(),
        torch.randint(10, 1000, (prompt,), generator=torch.Generator().manual_seed(2)).tolist(),
    )
    before = peak_bytes()
    answers = WAYS[way](chat, ids, count, new)
    peak = peak_bytes() - before
    seconds = [cpu_seconds(lambda: WAYS[way](chat, ids, count, new)) for _ in range(RUNS - 1)]
    return {"seconds": min(seconds), "peak": peak, "answers": answers}


def main() -> None:
    """All sizes, as a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tiny size: does everything work?")
    sizes = QUICK if parser.parse_args().quick else SIZES
    columns = [*(f"{way}, s" for way in WAYS), "generate / ours", *(f"{way}, MiB" for way in WAYS)]
    head("prompt", "answers", "new tokens", *columns)
    for prompt, count, new in sizes:
        runs = side_by_side("benchmarks.sample", WAYS, prompt=prompt, count=count, new=new)
        own, theirs = runs["ours"], runs["generate"]
        if own["answers"] != theirs["answers"]:
            raise AssertionError(
                f"{prompt} tokens, {count} answers: the two ways give different ones"
            )
        seconds = [f"{run['seconds']:.3f}" for run in runs.values()]
        ratio = f"**{theirs['seconds'] / own['seconds']:.2f}**"
        row(prompt, count, new, *seconds, ratio, *(mib(run["peak"]) for run in runs.values()))


if __name__ == "__main__":
    start(measure, main)
