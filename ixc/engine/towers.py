"""Whether models may share one store of image features: the same frozen tower, read the same way.

The store's features are one model's, and ids go from one model to the other as they are. Another tower, another cut of
the pictures or another tokenizer would give wrong numbers without a word.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ixc.engine.vision_cache import GEOMETRY, tower_of
from ixc.models.ixc25 import IXCPreTrainedModel, IXCProcessor
from ixc.models.ixc25.weights import some

READ_ALIKE = (*GEOMETRY, "hd_num", "hd_num_several", "strip_turns", "tail_newline")
"""The processor's options that ids and features depend on."""
HALVES = (torch.bfloat16, torch.float16)


class UnequalModels(ValueError):
    """Two models that cannot work together: in which part they differ, and what to do."""


class Reader(NamedTuple):
    """A model with its processor, and the folder that they are from."""

    folder: Path
    model: IXCPreTrainedModel
    processor: IXCProcessor


def refuse_unequal(first: Reader, second: Reader) -> None:
    """Check that two models read pictures and texts alike.

    Raises:
        UnequalModels: a weight of the tower, a size that no weight shows, an option of the processor or the tokenizer
            differs. The rounding of a model that is stored in half precision is no difference.
    """
    found = (
        _weights(first, second)
        or _sizes(first, second)
        or _options(first, second)
        or _tokenizers(first, second)
    )
    if found is not None:
        raise UnequalModels(f"{second.folder}: {found}")


def _weights(first: Reader, second: Reader) -> str | None:
    ours, theirs = tower_of(first.model), tower_of(second.model)
    differing = [
        name for name in sorted(ours | theirs) if not _same(ours.get(name), theirs.get(name))
    ]
    if not differing:
        return None
    form = "features of one tower serve both models; train the one from the other, which leaves the tower as it is"
    return f"its vision tower is not that of {first.folder} ({some(differing)}): {form}"


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Equal, or one is the other as half precision stores it."""
    if one is None or other is None or one.shape != other.shape:
        return False
    one, other = one.float(), other.float()
    if torch.equal(one, other):
        return True
    rounded = ((one.to(half).float(), other.to(half).float()) for half in HALVES)
    return any(
        torch.equal(x, y) and (torch.equal(x, one) or torch.equal(y, other)) for x, y in rounded
    )


def _sizes(first: Reader, second: Reader) -> str | None:
    """What the tower computes with and its weights do not show."""
    for name in ("vision_num_attention_heads", "vision_layer_norm_eps", "tile_size", "patch_size"):
        ours, theirs = getattr(first.model.config, name), getattr(second.model.config, name)
        if ours != theirs:
            return f"config.json: {name}: {theirs!r}, but {first.folder} has {ours!r}; one store serves both models"
    return None


def _options(first: Reader, second: Reader) -> str | None:
    for name in READ_ALIKE:
        ours, theirs = (
            getattr(first.processor.options, name),
            getattr(second.processor.options, name),
        )
        if ours != theirs:
            form = f"{name}: {theirs!r}, but {first.folder} has {ours!r}: both read the same prompts; make them equal"
            return f"processor_config.json: {form}"
    return None


def _tokenizers(first: Reader, second: Reader) -> str | None:
    if first.processor.backend.get_vocab() == second.processor.backend.get_vocab():
        return None
    form = "sampled ids would be other words to it; train the one from the other"
    return f"its tokenizer is not that of {first.folder}: {form}"
