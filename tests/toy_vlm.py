"""A second family of models, as small as can be: what `ixc.models.base` asks for, and nothing of IXC-2.5.

It differs where models do. Positions have three axes (frame, row, column), and an image takes fewer of them than it has
tokens; features have two levels, of which the second enters between the layers; three ids end an answer. `ToyProcessor`
reads bytes, and an image as the mean colours of its cells.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

from ixc.data.samples import Media, Reply, Turn
from ixc.io.files import replacing_folder
from ixc.models.base import (
    BadArchitecture,
    BadConversation,
    Family,
    ImageRef,
    ImageSize,
    PolicyModel,
    Processor,
    ScoringModel,
    VisionLanguageModel,
)
from ixc.models.kernels import refuse_attention, use_attention
from ixc.models.places import as_device, as_dtype
from ixc.packing.attention import PackedLayout, ResponseCache, shared_prefix_attention
from ixc.packing.layout import PackedBatch, Prompt
from ixc.packing.plain import PlainRow, plain_hidden_states, plain_rows

WIDTH, HEADS, CELL = 16, 2, 28
BOS, END, STOP, PAD, REWARD, IMAGE = range(256, 262)
VOCABULARY = 262
LAYERS = ("first", "second")


class ToyImage(NamedTuple):
    """The mean colour of every cell."""

    colours: Tensor
    grid: tuple[int, int, int]

    @property
    def num_tiles(self) -> int:
        """A cell is one."""
        return len(self.colours)


@dataclass(frozen=True)
class ToyOptions:
    """What `processor_config.json` says."""

    image_budget: int = 4
    """Cells at most."""


class ToyProcessor(Processor):
    """Bytes and cells."""

    def __init__(self, options: ToyOptions = ToyOptions()) -> None:
        self.options = options

    def read_prompt(self, turns: Sequence[Turn], images: Sequence[ImageSize]) -> Prompt:
        """Images first, then all that was written."""
        text = "\n".join(turn.content for turn in turns).replace("<ImageHere>", "")
        ids, rows = [BOS], [(0, 0, 0)]
        for size in images:
            if size.grid is None:
                raise BadConversation("an image of unknown grid; measure it again")
            start = max(map(max, rows)) + 1
            frames, height, width = size.grid
            for frame in range(frames):
                for cell in range(height * width):
                    rows.append((start + frame, start + cell // width, start + cell % width))
            ids += [IMAGE] * size.tokens
        start = max(map(max, rows)) + 1
        written = [*text.encode(), END]
        rows += [(start + i,) * 3 for i in range(len(written))]
        axes = tuple([row[axis] for row in rows] for axis in range(3))
        return Prompt(ids + written, axes, start + len(written))

    def answer(self, reply: Reply) -> list[int]:
        """The bytes, then the end."""
        text = reply if isinstance(reply, str) else "\n".join(turn.content for turn in reply)
        return [*text.encode(), END]

    def scored(self, answer_ids: Sequence[int]) -> list[int]:
        """The score is read at a token of its own."""
        return [*answer_ids, REWARD]

    def as_turn(self, sampled_ids: Sequence[int]) -> list[int]:
        """Any end becomes `END`."""
        *text, last = sampled_ids
        return [*text, END if last in (STOP, PAD) else last]

    def has_ended(self, sampled_ids: Sequence[int]) -> bool:
        """Whether an end is there."""
        return sampled_ids[-1] in (END, STOP, PAD)

    def decode(self, ids: Sequence[int]) -> str:
        """The bytes among them."""
        return bytes(id_ for id_ in ids if id_ < BOS).decode(errors="replace")

    def shared_length(self, prompt: Prompt) -> int:
        """`BOS` and the images."""
        return 1 + prompt.ids.count(IMAGE)

    def vocabulary(self) -> Mapping[str, int]:
        """A token's name is its number."""
        return {str(id_): id_ for id_ in range(VOCABULARY)}

    def image_refs(self, media: Sequence[Media]) -> list[ImageRef]:
        """The budget is the same, whatever is beside it."""
        return [ImageRef(medium, self.options.image_budget) for medium in media]

    def measure(self, root: Path, media: Media, budget: int) -> ImageSize:
        """Columns before rows."""
        with Image.open(root / media.path) as image:
            columns = min(budget, -(-image.width // CELL))
            rows = min(budget // columns, -(-image.height // CELL))
        return ImageSize(rows * columns, (1, rows, columns))

    def load(self, root: Path, media: Media, budget: int) -> ToyImage:
        """Shrunk to a pixel a cell."""
        size = self.measure(root, media, budget)
        assert size.grid is not None
        _, rows, columns = size.grid
        with Image.open(root / media.path) as image:
            pixels = image.convert("RGB").resize((columns, rows)).tobytes()
        return ToyImage(torch.tensor(list(pixels)).reshape(-1, 3) / 255, size.grid)

    def size_of(self, image: ToyImage) -> ImageSize:
        """Of a loaded one."""
        return ImageSize(image.num_tiles, image.grid)

    @property
    def max_image_tokens(self) -> int:
        """Cells."""
        return self.options.image_budget

    def geometry(self) -> Mapping[str, object]:
        """There is but one way."""
        return {"cell": CELL}

    def reading(self) -> Mapping[str, object]:
        """All options."""
        return {**self.geometry(), **asdict(self.options)}

    def with_options(self, **changes: Any) -> "ToyProcessor":
        """Another budget."""
        return ToyProcessor(replace(self.options, **changes))

    def save_pretrained(self, folder: str | Path) -> None:
        """One file."""
        (Path(folder) / "processor_config.json").write_text(json.dumps(asdict(self.options)))


class Layer(nn.Module):
    """Attention with rotary positions of three axes, and its residual."""

    kernel = "auto"

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, angles: Tensor, layout: Any, cache: Any) -> Tensor:
        """`x`: [B T D]; `angles`: [B 1 T E/2]; `layout`: a packed row's, or the cache of answers in the making."""
        heads = self.qkv(nn.functional.rms_norm(x, (WIDTH,))).unflatten(-1, (3, HEADS, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        q, k = rotated(q, angles).to(v.dtype), rotated(k, angles).to(v.dtype)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        attended, _ = shared_prefix_attention(self, q, k, v, None, q.shape[-1] ** -0.5, layout)
        return x + torch.tanh(self.out(attended.flatten(2)))


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Pairs (i, i + E/2) turned by their angles."""
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class ToyModel(VisionLanguageModel):
    """Two layers; `packs = False`: as if they could not share a row."""

    family = "toy"
    packs = True
    checkpointed = False
    kernel = "auto"

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Linear(3, 2 * WIDTH)
        parts = {
            "embedding": nn.Embedding(VOCABULARY, WIDTH),
            "first": Layer(0),
            "second": Layer(1),
        }
        self.language = nn.ModuleDict(parts)
        for weights in self.parameters():
            nn.init.normal_(weights, std=0.5)

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The weights'."""
        return next(self.parameters()).dtype

    hidden_size, vocab_size, head_dim = WIDTH, VOCABULARY, WIDTH // HEADS  # pyright: ignore
    feature_width = 2 * WIDTH  # pyright: ignore[reportAssignmentType]

    @property
    def packing_objection(self) -> str:
        """What a test wishes."""
        return "" if self.packs else "toy: each sequence is read whole"

    @property
    def attention(self) -> str:
        """The kernel."""
        return self.kernel

    def encode_images(self, images: Sequence[ToyImage]) -> list[Tensor]:
        """Both levels side by side."""
        return [self.tower(image.colours.to(self.dtype)) for image in images]

    @property
    def feature_dtype(self) -> torch.dtype:
        """By a probe."""
        return self.encode_images([ToyImage(torch.zeros(1, 3), (1, 1, 1))])[0].dtype

    def tower_weights(self) -> Mapping[str, Tensor]:
        """One linear layer."""
        return self.tower.state_dict()

    def tower_facts(self) -> Mapping[str, object]:
        """None."""
        return {}

    def hidden_states(
        self,
        batch: PackedBatch,
        image_features: Tensor | None = None,
        columns: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Packed, or row by row."""
        if not self.packs:
            is_image = batch.input_ids[0] == IMAGE
            return plain_hidden_states(self.read_row, batch, is_image, image_features, columns)
        hidden = self.read(batch.input_ids, batch.position_ids, image_features, batch.layout, cache)
        return hidden[0] if columns is None else hidden[0, columns]

    def read_row(self, row: PlainRow) -> Tensor:
        """A sequence of its own."""
        layout = PackedLayout(((len(row.input_ids), ()),))
        ids, features = row.input_ids[None], row.image_features
        return self.read(ids, row.position_ids, features, layout, None)[0]

    def read(
        self, ids: Tensor, positions: Tensor, features: Tensor | None, layout: Any, cache: Any
    ) -> Tensor:
        """States [B T D] of ids [B T] at positions [A T] or, of single tokens, [1 B]."""
        x, is_image = self.language["embedding"](ids), ids == IMAGE
        given = 0 if features is None else len(features)
        if int(is_image.sum()) != given:
            raise ValueError(f"{given} features for {int(is_image.sum())} image tokens")
        first, second = (x, x) if features is None else features.to(x.dtype).chunk(2, -1)
        if features is not None:
            x = x.masked_scatter(is_image[..., None], first)
        for name in LAYERS:
            layer = self.language[name]
            given = (x, angles_of(positions, ids.shape), layout, cache)
            saves = self.checkpointed and self.training
            x = checkpoint(layer, *given, use_reentrant=False) if saves else layer(*given)
            if name == "first" and features is not None:  # the second level enters here
                x = x + torch.zeros_like(x).masked_scatter(is_image[..., None], second)
        return x

    def freeze_vision(self) -> None:
        """The tower."""
        self.tower.requires_grad_(False)

    def decoder_module(self) -> nn.Module:
        """Embedding and layers."""
        return self.language

    def lora_layers(self) -> list[nn.Linear]:
        """Those of attention."""
        linear: list[Any] = []
        for name in LAYERS:
            linear += [self.language[name].qkv, self.language[name].out]
        return linear

    def muon_matrices(self) -> list[nn.Parameter]:
        """Their weights."""
        weights = [layer.get_parameter("weight") for layer in self.lora_layers()]
        return [each for each in weights if each.requires_grad]

    def compute_in_bf16(self) -> None:
        """Under autocast."""
        reduced = torch.autocast(self.device.type, torch.bfloat16)
        self.read, self.encode_images = reduced(self.read), reduced(self.encode_images)

    def keep_in_bf16(self) -> None:
        """Embedding and layers."""
        self.language.bfloat16()

    def set_attention(self, name: str) -> None:
        """In either layer."""
        self.kernel = name
        for layer in LAYERS:
            self.language[layer].kernel = name  # pyright: ignore[reportArgumentType]

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Layer by layer."""
        self.checkpointed = True

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Weights, and which head they have."""
        folder = Path(save_directory)
        save_file(self.state_dict(), folder / "model.safetensors")
        kind = {"model_type": "toy", "head": type(self).__name__}
        (folder / "config.json").write_text(json.dumps(kind))


def angles_of(positions: Tensor, shape: torch.Size) -> Tensor:
    """[B 1 T E/2]: two channels turn by the frame, one by the row, one by the column."""
    axes = positions.expand(3, -1).float() if len(positions) == 1 else positions.float()
    speeds = torch.tensor([1.0, 0.1, 1.0, 1.0])
    return (axes[[0, 0, 1, 2]].T * speeds).reshape(shape[0], 1, shape[1], 4)


class ToyPolicy(ToyModel, PolicyModel):
    """With a vocabulary head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    end_ids = frozenset((END, STOP, PAD))  # pyright: ignore[reportAssignmentType]
    unsampled = [BOS, REWARD, IMAGE]  # pyright: ignore[reportAssignmentType]

    def suppress_control(self, processor: Any) -> None:
        """Its tokenizer is always the same."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Of the next token."""
        return self.head(hidden)

    def read_prompts(
        self, batch: PackedBatch, image_features: Tensor | None, num_answers: int
    ) -> tuple[Tensor, Any]:
        """Packed: a cache that answers share; plain: the sequences themselves, read anew with every token."""
        lengths = torch.tensor([prefix for prefix, _ in batch.layout.shapes])
        cache = DynamicCache() if self.packs else None
        hidden = self.hidden_states(batch, image_features, lengths.cumsum(0) - 1, cache)
        last = hidden.repeat_interleave(num_answers, 0)
        if cache is not None:
            return last, ResponseCache(cache, batch.layout, num_answers)
        rows = plain_rows(batch, batch.input_ids[0] == IMAGE, image_features)
        return last, [row for row in rows for _ in range(num_answers)]

    def next_states(self, tokens: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """One more token."""
        if self.packs:
            return self.read(tokens, positions[None], None, cache, cache)[:, -1]
        states = []
        for number, row in enumerate(cache):
            ids = torch.cat([row.input_ids, tokens[number]])
            axes = row.position_ids.expand(3, -1)
            places = torch.cat([axes, positions[number].expand(3, 1)], 1)
            cache[number] = row._replace(input_ids=ids, position_ids=places)
            states.append(self.read_row(cache[number])[-1])
        return torch.stack(states)


class ToyScorer(ToyModel, ScoringModel):
    """With a score head."""

    pooling = "last_token"  # pyright: ignore[reportAssignmentType]

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(WIDTH, 1, bias=False)

    def scores(self, states: Tensor) -> Tensor:
        """In fp32."""
        return nn.functional.linear(states.float(), self.score.weight.float()).squeeze(-1)


class Toy(Family):
    """Folders with `model_type: toy`."""

    def reads(self, config: Mapping[str, Any]) -> bool:
        """By the type."""
        return config.get("model_type") == "toy"

    def load(self, model: Any, folder: Path, **options: Any) -> tuple[Any, ToyProcessor]:
        """Weights by name; a new head stays as it is."""
        device = as_device(options.get("device", "cpu"))
        refuse_attention(options.get("attention", "auto"), device)
        model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        model.to(device, as_dtype(options.get("dtype")))
        use_attention(model, options.get("attention", "auto"))
        stored = json.loads((folder / "processor_config.json").read_text())
        return model.eval(), ToyProcessor(ToyOptions(**stored))

    def load_policy(self, folder: Path, **options: Any) -> tuple[ToyPolicy, ToyProcessor]:
        """The chat model."""
        return self.load(ToyPolicy(), folder, **options)

    def load_scorer(self, folder: Path, **options: Any) -> tuple[ToyScorer, ToyProcessor]:
        """The reward model."""
        return self.load(ToyScorer(), folder, **options)

    def scorer_from(self, base: Path) -> tuple[ToyScorer, ToyProcessor]:
        """A new head."""
        return self.load(ToyScorer(), base)

    def save(self, model: Any, processor: Any, folder: Path) -> None:
        """Both."""
        with replacing_folder(folder) as part:
            model.save_pretrained(part)
            processor.save_pretrained(part)

    def adopt(self, source: Path, target: Path) -> None:
        """There is one form."""
        self.save(*self.load_policy(source), target)

    def build(
        self, architecture: Mapping[str, Any], image_budget: int, texts: Sequence[str]
    ) -> tuple[ToyPolicy, ToyProcessor]:
        """Of one size."""
        if architecture:
            raise BadArchitecture(f"{min(architecture)}: unknown key; a toy has one size")
        return ToyPolicy(), ToyProcessor(ToyOptions(image_budget))


FAMILY = Toy()
