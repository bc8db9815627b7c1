"""Checkpoints in our classes, the official ones and ours, and back: the names are the same, so that loading is reading.

What the official code leaves to luck is checked here: every tensor in the files is either used, or on the list of those
that no score and no answer depends on; every weight of the model comes from the files, or is a new head.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mode
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from ixc.io.files import replacing_folder
from ixc.models.base import BadCheckpoint, some
from ixc.models.ixc25.agreement import TOKENS, size_objection
from ixc.models.ixc25.card import write_card
from ixc.models.ixc25.configuration import LINEARS, IXCConfig
from ixc.models.ixc25.heads import IXCForCausalLM, IXCForRewardModel
from ixc.models.ixc25.pretrained import HEADS, UNUSED_KEYS, IXCPreTrainedModel
from ixc.models.ixc25.tokenizers import SPECIAL, BadTokenizer, read_pieces
from ixc.models.ixc25.weights import (
    LAYER,
    Checkpoint,
    read_checkpoint,
    sizes_of,
    stored_type,
)
from ixc.models.places import as_device, as_dtype

OPTIONS = "ixc_processor"
"""Where the official form keeps the options of a processor, of which the official code has none."""
_TOLD = (
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "max_position_embeddings",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "image_token_id",
    "end_of_turn_token_id",
    "hd_num",
    "pooling",
    "vision_num_attention_heads",
    "vision_layer_norm_eps",
)
"""What `config.json` says and no shape shows; four from `image_token_id` on are ours, with the official defaults."""
_CALLED = {
    "tile_size": "vision_image_size",
    "patch_size": "vision_patch_size",
    "plora_rank": "plora_r",
}
"""Our names, and what `config.json` calls them."""
_FIXED = {
    "hidden_act": "silu",
    "bias": False,
    "tie_word_embeddings": False,
    "vision_hidden_act": "quick_gelu",
    "vision_num_channels": 3,
    "vision_select_layer": -1,
}
"""What this architecture is, where `config.json` says it."""
_LINEARS = {name: "attention" if name in ("wqkv", "wo") else "feed_forward" for name in LINEARS}
"""Which part of a layer each is in."""


@dataclass(frozen=True)
class LoadReport:
    """What became of the keys that file and model do not share."""

    new: tuple[str, ...]
    """Heads that no file has: freshly initialised."""
    ignored: tuple[str, ...]
    """In the files; nothing the model computes depends on them."""


def from_official(
    folder: str | Path,
    dtype: torch.dtype | str | None = None,
    attn_implementation: str = "sdpa",
    device: str | torch.device = "cpu",
    model_class: type[IXCPreTrainedModel] | None = None,
) -> Any:
    """The model in a folder of the official form: `config.json` and `*.safetensors`, in one file or with an index.

    What `save_pretrained` writes is such a folder too; its `config.json` is then read as ours. Where a tokenizer lies
    beside the weights, the ids of the special tokens are its.

    Args:
        dtype: of the weights in memory, torch's, its name or its short name; `None` or "auto": as stored, all as the
            widest one where the files mix them.
        attn_implementation: eager, sdpa, flash_attention_2, flex_attention, ...
        device: torch's, or its name; "auto": the GPU if there is one.
        model_class: default: the reward model where the files have its head, else the chat model. A class whose head
            the files lack gets a new one: a reward model or critic from a base, say.

    Returns:
        The model in evaluation mode; `model.load_report` says which keys were new or ignored.

    Raises:
        BadCheckpoint: a file is missing, cut off or a pickle; a key is missing, unknown or of a wrong shape.
        ValueError: no such dtype or device.
    """
    dtype, device = as_dtype(dtype), as_device(device)
    checkpoint = read_checkpoint(Path(folder))
    config = read_config(checkpoint)
    kind = model_class or _kind(checkpoint)
    with torch.device("meta"):
        model = kind._from_config(config, attn_implementation=attn_implementation)
    report = account(model, checkpoint)
    used = set(model.state_dict()) - set(report.new)
    dtype = dtype or stored_type(checkpoint, used)
    weights = {
        name: tensor.to(device=device, dtype=dtype) for name, tensor in checkpoint.tensors(used)
    }
    for name in report.new:
        shape = model.get_parameter(name).shape
        weights[name] = torch.empty(shape, dtype=dtype, device=device).normal_(
            std=config.initializer_range
        )
    model.load_state_dict(weights, assign=True)
    model.load_report = report  # pyright: ignore[reportArgumentType]
    return model.eval()


def _kind(checkpoint: Checkpoint) -> type[IXCPreTrainedModel]:
    for head, kind in (("score.weight", IXCForRewardModel), ("output.weight", IXCForCausalLM)):
        if head in checkpoint.shapes:
            return kind
    raise BadCheckpoint(
        f"{checkpoint.folder}: neither {' nor '.join(HEADS)}; name the model_class to get a new head"
    )


def read_config(checkpoint: Checkpoint) -> IXCConfig:
    """The `config.json` of a folder, official or ours.

    Raises:
        BadCheckpoint: it is missing or damaged, says what the weights do not, or what this architecture has not.
    """
    path = checkpoint.folder / "config.json"
    try:
        raw = json.loads(path.read_text())
        ours = raw.get("model_type") == IXCConfig.model_type
        raw = raw if ours else _flat(raw)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadCheckpoint(f"{path}: {error}; a checkpoint needs its config.json") from error
    try:
        settings = raw if ours else official_settings(raw, checkpoint.shapes)
        settings |= token_ids(
            checkpoint.folder, checkpoint.shapes["model.tok_embeddings.weight"][0]
        )
        config = IXCConfig.from_dict(settings) if ours else IXCConfig(**settings)
        if why := size_objection(config, checkpoint.shapes):
            raise ValueError(why)
        return config
    except BadCheckpoint:  # the tokenizer's
        raise
    except LookupError as error:
        raise BadCheckpoint(
            f"{checkpoint.folder}: no weight {error}; not a whole IXC-2.5 checkpoint"
        ) from error
    except (ValueError, TypeError, ArithmeticError) as error:
        raise BadCheckpoint(f"{path}: {error}") from error


def token_ids(folder: Path, vocab_size: int) -> dict[str, int]:
    """Ids of special tokens under the config's names, as the tokenizer beside the weights has them; none: no tokenizer.

    An official `config.json` does not know the last two. What is padding stays as it is told: it decides what learns.

    Raises:
        BadCheckpoint: the tokenizer is damaged, lacks such a token, or has it beyond the vocabulary of the model.
    """
    slow, fast = folder / "tokenizer.model", folder / "tokenizer.json"
    ours = (folder / "processor_config.json").is_file()
    path = fast if fast.is_file() and (ours or not slow.is_file()) else slow
    if not path.is_file():
        return {}
    ids = _ids_in(path)
    for token in SPECIAL.values():
        if token not in ids:
            raise BadCheckpoint(
                f"{path}: no token {token!r}; it is not the tokenizer of an IXC-2.5 model"
            )
        if ids[token] >= vocab_size:
            form = f"{token!r} is {ids[token]}, but the model knows {vocab_size} tokens"
            raise BadCheckpoint(f"{path}: {form}; fetch the tokenizer of this checkpoint")
    return {name: ids[SPECIAL[ours]] for name, ours in TOKENS.items()}


def _ids_in(path: Path) -> dict[str, int]:
    """The vocabulary of a `tokenizer.model` or a `tokenizer.json`."""
    try:
        if path.suffix == ".model":
            return {piece.text: id_ for id_, piece in enumerate(read_pieces(path))}
        return Tokenizer.from_file(str(path)).get_vocab()
    except BadTokenizer as error:
        raise BadCheckpoint(str(error)) from error
    except Exception as error:  # tokenizers raises nothing narrower
        raise BadCheckpoint(f"{path}: damaged ({error}); fetch it again") from error


def _flat(raw: dict[str, Any]) -> dict[str, Any]:
    """Official settings under our names, whether those of the two parts are nested or not."""
    vision = raw.get("vision", raw.get("vision_config", {}))
    flat = raw | raw.get("llm", {}) | {f"vision_{name}": value for name, value in vision.items()}
    known = {ours: flat[name] for ours, name in _CALLED.items() if name in flat}
    return {name: value for name, value in (flat | known).items() if value is not None}


def official_settings(
    raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """What `IXCConfig` takes: sizes from the shapes, the rest as told.

    Raises:
        LookupError: a weight that sizes are read from is missing.
        ValueError: shapes and settings disagree, or are those of another architecture.
    """
    for name, value in _FIXED.items():
        if raw.get(name, value) != value:
            form = f"this architecture has {json.dumps(value)}; it is another model"
            raise ValueError(f"{name}: {json.dumps(raw[name])}: {form}")
    sizes = sizes_of(shapes)
    heads = _heads(raw, sizes, shapes)
    head_dim = sizes["hidden_size"] // heads["num_attention_heads"]
    for name, value in (
        sizes | {"mm_hidden_size": 4 * sizes["vision_hidden_size"], "head_dim": head_dim}
    ).items():
        if raw.get(name, value) != value:
            raise ValueError(
                f"{name}: {raw[name]!r}, but the weights say {value}; correct one of them"
            )
    settings = {name: raw[name] for name in _TOLD if name in raw}
    return sizes | heads | _partial(raw, shapes) | settings


def _heads(
    raw: Mapping[str, Any], sizes: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """Numbers of heads: no shape shows how many queries there are; how many keys follows from it.

    Source of the tower's: every CLIP's heads have 64 channels.
    """
    width = sizes["hidden_size"]
    heads = raw.get("num_attention_heads", width // raw.get("head_dim", width + 1))
    if not heads:
        raise ValueError("num_attention_heads: missing, and no shape shows it; add it")
    keys = (shapes[f"{LAYER}attention.wqkv.weight"][0] * heads // width - heads) // 2
    tower = max(sizes["vision_hidden_size"] // 64, 1)
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vision_num_attention_heads": tower,
    }


def _partial(raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Partial LoRA: ranks by linear layer from the shapes; scales as told, or else alpha over rank.

    Where no alpha is told, it is the rank; but the official class's default is rank 8 with alpha 16, so a layer of rank
    8 among others has that. Source: IXC-2.5 (alpha = rank = 256), and the 4KHD model, whose `wqkv` keeps the default.
    """
    ranks = {
        name: shapes[f"{LAYER}{part}.{name}.Plora_A.weight"][0] for name, part in _LINEARS.items()
    }
    rank = raw.get("plora_rank", mode(ranks.values()))
    if rank not in ranks.values():
        raise ValueError(
            f"plora_rank: {rank!r}, but the weights say {mode(ranks.values())}; correct one of them"
        )
    others = {name: own for name, own in ranks.items() if own != rank}
    settings = {"plora_rank": rank, "plora_ranks": others or None}
    if "plora_scaling" in raw:
        scaling = raw["plora_scaling"]
        return settings | {"plora_scales" if isinstance(scaling, dict) else "plora_scale": scaling}
    scales = {
        name: raw.get("plora_alpha", 16 if own == 8 else own) / own for name, own in others.items()
    }
    return settings | {
        "plora_scale": raw.get("plora_alpha", rank) / rank,
        "plora_scales": scales or None,
    }


def account(model: IXCPreTrainedModel, checkpoint: Checkpoint) -> LoadReport:
    """Hold the model's weights against the files'.

    Raises:
        BadCheckpoint: a weight but a head is missing, has another shape, or a key is unknown.
    """
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    new = [name for name in expected if name not in checkpoint.shapes]
    beside = [name for name in checkpoint.shapes if name not in expected]
    unknown = [
        name for name in beside if name not in HEADS and not re.search("|".join(UNUSED_KEYS), name)
    ]
    if missing := [name for name in new if name not in HEADS]:
        raise BadCheckpoint(
            f"{checkpoint.folder}: {some(missing)} missing; fetch all files of the checkpoint"
        )
    if unknown:
        raise BadCheckpoint(
            f"{checkpoint.folder}: {some(unknown)} not of this architecture; is it an IXC-2.5?"
        )
    for name, shape in expected.items():
        if checkpoint.shapes.get(name, shape) != shape:
            shape_found = list(checkpoint.shapes[name])
            raise BadCheckpoint(
                f"{checkpoint.files[name]}: {name}: shape {shape_found}, but the others ask for {list(shape)}"
            )
    return LoadReport(tuple(new), tuple(beside))


def to_official(
    model: IXCPreTrainedModel, folder: str | Path, options: Mapping[str, Any] | None = None
) -> None:
    """Write `config.json` and `model.safetensors` as the official code reads them; the folder appears whole.

    Args:
        options: of the processor, kept in `config.json` for the way back; the official code passes over them.
    """
    raw = _told(model.config) | {OPTIONS: dict(options or {})}
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    with replacing_folder(Path(folder)) as part:
        (part / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
        save_file(weights, part / "model.safetensors", {"format": "pt"})
        write_card(model, part)


def _told(config: IXCConfig) -> dict[str, Any]:
    """The official `config.json`, and beside its keys ours."""
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", *_TOLD)
    raw = {
        name: getattr(config, name) for name in sizes if not name.startswith(("rope_", "vision_"))
    }
    parts = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "layer_norm_eps",
    )
    rope = config.rope
    scaling = (
        None
        if rope["rope_type"] == "default"
        else {"type": rope["rope_type"], "factor": rope["factor"]}
    )
    return raw | {
        "model_type": "internlm2",
        "architectures": ["InternLMXComposer2ForCausalLM"],
        "hidden_act": "silu",
        "bias": False,
        "tie_word_embeddings": False,
        "max_length": 16384,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": scaling,
        "plora_r": config.plora_rank,
        "plora_scaling": {name: config.plora(name)[1] for name in LINEARS}
        if config.plora_scales
        else config.plora_scale,
        "vision": {name: getattr(config, f"vision_{name}") for name in parts}
        | {
            "image_size": config.tile_size,
            "patch_size": config.patch_size,
            "hidden_act": "quick_gelu",
        },
    }
