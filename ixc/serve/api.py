"""For people and scripts: score, compare and rank chats about texts, images and videos; chat with a policy.

>>> model = RewardModel.from_pretrained("models/reward")                                       # doctest: +SKIP
>>> chat = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A red car."}]
>>> model.score([chat], media=[["car.jpg"]])                                                    # doctest: +SKIP
[1.72]
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ixc.data.media import BadMedia
from ixc.engine.batching import pack_by_budget
from ixc.metrics import BadScore, non_finite
from ixc.models import family_of, load_policy, load_scorer
from ixc.models.base import (
    BadConversation,
    ChatProcessor,
    Processor,
    ScoringModel,
    VisionLanguageModel,
)
from ixc.models.base import ChatModel as Policy
from ixc.models.places import one_device, stored
from ixc.packing.layout import collate
from ixc.serve.chat_batches import SharedPrompt, branched, passes, shared_prompts
from ixc.serve.chat_media import Video, opened
from ixc.serve.chats import ChatRecord, read_chat
from ixc.serve.streaming import FiniteOnly, Streamed

__all__ = [
    "BadScore",
    "ChatModel",
    "Comparison",
    "Outcome",
    "Ranking",
    "RewardModel",
    "Video",
    "branched",
    "convert",
]
Chat = Sequence[Mapping[str, Any]] | Mapping[str, Any] | ChatRecord
"""Messages `{"role": "system" | "user" | "assistant", "content": text}`; to be scored, the last is the assistant's. Or
an object that holds them beside images and videos; all forms: `ixc.serve.chats`."""
ChatMedia = Any
"""A chat's images and videos in a list, or a single one: paths, data URLs, bytes, PIL images, arrays, tensors; a path
with a video's suffix is a video, and so are a `Video` and a list of frames."""
TOKENS_AT_ONCE = 4096
"""Tokens of a forward pass; a single longer chat still goes through."""
TILES_AT_ONCE = 64
LEAST_TEMPERATURE = 1e-4
Model = TypeVar("Model", bound=VisionLanguageModel)


class Outcome(NamedTuple):
    """What became of a chat."""

    score: float | None
    reason: str = ""
    """Why there is no score."""


class Ranking(NamedTuple):
    """Chats from best to worst; equal scores keep their order."""

    scores: list[float]
    ranks: list[int]
    """The place of each chat, 1 the best."""
    order: list[int]
    """Indices of the chats, best first."""


class Comparison(NamedTuple):
    """Two chats; the first is better with `probability` (Bradley-Terry, paper eq. 1)."""

    scores: tuple[float, float]
    probability: float

    @property
    def better(self) -> int | None:
        """0, 1, or None for a tie."""
        first, second = self.scores
        return None if first == second else int(second > first)


class RewardModel:
    """A reward model with its processor.

    Chats that share prompt and media are read as one, the prompt once, by an attention of our own (`shared_prefix`);
    one loaded with `attn_implementation="eager"` reads every chat whole, in plain formulae: slow, and the reference.
    """

    def __init__(
        self,
        model: ScoringModel,
        processor: Processor,
        image_budget: int | None = None,
        max_length: int | None = None,
    ) -> None:
        """Take a loaded model.

        Args:
            image_budget: what an image may take at most, in the unit of the model's family (tiles, say); default
                the processor's.
            max_length: tokens of a chat; more is an error.
        """
        changes = {"image_budget": image_budget, "max_length": max_length}
        self.model, self.processor = model.eval(), _changed(processor, **changes)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        image_budget: int | None = None,
        max_length: int | None = None,
        **options: Any,
    ) -> "RewardModel":
        """A reward model of ours or of the official form.

        Args:
            folder, options: as in `loaded`.
            image_budget, max_length: as in `__init__`.
        """
        return cls(*loaded(load_scorer, folder, **options), image_budget, max_length)

    def score(self, chats: Sequence[Chat], media: Sequence[ChatMedia] | None = None) -> list[float]:
        """One score per chat, unbounded; higher is better.

        In fp32 a chat scores the same alone and among others, to 1e-5. In bf16, where either score is rounded, they
        differ by up to 5 % of the spread of scores (of 16 tiny models the worst: 3.5 %), much as both do from fp32's.

        Args:
            media: images and videos of each chat; None: what the chats themselves hold.

        Raises:
            BadConversation: a chat without an answer, or images that do not match its placeholders.
            BadMedia: an image or video that cannot be read.
            BadScore: a score that is no number.
        """

        def refuse(number: int, error: ValueError) -> None:
            raise type(error)(f"chat {number}: {error}") from error

        return [score for score in self._scores(chats, media, refuse) if score is not None]

    def score_each(
        self, chats: Sequence[Chat], media: Sequence[ChatMedia] | None = None
    ) -> list[Outcome]:
        """Like `score`, but a chat that cannot be scored says why and costs no other its score."""
        reasons: dict[int, str] = {}
        scores = self._scores(
            chats, media, lambda number, error: reasons.update({number: str(error)})
        )
        return [Outcome(score, reasons.get(number, "")) for number, score in enumerate(scores)]

    @torch.no_grad()
    def _scores(
        self,
        chats: Sequence[Chat],
        media: Sequence[ChatMedia] | None,
        refuse: Callable[[int, ValueError], None],
    ) -> list[float | None]:
        """Scores; None for the chats that were refused."""
        records = _records(chats, media, refuse)
        scores: list[float | None] = [None] * len(chats)
        prompts = shared_prompts(records, self.processor, self._apart, TOKENS_AT_ONCE, refuse)
        encoded: dict[int, tuple[Any, Tensor]] = {}
        for batch in passes(prompts, TOKENS_AT_ONCE):
            packed = collate([prompt.group for prompt in batch]).to(self.model.device)
            features = self._features(batch, encoded)
            rewards = self.model.response_scores(packed, features).tolist()
            equal_chats = [equal for prompt in batch for equal in prompt.chats]
            for equal, reward in zip(equal_chats, rewards, strict=True):
                for number in equal:
                    if objection := non_finite([reward]):
                        refuse(number, BadScore(objection))
                    else:
                        scores[number] = reward
        return scores

    def compare(
        self,
        first: Chat,
        second: Chat,
        media: ChatMedia = (),
        second_media: ChatMedia | None = None,
    ) -> Comparison:
        """Which of two chats is better; they are about the same media unless the second has its own."""
        one, other = self.score(
            [first, second], [media, media if second_media is None else second_media]
        )
        return Comparison((one, other), float(torch.sigmoid(torch.tensor(one - other))))

    def rank(self, chats: Sequence[Chat], media: Sequence[ChatMedia] | None = None) -> Ranking:
        """Order, places and scores."""
        return ranked(self.score(chats, media))

    def _apart(self, ids: Sequence[int]) -> object:
        """What sequences must have in common to be read as one group; a model that cannot pack shares nothing."""
        return tuple(ids) if self.model.packing_objection else self.model.sharing_key(len(ids))

    def _features(
        self, batch: Sequence[SharedPrompt], encoded: dict[int, tuple[Any, Tensor]]
    ) -> Float[Tensor, "P W"] | None:
        """Features of all images; `encoded` holds those of one batch for the next, which may show the same."""
        images = {id(image): image for prompt in batch for image in prompt.images}
        for key in encoded.keys() - images.keys():
            del encoded[key]
        new = [image for key, image in images.items() if key not in encoded]
        for image, tokens in zip(new, encode(self.model, new), strict=True):
            encoded[id(image)] = image, tokens
        tokens = [encoded[id(image)][1] for prompt in batch for image in prompt.images]
        return torch.cat(tokens) if tokens else None


class ChatModel:
    """A policy with its processor."""

    def __init__(
        self,
        model: Policy,
        processor: ChatProcessor,
        image_budget: int | None = None,
        max_length: int | None = None,
    ) -> None:
        """`image_budget`, `max_length`: as of a `RewardModel`; a reply's own tokens are not counted."""
        changes = {"image_budget": image_budget, "max_length": max_length}
        self.model, self.processor = model.eval(), _changed(processor, **changes)
        self.model.suppress_control(processor)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        image_budget: int | None = None,
        max_length: int | None = None,
        **options: Any,
    ) -> "ChatModel":
        """A chat model of ours or of the official form; arguments as of `RewardModel.from_pretrained`."""
        return cls(*loaded(load_policy, folder, **options), image_budget, max_length)

    @torch.no_grad()
    def reply(
        self,
        chat: Chat,
        media: ChatMedia = (),
        max_new_tokens: int = 1024,
        *,
        seed: int | None = None,
        on_text: Callable[[str], None] | None = None,
        **options: Any,
    ) -> str:
        """The assistant's next message.

        Args:
            seed: of sampling; equal seeds give equal replies, and the program's own random numbers stay untouched.
            on_text: is given the reply piece by piece, as it comes; the pieces together are the reply.
            options: of Transformers' `generate`; by default greedy. The official chat samples: `do_sample=True,
                temperature=1.0, top_p=0.8, repetition_penalty=1.005`.

        Raises:
            BadConversation, BadMedia: as `RewardModel.score`; or the chat is answered already.
            BadScore: the model's outputs are no numbers.
            ValueError: an option that `generate` refuses, or a temperature so low that nothing can be sampled.
        """
        record = read_chat(chat, media)
        if record.messages[-1]["role"] == "assistant":
            raise BadConversation("ends with 'assistant': already answered; end with a question")
        images, videos = (
            [opened(m) for m in record.media if m.kind == kind] for kind in ("image", "video")
        )
        read = self.processor(list(record.messages), images=images, videos=videos, for_reward=False)
        options = {"do_sample": False, "max_new_tokens": max_new_tokens, **options}
        if 0 < options.get("temperature", 1.0) < LEAST_TEMPERATURE:
            form = f"give {LEAST_TEMPERATURE} or more, or do_sample=False: the likeliest token"
            raise ValueError(
                f"temperature: {options['temperature']!r}: logits divided by it are no numbers; {form}"
            )
        if options.get("stop_strings"):
            options.setdefault("tokenizer", self.processor.tokenizer)
        checks = [FiniteOnly(), *options.pop("logits_processor", ())]
        if on_text is not None:
            streamer = Streamed(self.processor.decode, on_text, self.processor.is_byte)
            options["streamer"] = streamer
        with _seeded(seed, self.model.device):
            inputs = read.to(self.model.device)
            out = self.model.generate(**inputs, logits_processor=checks, **options)
        return self.processor.decode(out[0, read["input_ids"].shape[1] :].tolist()).strip()


def loaded(
    load: Callable[..., tuple[Any, Any]],
    folder: str | Path,
    *,
    device_map: str | int | torch.device | Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    attn_implementation: str = "sdpa",
    attention: str = "auto",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """A model on one device, and its processor.

    Args:
        load: `load_scorer` or `load_policy` of `ixc.models`.
        folder: a model's folder, or the name of one in the local cache of Hugging Face; nothing is fetched.
        device_map, device: two names of one thing; by default the CPU, `auto`: the GPU if there is one.
        dtype, attn_implementation: as in `ixc.models.load_policy`.
        attention: what scores are computed with, whose chats share their prompts: auto, sdpa, flash_attention_2 or
            flex, as in `ixc.models.kernels`. `attn_implementation` is that of replies and of the vision tower.
        revision, cache_dir: of the cache.
        options: of the processor instead of the stored ones, `max_pixels` or `max_frames`; see `ProcessorOptions`.

    Raises:
        BadCheckpoint, NoAttention: no such folder, or as in `load`.
        BadProcessor: an unknown option or a bad value.
    """
    if device is not None and device_map is not None:
        raise ValueError(
            f"device: {device!r}, device_map: {device_map!r}: two names of one thing; give one"
        )
    place = one_device(device_map) if device is None else device
    folder = stored(folder, revision, cache_dir)
    model, processor = load(
        folder, place, dtype, attention, attn_implementation=attn_implementation
    )
    return model, _changed(processor, **options)


def _changed(processor: Any, **options: Any) -> Any:
    """The processor with options that are given; None: as it has them."""
    given = {name: value for name, value in options.items() if value is not None}
    return processor.with_options(**given) if given else processor


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers from a seed; afterwards the caller's go on as if nothing had happened."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def ranked(scores: Sequence[float]) -> Ranking:
    """Scores with order and places.

    >>> ranked([0.5, 2.0, 0.5])
    Ranking(scores=[0.5, 2.0, 0.5], ranks=[2, 1, 3], order=[1, 0, 2])
    """
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    place = {chat: rank for rank, chat in enumerate(order, 1)}
    return Ranking(list(scores), [place[i] for i in range(len(scores))], order)


def convert(source: str | Path, target: str | Path) -> dict[str, list[str]]:
    """An official checkpoint in our form, or, where the source is ours, in the official form.

    The processor's options go there and back: the official `config.json` keeps them under a key of ours.

    Returns:
        The keys that were `new` (a head the source lacks) or `ignored`.

    Raises:
        FileExistsError: the target is the source, or holds files that no conversion wrote; nothing was touched.
        BadCheckpoint: as in `from_official`.
    """
    return family_of(Path(source)).convert(Path(source), Path(target))


def encode(model: VisionLanguageModel, images: Sequence[Any]) -> list[Float[Tensor, "_ W"]]:
    """Features of each image; a bounded number of tiles passes the tower at once."""
    tiles = [image.num_tiles for image in images]
    features: list[Tensor] = []
    for chunk in pack_by_budget(range(len(images)), tiles, TILES_AT_ONCE):
        features += model.encode_images([images[i] for i in chunk])
    return features


def _records(
    chats: Sequence[Chat],
    media: Sequence[ChatMedia] | None,
    refuse: Callable[[int, ValueError], None],
) -> dict[int, ChatRecord]:
    """The chats by number, without those that were refused."""
    if media is not None and len(media) != len(chats):
        raise BadConversation(
            f"{len(chats)} chats but media for {len(media)}; give a list, maybe empty, per chat"
        )
    records: dict[int, ChatRecord] = {}
    for number, chat in enumerate(chats):
        try:
            record = read_chat(chat, () if media is None else media[number])
            if (role := record.messages[-1]["role"]) != "assistant":
                raise BadConversation(
                    f"ends with {role!r}: nothing to score; end with an assistant's answer"
                )
            records[number] = record
        except (BadConversation, BadMedia) as error:
            refuse(number, error)
    return records
