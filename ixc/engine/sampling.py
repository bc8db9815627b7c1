"""Sampled answers, any number to a prompt, which is read once, and whose cache all of them share."""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ixc.data.samples import Sample
from ixc.engine import distributed
from ixc.engine.batching import batched, my_share
from ixc.engine.vision_cache import VisionCache
from ixc.io.files import track
from ixc.models.base import PolicyModel
from ixc.packing import MAX_TOKENS_PER_MICROBATCH
from ixc.packing.attention import to_device
from ixc.packing.layout import PrefixGroup, Prompt, collate

STEPS_AHEAD = 16
"""Tokens of each answer that a GPU is given to sample before the host asks whether all have ended."""
BatchIds = list[list[list[int]]]
"""Ids of the answers to each prompt of a batch."""


class Answer(NamedTuple):
    """A sampled answer."""

    ids: list[int]
    """With the token that ended it, the turn's end or `</s>`, if the model came to one."""
    text: str


def by_length(
    samples: Sequence[Sample],
    vision_cache: VisionCache,
    size: int,
    answer_tokens: int = 0,
    max_tokens_per_microbatch: int = MAX_TOKENS_PER_MICROBATCH,
) -> list[list[int]]:
    """Indices of samples in batches, as in `batched`; `answer_tokens`: what all answers to one may come to."""
    prompts = [len(vision_cache.prompt(sample)) for sample in samples]
    tokens = [prompt + answer_tokens for prompt in prompts]
    names = [sample.id for sample in samples]
    return batched(prompts, tokens, names, size, max_tokens_per_microbatch)


@torch.no_grad()
def generate(
    model: PolicyModel,
    vision_cache: VisionCache,
    samples: Sequence[Sample],
    num_answers: int,
    temperature: float,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    max_tokens_per_microbatch: int = MAX_TOKENS_PER_MICROBATCH,
    *,
    done: Mapping[int, BatchIds] | None = None,
    keep: Callable[[int, BatchIds], None] | None = None,
) -> list[list[Answer]]:
    """`num_answers` sampled answers per sample; equal arguments give equal answers, on any number of processes.

    Args:
        batch_size: samples that are answered together at most.
        max_tokens_per_microbatch: tokens of their prompts and of all their answers, each of `max_new_tokens`, at most.
        done: batches of an earlier, killed call with equal arguments, by number.
        keep: called with each batch's number and ids once it is sampled.

    Raises:
        OverBudget: a prompt with its answers may come to more.
    """
    vision_cache.prepare(samples)
    model.eval()
    answer_tokens = num_answers * max_new_tokens
    batches = by_length(samples, vision_cache, batch_size, answer_tokens, max_tokens_per_microbatch)

    # what an earlier call has not done is shared out, so that all processes have as much to do
    sampled = dict(done or {})
    rest = [number for number in range(len(batches)) if number not in sampled]
    costs = []
    for number in rest:
        prompts = [vision_cache.prompt(samples[i]) for i in batches[number]]
        costs.append(sum(len(prompt) + answer_tokens for prompt in prompts))
    mine = [rest[place] for place in my_share(costs)]

    # every batch has random numbers of its own, whoever samples it and after what
    for number in track(mine, "generate"):
        batch = [samples[i] for i in batches[number]]
        sampling = (num_answers, temperature, max_new_tokens, sampler(model, seed, number))
        sampled[number] = sample_ids(model, vision_cache, batch, *sampling)
        if keep is not None:
            keep(number, sampled[number])

    # everyone gets all answers, in the samples' order
    for others in distributed.gathered(sampled):
        sampled |= others
    answers: list[list[Answer]] = [[] for _ in samples]
    for number, batch in enumerate(batches):
        for i, row in zip(batch, sampled[number], strict=True):
            answers[i] = [Answer(ids, vision_cache.processor.decode(ids).strip()) for ids in row]
    return answers


def sampler(model: PolicyModel, seed: int, batch: int = 0) -> torch.Generator:
    """Random numbers where the model is; each batch has its own, whoever samples it and after what."""
    drawn = random.Random(f"{seed}/{batch}").getrandbits(32)
    return torch.Generator(model.device).manual_seed(drawn)


def sample_ids(
    model: PolicyModel,
    vision_cache: VisionCache,
    samples: Sequence[Sample],
    num_answers: int,
    temperature: float,
    max_new_tokens: int,
    generator: torch.Generator,
) -> list[list[list[int]]]:
    """Ids of `num_answers` answers per sample."""
    model.suppress_control(vision_cache.processor)
    prompts = [vision_cache.prompt(sample) for sample in samples]
    sampling = (num_answers, temperature, max_new_tokens, generator)
    tokens = sample_tokens(model, prompts, vision_cache.concat_features(samples), *sampling)
    return cut(tokens, num_answers, model.end_ids)


def cut(
    tokens: Int[Tensor, "B N"], num_answers: int, end_ids: Collection[int]
) -> list[list[list[int]]]:
    """Sampled tokens as `num_answers` answers to each prompt, each up to and with the first token that ends it."""
    rows = [_until(row, end_ids) for row in tokens.tolist()]
    return [rows[i : i + num_answers] for i in range(0, len(rows), num_answers)]


def sample_tokens(
    model: PolicyModel,
    prompts: Sequence[Prompt | list[int]],
    image_features: Float[Tensor, "P W"] | None,
    num_answers: int,
    temperature: float,
    max_new_tokens: int,
    generator: torch.Generator,
) -> Int[Tensor, "B N"]:
    """Tokens of `num_answers` answers to each prompt in turn; every prompt is read once.

    Args:
        image_features: of all prompts, in reading order.
    """
    groups = [PrefixGroup(prompt, []) for prompt in prompts]
    batch = collate(groups).to(model.device)
    last, cache = model.read_prompts(batch, image_features, num_answers)
    positions = torch.tensor([group.prompt.next_position for group in groups])
    start = to_device(positions, model.device).repeat_interleave(num_answers, 0)
    return _decode(model, cache, last, start, temperature, max_new_tokens, generator)


def _decode(
    model: PolicyModel,
    cache: Any,
    last: Float[Tensor, "B D"],
    start: Int[Tensor, " B"],
    temperature: float,
    max_new_tokens: int,
    generator: torch.Generator,
) -> Int[Tensor, "B N"]:
    """Sample token by token until every row has ended; `start`: the position of its first token.

    To know whether all have, the host waits for a GPU; so there it asks only now and then.
    """
    stride = 1 if last.device.type == "cpu" else STEPS_AHEAD
    tokens: list[Tensor] = []
    done = torch.zeros(len(last), dtype=torch.bool, device=last.device)
    for step in range(max_new_tokens):
        probabilities = torch.softmax(answer_logits(model, last, temperature), -1)
        token = torch.multinomial(probabilities, 1, generator=generator)
        tokens.append(token)
        for end_id in model.end_ids:
            done |= token[:, 0] == end_id
        if step + 1 == max_new_tokens or ((step + 1) % stride == 0 and done.all()):
            break
        last = model.next_states(token, start + step, cache)
    return torch.cat(tokens, 1)


def answer_logits(
    model: PolicyModel, hidden: Float[Tensor, "R D"], temperature: float
) -> Float[Tensor, "R V"]:
    """Logits of an answer's next token, fp32, as answers are sampled: at a temperature, no token that is no text.

    Sampling, ratio, KL and entropy read this one distribution. Temperature 1 is the model's own.
    """
    logits = model.logits(hidden).float() / temperature
    unsampled = _mask(tuple(model.unsampled), logits.shape[-1], logits.device)
    return logits.masked_fill(unsampled, float("-inf"))


@lru_cache(maxsize=8)
def _mask(ids: tuple[int, ...], size: int, device: torch.device) -> Bool[Tensor, " V"]:
    """Where the ids are; it serves training too, whoever asks first."""
    with torch.inference_mode(False):
        mask = torch.zeros(size, dtype=torch.bool)
        mask[list(ids)] = True
        return to_device(mask, device)


def _until(ids: list[int], end_ids: Collection[int]) -> list[int]:
    """The ids up to and with the first that ends them."""
    for i, token in enumerate(ids):
        if token in end_ids:
            return ids[: i + 1]
    return ids
