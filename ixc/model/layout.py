"""A prompt with its answers as a tree: the shared prefix once, each answer a branch beside it.

Every branch sees the prefix and itself, and its positions go on where the prefix ends; so the numbers are those of
separate rows, at a fraction of the tokens. The same layout serves SFT (questions on one picture), reward training
(chosen and rejected), scoring (N candidates) and PPO.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Tree:
    """Token ids of a prefix and its branches."""

    prefix: list[int]
    branches: list[list[int]]
    free: list[int] = field(default_factory=list)
    """Leading tokens of each branch that are given, not predicted; empty: none."""


@dataclass(frozen=True)
class Batch:
    """Trees as padded rows, and where their predicted tokens and branch ends are.

    Letters: B rows, T tokens, R branches of all rows, M predicted tokens of all branches, in order.
    """

    input_ids: Int[Tensor, "B T"]
    position_ids: Int[Tensor, "B T"]
    segment_ids: Int[Tensor, "B T"]
    """0 in the prefix, 1, 2, ... in the branches, -1 in the padding."""
    end_row: Int[Tensor, " R"]
    end_at: Int[Tensor, " R"]
    """Row and column of each branch's last token."""
    target_row: Int[Tensor, " M"]
    target_from: Int[Tensor, " M"]
    """The column whose logits predict the token."""
    target_ids: Int[Tensor, " M"]
    target_branch: Int[Tensor, " M"]

    def to(self, device: torch.device | str) -> "Batch":
        """The same on another device."""
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def inputs(self) -> dict[str, Tensor]:
        """What `InternLM2.forward` takes of it."""
        return {"input_ids": self.input_ids, "attention_mask": self.mask(), "position_ids": self.position_ids}

    def mask(self) -> Bool[Tensor, "B 1 T T"]:
        """Who sees whom: earlier columns of the prefix and of one's own branch; padding sees itself."""
        q, k = self.segment_ids[:, :, None], self.segment_ids[:, None, :]
        before = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device=q.device).tril()
        return (before & ((k == 0) | (k == q)))[:, None]

    def pool(self, hidden: Float[Tensor, "B T D"], pooling: str) -> Float[Tensor, "R D"]:
        """The state a branch is scored by: its last token's, or the mean over prefix and branch."""
        if pooling == "last_token":
            return hidden[self.end_row, self.end_at]
        segments = self.segment_ids[self.end_row]
        own = segments == segments.gather(1, self.end_at[:, None])
        weights = (own | (segments == 0)).to(hidden.dtype)
        return torch.einsum("rt,rtd->rd", weights / weights.sum(1, keepdim=True), hidden[self.end_row])


def collate(trees: Sequence[Tree], pad_id: int) -> Batch:
    """Lay trees out as rows, padded to the longest."""
    length = max(len(t.prefix) + sum(map(len, t.branches)) for t in trees)
    ids, positions, segments = ([[fill] * length for _ in trees] for fill in (pad_id, 0, -1))
    ends: list[tuple[int, int]] = []
    targets: list[tuple[int, int, int, int]] = []
    for row, tree in enumerate(trees):
        start = len(tree.prefix)
        at = start
        ids[row][:at], positions[row][:at], segments[row][:at] = tree.prefix, range(at), [0] * at
        for number, branch in enumerate(tree.branches):
            span, size = slice(at, at + len(branch)), len(branch)
            ids[row][span], segments[row][span] = branch, [number + 1] * size
            positions[row][span] = range(start, start + size)
            for i in range(tree.free[number] if tree.free else 0, size):
                targets.append((row, at + i - 1 if i else start - 1, branch[i], len(ends)))
            at += size
            ends.append((row, at - 1))
    end_row, end_at = torch.tensor(ends, dtype=torch.long).reshape(-1, 2).unbind(1)
    target_row, target_from, target_ids, target_branch = torch.tensor(targets).long().reshape(-1, 4).unbind(1)
    return Batch(
        input_ids=torch.tensor(ids),
        position_ids=torch.tensor(positions),
        segment_ids=torch.tensor(segments),
        end_row=end_row,
        end_at=end_at,
        target_row=target_row,
        target_from=target_from,
        target_ids=target_ids,
        target_branch=target_branch,
    )
