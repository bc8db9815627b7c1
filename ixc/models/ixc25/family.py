"""IXC-2.5 and IXC-2.5-Reward as a family of `ixc.models`."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from ixc.io.files import replacing_folder
from ixc.models.base import BadArchitecture, Family
from ixc.models.ixc25 import IXCConfig, IXCForCausalLM, IXCForRewardModel, IXCProcessor
from ixc.models.ixc25.folder import is_ours, load, processor_of, save
from ixc.models.ixc25.official import OPTIONS, from_official, to_official
from ixc.models.ixc25.processing import train_tokenizer

_OFFICIAL_TYPES = ("internlmxcomposer2", "internlm2", "internlm")
"""What the official code calls itself, in its several versions."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Architecture:
    """Sizes of a tiny IXC-2.5; field names as in its config. Official values: reference of the 7B."""

    vocab_size: int = Field(gt=300)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    plora_rank: int = Field(gt=0)
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights."""
    tile_size: int = Field(gt=0)
    """Side of an image tile, pixels; official: 560."""
    patch_size: int = Field(gt=0)
    vision_hidden_size: int = Field(gt=0)
    vision_intermediate_size: int = Field(gt=0)
    vision_num_hidden_layers: int = Field(gt=0)
    vision_num_attention_heads: int = Field(gt=0)


class IXC25(Family):
    """Folders of ours and of the official form."""

    def reads(self, config: Mapping[str, Any]) -> bool:
        """Ours, or the official type."""
        kind = config.get("model_type")
        return kind == IXCConfig.model_type or kind in _OFFICIAL_TYPES or OPTIONS in config

    def load_policy(self, folder: Path, **options: Any) -> tuple[IXCForCausalLM, IXCProcessor]:
        """The chat model of a folder."""
        return load(folder, IXCForCausalLM, **options)

    def load_scorer(self, folder: Path, **options: Any) -> tuple[IXCForRewardModel, IXCProcessor]:
        """The reward model of a folder."""
        return load(folder, IXCForRewardModel, **options)

    def scorer_from(self, base: Path) -> tuple[IXCForRewardModel, IXCProcessor]:
        """The head is Transformers' new one."""
        model = IXCForRewardModel.from_pretrained(base, dtype=torch.float32)
        return model, IXCProcessor.from_pretrained(base)

    def save(self, model: Any, processor: Any, folder: Path) -> None:
        """Weights, config, processor and model card."""
        save(model, processor, folder)

    def adopt(self, source: Path, target: Path) -> None:
        """A folder of ours as it is, an official one in our form."""
        if not (source / "processor_config.json").is_file():
            model = from_official(source)
            save(model, processor_of(source, model), target)
            return
        with replacing_folder(target) as part:
            shutil.copytree(source, part, dirs_exist_ok=True)

    def build(
        self, architecture: Mapping[str, Any], image_budget: int, texts: Sequence[str]
    ) -> tuple[IXCForCausalLM, IXCProcessor]:
        """A tokenizer of its own; `image_budget` is `hd_num`."""
        sizes = _checked(architecture)
        tokenizer = train_tokenizer(texts, sizes.vocab_size)
        processor = IXCProcessor(tokenizer, sizes.tile_size, sizes.patch_size, hd_num=image_budget)
        special: dict[str, Any] = {
            "bos_token_id": processor.ids["bos"],
            "eos_token_id": processor.ids["eos"],
            "pad_token_id": processor.ids["eos"],
            "image_token_id": processor.ids["image"],
            "end_of_turn_token_id": processor.ids["turn_end"],
        }
        config = IXCConfig(**special, **asdict(sizes), hd_num=image_budget)
        return IXCForCausalLM(config), processor

    def convert(self, source: Path, target: Path) -> dict[str, list[str]]:
        """An official checkpoint in our form, or, where the source is ours, in the official form.

        The processor's options go there and back: the official `config.json` keeps them under a key of ours.

        Raises:
            FileExistsError: the target is the source, or holds files that no conversion wrote; nothing was touched.
            BadCheckpoint: as in `from_official`.
        """
        if objection := _objection(source, target):
            raise FileExistsError(objection)
        if (source / "processor_config.json").is_file():
            return _to_official(source, target)
        model = from_official(source)
        save(model, processor_of(source, model), target)
        if (source / "tokenizer.model").is_file():  # the way back needs it
            shutil.copy(source / "tokenizer.model", target / "tokenizer.model")
        return {"new": list(model.load_report.new), "ignored": list(model.load_report.ignored)}


def _to_official(source: Path, target: Path) -> dict[str, list[str]]:
    names = json.loads((source / "config.json").read_text()).get("architectures") or [""]
    kind = IXCForRewardModel if names[0] == IXCForRewardModel.__name__ else IXCForCausalLM
    model = from_official(source, model_class=kind)
    to_official(model, target, asdict(processor_of(source, model).options))
    for name in ("tokenizer.model", "tokenizer.json"):
        if (source / name).is_file():
            shutil.copy(source / name, target / name)
    return {"new": [], "ignored": []}


def _objection(source: Path, target: Path) -> str | None:
    """Why a conversion must not replace its target."""
    if target.resolve() == source.resolve():
        return f"{target}: source and target are the same; name another folder"
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not is_ours(target)):
        return f"{target}: is there, and no checkpoint that ixc wrote: it would be lost; name a new or an empty folder"
    return None


def _checked(sizes: Mapping[str, Any]) -> Architecture:
    try:
        return Architecture(**sizes)
    except ValidationError as error:
        raise BadArchitecture("\n".join(map(_sentence, error.errors()))) from error


def _sentence(detail: Any) -> str:
    """One problem as `key: value: remedy`."""
    key = ".".join(map(str, detail["loc"]))
    if detail["type"] == "unexpected_keyword_argument":
        return f"{key}: unknown key; remove it or correct its spelling"
    if detail["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{key}: missing; this family needs it"
    return f"{key}: {detail['input']!r}: {detail['msg']}"


FAMILY = IXC25()
