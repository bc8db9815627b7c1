"""Whether models may share one store of image features: the same frozen tower, read the same way.

The store's features are one model's, and ids go from one model to the other as they are. Another tower, another cut of
the images or another tokenizer would give wrong numbers without a word.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ixc.models.base import Processor, VisionLanguageModel, some

HALVES = (torch.bfloat16, torch.float16)


class UnequalModels(ValueError):
    """Two models that cannot work together: in which part they differ, and what to do."""


class Reader(NamedTuple):
    """A model with its processor, and the folder that they are from."""

    folder: Path
    model: VisionLanguageModel
    processor: Processor


def refuse_unequal(first: Reader, second: Reader) -> None:
    """Check that two models read images and texts alike.

    Raises:
        UnequalModels: a weight of the tower, a size that no weight shows, an option of the processor or the tokenizer
            differs. The rounding of a model that is stored in half precision is no difference.
    """
    for objection_of in (_weights, _sizes, _options, _tokenizers):
        if objection := objection_of(first, second):
            raise UnequalModels(f"{second.folder}: {objection}")


def _weights(first: Reader, second: Reader) -> str | None:
    ours, theirs = first.model.tower_weights(), second.model.tower_weights()
    names = sorted({*ours, *theirs})
    differing = [name for name in names if not _same(ours.get(name), theirs.get(name))]
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
    for half in HALVES:
        rounded, other_rounded = one.to(half).float(), other.to(half).float()
        stored_so = torch.equal(rounded, one) or torch.equal(other_rounded, other)
        if stored_so and torch.equal(rounded, other_rounded):
            return True
    return False


def _sizes(first: Reader, second: Reader) -> str | None:
    """What the tower computes with and its weights do not show."""
    facts = second.model.tower_facts()
    for name, ours in first.model.tower_facts().items():
        if ours != (theirs := facts.get(name)):
            return f"config.json: {name}: {theirs!r}, but {first.folder} has {ours!r}; one store serves both models"
    return None


def _options(first: Reader, second: Reader) -> str | None:
    """What ids and features depend on."""
    options = second.processor.reading()
    for name, ours in first.processor.reading().items():
        if ours != (theirs := options.get(name)):
            form = f"{name}: {theirs!r}, but {first.folder} has {ours!r}: both read the same prompts; make them equal"
            return f"processor_config.json: {form}"
    return None


def _tokenizers(first: Reader, second: Reader) -> str | None:
    if first.processor.vocabulary() == second.processor.vocabulary():
        return None
    form = "sampled ids would be other words to it; train the one from the other"
    return f"its tokenizer is not that of {first.folder}: {form}"
