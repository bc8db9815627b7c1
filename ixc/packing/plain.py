"""The way without packing: every response with a copy of its prefix as a row of its own.

For models whose sequences cannot share a row (recurrent layers, say), and the reference for those whose can.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ixc.packing.attention import PackedLayout, to_device
from ixc.packing.layout import PackedBatch


class PlainRow(NamedTuple):
    """One whole sequence of a packed batch; t tokens, p of them of images."""

    input_ids: Int[Tensor, " t"]
    position_ids: Int[Tensor, "A t"]
    image_features: Float[Tensor, "p W"] | None
    """Those of its own images, in reading order; None: no image."""
    num_repeated: int
    """Leading tokens that an earlier row has computed already: the prefix, in all but the first."""


def plain_rows(
    batch: PackedBatch, is_image: Bool[Tensor, " T"], image_features: Float[Tensor, "P W"] | None
) -> list[PlainRow]:
    """The sequences of a batch, group by group; a prefix without responses is one too.

    Args:
        is_image: which tokens of the packed row are an image's.
        image_features: of all these tokens, in reading order.
    """
    feature_of = is_image.long().cumsum(0) - 1
    rows = []
    for on_host, num_repeated in plain_columns(batch.layout):
        columns = to_device(on_host, batch.input_ids.device)
        image_columns = columns[is_image[columns]]
        features = None
        if image_features is not None and len(image_columns):
            features = image_features[feature_of[image_columns]]
        ids, positions = batch.input_ids[0, columns], batch.position_ids[:, columns]
        rows.append(PlainRow(ids, positions, features, num_repeated))
    return rows


def plain_columns(layout: PackedLayout) -> list[tuple[Int[Tensor, " t"], int]]:
    """The columns of every sequence, and how many of them an earlier sequence has.

    >>> [(columns.tolist(), repeated) for columns, repeated in plain_columns(PackedLayout(((2, (1, 1)),)))]
    [([0, 1, 2], 0), ([0, 1, 3], 2)]
    """
    sequences = []
    for prefix, *responses in layout.groups:
        shared = torch.arange(prefix.start, prefix.stop)
        if not responses:
            sequences.append((shared, 0))
        for number, response in enumerate(responses):
            own = torch.arange(response.start, response.stop)
            sequences.append((torch.cat([shared, own]), len(shared) if number else 0))
    return sequences


def plain_hidden_states(
    read: Callable[[PlainRow], Float[Tensor, "t D"]],
    batch: PackedBatch,
    is_image: Bool[Tensor, " T"],
    image_features: Float[Tensor, "P W"] | None,
    columns: Int[Tensor, " R"] | None = None,
) -> Float[Tensor, "R D"]:
    """The states of a packed row from a model that reads one sequence at a time.

    Args:
        read: a sequence's hidden states.
        columns: those of the packed row to return; None: all.
    """
    parts = []
    for row in plain_rows(batch, is_image, image_features):
        parts.append(read(row)[row.num_repeated :])
    hidden = torch.cat(parts)
    return hidden if columns is None else hidden[columns]
