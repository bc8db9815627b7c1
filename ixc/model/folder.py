"""A model and its processor in one folder."""

from pathlib import Path

from ixc.files import replacing_folder
from ixc.model.heads import IXCPreTrainedModel
from ixc.model.processing import IXCProcessor


def save(model: IXCPreTrainedModel, processor: IXCProcessor, folder: Path) -> None:
    """Write weights, config and processor; the folder appears whole."""
    with replacing_folder(folder) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)
