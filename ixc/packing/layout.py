"""A prompt with its answers as a tree: the shared prefix once, each answer a branch beside it.

Every branch sees the prefix and itself, and its positions go on where the prefix ends; so the numbers are those of
separate rows, at a fraction of the tokens. The same layout serves SFT (questions on one picture), reward training
(chosen and rejected), scoring (N candidates) and PPO.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ixc.packing.attention import Forest, placed


@dataclass(frozen=True)
class Tree:
    """Token ids of a prefix and its branches."""

    prefix: list[int]
    branches: list[list[int]]
    free: list[int] = field(default_factory=list)
    """Leading tokens of each branch that are given, not predicted; empty: none."""

    def __len__(self) -> int:
        """Tokens of prefix and branches."""
        return len(self.prefix) + sum(map(len, self.branches))


@dataclass(frozen=True)
class Batch:
    """Trees one after another in a single row, and where their predicted tokens and branch ends are; no padding.

    Letters: T tokens, R branches of all trees, M predicted tokens of all branches, in order.
    """

    input_ids: Int[Tensor, "1 T"]
    position_ids: Int[Tensor, "1 T"]
    forest: Forest
    end_at: Int[Tensor, " R"]
    """Column of each branch's last token."""
    target_from: Int[Tensor, " M"]
    """The column whose logits predict the token."""
    target_ids: Int[Tensor, " M"]
    target_branch: Int[Tensor, " M"]

    def to(self, device: torch.device | str) -> "Batch":
        """The same on another device."""
        moved = {name: placed(x, device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **moved)

    def inputs(self) -> dict[str, Any]:
        """What `InternLM2.forward` takes of it."""
        return {"input_ids": self.input_ids, "position_ids": self.position_ids, "forest": self.forest}

    def mean(self, hidden: Float[Tensor, "1 T D"]) -> Float[Tensor, "R D"]:
        """The mean over prefix and branch, fp32."""
        tree, branch = (placed(x, hidden.device) for x in self.forest.numbers())
        own, prefix = branch == branch[self.end_at, None], branch < 0
        weights = ((tree == tree[self.end_at, None]) & (own | prefix)).float()
        return weights / weights.sum(1, keepdim=True) @ hidden[0].float()


def collate(trees: Sequence[Tree]) -> Batch:
    """Lay trees out one after another; nothing is padded."""
    ids, positions, ends, targets = [], [], [], []
    for tree in trees:
        start = len(tree.prefix)
        ids += tree.prefix
        positions += range(start)
        root = len(ids) - 1
        for number, branch in enumerate(tree.branches):
            for i in range(tree.free[number] if tree.free else 0, len(branch)):
                targets.append((len(ids) + i - 1 if i else root, branch[i], len(ends)))
            ids += branch
            positions += range(start, start + len(branch))
            ends.append(len(ids) - 1)
    target_from, target_ids, target_branch = torch.tensor(targets).long().reshape(-1, 3).unbind(1)
    return Batch(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        forest=Forest(tuple((len(t.prefix), tuple(map(len, t.branches))) for t in trees)),
        end_at=torch.tensor(ends).long(),
        target_from=target_from,
        target_ids=target_ids,
        target_branch=target_branch,
    )
