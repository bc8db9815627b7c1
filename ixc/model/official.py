"""Official checkpoints in our classes, and back: the names are the same, so that loading is reading.

What the official code leaves to luck is checked here: every tensor in the files is either used, or on the list of those
that no score and no answer depends on; every weight of the model comes from the files, or is a new head.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ixc.files import replacing_folder
from ixc.model.configuration import IXCConfig
from ixc.model.heads import UNUSED_KEYS, IXCForCausalLM, IXCForRewardModel, IXCPreTrainedModel

HEADS = ("output.weight", "score.weight")
_TOLD = (
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "max_position_embeddings",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "image_token_id",
    "end_of_turn_token_id",
    "hd_num",
    "pooling",
)
"""What `config.json` says and no shape shows; the last four are ours, with the official values as defaults."""
_LAYER = "model.layers.0."
_VIT = "vit.vision_tower.vision_model."


class BadCheckpoint(ValueError):
    """A folder that is not a whole checkpoint of this architecture: what is wrong with which file or key."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder of safetensors, by name, and where each lies."""

    folder: Path
    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]

    def tensors(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        """Read these, file by file."""
        for path in sorted({self.files[name] for name in names}):
            with _opened(path) as file:
                yield from ((name, file.get_tensor(name)) for name in file.keys() if name in names)  # noqa: SIM118


@dataclass(frozen=True)
class LoadReport:
    """What became of the keys that file and model do not share."""

    new: tuple[str, ...]
    """Heads that no file has: freshly initialised."""
    ignored: tuple[str, ...]
    """In the files; nothing the model computes depends on them."""


def from_official(
    folder: str | Path,
    dtype: torch.dtype | None = None,
    attn_implementation: str = "sdpa",
    device: str | torch.device = "cpu",
    model_class: type[IXCPreTrainedModel] | None = None,
) -> Any:
    """The model in a folder of the official form: `config.json` and `*.safetensors`, in one file or with an index.

    Args:
        dtype: of the weights in memory; default: as stored.
        attn_implementation: eager, sdpa, flash_attention_2, flex_attention, ...
        model_class: default: the reward model where the files have its head, else the chat model. A class whose head
            the files lack gets a new one: a reward model or critic from a base, say.

    Returns:
        The model in evaluation mode; `model.load_report` says which keys were new or ignored.

    Raises:
        BadCheckpoint: a file is missing, cut off or a pickle; a key is missing, unknown or of a wrong shape.
    """
    checkpoint = read_checkpoint(Path(folder))
    config = official_config(checkpoint)
    kind = model_class or (IXCForRewardModel if "score.weight" in checkpoint.shapes else IXCForCausalLM)
    with torch.device("meta"):
        model = kind._from_config(config, attn_implementation=attn_implementation)
    report = account(model, checkpoint)
    weights = {
        name: tensor.to(device=device, dtype=dtype or tensor.dtype)
        for name, tensor in checkpoint.tensors(set(model.state_dict()) - set(report.new))
    }
    like = next(iter(weights.values()))
    for name in report.new:
        shape = model.get_parameter(name).shape
        weights[name] = like.new_empty(shape).normal_(std=config.initializer_range)
    model.load_state_dict(weights, assign=True)
    model.load_report = report
    return model.eval()


def read_checkpoint(folder: Path) -> Checkpoint:
    """Names and shapes of a folder's tensors; the data stays on disk.

    Raises:
        BadCheckpoint: no safetensors there, or one that the index names is missing or cut off.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        paths = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        pickles = sorted(path.name for suffix in ("*.bin", "*.pt", "*.pth") for path in folder.glob(suffix))
        found = f"only {', '.join(pickles[:3])}, pickles, which are not read: save as safetensors" if pickles else ""
        raise BadCheckpoint(f"{folder}: no *.safetensors; {found or 'name the folder of a checkpoint'}")
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118  a safetensors file is no mapping
                files[name], shapes[name] = path, tuple(file.get_slice(name).get_shape())
    return Checkpoint(folder, files, shapes)


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise BadCheckpoint(f"{path}: the index names this file, but it is not there; fetch it")
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise BadCheckpoint(f"{path}: cut off or no safetensors ({error}); fetch it again") from error


def official_config(checkpoint: Checkpoint) -> IXCConfig:
    """Sizes from the shapes, the rest from `config.json`; LLM or vision keys may be nested there.

    Raises:
        BadCheckpoint: no readable `config.json`, a weight that sizes are read from is missing, or an unknown setting.
    """
    path, shapes = checkpoint.folder / "config.json", checkpoint.shapes
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{path}: {error}; a checkpoint needs its config.json") from error
    told |= told.get("llm", {})
    vision = told.get("vision", told.get("vision_config", {}))
    if told.get("bias"):
        raise BadCheckpoint(f"{path}: bias: true: wqkv and wo have no bias in this architecture")
    try:
        sizes = _sizes(shapes)
    except KeyError as error:
        raise BadCheckpoint(f"{checkpoint.folder}: no weight {error}; not a whole IXC-2.5 checkpoint") from error
    for name, value in sizes.items():
        if told.get(name, value) != value:
            raise BadCheckpoint(f"{path}: {name}: {told[name]!r}, but the weights say {value}; correct one of them")
    settings = {name: told[name] for name in _TOLD if name in told}
    heads = vision.get("num_attention_heads", max(sizes["vision_hidden_size"] // 64, 1))  # 64 channels, as every CLIP
    try:
        return IXCConfig(
            **sizes, **settings, vision_num_attention_heads=heads, plora_scale=told.get("plora_scaling", 1.0)
        )
    except ValueError as error:
        raise BadCheckpoint(f"{path}: {error}") from error


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    vocab_size, hidden_size = shapes["model.tok_embeddings.weight"]
    vision_width, _, _, patch = shapes[f"{_VIT}embeddings.patch_embedding.weight"]
    patches = shapes[f"{_VIT}embeddings.position_embedding.weight"][0] - 1
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": shapes[f"{_LAYER}feed_forward.w1.weight"][0],
        "num_hidden_layers": _count(shapes, r"model\.layers\.(\d+)\."),
        "plora_rank": shapes[f"{_LAYER}attention.wqkv.Plora_A.weight"][0],
        "tile_size": round(patches**0.5) * patch,
        "patch_size": patch,
        "vision_hidden_size": vision_width,
        "vision_intermediate_size": shapes[f"{_VIT}encoder.layers.0.mlp.fc1.weight"][0],
        "vision_num_hidden_layers": _count(shapes, re.escape(_VIT) + r"encoder\.layers\.(\d+)\."),
    }


def _count(names: Mapping[str, Any], pattern: str) -> int:
    return len({found[1] for name in names if (found := re.match(pattern, name))})


def account(model: IXCPreTrainedModel, checkpoint: Checkpoint) -> LoadReport:
    """Hold the model's weights against the files'.

    Raises:
        BadCheckpoint: a weight but a head is missing, has another shape, or a key is unknown.
    """
    wanted = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    new = [name for name in wanted if name not in checkpoint.shapes]
    beside = [name for name in checkpoint.shapes if name not in wanted]
    unknown = [name for name in beside if name not in HEADS and not re.search("|".join(UNUSED_KEYS), name)]
    if missing := [name for name in new if name not in HEADS]:
        raise BadCheckpoint(f"{checkpoint.folder}: {_some(missing)} missing; fetch all files of the checkpoint")
    if unknown:
        raise BadCheckpoint(f"{checkpoint.folder}: {_some(unknown)} not of this architecture; is it an IXC-2.5?")
    for name, shape in wanted.items():
        if checkpoint.shapes.get(name, shape) != shape:
            found = list(checkpoint.shapes[name])
            raise BadCheckpoint(
                f"{checkpoint.files[name]}: {name}: shape {found}, but the others ask for {list(shape)}"
            )
    return LoadReport(tuple(new), tuple(beside))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def to_official(model: IXCPreTrainedModel, folder: str | Path) -> None:
    """Write `config.json` and `model.safetensors` as the official code reads them; the folder appears whole."""
    config = model.config
    told = {name: getattr(config, name) for name in _TOLD if name not in ("rope_theta", "rope_scaling")}
    rope = config.rope_parameters
    scaling = None if rope["rope_type"] == "default" else {"type": rope["rope_type"], "factor": rope["factor"]}
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "tie_word_embeddings")
    told |= {name: getattr(config, name) for name in names}
    told |= {"rope_theta": rope["rope_theta"], "rope_scaling": scaling, "hidden_act": "silu", "bias": False}
    told |= {"model_type": "internlm2", "architectures": ["InternLMXComposer2ForCausalLM"], "max_length": 16384}
    told |= {"vision": {"num_attention_heads": config.vision_num_attention_heads}, "plora_scaling": config.plora_scale}
    with replacing_folder(Path(folder)) as part:
        part.mkdir(exist_ok=True)
        (part / "config.json").write_text(json.dumps(told, indent=2) + "\n")
        weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
        save_file(weights, part / "model.safetensors", {"format": "pt"})
