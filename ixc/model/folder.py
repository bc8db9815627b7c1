"""A model and its processor in one folder."""

from pathlib import Path
from typing import TypeVar

from ixc import distributed
from ixc.files import replacing_folder
from ixc.model.heads import IXCPreTrainedModel
from ixc.model.processing import IXCProcessor

Model = TypeVar("Model", bound=IXCPreTrainedModel)


def save(model: IXCPreTrainedModel, processor: IXCProcessor, folder: Path) -> None:
    """Write weights, config and processor; the folder appears whole."""
    with replacing_folder(folder) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)


def load(kind: type[Model], folder: Path) -> tuple[Model, IXCProcessor]:
    """What `save` wrote; the model is where this process computes."""
    model = kind.from_pretrained(folder)
    return model.to(distributed.device()), IXCProcessor.from_pretrained(folder)
