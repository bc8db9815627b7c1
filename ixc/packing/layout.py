"""A prompt with its responses as one group: the shared prefix once, the responses beside each other after it.

Every response sees the prefix and itself, and its positions go on where the prefix ends; so the numbers are those of
separate rows, at a fraction of the tokens. The same layout serves SFT (questions on one image), reward training
(chosen and rejected), scoring (N candidates) and PPO.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ixc.packing.attention import PackedLayout, to_device


@dataclass(frozen=True)
class Prompt:
    """Token ids as a model reads them, with the positions that it gives them."""

    ids: list[int]
    positions: tuple[Sequence[int], ...]
    """Of every token, axis by axis of the rotary embedding: one axis, or three (time, height, width)."""
    next_position: int
    """Of what follows, on every axis. Tokens of an image may take fewer positions than there are of them."""

    @classmethod
    def counted(cls, ids: Sequence[int]) -> "Prompt":
        """Ids whose positions count them: all texts, and images where a model has no positions of its own for them.

        >>> Prompt.counted([7, 8, 9])
        Prompt(ids=[7, 8, 9], positions=(range(0, 3),), next_position=3)
        """
        return cls(list(ids), (range(len(ids)),), len(ids))

    def __len__(self) -> int:
        """Tokens."""
        return len(self.ids)

    def cut(self, length: int) -> "Prompt":
        """The first tokens; what is cut off must be text, whose positions just count on.

        >>> Prompt([7, 8, 9], ([0, 0, 2], [0, 1, 2]), 3).cut(2)
        Prompt(ids=[7, 8], positions=([0, 0], [0, 1]), next_position=2)
        """
        if length >= len(self):
            return self
        positions = tuple(axis[:length] for axis in self.positions)
        return Prompt(self.ids[:length], positions, self.positions[0][length])


@dataclass(frozen=True)
class PrefixGroup:
    """A prompt and the token ids of its responses."""

    prefix: Prompt | list[int]
    """Plain ids are a text: `Prompt.counted`."""
    responses: list[list[int]]
    free: list[int] = field(default_factory=list)
    """Leading tokens of each response that are given, not predicted; empty: none."""

    def __len__(self) -> int:
        """Tokens of prefix and responses."""
        return len(self.prefix) + sum(map(len, self.responses))

    @property
    def prompt(self) -> Prompt:
        """The prefix with its positions."""
        return self.prefix if isinstance(self.prefix, Prompt) else Prompt.counted(self.prefix)


@dataclass(frozen=True)
class PackedBatch:
    """Groups one after another in a single row, and where their predicted tokens and response ends are; no padding.

    Letters: T tokens, A axes of positions, R responses of all groups, M predicted tokens of all responses, in order.
    """

    input_ids: Int[Tensor, "1 T"]
    position_ids: Int[Tensor, "A T"]
    """As many axes as the prompts have; one axis holds on all axes of a model."""
    layout: PackedLayout
    end_at: Int[Tensor, " R"]
    """Column of each response's last token."""
    target_from: Int[Tensor, " M"]
    """The column whose logits predict the token."""
    target_ids: Int[Tensor, " M"]
    target_response: Int[Tensor, " M"]

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The same on another device."""
        moved = {
            name: to_device(x, device) for name, x in vars(self).items() if isinstance(x, Tensor)
        }
        return replace(self, **moved)

    def inputs(self) -> dict[str, Any]:
        """What a decoder reads of it."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "layout": self.layout,
        }

    def mean(self, hidden: Float[Tensor, "T D"]) -> Float[Tensor, "R D"]:
        """The mean over prefix and response, fp32."""
        group, response = (to_device(x, hidden.device) for x in self.layout.numbers())
        own, prefix = response == response[self.end_at, None], response < 0
        weights = ((group == group[self.end_at, None]) & (own | prefix)).float()
        return weights / weights.sum(1, keepdim=True) @ hidden.float()


def collate(groups: Sequence[PrefixGroup]) -> PackedBatch:
    """Lay groups out one after another; nothing is padded.

    Raises:
        ValueError: two of the prompts have several axes of positions, and not the same number.
    """
    prompts = [group.prompt for group in groups]
    axes = max((len(prompt.positions) for prompt in prompts), default=1)
    positions: list[list[int]] = [[] for _ in range(axes)]
    ids, ends, targets = [], [], []
    for group, prompt in zip(groups, prompts, strict=True):
        ids += prompt.ids
        root = len(ids) - 1
        _extend(positions, prompt.positions)
        for number, response in enumerate(group.responses):
            # what predicts the first token is the end of the prefix, not the column before it
            for i in range(group.free[number] if group.free else 0, len(response)):
                targets.append((len(ids) + i - 1 if i else root, response[i], len(ends)))
            ids += response
            start = prompt.next_position
            _extend(positions, (range(start, start + len(response)),))
            ends.append(len(ids) - 1)
    target_from, target_ids, target_response = torch.tensor(targets).long().reshape(-1, 3).unbind(1)
    shapes = [(len(group.prefix), tuple(map(len, group.responses))) for group in groups]
    return PackedBatch(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor(positions),
        layout=PackedLayout(tuple(shapes)),
        end_at=torch.tensor(ends).long(),
        target_from=target_from,
        target_ids=target_ids,
        target_response=target_response,
    )


def _extend(positions: list[list[int]], new: Sequence[Sequence[int]]) -> None:
    """Append positions on every axis; a single axis holds for all."""
    if len(new) not in (1, len(positions)):
        raise ValueError(
            f"positions: a prompt of {len(new)} axes beside one of {len(positions)}; "
            "read both with one model's processor"
        )
    for axis, row in enumerate(positions):
        row.extend(new[axis if len(new) > 1 else 0])
