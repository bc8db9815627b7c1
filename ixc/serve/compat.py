"""The calls of the official README, answered by our model: change the import line, keep the rest.

>>> from ixc.serve.compat import AutoModel, AutoTokenizer  # instead of: from transformers import ...

Meanings are the official ones, also where ours differ: `rank` gives indices from best to worst, not ranks, and
`get_scores` a bare number for a single chat. Two things are mended: nothing is ever cut off (a chat longer than
`max_length` is an error), and scores are computed without gradients.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ixc.data.media import BadMedia
from ixc.models.base import ROLES, BadConversation
from ixc.models.ixc25 import IXCForRewardModel, IXCProcessor
from ixc.models.ixc25.folder import kept_options, load
from ixc.models.ixc25.processing import SPECIAL
from ixc.models.ixc25.tiles import Partition, to_tiles
from ixc.models.places import one_device, stored
from ixc.serve.api import Chat, ChatMedia, RewardModel

_START, _END = re.escape(SPECIAL["turn_start"]), re.escape(SPECIAL["turn_end"])
_TURN = re.compile(f"{_START}({'|'.join(ROLES)})\n(.*?){_END}\n?", re.DOTALL)
_TAIL = SPECIAL["eos"] + SPECIAL["reward"]
SEVERAL = 6
"""Tiles that each of several images in one chat has at most, whatever is asked for: the official rule."""


class AutoModel:
    """Where the official example gets its model from."""

    @staticmethod
    def from_pretrained(
        folder: str | Path,
        device_map: str | int | torch.device | Mapping[str, Any] | None = "cpu",
        torch_dtype: torch.dtype | str | None = None,
        trust_remote_code: bool = True,
        *,
        dtype: torch.dtype | str | None = None,
        attn_implementation: str = "sdpa",
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        low_cpu_mem_usage: bool = True,
    ) -> "OfficialRewardModel":
        """A reward model on one device (`auto`: the GPU if there is one).

        Args:
            folder: a model's folder, or the name of one in the local cache of Hugging Face; nothing is fetched.
            device_map: a device; of a map, its only one.
            torch_dtype, dtype: as in `ixc.models.ixc25.from_official`; the old name and the new one.
            trust_remote_code, low_cpu_mem_usage: without effect: no remote code runs, and memory is never doubled.
            revision, cache_dir: of the cache.
        """
        place = stored(folder, revision, cache_dir)
        kind = dtype if torch_dtype is None else torch_dtype
        return OfficialRewardModel(
            *load(place, IXCForRewardModel, one_device(device_map), kind, attn_implementation)
        )


class AutoTokenizer:
    """Where the official example gets its tokenizer from; the model has its own already."""

    @staticmethod
    def from_pretrained(
        folder: str | Path,
        trust_remote_code: bool = True,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> IXCProcessor:
        """The processor, which holds the tokenizer."""
        place = stored(folder, revision, cache_dir)
        if (place / "processor_config.json").is_file():
            return IXCProcessor.from_pretrained(place)
        return IXCProcessor.from_official(place, **kept_options(place))


class OfficialRewardModel:
    """`get_score`, `get_scores`, `compare` and `rank` with the official signatures.

    `apply_template=False` goes with prompts that the official template was already applied to, instead of chats.
    """

    tokenizer: Any = None
    """The official example sets it; it is not read."""

    def __init__(self, model: IXCForRewardModel, processor: IXCProcessor) -> None:
        self.model, self.processor = model, processor

    def eval(self) -> "OfficialRewardModel":
        """As the official example calls it: scoring is all that this model does."""
        return self

    def to(self, *place: Any, **options: Any) -> "OfficialRewardModel":
        """Move to a device, or to another type, as a module of torch."""
        self.model.to(*place, **options)
        return self

    def cuda(self) -> "OfficialRewardModel":
        """Move to the GPU."""
        return self.to("cuda")

    def half(self) -> "OfficialRewardModel":
        """Weights as float16."""
        return self.to(torch.float16)

    def get_score(
        self,
        conversation: Chat | str,
        image: ChatMedia,
        max_length: int = 16384,
        hd_num: int = 24,
        apply_template: bool = True,
    ) -> float:
        """The score of one chat."""
        return self._scores([conversation], [image], max_length, hd_num, apply_template)[0]

    def get_scores(
        self,
        conversations: Sequence[Chat | str],
        images: Sequence[ChatMedia],
        max_length: int = 16384,
        hd_num: int = 24,
        apply_template: bool = True,
    ) -> list[float] | float:
        """A score per chat; the number alone if there is one chat."""
        scores = self._scores(conversations, images, max_length, hd_num, apply_template)
        return scores[0] if len(scores) == 1 else scores

    def compare(
        self,
        conversation1: Chat | str,
        image1: ChatMedia,
        conversation2: Chat | str,
        image2: ChatMedia,
        max_length: int = 16384,
        hd_num: int = 24,
        return_logits: bool = False,
        apply_template: bool = True,
    ) -> Any:
        """Whether the first chat is better; with `return_logits` both scores too."""
        both = [conversation1, conversation2]
        scores = self._scores(both, [image1, image2], max_length, hd_num, apply_template)
        better = scores[0] > scores[1]
        return (better, scores) if return_logits else better

    def rank(
        self,
        conversations: Sequence[Chat | str],
        images: Sequence[ChatMedia],
        max_length: int = 16384,
        hd_num: int = 24,
        return_logits: bool = False,
        apply_template: bool = True,
    ) -> Any:
        """Indices from the best chat to the worst; with `return_logits` the scores too."""
        scores = self._scores(conversations, images, max_length, hd_num, apply_template)
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        return (order, scores) if return_logits else order

    def _scores(
        self,
        chats: Sequence[Any],
        images: Sequence[ChatMedia],
        max_length: int,
        hd_num: int,
        apply_template: bool,
    ) -> list[float]:
        """Chats whose images may have different numbers of tiles are scored one by one."""
        chats = list(chats) if apply_template else [untemplated(chat) for chat in chats]
        media = [image if isinstance(image, list | tuple) else [image] for image in images]
        limits = [self._limit(images, hd_num) for images in media]
        several = {limit for limit, images in zip(limits, media, strict=True) if images}
        media = [[self._image(image) for image in images] for images in media]
        if len(several) < 2 or len(media) != len(chats):
            tiles = several.pop() if len(several) == 1 else hd_num
            return RewardModel(self.model, self.processor, tiles, max_length).score(chats, media)
        return [
            RewardModel(self.model, self.processor, tiles, max_length).score([chat], [images])[0]
            for chat, images, tiles in zip(chats, media, limits, strict=True)
        ]

    def _limit(self, images: Sequence[Any], hd_num: int) -> int:
        """Tiles per image at most; a ready tensor keeps all of its own."""
        limit, side = SEVERAL if len(images) > 1 else hd_num, self.processor.tile_size
        ready = [sorted(size // side for size in x.shape[2:]) for x in images if is_ready(x)]
        most = max((long * (short + 1) for short, long in ready), default=limit)
        if most > limit and 0 < len(ready) < len(images):
            raise BadMedia(
                f"a tensor of more tiles than {limit} among files: give all images in the same form"
            )
        return max(most, limit)

    def _image(self, image: Any) -> Any:
        """A ready tensor as an image again."""
        if not is_ready(image):
            return image
        if any(size % self.processor.tile_size for size in image.shape[2:]):
            form = f"sides that are no multiples of {self.processor.tile_size}; give the file, or pad it"
            raise BadMedia(f"a tensor of shape {tuple(image.shape)}: {form}")
        return from_normalised(image)


def is_ready(image: Any) -> bool:
    """Whether this is a tensor [1, 3, H, W] as the official transform makes it: normalised, padded to whole tiles."""
    return isinstance(image, Tensor) and image.ndim == 4 and image.shape[:2] == (1, 3)


def from_normalised(pixels: Tensor) -> Image.Image:
    """The 8-bit image whose normalised form, [1, 3, H, W], this is."""
    ends = [
        to_tiles(Image.new("RGB", (1, 1), end), Partition(1, 1, 1, 1), 1)[1]
        for end in ("black", "white")
    ]
    black, white = (end.to(pixels.device) for end in ends)
    values = ((pixels[0].float() - black) / (white - black) * 255).round()
    if not (values.min() >= 0 and values.max() <= 255):
        raise BadMedia(
            f"a tensor of shape {tuple(pixels.shape)}: values that no normalised image has; give the file"
        )
    return Image.fromarray(values.byte().permute(1, 2, 0).cpu().numpy())


def untemplated(prompt: Any) -> list[dict[str, str]]:
    """The chat that the official template made this prompt of.

    Raises:
        BadConversation: it is of another form.
    """
    if not isinstance(prompt, str):
        raise BadConversation(
            f"{prompt!r:.80}: with apply_template=False give the prompt, a string"
        )
    body = prompt.removesuffix(_TAIL)
    turns = [{"role": turn[1], "content": turn[2]} for turn in _TURN.finditer(body)]
    if body == prompt or not turns or _TURN.sub("", body):
        form = f"{SPECIAL['turn_start']}role, newline, text, {SPECIAL['turn_end']}, newline; at the end {_TAIL}"
        raise BadConversation(
            f"{prompt!r:.80}: not of the official template: for each message {form}"
        )
    return turns
