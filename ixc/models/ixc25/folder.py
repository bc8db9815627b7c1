"""A model and its processor in one folder."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from ixc.io.files import replacing_folder
from ixc.models.base import BadCheckpoint
from ixc.models.ixc25.agreement import object_in, objection
from ixc.models.ixc25.card import is_card
from ixc.models.ixc25.configuration import IXCConfig
from ixc.models.ixc25.heads import IXCForCausalLM, IXCForRewardModel, IXCPreTrainedModel
from ixc.models.ixc25.official import OPTIONS, from_official
from ixc.models.ixc25.processing import BadProcessor, IXCProcessor
from ixc.models.kernels import refuse_attention, use_attention
from ixc.models.places import as_device
from ixc.models.precision import warn_of_slow_precision

Model = TypeVar("Model", bound=IXCPreTrainedModel)
_CALLED = {IXCForRewardModel: "reward model", IXCForCausalLM: "chat model"}
_FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "model.safetensors.index.json",
)
"""What a checkpoint consists of, beside the weights."""


def save(model: IXCPreTrainedModel, processor: IXCProcessor, folder: Path) -> None:
    """Write weights, config, processor and model card; the folder appears whole.

    Raises:
        BadProcessor: the processor is another model's.
    """
    agreeing(processor, model, folder)
    _suppress_control(model, processor)
    with replacing_folder(folder) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)


def load(
    folder: str | Path,
    kind: type[Model],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    attn_implementation: str = "sdpa",
    attention: str = "auto",
) -> tuple[Model, IXCProcessor]:
    """Model and processor of a folder, ours (`processor_config.json`) or official (`tokenizer.model`).

    Args:
        device, dtype, attn_implementation: as in `from_official`.
        attention: what packed rows are computed with, as in `use_attention`.

    Raises:
        NoAttention: as in `use_attention`; what the machine lacks is found before any weight is read.
        BadCheckpoint: as in `from_official`; or the model has another head than is asked for.
    """
    folder = Path(folder)
    refuse_attention(attention, as_device(device))
    model = from_official(folder, dtype, attn_implementation, device, kind)
    if new := model.load_report.new:
        form = f"no {', '.join(new)}, and a new head knows nothing; name the folder of a {_CALLED[kind]}"
        raise BadCheckpoint(f"{folder}: {form}")
    warn_of_slow_precision(model.device, model.dtype)
    processor = processor_of(folder, model)
    _suppress_control(model, processor)
    use_attention(model, attention)
    return model, processor


def _suppress_control(model: IXCPreTrainedModel, processor: IXCProcessor) -> None:
    if isinstance(model, IXCForCausalLM):
        model.suppress_control(processor)


def processor_of(folder: Path, model: IXCPreTrainedModel) -> IXCProcessor:
    """The processor beside a model, ours or official; see `to_official` for the options of an official one.

    Raises:
        BadProcessor, BadTokenizer: it is damaged, or another model's.
    """
    if (folder / "processor_config.json").is_file():
        return agreeing(IXCProcessor.from_pretrained(folder), model, folder)
    sizes = {"tile_size": model.config.tile_size, "patch_size": model.config.patch_size}
    return agreeing(
        IXCProcessor.from_official(folder, **(sizes | kept_options(folder))), model, folder
    )


def agreeing(processor: IXCProcessor, model: IXCPreTrainedModel, folder: Path) -> IXCProcessor:
    """The processor, if what it makes is what the model reads.

    Raises:
        BadProcessor: it is not.
    """
    if why := objection(model.config.to_dict(), asdict(processor.options), processor.backend):
        raise BadProcessor(f"{folder}: {why}")
    return processor


def is_ours(folder: Path) -> bool:
    """Whether all that a folder holds is a checkpoint of ours, or one of the official form that `to_official` wrote."""
    raw = object_in(folder / "config.json")
    ours = raw.get("model_type") == IXCConfig.model_type or OPTIONS in raw
    return ours and all(
        path.name in _FILES or path.suffix == ".safetensors" or is_card(path)
        for path in folder.iterdir()
    )


def kept_options(folder: Path) -> dict[str, Any]:
    """The options of the processor that `to_official` was given; of another official checkpoint, none."""
    options = object_in(folder / "config.json").get(OPTIONS, {})
    if not isinstance(options, dict):
        raise BadCheckpoint(
            f"{folder / 'config.json'}: {OPTIONS}: {options!r:.80}: not an object; convert again"
        )
    return options
