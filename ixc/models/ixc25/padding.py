"""Rows of unequal lengths as one tensor, by the names that Transformers has for it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ixc.models.ixc25.prompts import BadConversation

_PADDING = {None: "longest", True: "longest", "longest": "longest", "max_length": "max_length"}
_NO_PADDING = (False, "do_not_pad")
_NO_TRUNCATION = (None, False, "do_not_truncate")


class Padding(NamedTuple):
    """How rows become a tensor."""

    to: str | None
    """longest, max_length, or None: rows must be of one length."""
    multiple: int

    @classmethod
    def of(
        cls, padding: Any, multiple: int | None, truncation: Any, return_tensors: Any
    ) -> "Padding":
        """From a processor's arguments.

        Raises:
            BadConversation: one of them cannot be done.
        """
        if return_tensors not in ("pt", None):
            raise BadConversation(
                f'return_tensors: {return_tensors!r}: give "pt", or None for lists'
            )
        if truncation not in _NO_TRUNCATION:
            form = (
                'nothing is cut off here; give on_overflow="drop_oldest_turns" or "shrink_images"'
            )
            raise BadConversation(f"truncation: {truncation!r}: {form}")
        if padding in _NO_PADDING and padding is not None:
            return cls(None, multiple or 1)
        if padding not in _PADDING:
            raise BadConversation(
                f'padding: {padding!r}: give True, "longest", "max_length" or False'
            )
        if multiple is not None and multiple < 1:
            raise BadConversation(f"pad_to_multiple_of: {multiple!r}: give 1 at least")
        return cls(_PADDING[padding], multiple or 1)

    def tensors(
        self, rows: Sequence[list[int]], side: str, fill: int, max_length: int
    ) -> dict[str, Int[Tensor, "B T"]]:
        """`input_ids`, and `attention_mask`: 1 on real tokens.

        Args:
            side: right or left, where the padding goes.
            fill: the id that it consists of.

        Raises:
            BadConversation: rows of unequal lengths that must not be padded.
        """
        lengths = {len(row) for row in rows}
        if self.to is None and len(lengths) > 1:
            form = f"rows of {min(lengths)} to {max(lengths)} tokens make no tensor"
            raise BadConversation(
                f"padding: False: {form}; give padding=True, or return_tensors=None for lists"
            )
        longest = max_length if self.to == "max_length" else max(lengths)
        width = longest if self.to is None else -(-longest // self.multiple) * self.multiple
        pads = [[0] * (width - len(row)) for row in rows]
        ones = [[1] * len(row) for row in rows]
        mask = torch.tensor(
            [o + p if side == "right" else p + o for o, p in zip(ones, pads, strict=True)]
        )
        ids = torch.full(mask.shape, fill)
        ids[mask.bool()] = torch.tensor([i for row in rows for i in row])
        return {"input_ids": ids, "attention_mask": mask}
