"""A model and its processor in one folder."""

from pathlib import Path
from typing import TypeVar

import torch

from ixc.files import replacing_folder
from ixc.model.heads import IXCForCausalLM, IXCForRewardModel, IXCPreTrainedModel
from ixc.model.official import BadCheckpoint, from_official
from ixc.model.processing import IXCProcessor

Model = TypeVar("Model", bound=IXCPreTrainedModel)
_CALLED = {IXCForRewardModel: "reward model", IXCForCausalLM: "chat model"}


def save(model: IXCPreTrainedModel, processor: IXCProcessor, folder: Path) -> None:
    """Write weights, config and processor; the folder appears whole."""
    with replacing_folder(folder) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)


def load(
    folder: str | Path,
    kind: type[Model],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    attn_implementation: str = "sdpa",
) -> tuple[Model, IXCProcessor]:
    """Model and processor of a folder, ours (`processor_config.json`) or official (`tokenizer.model`).

    Raises:
        BadCheckpoint: as in `from_official`; or the model has another head than is asked for.
    """
    folder = Path(folder)
    model = from_official(folder, dtype, attn_implementation, device, kind)
    if new := model.load_report.new:
        form = f"no {', '.join(new)}, and a new head knows nothing; name the folder of a {_CALLED[kind]}"
        raise BadCheckpoint(f"{folder}: {form}")
    return model, processor_of(folder, model)


def processor_of(folder: Path, model: IXCPreTrainedModel) -> IXCProcessor:
    """The processor beside a model, ours or official."""
    if (folder / "processor_config.json").is_file():
        return IXCProcessor.from_pretrained(folder)
    sizes = model.config
    return IXCProcessor.from_official(folder, tile_size=sizes.tile_size, patch_size=sizes.patch_size)
