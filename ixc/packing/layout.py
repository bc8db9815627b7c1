"""A prompt with its responses as one group: the shared prefix once, the responses beside each other after it.

Every response sees the prefix and itself, and its positions go on where the prefix ends; so the numbers are those of
separate rows, at a fraction of the tokens. The same layout serves SFT (questions on one picture), reward training
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
class PrefixGroup:
    """Token ids of a prefix and its responses."""

    prefix: list[int]
    responses: list[list[int]]
    free: list[int] = field(default_factory=list)
    """Leading tokens of each response that are given, not predicted; empty: none."""

    def __len__(self) -> int:
        """Tokens of prefix and responses."""
        return len(self.prefix) + sum(map(len, self.responses))


@dataclass(frozen=True)
class PackedBatch:
    """Groups one after another in a single row, and where their predicted tokens and response ends are; no padding.

    Letters: T tokens, R responses of all groups, M predicted tokens of all responses, in order.
    """

    input_ids: Int[Tensor, "1 T"]
    position_ids: Int[Tensor, "1 T"]
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
        """What `InternLM2.forward` takes of it."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "layout": self.layout,
        }

    def mean(self, hidden: Float[Tensor, "1 T D"]) -> Float[Tensor, "R D"]:
        """The mean over prefix and response, fp32."""
        group, response = (to_device(x, hidden.device) for x in self.layout.numbers())
        own, prefix = response == response[self.end_at, None], response < 0
        weights = ((group == group[self.end_at, None]) & (own | prefix)).float()
        return weights / weights.sum(1, keepdim=True) @ hidden[0].float()


def collate(groups: Sequence[PrefixGroup]) -> PackedBatch:
    """Lay groups out one after another; nothing is padded."""
    ids, positions, ends, targets = [], [], [], []
    for group in groups:
        start = len(group.prefix)
        ids += group.prefix
        positions += range(start)
        root = len(ids) - 1
        for number, response in enumerate(group.responses):
            for i in range(group.free[number] if group.free else 0, len(response)):
                targets.append((len(ids) + i - 1 if i else root, response[i], len(ends)))
            ids += response
            positions += range(start, start + len(response))
            ends.append(len(ids) - 1)
    target_from, target_ids, target_response = torch.tensor(targets).long().reshape(-1, 3).unbind(1)
    return PackedBatch(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        layout=PackedLayout(tuple((len(t.prefix), tuple(map(len, t.responses))) for t in groups)),
        end_at=torch.tensor(ends).long(),
        target_from=target_from,
        target_ids=target_ids,
        target_response=target_response,
    )
