"""The calls of the official README, answered by our model: change the import line, keep the rest.

>>> from ixc.compat import AutoModel, AutoTokenizer  # instead of: from transformers import AutoModel, AutoTokenizer

Meanings are the official ones, also where ours differ: `rank` gives indices from best to worst, not ranks, and
`get_scores` a bare number for a single chat. Two things are mended: nothing is ever cut off (a chat longer than
`max_length` is an error), and scores are computed without gradients.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ixc.api import Chat, RewardModel, Shown
from ixc.model import IXCForRewardModel, IXCProcessor
from ixc.model.folder import load


class AutoModel:
    """Where the official example gets its model from."""

    @staticmethod
    def from_pretrained(
        folder: str | Path,
        device_map: str = "cpu",
        torch_dtype: torch.dtype | None = None,
        trust_remote_code: bool = True,
        **options: Any,
    ) -> "OfficialRewardModel":
        """A reward model on one device (`auto`: the GPU if there is one).

        `trust_remote_code` is accepted and without effect: no remote code runs.
        """
        if device_map == "auto":
            device_map = "cuda" if torch.cuda.is_available() else "cpu"
        return OfficialRewardModel(*load(folder, IXCForRewardModel, device=device_map, dtype=torch_dtype, **options))


class AutoTokenizer:
    """Where the official example gets its tokenizer from; the model has its own already."""

    @staticmethod
    def from_pretrained(folder: str | Path, trust_remote_code: bool = True) -> IXCProcessor:
        """The processor, which holds the tokenizer."""
        folder = Path(folder)
        ours = (folder / "processor_config.json").is_file()
        return IXCProcessor.from_pretrained(folder) if ours else IXCProcessor.from_official(folder)


class OfficialRewardModel:
    """`get_score`, `get_scores`, `compare` and `rank` with the official signatures."""

    tokenizer: Any = None
    """The official example sets it; it is not read."""

    def __init__(self, model: IXCForRewardModel, processor: IXCProcessor) -> None:
        self.model, self.processor = model, processor

    def eval(self) -> "OfficialRewardModel":
        """As the official example calls it: scoring is all that this model does."""
        return self

    def cuda(self) -> "OfficialRewardModel":
        """Move to the GPU."""
        self.model.to("cuda")  # pyright: ignore[reportCallIssue, reportArgumentType]
        return self

    def get_score(self, conversation: Chat, image: Shown, max_length: int = 16384, hd_num: int = 24) -> float:
        """The score of one chat."""
        return self._scores([conversation], [image], max_length, hd_num)[0]

    def get_scores(
        self, conversations: Sequence[Chat], images: Sequence[Shown], max_length: int = 16384, hd_num: int = 24
    ) -> list[float] | float:
        """A score per chat; the number alone if there is one chat."""
        scores = self._scores(conversations, images, max_length, hd_num)
        return scores[0] if len(scores) == 1 else scores

    def compare(
        self,
        conversation1: Chat,
        image1: Shown,
        conversation2: Chat,
        image2: Shown,
        max_length: int = 16384,
        hd_num: int = 24,
        return_logits: bool = False,
    ) -> Any:
        """Whether the first chat is better; with `return_logits` both scores too."""
        scores = self._scores([conversation1, conversation2], [image1, image2], max_length, hd_num)
        better = scores[0] > scores[1]
        return (better, scores) if return_logits else better

    def rank(
        self,
        conversations: Sequence[Chat],
        images: Sequence[Shown],
        max_length: int = 16384,
        hd_num: int = 24,
        return_logits: bool = False,
    ) -> Any:
        """Indices from the best chat to the worst; with `return_logits` the scores too."""
        scores = self._scores(conversations, images, max_length, hd_num)
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        return (order, scores) if return_logits else order

    def _scores(self, chats: Sequence[Chat], images: Sequence[Shown], max_length: int, hd_num: int) -> list[float]:
        """Several pictures in one chat have six tiles each at most, whatever `hd_num` says: the official rule."""
        several = any(len(shown) > 1 for shown in images)
        if several and any(len(shown) == 1 for shown in images):
            alone = zip(chats, images, strict=True)
            return [self._scores([chat], [shown], max_length, hd_num)[0] for chat, shown in alone]
        tiles = 6 if several else hd_num
        return RewardModel(self.model, self.processor, tiles, max_length).score(chats, images)
