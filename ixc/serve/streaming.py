"""What stands between a chat model's tokens and the reader: the text as it comes, and a check that it is no noise."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation.streamers import BaseStreamer

from ixc.metrics import NO_NUMBER, BadScore

_HALF = "\ufffd"
"""What a tokenizer makes of a character whose last bytes are not there yet."""


class Streamed(BaseStreamer):
    """Gives a reply away piece by piece; the pieces together are the whole reply, stripped of white space at its ends.

    The end of the text is kept back while it may still change: half a character, white space that may be the last, or
    tokens of single bytes, which are read together: if the last of them spoils the others, all are spoilt.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        on_text: Callable[[str], None],
        is_byte: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self.decode, self.on_text, self.is_byte = decode, on_text, is_byte
        self.ids: list[int] = []
        self.given = ""
        self.prompt_seen = False

    def put(self, value: Int[Tensor, "..."]) -> None:
        """Take the next token; the first call brings the prompt."""
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        self.ids += value.flatten().tolist()
        if self.is_byte(self.ids[-1]):
            return
        text = self.decode(self.ids).strip()
        if not text.endswith(_HALF):
            self._give(text)

    def end(self) -> None:
        """Give what is left."""
        self._give(self.decode(self.ids).strip())

    def _give(self, text: str) -> None:
        new = text[len(self.given) :]
        if new and text.startswith(self.given):
            self.on_text(new)
            self.given = text


class FiniteOnly(LogitsProcessor):
    """Ends a reply whose next token would be drawn from numbers that are none."""

    def __call__(
        self, input_ids: Int[Tensor, "B T"], scores: Float[Tensor, "B V"]
    ) -> Float[Tensor, "B V"]:
        """The logits as they are; -inf is how others forbid a token.

        Raises:
            BadScore: one is NaN or infinite, or all are forbidden.
        """
        best = scores.max(-1).values
        if not torch.isfinite(best).all():  # the largest of a row with NaN is NaN
            raise BadScore(f"the next token's logit {best.max().item()}: {NO_NUMBER}")
        return scores
