"""What a vision-language model offers to the pipeline: all that modules outside `ixc.models` know of one.

A family of models implements three classes: a `Processor` (conversations to ids, images to what its tower reads), a
`PolicyModel` (samples answers) and a `ScoringModel` (gives them a reward; the critic of PPO is one too). Both models
are a `VisionLanguageModel`, and PyTorch modules: they are trained, copied, saved and moved as such. A `Family` finds,
loads and builds them. How to add one: `docs/adding-a-model.md`.

Letters in shapes: T tokens of a packed row, R columns of it, A axes of positions, P image tokens, W numbers of an image
token, D hidden channels, B answers in the making.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ixc.data.samples import Media, Reply, Turn
from ixc.packing.layout import PackedBatch, Prompt

Kind = Literal["image", "video"]
Pooling = Literal["last_token", "mean"]
"""What a score is read from: the last token's state (the released checkpoint), or the mean (the paper's text)."""
ROLES = ("system", "user", "assistant")
"""Who speaks in a conversation."""


class BadCheckpoint(ValueError):
    """A folder that holds no model, or not the one that is needed: which file, what is wrong, what to do."""


class BadConversation(ValueError):
    """A conversation that cannot be laid out: what is wrong, and what the right form is."""


class BadArchitecture(ValueError):
    """Sizes that no model can be built of: key, value, remedy."""


def some(names: Sequence[str]) -> str:
    """The first of many names, for an error.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# Images and videos


class ImageRef(NamedTuple):
    """An image or video as one conversation shows it."""

    media: Media
    budget: int
    """What it may take at most, in the family's own unit (tiles, say); depends on what it is shown beside."""


class ImageSize(NamedTuple):
    """What an image or video takes in a prompt."""

    tokens: int
    grid: tuple[int, int, int] | None = None
    """Frames, rows and columns of its tokens, where positions depend on them; None: they do not."""


@runtime_checkable
class LoadedImage(Protocol):
    """An image or video as its family's tower reads it; nobody else looks inside."""

    @property
    def num_tiles(self) -> int:
        """How much of a pass through the tower it takes, in pieces of one size."""
        ...


class Processor(ABC):
    """How a model reads conversations, images and videos; it depends on nothing but its files and options."""

    # Text

    @abstractmethod
    def read_prompt(self, turns: Sequence[Turn], images: Sequence[ImageSize]) -> Prompt:
        """Everything up to where the assistant's answer begins.

        Args:
            images: of the images and videos, in the order in which the turns mention them.

        Raises:
            BadConversation: images and their places in the text do not match.
        """

    @abstractmethod
    def answer(self, reply: Reply) -> list[int]:
        """Ids of an answer, with what ends it: one text, or all the turns of it.

        Raises:
            BadConversation: turns that are no answer.
        """

    @abstractmethod
    def scored(self, answer_ids: Sequence[int]) -> list[int]:
        """An answer with the tail whose last token the score is read at."""

    @abstractmethod
    def as_turn(self, sampled_ids: Sequence[int]) -> list[int]:
        """Sampled ids as `answer` writes them: whichever id ended the answer becomes the end of a turn."""

    @abstractmethod
    def has_ended(self, sampled_ids: Sequence[int]) -> bool:
        """Whether the last id ends an answer; if not, it was cut off."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control tokens left out."""

    @abstractmethod
    def shared_length(self, prompt: Prompt) -> int:
        """How many leading tokens all questions about the same images have in common, up to the last image."""

    @abstractmethod
    def vocabulary(self) -> Mapping[str, int]:
        """Every token with its id."""

    # Images

    @abstractmethod
    def image_refs(self, media: Sequence[Media]) -> list[ImageRef]:
        """The images and videos of one conversation, in reading order, each with its budget."""

    @abstractmethod
    def measure(self, root: Path, media: Media, budget: int) -> ImageSize:
        """The size of a stored image by its header alone, or of a video.

        Raises:
            BadMedia: it cannot be read.
        """

    @abstractmethod
    def load(self, root: Path, media: Media, budget: int) -> Any:
        """A stored image or video as a `LoadedImage`.

        Raises:
            BadMedia: it cannot be read.
        """

    @abstractmethod
    def size_of(self, image: Any) -> ImageSize:
        """The size of a loaded one."""

    @property
    @abstractmethod
    def max_image_tokens(self) -> int:
        """Of an image, about; a video may have more."""

    # Options

    options: Any
    """All of them, as a record that can be compared and printed."""

    @abstractmethod
    def geometry(self) -> Mapping[str, object]:
        """The options that an image's tokens depend on, beside its budget."""

    @abstractmethod
    def reading(self) -> Mapping[str, object]:
        """The options that ids or image tokens depend on, `geometry` among them."""

    @abstractmethod
    def with_options(self, **changes: Any) -> Any:
        """The same under other options; `image_budget` is the budget of every image.

        Raises:
            ValueError: an unknown option or a bad value.
        """

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write it beside a model."""


# Models


class VisionLanguageModel(nn.Module, ABC):
    """A language model with a vision tower, without a head."""

    family: str
    """Its name in `ixc.models.FAMILIES`."""
    device: torch.device
    dtype: torch.dtype
    """What its weights are kept in."""

    # Facts

    @property
    @abstractmethod
    def hidden_size(self) -> int:
        """Channels of a hidden state."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Rows of the embedding."""

    @property
    @abstractmethod
    def head_dim(self) -> int:
        """Channels of an attention head."""

    @property
    def feature_width(self) -> int:
        """Numbers of an image token; those of several decoder levels (DeepStack) stand side by side."""
        return self.hidden_size

    @property
    def packing_objection(self) -> str:
        """Why sequences cannot share a row, and are read one by one; empty: they share."""
        return ""

    def sharing_key(self, length: int) -> object:
        """What sequences must have in common to share a row; `length`: tokens of one."""
        return None

    @property
    @abstractmethod
    def attention(self) -> str:
        """What rows are computed with, in words."""

    # Images

    @abstractmethod
    def encode_images(self, images: Sequence[Any]) -> list[Float[Tensor, "_ W"]]:
        """The features of each of several `LoadedImage`s, which pass the tower together."""

    @property
    @abstractmethod
    def feature_dtype(self) -> torch.dtype:
        """What the tower makes, which is what it computes in and not always what its weights are."""

    @abstractmethod
    def tower_weights(self) -> Mapping[str, Tensor]:
        """All weights that features depend on, by name."""

    @abstractmethod
    def tower_facts(self) -> Mapping[str, object]:
        """What features depend on beside, by its name in `config.json`: sizes that the weights do not show."""

    # Computing

    @abstractmethod
    def hidden_states(
        self,
        batch: PackedBatch,
        image_features: Float[Tensor, "P W"] | None = None,
        columns: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "R D"]:
        """States after the final norm, as separate rows would have them; gradients flow where they are on.

        A model that cannot pack reads row by row (`ixc.packing.plain`) and returns the same.

        Args:
            image_features: of all groups, in reading order; None: no image.
            columns: those of the packed row that a head reads; None: all.
        """

    # Training

    @abstractmethod
    def freeze_vision(self) -> None:
        """Stop training everything that turns an image into features."""

    @abstractmethod
    def decoder_module(self) -> nn.Module:
        """The language model without a head: what LoRA freezes."""

    @abstractmethod
    def lora_layers(self) -> list[nn.Linear]:
        """The decoder's linear layers, which adapters are put beside."""

    @abstractmethod
    def muon_matrices(self) -> list[nn.Parameter]:
        """The weight matrices of layers and projector, those that are trained."""

    def image_only_parameters(self) -> list[nn.Parameter]:
        """Weights that a batch without any image leaves without a gradient."""
        return []

    def use_all_weights(self, on_image: Callable[[], None]) -> list[RemovableHandle]:
        """From now on let every pass use all weights in one order, as processes that share them out must.

        A family without `image_only_parameters` does so anyway.

        Args:
            on_image: to be called in every pass with gradients that has an image.

        Returns:
            The hooks that do it, to be removed in the end.
        """
        return []

    @abstractmethod
    def compute_in_bf16(self) -> None:
        """Let tower and decoder compute in bfloat16, activations included; weights and heads stay as they are."""

    @abstractmethod
    def keep_in_bf16(self) -> None:
        """Keep what `compute_in_bf16` reads in bf16 anyway in bf16; for a model that is not trained."""

    @abstractmethod
    def set_attention(self, name: str) -> None:
        """Compute packed rows with this kernel, one of `params.AttentionName`; see `ixc.models.kernels`."""

    @abstractmethod
    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Compute every layer again in the backward pass, rather than keep what it computed."""

    @abstractmethod
    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write weights and configuration."""


class PolicyModel(VisionLanguageModel):
    """A chat model: base, policy and reference."""

    @property
    @abstractmethod
    def end_ids(self) -> frozenset[int]:
        """Any of these ends an answer."""

    @property
    @abstractmethod
    def unsampled(self) -> list[int]:
        """Ids that are no text and end nothing: no answer may contain one."""

    @abstractmethod
    def suppress_control(self, processor: Any) -> None:
        """Take `unsampled` from the tokenizer of a processor; wherever a model and its processor meet."""

    @abstractmethod
    def logits(self, hidden: Float[Tensor, "*R D"]) -> Float[Tensor, "*R V"]:
        """Of the next token."""

    @abstractmethod
    def read_prompts(
        self, batch: PackedBatch, image_features: Float[Tensor, "P W"] | None, num_answers: int
    ) -> tuple[Float[Tensor, "B D"], Any]:
        """Read prompts, so that `num_answers` answers to each can be sampled.

        Args:
            batch: prompts without responses.

        Returns:
            The last state of each prompt, repeated for each of its answers; and what `next_states` goes on from.
        """

    @abstractmethod
    def next_states(
        self, tokens: Int[Tensor, "B 1"], positions: Int[Tensor, " B"], cache: Any
    ) -> Float[Tensor, "B D"]:
        """The state after one more token of every answer; `cache`, from `read_prompts`, is written to."""


class ScoringModel(VisionLanguageModel):
    """The reward model, and the critic: one number per state, read where the caller pools."""

    @property
    @abstractmethod
    def pooling(self) -> Pooling:
        """What a score is read from."""

    @pooling.setter
    def pooling(self, pooling: Pooling) -> None: ...

    @abstractmethod
    def scores(self, states: Float[Tensor, "*R D"]) -> Float[Tensor, "*R"]:
        """The score head's numbers, computed in fp32."""

    def response_scores(
        self, batch: PackedBatch, image_features: Float[Tensor, "P W"] | None = None
    ) -> Float[Tensor, " R"]:
        """One score per response, group by group, as separate rows would get; fp32.

        Args:
            image_features: of all groups, in reading order.
        """
        if self.pooling == "last_token":
            return self.scores(self.hidden_states(batch, image_features, batch.end_at))
        return self.scores(batch.mean(self.hidden_states(batch, image_features)))


# For people's conversations


class Reading(NamedTuple):
    """A whole conversation as a model reads it, without a batch around it."""

    prompt: Prompt
    images: list[Any]
    """In reading order; an image that several conversations show is one object."""
    dropped: Any
    """What it lost to fit into its limit; equal for conversations that lost the same."""


class ChatProcessor(Processor):
    """A processor that also reads conversations as people give them, with images of any form: what `serve` needs."""

    @abstractmethod
    def read(
        self,
        messages: Any,
        media: Sequence[tuple[Kind, Any]],
        seen: dict[Any, Any],
        for_reward: bool = True,
    ) -> Reading:
        """One conversation of many that share their images and videos, which are decoded once.

        Args:
            media: kind and source of each.
            seen: what was decoded so far; the same dictionary, at first empty, for all conversations that share.

        Raises:
            BadConversation, BadMedia: it cannot be read.
        """

    @abstractmethod
    def __call__(self, conversations: Any = None, **options: Any) -> Any:
        """What `ChatModel.generate` takes of a conversation, `for_reward=False`."""

    @abstractmethod
    def is_byte(self, token: int) -> bool:
        """Whether a token stands for a part of a character."""

    tokenizer: Any
    """As Transformers' users hold it."""


class ChatModel(PolicyModel):
    """A policy that answers people."""

    @abstractmethod
    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """Prompt and answer, ids, as Transformers' `generate`."""


# Folders


class Family(ABC):
    """How the models of one family are recognised, loaded, built and saved; `ixc.models` finds the right one."""

    @abstractmethod
    def reads(self, config: Mapping[str, Any]) -> bool:
        """Whether a folder with this `config.json` holds one of its models."""

    @abstractmethod
    def load_policy(self, folder: Path, **options: Any) -> tuple[Any, Any]:
        """A `PolicyModel` and its processor; `options` are those of `ixc.models.load_policy`."""

    @abstractmethod
    def load_scorer(self, folder: Path, **options: Any) -> tuple[Any, Any]:
        """A `ScoringModel` and its processor."""

    @abstractmethod
    def scorer_from(self, base: Path) -> tuple[Any, Any]:
        """A `ScoringModel` in fp32 with the weights of a chat model and a new score head."""

    @abstractmethod
    def save(self, model: Any, processor: Any, folder: Path) -> None:
        """Write both; the folder appears whole."""

    @abstractmethod
    def adopt(self, source: Path, target: Path) -> None:
        """Write a model that others have made as `save` would."""

    @abstractmethod
    def build(
        self, architecture: Mapping[str, Any], image_budget: int, texts: Sequence[str]
    ) -> tuple[Any, Any]:
        """An untrained `PolicyModel` of these sizes, and a processor with a tokenizer trained on the texts.

        Raises:
            BadArchitecture: an unknown size, one that is missing, or a bad value.
        """

    def convert(self, source: Path, target: Path) -> dict[str, list[str]]:
        """A checkpoint of its authors' form in ours, or the way back; the keys that were `new` and `ignored`.

        Raises:
            BadCheckpoint: there is but one form.
        """
        raise BadCheckpoint(f"{source}: its authors' form is ours: there is nothing to convert")
