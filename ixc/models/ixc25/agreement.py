"""Whether the parts of a folder belong together: weights, configuration, processor and tokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ixc.models.ixc25.configuration import IXCConfig
from ixc.models.ixc25.tokenizers import SPECIAL
from ixc.models.ixc25.weights import BadCheckpoint, indexed, read_checkpoint, sizes_of

TOKENS = {
    "bos_token_id": "bos",
    "eos_token_id": "eos",
    "image_token_id": "image",
    "end_of_turn_token_id": "turn_end",
}
"""The config's names of special tokens, and the processor's."""
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def refuse_mismatch(folder: Path) -> None:
    """Check a folder of ours by its small files and the headers of its weights, before anything costs time.

    Raises:
        BadCheckpoint: sizes in `config.json` that the weights, the processor or the tokenizer beside it have not.
    """
    path = folder / "config.json"
    raw = config_in(folder)
    if not raw:
        return
    try:
        config = IXCConfig.from_dict(raw)
    except (ValueError, TypeError) as error:
        raise BadCheckpoint(f"{path}: {error}") from error
    weighed = any((folder / name).is_file() for name in _WEIGHTS)
    if weighed and (why := size_objection(config, read_checkpoint(folder, indexed(folder)).shapes)):
        raise BadCheckpoint(f"{path}: {why}")
    tokenizer = _tokenizer(folder / "tokenizer.json")
    why = objection(config.to_dict(), object_in(folder / "processor_config.json"), tokenizer)
    if why := why or id_objection(config, tokenizer):
        raise BadCheckpoint(f"{folder}: {why}")


def config_in(folder: Path) -> dict[str, Any]:
    """What a model of ours in the folder says of itself; empty: there is none, or its own loading will complain."""
    raw = object_in(folder / "config.json")
    return raw if raw.get("model_type") == IXCConfig.model_type else {}


def size_objection(config: IXCConfig, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Why weights of such shapes are not those of a config; None: they may be."""
    try:
        sizes = sizes_of(shapes)
    except LookupError:  # a weight is missing, which loading names
        return None
    for name, size in sizes.items():
        if getattr(config, name) != size:
            return (
                f"{name}: {getattr(config, name)}, but the weights say {size}; correct one of them"
            )
    return None


def objection(
    model: Mapping[str, Any], processor: Mapping[str, Any], tokenizer: Tokenizer | None
) -> str | None:
    """Why a processor cannot serve a model; None: it can.

    Args:
        model: its `config.json`.
        processor: its `processor_config.json`; what is not there is not compared, as in the model's.
    """
    for name in ("tile_size", "patch_size"):
        own, other = processor.get(name), model.get(name)
        if None not in (own, other) and own != other:
            form = (
                f"the model's is {other} (config.json); correct one of them, or save both together"
            )
            return f"{name}: the processor's is {own}, but {form}"
    size, known = tokenizer.get_vocab_size() if tokenizer else 0, model.get("vocab_size")
    if isinstance(known, int) and size > known:
        form = f"the model knows {known} (config.json: vocab_size); take the tokenizer that was saved with it"
        return f"vocabulary: the processor's tokenizer has {size} tokens, but {form}"
    return None


def id_objection(config: IXCConfig, tokenizer: Tokenizer | None) -> str | None:
    """Why a tokenizer's special tokens are not those that a model knows; None: they are."""
    if tokenizer is None:
        return None
    for name, ours in TOKENS.items():
        token_id = tokenizer.token_to_id(SPECIAL[ours])
        if token_id is not None and token_id != getattr(config, name):
            form = f"tokenizer.json has {SPECIAL[ours]!r} at {token_id}; correct config.json, or load the folder by"
            remedy = f"{form} ixc.models.ixc25.from_official, which takes the tokenizer's"
            return f"{name}: {getattr(config, name)}, but {remedy}"
    return None


def object_in(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none."""
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _tokenizer(path: Path) -> Tokenizer | None:
    """None: there is none, or its own loading will complain."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # tokenizers raises nothing narrower
        return None
