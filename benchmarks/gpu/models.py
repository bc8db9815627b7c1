"""The reward model at full size with random weights, or a tiny one for a look at whether a script works."""

import argparse
import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ixc.models.ixc25 import IXCConfig, IXCForRewardModel, IXCProcessor
from ixc.models.ixc25.tokenizers import train_tokenizer

PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bf16 operations per second (NVIDIA data sheets)."""
TINY: dict[str, Any] = {
    "vocab_size": 280,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "plora_rank": 4,
    "tile_size": 28,
    "vision_hidden_size": 16,
    "vision_intermediate_size": 24,
    "vision_num_hidden_layers": 1,
    "vision_num_attention_heads": 2,
}
Found = dict[str, float | str]


def processor_of(sizes: dict[str, Any]) -> IXCProcessor:
    """Of a tokenizer whose every digit is a token."""
    return IXCProcessor(train_tokenizer(["0123456789"], 280), sizes.get("tile_size", 560))


def config_of(sizes: dict[str, Any]) -> IXCConfig:
    """The 7B, but for these sizes, with the special tokens of `processor_of`."""
    ids = processor_of(sizes).ids
    names = {"bos": "bos", "eos": "eos", "pad": "eos", "image": "image", "end_of_turn": "turn_end"}
    return IXCConfig(**{f"{name}_token_id": ids[own] for name, own in names.items()}, **sizes)


def build(config: IXCConfig, device: str, dtype: torch.dtype = torch.bfloat16) -> IXCForRewardModel:
    """Random weights, the same ones every time, of the size that keeps activations finite."""
    with torch.device("meta"):
        model = IXCForRewardModel._from_config(config, dtype=dtype)
    model = model.to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(std=0.02)
    return model.eval()


class Weights(NamedTuple):
    """How many a token passes: any token in the language model, a picture's besides, a patch in the tower."""

    language: int
    partial: int
    tower: int


def weights_used(model: IXCForRewardModel) -> Weights:
    """Counted; the embeddings, which are looked up, are not."""
    named = [
        (name, w.numel()) for name, w in model.model.named_parameters() if "tok_emb" not in name
    ]
    partial = sum(size for name, size in named if "Plora" in name)
    tower = sum(w.numel() for w in model.vit.parameters())
    return Weights(sum(size for _, size in named) - partial, partial, tower)


def weights_of_read(model: IXCForRewardModel) -> Weights:
    """Those among them that only the tokens pass that a score is read from: the last layer, after its attention."""
    last = model.model.layers[-1]
    named = [*last.named_parameters(), *model.model.norm.named_parameters()]
    sizes = {
        name: w.numel() for name, w in named if "wqkv" not in name and "attention_norm" not in name
    }
    partial = sum(size for name, size in sizes.items() if "Plora" in name)
    return Weights(sum(sizes.values()) - partial, partial, 0)


def patches(config: IXCConfig, tiles: int) -> int:
    """What so many tiles are to the tower."""
    return tiles * ((config.tile_size // config.patch_size) ** 2 + 1)


def device_name(device: torch.device) -> str:
    """The GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def share_of_peak(operations: float, seconds: float, device: torch.device) -> float:
    """Of the dense bf16 peak; not a number where that is not known."""
    peaks = (value for key, value in PEAK.items() if key in device_name(device))
    return operations / seconds / next(peaks, float("nan"))


def memory_gib(device: torch.device) -> float:
    """The most that tensors have taken since `forget_memory`; not a number on a CPU."""
    return (
        torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
    )


def forget_memory(device: torch.device) -> None:
    """Start anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def wait_for(device: torch.device) -> None:
    """Until all is computed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def attempt(measure: Callable[[], Found]) -> Found:
    """What was measured, or that the memory was not enough for it."""
    try:
        return measure()
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": str(error).split(". ")[0]}


def tell(**found: Any) -> None:
    """A line of JSON, as soon as it is known; what is not a number is null."""
    print(
        json.dumps(
            {
                key: None if isinstance(value, float) and math.isnan(value) else value
                for key, value in found.items()
            }
        ),
        flush=True,
    )


def parser(description: str | None) -> argparse.ArgumentParser:
    """Where, and how large."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--tiny", action="store_true", help="a tiny model: does everything work?")
    return options
