"""The image's way into the language model: CLIP ViT, 2x2 merge, newline and separator, projector.

Letters in names: N tiles, L patches and the class token, C vision channels, H heads, E channels of a head, T image
tokens, D hidden channels.
Parameter names are the official checkpoint's.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ixc.models.ixc25.configuration import IXCConfig


class VisionEmbeddings(nn.Module):
    """Patches and the class token, with learned positions."""

    def __init__(self, config: IXCConfig) -> None:
        super().__init__()
        width, patches = config.vision_hidden_size, (config.tile_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, config.patch_size, config.patch_size, bias=False)
        self.position_embedding = nn.Embedding(patches + 1, width)

    def forward(self, tiles: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N L C"]:
        """Embed normalised RGB tiles; the class token comes first."""
        patches = self.patch_embedding(tiles).flatten(2).transpose(1, 2)
        classes = self.class_embedding.expand(len(tiles), 1, -1)
        return torch.cat([classes, patches], 1) + self.position_embedding.weight


def eager_attention(
    module: nn.Module,
    q: Float[Tensor, "N H L E"],
    k: Float[Tensor, "N H L E"],
    v: Float[Tensor, "N H L E"],
    attention_mask: None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Float[Tensor, "N L H E"], Float[Tensor, "N H L L"]]:
    """Attention in plain formulae, softmax in fp32, nothing masked; under Transformers' attention interface."""
    weights = (q @ k.transpose(2, 3) * scaling).softmax(-1, dtype=torch.float32).to(v.dtype)
    return (weights @ v).transpose(1, 2), weights


class VisionAttention(nn.Module):
    """Plain multi-head attention over the patches of one tile, by the implementation that the model is told."""

    is_causal = False

    def __init__(self, config: IXCConfig) -> None:
        super().__init__()
        width = config.vision_hidden_size
        self.config, self.num_heads = config, config.vision_num_attention_heads
        self.scaling = (width // self.num_heads) ** -0.5
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(width, width) for _ in range(4)
        )

    def forward(self, x: Float[Tensor, "N L C"]) -> Float[Tensor, "N L C"]:
        """Every patch attends to every patch."""
        q, k, v = (
            p(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention
        )
        out, _ = attend(self, q, k, v, None, scaling=self.scaling, is_causal=self.is_causal)
        return self.out_proj(out.flatten(2))


class VisionMLP(nn.Module):
    """Two linear layers around OpenAI's quick GELU."""

    def __init__(self, config: IXCConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.vision_hidden_size, config.vision_intermediate_size)
        self.fc2 = nn.Linear(config.vision_intermediate_size, config.vision_hidden_size)

    def forward(self, x: Float[Tensor, "N L C"]) -> Float[Tensor, "N L C"]:
        """`x * sigmoid(1.702 x)` between the layers."""
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h))


class VisionLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer."""

    def __init__(self, config: IXCConfig) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = (
            nn.LayerNorm(config.vision_hidden_size, config.vision_layer_norm_eps) for _ in range(2)
        )
        self.self_attn = VisionAttention(config)
        self.mlp = VisionMLP(config)

    def forward(self, x: Float[Tensor, "N L C"]) -> Float[Tensor, "N L C"]:
        """Attention, then MLP, each with its residual."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionEncoder(nn.Module):
    """The layers, under the official name."""

    def __init__(self, config: IXCConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            VisionLayer(config) for _ in range(config.vision_num_hidden_layers)
        )


class VisionTransformer(nn.Module):
    """CLIP's ViT up to the last layer's output; `post_layernorm` never touches the features, so it is not here."""

    def __init__(self, config: IXCConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.vision_hidden_size, config.vision_layer_norm_eps)
        self.encoder = VisionEncoder(config)

    def forward(self, tiles: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N L C"]:
        """Patch features; the class token is dropped."""
        x = self.pre_layrnorm(self.embeddings(tiles))
        for layer in self.encoder.layers:
            x = layer(x)
        return x[:, 1:]


class VisionTower(nn.Module):
    """Holds the ViT under the official prefix `vit.vision_tower.vision_model`."""

    def __init__(self, config: IXCConfig) -> None:
        super().__init__()
        self.vision_tower = nn.ModuleDict({"vision_model": VisionTransformer(config)})

    def forward(self, tiles: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N L C"]:
        """Patch features of each tile."""
        return self.vision_tower["vision_model"](tiles)


def merge_patches(patches: Float[Tensor, "N L C"]) -> Float[Tensor, "N side side merged"]:
    """Concatenate each 2x2 block of patches, row by row: a quarter of the tokens, four times as wide."""
    side = int(patches.shape[1] ** 0.5)
    grid = patches.unflatten(1, (side // 2, 2, side // 2, 2))
    return grid.transpose(2, 3).flatten(3)


def image_sequence(
    grids: Float[Tensor, "N side side merged"],
    tile_rows: int,
    newline: Float[Tensor, "1 1 1 merged"],
    separator: Float[Tensor, "1 1 merged"],
) -> Float[Tensor, "T merged"]:
    """Global view, separator, then the tiles stitched into one grid; every row of either ends in a newline.

    Args:
        grids: the global view first, then the tiles, row-major.
        tile_rows: rows of tiles.
    """
    whole, tiles = grids[0], grids[1:]
    stitched = tiles.unflatten(0, (tile_rows, -1)).transpose(1, 2).flatten(0, 1).flatten(1, 2)
    rows = [
        torch.cat([g, newline[0].expand(len(g), 1, -1)], 1).flatten(0, 1) for g in (whole, stitched)
    ]
    return torch.cat([rows[0], separator[0], rows[1]])
