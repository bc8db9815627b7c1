"""Vision-language models: `base` says what the pipeline knows of one, each folder beside it is a family of them.

Which family a folder's model belongs to, its `config.json` says. A family is imported when it is needed.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ixc.models.base import (
    BadArchitecture,
    Family,
    PolicyModel,
    Processor,
    ScoringModel,
    VisionLanguageModel,
)

FAMILIES = {"ixc25": "ixc.models.ixc25.family"}
"""The module of each family, which holds its `FAMILY`; a folder that none of them knows goes to the first."""


def family(name: str) -> Family:
    """A family by its name.

    Raises:
        BadArchitecture: there is none.
    """
    if name not in FAMILIES:
        raise BadArchitecture(f"family: {name!r}: unknown; one of {', '.join(FAMILIES)}")
    return import_module(FAMILIES[name]).FAMILY


def family_of(folder: Path) -> Family:
    """The family of the model in a folder."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        config = {}
    if isinstance(config, dict):
        for name in FAMILIES:
            if family(name).reads(config):
                return family(name)
    return family(next(iter(FAMILIES)))  # whose loading says what is wrong with the folder


def load_policy(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    attention: str = "auto",
    **options: Any,
) -> tuple[PolicyModel, Processor]:
    """A chat model and its processor, in evaluation mode.

    Args:
        device: torch's, or its name; "auto": the GPU if there is one.
        dtype: of the weights, torch's or its name; None: as stored.
        attention: what packed rows are computed with, as in `kernels.use_attention`.
        options: the family's own, such as `attn_implementation`, of padded rows and the tower.

    Raises:
        BadCheckpoint: no chat model there, or a damaged one.
        NoAttention: what the machine lacks is found before any weight is read.
    """
    folder = Path(folder)
    options |= {"device": device, "dtype": dtype, "attention": attention}
    return family_of(folder).load_policy(folder, **options)


def load_scorer(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    attention: str = "auto",
    **options: Any,
) -> tuple[ScoringModel, Processor]:
    """A reward model and its processor, in evaluation mode; arguments and errors as in `load_policy`."""
    folder = Path(folder)
    options |= {"device": device, "dtype": dtype, "attention": attention}
    return family_of(folder).load_scorer(folder, **options)


def scorer_from(base: str | Path) -> tuple[ScoringModel, Processor]:
    """A reward model to be trained: a chat model's weights in fp32, under a new head of torch's random numbers."""
    return family_of(Path(base)).scorer_from(Path(base))


def save(model: VisionLanguageModel, processor: Processor, folder: Path) -> None:
    """Write a model and its processor; the folder appears whole.

    Raises:
        ValueError: the processor is another model's.
    """
    family(model.family).save(model, processor, folder)


def adopt(source: Path, target: Path) -> None:
    """Write a model that others have made in the form that the pipeline reads."""
    family_of(source).adopt(source, target)


def build(
    architecture: Mapping[str, Any], image_budget: int, texts: Sequence[str]
) -> tuple[PolicyModel, Processor]:
    """An untrained chat model, and a processor whose tokenizer is trained on the texts.

    Args:
        architecture: `family`, and that family's sizes.

    Raises:
        BadArchitecture: key, value and remedy.
    """
    sizes = dict(architecture)
    if "family" not in sizes:
        raise BadArchitecture(f"family: missing; one of {', '.join(FAMILIES)}")
    return family(sizes.pop("family")).build(sizes, image_budget, texts)
