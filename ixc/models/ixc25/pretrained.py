"""What IXC-2.5 is without its heads: vision tower, projector, language model; loading that lets nothing be missing."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from ixc.io.files import share_files
from ixc.models.base import BadCheckpoint, VisionLanguageModel, some
from ixc.models.ixc25.agreement import refuse_mismatch
from ixc.models.ixc25.card import write_card
from ixc.models.ixc25.configuration import IXCConfig
from ixc.models.ixc25.language import (
    Attention,
    DecoderLayer,
    InternLM2,
    LowRank,
    PLoRALinear,
    WrongImages,
)
from ixc.models.ixc25.tiles import ImageTiles
from ixc.models.ixc25.vision import VisionEmbeddings, VisionTower, image_sequence, merge_patches
from ixc.models.precision import Autocast, warn_of_slow_precision
from ixc.packing.layout import PackedBatch
from ixc.packing.plain import PlainRow, plain_hidden_states

HEADS = ("output.weight", "score.weight")
UNUSED_KEYS = (
    r"^vit\.vision_tower\.vision_model\.(post_layernorm\.(weight|bias)|embeddings\.position_ids)$",
    r"^model\.layers\.\d+\.(attention|feed_forward)\.(wqkv|wo|w[123])\.lora_(sft|dpo|web)_[AB]\.(weight|bias)$",
    r"^model\.(layers\.\d+\.attention\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)$",
)
"""What official checkpoints may hold and no score or answer depends on."""


class IXCPreTrainedModel(PreTrainedModel, VisionLanguageModel):
    """Vision tower, projector and language model under the official names; the heads are its subclasses."""

    family = "ixc25"
    config_class = IXCConfig
    config: IXCConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "video", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer", "VisionLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": DecoderLayer, "attentions": Attention}
    accepts_loss_kwargs = False
    """Whether Transformers' Trainer tells `forward` how many items a step has (`num_items_in_batch`), and so does not
    divide the loss by the steps of gradient accumulation itself. Without a head, or with a loss of the caller's own
    making (pairs), it has to divide."""
    _keys_to_ignore_on_load_unexpected = [r"^output\.weight", r"^score\.weight", *UNUSED_KEYS]

    def __init__(self, config: IXCConfig) -> None:
        super().__init__(config)
        self.model = InternLM2(config)
        self.vit = VisionTower(config)
        self.vision_proj = nn.Sequential(
            nn.Linear(config.merged_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        self.plora_glb_GN = nn.Parameter(torch.zeros(1, 1, config.merged_size))
        self.plora_sub_GN = nn.Parameter(torch.zeros(1, 1, 1, config.merged_size))

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LowRank):
            nn.init.normal_(module.weight, std=self.config.initializer_range or 0.02)
        if isinstance(module, PLoRALinear):  # B = 0: an untrained Partial LoRA changes nothing
            nn.init.kaiming_uniform_(module.Plora_A.weight, a=5**0.5)
            nn.init.zeros_(module.Plora_B.weight)
        if isinstance(
            module, VisionEmbeddings
        ):  # patches of unit size, and positions as loud as a white ground
            nn.init.kaiming_normal_(module.patch_embedding.weight, nonlinearity="linear")
            nn.init.normal_(module.position_embedding.weight, std=2.0)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As Transformers', but a pickle is never read, which may run any code, and only a head may be new.

        Raises:
            BadCheckpoint: another weight is missing, or one is unknown; or weights, processor or tokenizer in the
                folder are not those of its `config.json`, see `agreement`.
        """
        folder = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        elsewhere = any(kwargs.get(name) for name in ("subfolder", "variant", "state_dict"))
        if isinstance(folder, str | PathLike) and Path(folder).is_dir() and not elsewhere:
            refuse_mismatch(Path(folder))
        with_report = kwargs.pop("output_loading_info", False)
        options = {**kwargs, "use_safetensors": True, "output_loading_info": True}
        model, report = super().from_pretrained(*args, **options)  # pyright: ignore[reportGeneralTypeIssues]
        for names, what in (
            (
                set(report["missing_keys"]) - set(HEADS),
                "missing; fetch all files of the checkpoint",
            ),
            (report["unexpected_keys"], "not of this architecture; is it an IXC-2.5?"),
        ):
            if names:
                raise BadCheckpoint(f"{model.name_or_path}: {some(sorted(names))} {what}")
        return (model, report) if with_report else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As Transformers', with a model card, and weights that whoever may read the folder can read."""
        folder = Path(save_directory)
        if kwargs.get("is_main_process", True) and not folder.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_card(self, folder)
        super().save_pretrained(save_directory, *args, **kwargs)
        if folder.is_dir():
            share_files(folder, "model*.safetensors")

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings."""
        return self.model.tok_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.model.tok_embeddings = value  # pyright: ignore[reportAttributeAccessIssue]

    def encode_images(
        self, images: Sequence[tuple[Float[Tensor, "_ 3 S S"], int]]
    ) -> list[Float[Tensor, "_ D"]]:
        """Projected tokens of each image; all tiles pass the tower together.

        Args:
            images: (normalised tiles with the global view first, rows of tiles) per image.
        """
        if not images:
            return []
        counts = [len(tiles) for tiles, _ in images]
        grids = merge_patches(
            self.vit(torch.cat([tiles for tiles, _ in images]).to(self.plora_glb_GN))
        )
        sequences = [
            image_sequence(grid, rows, self.plora_sub_GN, self.plora_glb_GN)
            for grid, (_, rows) in zip(grids.split(counts), images, strict=True)
        ]
        projected = self.vision_proj(torch.cat(sequences))
        return list(projected.split([len(s) for s in sequences]))

    def get_image_features(
        self, pixel_values: Float[Tensor, "N 3 S S"], tile_grids: Int[Tensor, "images 2"]
    ) -> Float[Tensor, "P D"]:
        """Projected tokens of a batch's images, one after another.

        Args:
            pixel_values: tiles of all images; each image's global view comes before its tiles.
            tile_grids: rows and columns of tiles of each image.

        Raises:
            WrongImages: tiles of another size than the tower's, or not as many as the grids say.
        """
        grids = tile_grids.tolist()
        self._check_tiles(pixel_values, sum(rows * columns + 1 for rows, columns in grids))
        tiles = pixel_values.split([rows * columns + 1 for rows, columns in grids])
        return torch.cat(
            self.encode_images([(t, rows) for t, (rows, _) in zip(tiles, grids, strict=True)])
        )

    def _check_tiles(self, tiles: Tensor, expected: int) -> None:
        side = self.config.tile_size
        if tiles.shape[1:] != (3, side, side):
            form = f"tiles of shape {list(tiles.shape[1:])}, but this model's are [3, {side}, {side}] (tile_size)"
            raise WrongImages(f"pixel_values: {form}; use the processor of the model's own folder")
        if len(tiles) != expected:
            form = f"{len(tiles)} tiles, but tile_grids speak of {expected}, global views included"
            raise WrongImages(f"pixel_values: {form}; pass both as one processor call gives them")

    # What the pipeline knows of it, see `VisionLanguageModel`

    @property
    def hidden_size(self) -> int:
        """Channels of a hidden state."""
        return self.config.hidden_size

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self.config.vocab_size

    @property
    def head_dim(self) -> int:
        """Channels of an attention head."""
        return self.config.head_dim

    @property
    def packing_objection(self) -> str:
        """With `eager`, the reference, every sequence is read whole, in plain formulae."""
        eager = self.config._attn_implementation == "eager"
        return "attn_implementation: 'eager': the reference reads row by row" if eager else ""

    def sharing_key(self, length: int) -> object:
        """Dynamic rotary scaling turns the whole of a sequence by its length."""
        if self.config.rope["rope_type"] != "dynamic":
            return None
        return max(length, self.config.max_position_embeddings)

    @property
    def attention(self) -> str:
        """That of padded rows and of packed ones."""
        kernels = {module.kernel for module in self.modules() if isinstance(module, Attention)}
        return f"{self.config._attn_implementation}, {', '.join(sorted(kernels))}"

    @property
    @torch.no_grad()
    def feature_dtype(self) -> torch.dtype:
        """By a probe: under autocast it is not that of the weights."""
        side = self.config.tile_size
        [tokens] = self.encode_images([ImageTiles(torch.zeros(2, 3, side, side), 1)])
        return tokens.dtype

    def tower_weights(self) -> Mapping[str, Tensor]:
        """Tower, projector, newline and separator."""
        parts = {**self.vit.state_dict(), **self.vision_proj.state_dict(prefix="proj.")}
        return {**parts, "glb": self.plora_glb_GN, "sub": self.plora_sub_GN}

    def tower_facts(self) -> Mapping[str, object]:
        """Sizes that the tower's weights do not show."""
        names = ("vision_num_attention_heads", "vision_layer_norm_eps")
        return {name: getattr(self.config, name) for name in names}

    def hidden_states(
        self,
        batch: PackedBatch,
        image_features: Float[Tensor, "P D"] | None = None,
        columns: Int[Tensor, " R"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "R D"]:
        """States of a packed row; `cache` takes its keys and values."""
        if self.packing_objection and cache is None:
            is_image = batch.input_ids[0] == self.config.image_token_id
            return plain_hidden_states(self._read_row, batch, is_image, image_features, columns)
        given = {"image_features": image_features, "past_key_values": cache, "columns": columns}
        return self.model(**batch.inputs(), **given)[0]

    def _read_row(self, row: PlainRow) -> Float[Tensor, "t D"]:
        ids = row.input_ids[None]
        return self.model(ids, row.image_features, position_ids=row.position_ids)[0]

    def freeze_vision(self) -> None:
        """Stop training everything that turns an image into tokens (paper, section 3, Training Strategy)."""
        for part in (self.vit, self.vision_proj):
            part.requires_grad_(False)
        self.plora_glb_GN.requires_grad_(False)
        self.plora_sub_GN.requires_grad_(False)

    def decoder_module(self) -> nn.Module:
        """InternLM2."""
        return self.model

    def lora_layers(self) -> list[nn.Linear]:
        """Those that have a Partial LoRA, which stays as it is."""
        return [module for module in self.model.modules() if isinstance(module, PLoRALinear)]

    def muon_matrices(self) -> list[nn.Parameter]:
        """Not Partial LoRA, which starts from nothing."""
        matrices = []
        for name, weights in self.named_parameters():
            inside = "layers." in name or "vision_proj." in name
            if inside and "Plora_" not in name and weights.ndim == 2 and weights.requires_grad:
                matrices.append(weights)
        return matrices

    def image_only_parameters(self) -> list[nn.Parameter]:
        """Partial LoRA, which text does not pass."""
        return [weights for name, weights in self.named_parameters() if ".Plora_" in name]

    def use_all_weights(self, on_image: Callable[[], None]) -> list[RemovableHandle]:
        """A text, too, takes the images' way through the layers, with no token on it."""

        def with_places(
            _: nn.Module, inputs: tuple[Tensor, Tensor | None]
        ) -> tuple[Tensor, Tensor]:
            x, places = inputs
            if places is None:
                return x, x.new_empty(0, dtype=torch.long)
            if torch.is_grad_enabled():
                on_image()
            return x, places

        return [layer.register_forward_pre_hook(with_places) for layer in self.lora_layers()]

    def compute_in_bf16(self) -> None:
        """Activations included; weights and heads stay as they are."""
        warn_of_slow_precision(self.device, torch.bfloat16)
        for part in (self.model, self.vit, self.vision_proj):
            Autocast(part, self.device.type)
        embeddings = self.get_input_embeddings()
        embeddings.register_forward_hook(lambda _, __, embedded: embedded.bfloat16())

    def keep_in_bf16(self) -> None:
        """Linear layers read their weights in bf16 anyway; norms and heads do not."""
        for part in (self.model, self.vit, self.vision_proj):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    module.bfloat16()
        self.get_input_embeddings().bfloat16()

    def set_attention(self, name: str) -> None:
        """Of packed rows."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.kernel = name

    def states(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        pixel_values: Float[Tensor, "N 3 S S"] | None = None,
        tile_grids: Int[Tensor, "images 2"] | None = None,
        image_features: Float[Tensor, "P D"] | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states after the final norm: what every head reads.

        Args:
            input_ids: `config.image_token_id` where an image token belongs.
            attention_mask, position_ids, past_key_values, inputs_embeds: as in `InternLM2.forward`.
            pixel_values, tile_grids: the images, as in `get_image_features`.
            image_features: image tokens computed before, instead of the images.
            use_cache: return keys and values of this pass for the next.
            kwargs: `ixc.models.ixc25.arguments.PASSED_ON`.

        Raises:
            TypeError: another keyword argument, by its name.
            WrongImages: images that do not fill their places.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if (pixel_values is None) != (tile_grids is None) or (
            pixel_values is not None and image_features is not None
        ):
            raise WrongImages(
                "give pixel_values with tile_grids, or image_features instead of both"
            )
        if pixel_values is not None and tile_grids is not None:
            image_features = self.get_image_features(pixel_values, tile_grids)
        hidden = self.model(
            input_ids,
            image_features,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)
