"""IXC-2.5 with its two heads: the chat model's vocabulary and the reward model's score."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from ixc.models.base import ChatModel, Pooling, ScoringModel
from ixc.models.ixc25.configuration import IXCConfig
from ixc.models.ixc25.pretrained import IXCPreTrainedModel
from ixc.models.ixc25.processing import IXCProcessor
from ixc.models.ixc25.tokenizers import unsampled_ids
from ixc.packing.attention import ResponseCache, to_device
from ixc.packing.layout import PackedBatch


class IXCModel(IXCPreTrainedModel):
    """IXC-2.5 without a head."""

    _keys_to_ignore_on_load_unexpected = IXCPreTrainedModel._keys_to_ignore_on_load_unexpected

    def __init__(self, config: IXCConfig) -> None:
        super().__init__(config)
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        pixel_values: Float[Tensor, "N 3 S S"] | None = None,
        tile_grids: Int[Tensor, "images 2"] | None = None,
        image_features: Float[Tensor, "P D"] | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states; arguments as in `states`, spelled out because `Trainer` and pipelines read this signature."""
        return self.states(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            pixel_values,
            tile_grids,
            image_features,
            use_cache,
            **kwargs,
        )


GENERATING = ("tokenizer", "assistant_tokenizer")
"""What `generate` takes for its own use and hands on all the same."""


def refuse_right_padding(attention_mask: Tensor | None) -> None:
    """Prompts to be continued must end in a real token.

    Raises:
        ValueError: some end in padding.
    """
    if attention_mask is None or attention_mask.ndim != 2 or bool(attention_mask[:, -1].all()):
        return
    row = int((attention_mask[:, -1] == 0).nonzero()[0])
    form = 'padded on the right, so its answer would follow the padding; pad on the left (padding_side="left")'
    raise ValueError(f"attention_mask: row {row}: {form}")


class IXCForCausalLM(IXCPreTrainedModel, GenerationMixin, ChatModel):
    """The chat model: base, policy and reference."""

    accepts_loss_kwargs = True

    def __init__(self, config: IXCConfig) -> None:
        super().__init__(config)
        self.output: nn.Linear = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        if self.generation_config is not None:
            ends = [config.eos_token_id, config.end_of_turn_token_id]
            self.generation_config.eos_token_id = ends
            control = {config.image_token_id, config.bos_token_id}
            self.generation_config.suppress_tokens = sorted(control - set(ends))

    @property
    def end_ids(self) -> frozenset[int]:
        """Either of these ends an answer: `</s>` and the turn's end, as in the authors' chat."""
        return frozenset((self.config.eos_token_id, self.config.end_of_turn_token_id))

    @property
    def unsampled(self) -> list[int]:
        """Ids that are no text and end nothing, which no answer may contain; `suppress_control` finds them.

        The config alone knows two of them. They stand in `suppress_tokens`, which Transformers' `generate` heeds.
        """
        suppressed = self.generation_config and self.generation_config.suppress_tokens
        return list(suppressed or ())

    def suppress_control(self, processor: IXCProcessor) -> None:
        """Never sample what the tokenizer has no text for."""
        if self.generation_config is not None:
            unsampled = unsampled_ids(processor.backend, self.config.vocab_size)
            self.generation_config.suppress_tokens = unsampled

    def logits(self, hidden: Float[Tensor, "*R D"]) -> Float[Tensor, "*R V"]:
        """Of the next token."""
        return self.output(hidden)

    def read_prompts(
        self, batch: PackedBatch, image_features: Float[Tensor, "P D"] | None, num_answers: int
    ) -> tuple[Float[Tensor, "B D"], Cache]:
        """Prompts as one packed row, whose cache all answers share."""
        lengths = torch.tensor([prefix for prefix, _ in batch.layout.shapes])
        columns = to_device(lengths.cumsum(0) - 1, batch.input_ids.device)
        cache = DynamicCache()
        hidden = self.hidden_states(batch, image_features, columns, cache)
        last = hidden.repeat_interleave(num_answers, 0)
        if len(last) == 1:  # a single answer has nobody to share with
            return last, cache
        return last, ResponseCache(cache, batch.layout, num_answers)

    def next_states(
        self, tokens: Int[Tensor, "B 1"], positions: Int[Tensor, " B"], cache: Cache
    ) -> Float[Tensor, "B D"]:
        """One more token of every answer."""
        return self.model(tokens, position_ids=positions[:, None], past_key_values=cache)[:, -1]

    def get_output_embeddings(self) -> nn.Module:
        """The vocabulary head."""
        return self.output

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the vocabulary head."""
        self.output = new_embeddings  # pyright: ignore[reportAttributeAccessIssue]

    @capture_outputs
    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        pixel_values: Float[Tensor, "N 3 S S"] | None = None,
        tile_grids: Int[Tensor, "images 2"] | None = None,
        image_features: Float[Tensor, "P D"] | None = None,
        use_cache: bool | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        logits_to_keep: int | Int[Tensor, " kept"] = 0,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token, and the loss of `labels`, nats per token.

        Args:
            input_ids ... use_cache: as in `states`; spelled out because `generate` reads this signature.
            labels: token ids, -100 where none is to be learned; not shifted.
            logits_to_keep: only the last so many columns, or these; 0: all. Not with labels.
            num_items_in_batch: learned tokens of the whole optimizer step, of which this batch may be a part: what the
                sum is divided by. None: those of this batch.
            kwargs: as in `states`; and `shift_labels`, instead of `labels` each token's successor (not in the
                signature, for `Trainer` would ask every batch for it).
        """
        shift_labels = kwargs.pop("shift_labels", None)
        if (labels is not None or shift_labels is not None) and not _keeps_all(logits_to_keep):
            raise ValueError(
                f"logits_to_keep: {logits_to_keep!r:.80}: the loss needs all columns; leave it out"
            )
        out = self.states(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            pixel_values,
            tile_grids,
            image_features,
            use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        assert out.last_hidden_state is not None
        logits = self.output(out.last_hidden_state[:, kept])
        loss = None
        if labels is not None or shift_labels is not None:
            counted = {"num_items_in_batch": num_items_in_batch, "shift_labels": shift_labels}
            loss = self.loss_function(logits, labels, self.config.vocab_size, **counted)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """Prompt and answer, ids: Transformers' `generate`, given `pixel_values` and `tile_grids`, or `image_features`.

        Raises:
            ValueError: rows padded on the right, whose answers would follow the padding; or an unknown argument.
        """
        refuse_right_padding(kwargs.get("attention_mask"))
        return super().generate(inputs, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """The images go in with the prompt, and then stand in the cache."""
        given = {"is_first_iteration": is_first_iteration, **kwargs}
        inputs = super().prepare_inputs_for_generation(input_ids, **given)  # pyright: ignore[reportAttributeAccessIssue]
        for name in GENERATING:
            inputs.pop(name, None)
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("pixel_values", "tile_grids", "image_features"):
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Several answers to a prompt: its images pass the tower once, their tokens are repeated."""
        pixels, grids = kwargs.pop("pixel_values", None), kwargs.pop("tile_grids", None)
        image_features = (
            kwargs.pop("image_features", None)
            if pixels is None
            else self.get_image_features(pixels, grids)
        )
        if image_features is not None and input_ids is not None:
            counts = (input_ids == self.config.image_token_id).sum(1).tolist()
            image_features = torch.cat(
                [row for row in image_features.split(counts) for _ in range(expand_size)]
            )
        given = (expand_size, is_encoder_decoder, input_ids)
        ids, kwargs = super()._expand_inputs_for_generation(*given, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        return ids, kwargs | ({} if image_features is None else {"image_features": image_features})


def _keeps_all(logits_to_keep: int | Tensor) -> bool:
    return isinstance(logits_to_keep, int) and logits_to_keep == 0


@dataclass
class RewardOutput(ModelOutput):
    """`logits` is the name that Transformers gives to the score of a sequence."""

    loss: Float[Tensor, ""] | None = None
    logits: Float[Tensor, "B 1"] | None = None
    last_hidden_state: Float[Tensor, "B T D"] | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class ScoreHead(nn.Linear):
    """A score in fp32, whatever the type of the weights: differences of scores are small against their rounding."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1, bias=False)

    def forward(self, input: Float[Tensor, "*R D"]) -> Float[Tensor, "*R 1"]:
        """`w x`."""
        return F.linear(input.float(), self.weight.float())


class IXCForRewardModel(IXCPreTrainedModel, ScoringModel):
    """The reward model, and the critic: one number per token, read where the caller pools."""

    def __init__(self, config: IXCConfig) -> None:
        super().__init__(config)
        self.score = ScoreHead(config.hidden_size)
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        pixel_values: Float[Tensor, "N 3 S S"] | None = None,
        tile_grids: Int[Tensor, "images 2"] | None = None,
        image_features: Float[Tensor, "P D"] | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> RewardOutput:
        """One score per row, unbounded, fp32; pooled as `config.pooling` says.

        Args:
            input_ids ... use_cache: as in `states`; rows end in the reward token, padding on either side.
            attention_mask: [B T], 1 on real tokens.
            labels: [B] or [B 1], the scores that are wanted; the loss is the mean squared error, as Transformers' of a
                single label. The paper's loss, of pairs, is `ixc.engine.losses.bradley_terry_loss`.
            num_items_in_batch: rows of the whole optimizer step, of which this batch may be a part: what the sum is
                divided by. None: those of this batch.
        """
        out = self.states(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            pixel_values,
            tile_grids,
            image_features,
            use_cache,
            **kwargs,
        )
        hidden = out.last_hidden_state
        assert hidden is not None
        if attention_mask is None:
            attention_mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        scores = self.scores(pool(hidden, attention_mask, self.config.pooling))
        loss = None
        if labels is not None:
            errors = F.mse_loss(scores, labels.reshape(scores.shape).to(scores), reduction="sum")
            loss = errors / (len(scores) if num_items_in_batch is None else num_items_in_batch)
        return RewardOutput(
            loss=loss,
            logits=scores[:, None],
            last_hidden_state=hidden,
            past_key_values=out.past_key_values,
        )

    @property
    def pooling(self) -> Pooling:
        """What a score is read from."""
        return self.config.pooling

    @pooling.setter
    def pooling(self, pooling: Pooling) -> None:
        self.config.pooling = pooling

    def scores(self, states: Float[Tensor, "*R D"]) -> Float[Tensor, "*R"]:
        """The score head's numbers, with what an adapter may add to it."""
        with torch.autocast(states.device.type, enabled=False):
            return self.score(states.float()).float().squeeze(-1)


def pool(
    hidden: Float[Tensor, "B T D"], attention_mask: Int[Tensor, "B T"], pooling: str
) -> Float[Tensor, "B D"]:
    """The state of the last real token (official checkpoint), or the mean over all real ones (paper, section 3), which
    is fp32: half precision has no 1/n whose sum is 1."""
    if pooling == "last_token":
        last = attention_mask.long().cumsum(1).argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    weights = attention_mask.float()
    return torch.einsum("bt,btd->bd", weights / weights.sum(1, keepdim=True), hidden.float())
