"""A model of a few thousand weights, its tokenizer and its media: what the tests of the method run on."""

import hashlib
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from ixc.data.samples import Gold, Media, Sample, Turn, answer
from ixc.engine.vision_cache import VisionCache
from ixc.models.base import VisionLanguageModel
from ixc.models.ixc25 import (
    IXCConfig,
    IXCForCausalLM,
    IXCForRewardModel,
    IXCPreTrainedModel,
    IXCProcessor,
)
from ixc.models.ixc25.processing import train_tokenizer

torch.set_num_threads(1)
TILE, PATCH = 28, 14
"""Pixels; a tile is one merged token, so an image of n tiles in r rows has n + 1 + 1 + r + 1 tokens."""
Model = TypeVar("Model", bound=torch.nn.Module)

ARCHITECTURE = {
    "family": "ixc25",
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "plora_rank": 2,
    "initializer_range": 0.1,
    "tile_size": 28,
    "patch_size": 14,
    "vision_hidden_size": 8,
    "vision_intermediate_size": 12,
    "vision_num_hidden_layers": 1,
    "vision_num_attention_heads": 1,
}
"""Sizes of a base model that `bootstrap` trains in seconds."""


@cache
def processor() -> IXCProcessor:
    """Bytes only: no merges that would depend on a corpus."""
    return IXCProcessor(train_tokenizer(["good bad"] * 9, 280), TILE, PATCH, hd_num=4)


def config(**changes: Any) -> IXCConfig:
    """Two layers, grouped heads, one vision layer."""
    ids = processor().ids
    sizes: dict[str, Any] = {
        "vocab_size": 280,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "plora_rank": 3,
        "tile_size": TILE,
        "patch_size": PATCH,
        "vision_hidden_size": 8,
        "vision_intermediate_size": 12,
        "vision_num_hidden_layers": 1,
        "vision_num_attention_heads": 2,
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": ids["eos"],
        "image_token_id": ids["image"],
        "end_of_turn_token_id": ids["turn_end"],
    }
    return IXCConfig(**(sizes | changes))


def shaken(model: Model, seed: int = 0) -> Model:
    """All weights random, those too that start at 0: no part of the model is without effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.3 * torch.randn(weights.shape, generator=generator))
    return model.eval()


def causal(**changes: Any) -> IXCForCausalLM:
    """A chat model of random weights."""
    torch.manual_seed(0)
    return shaken(IXCForCausalLM(config(**changes)))


def reward(**changes: Any) -> IXCForRewardModel:
    """A reward model of other random weights."""
    torch.manual_seed(1)
    return shaken(IXCForRewardModel(config(**changes)), 1)


def with_tower_of(model: Model, other: IXCPreTrainedModel) -> Model:
    """The model with another one's vision tower, as if trained from it."""
    own = model.state_dict()
    with torch.no_grad():
        for name, weights in other.state_dict().items():
            if name.startswith(("vit.", "vision_proj.", "plora_")):
                own[name].copy_(weights)
    return model


def image(root: Path, colour: str, size: tuple[int, int] = (28, 28)) -> Media:
    """A plain image in the store `root`."""
    name = f"{colour}-{size[0]}x{size[1]}.png"
    root.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(root / name)
    return Media(
        kind="image", path=name, sha256=hashlib.sha256((root / name).read_bytes()).hexdigest()
    )


def sample(text: str, media: Sequence[Media] = (), **known: Any) -> Sample:
    """A question about `media`."""
    modality = "image" if media else "text"
    fields: dict[str, Any] = {
        "id": text,
        "source": "test",
        "domain": "general",
        "modality": modality,
        **known,
    }
    return Sample(**fields, prompt=(Turn(role="user", content=text),), media=tuple(media))


def pair(text: str, good: str, bad: str, media: Sequence[Media] = (), **known: Any) -> Sample:
    """A question with a better and a worse answer."""
    return sample(text, media, **{"chosen": answer(good), "rejected": answer(bad), **known})


def match(value: str, *others: str) -> Gold:
    """A known answer in one word."""
    return Gold(check="match", value=value, answer=value, others=others)


def vision_cache(model: VisionLanguageModel, root: Path) -> VisionCache:
    """An empty store of image tokens."""
    return VisionCache(model, processor(), root)


class BadGradient(torch.autograd.Function):
    """A number with a gradient that is none."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * math.nan
