"""Scoring and sampling, the prompt once: N answers share their prefix."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from ixc.batches import ahead
from ixc.features import Features
from ixc.files import track
from ixc.model import Batch, IXCForCausalLM, IXCForRewardModel, Tree, collate
from ixc.model.attention import Branches
from ixc.samples import Sample


class Answer(NamedTuple):
    """A sampled answer."""

    ids: list[int]
    """With the end-of-turn token, if the model came to it."""
    text: str


def by_length(samples: Sequence[Sample], features: Features, size: int) -> Iterator[list[int]]:
    """Indices in batches of like prompt length."""
    order = sorted(range(len(samples)), key=lambda i: len(features.prompt(samples[i])))
    return (order[i : i + size] for i in range(0, len(order), size))


@torch.no_grad()
def score(
    model: IXCForRewardModel,
    features: Features,
    samples: Sequence[Sample],
    answers: Sequence[Sequence[str]],
    batch_size: int,
) -> list[list[float]]:
    """Rewards of each sample's answers, unbounded; higher is better.

    Args:
        answers: any number of texts per sample.
        batch_size: samples per forward pass.
    """
    features.prepare(samples)
    model.eval()
    rewards: list[list[float]] = [[] for _ in samples]
    batches = list(by_length(samples, features, batch_size))

    def read(batch: list[int]) -> tuple[list[int], Batch]:
        features.load_ahead(samples[i] for i in batch)
        return batch, collate([scoring_tree(features, samples[i], answers[i]) for i in batch])

    for batch, layout in track(ahead(batches, read), "score", len(batches)):
        flat = iter(rewards_of(model, features, [samples[i] for i in batch], layout).tolist())
        for i in batch:
            rewards[i] = [next(flat) for _ in answers[i]]
    return rewards


def scoring_tree(features: Features, sample: Sample, answers: Sequence[str]) -> Tree:
    """A prompt with its answers, each with the tail that the score is read from."""
    processor = features.processor
    return Tree(features.prompt(sample), [processor.scored(processor.answer(text)) for text in answers])


def rewards_of(
    model: IXCForRewardModel, features: Features, samples: Sequence[Sample], batch: Batch
) -> Float[Tensor, " R"]:
    """One reward per branch, tree by tree; `samples`: what the trees show. Gradients flow if they are on."""
    batch = batch.to(model.device)
    hidden = model.model(**batch.inputs(), features=features.together(samples))
    return model.scores(batch.pool(hidden, model.config.pooling))


@torch.no_grad()
def generate(
    model: IXCForCausalLM,
    features: Features,
    samples: Sequence[Sample],
    num_answers: int,
    temperature: float,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> list[list[Answer]]:
    """`num_answers` sampled answers per sample; equal arguments give equal answers."""
    features.prepare(samples)
    model.eval()
    generator = sampler(model, seed)
    answers: list[list[Answer]] = [[] for _ in samples]
    for batch in track(list(by_length(samples, features, batch_size)), "generate"):
        chosen = [samples[i] for i in batch]
        ids = sample_ids(model, features, chosen, num_answers, temperature, max_new_tokens, generator)
        for i, row in zip(batch, ids, strict=True):
            answers[i] = [Answer(said, features.processor.decode(said).strip()) for said in row]
    return answers


def sampler(model: IXCForCausalLM, seed: int) -> torch.Generator:
    """Random numbers where the model is."""
    return torch.Generator(model.device).manual_seed(seed)


def sample_ids(
    model: IXCForCausalLM,
    features: Features,
    samples: Sequence[Sample],
    num_answers: int,
    temperature: float,
    max_new_tokens: int,
    generator: torch.Generator,
) -> list[list[list[int]]]:
    """Ids of `num_answers` answers per sample."""
    prompts = [features.prompt(sample) for sample in samples]
    given = (num_answers, temperature, max_new_tokens, generator)
    tokens = sample_tokens(model, prompts, features.together(samples), *given)
    cut = [_until(row, features.processor.ids["turn_end"]) for row in tokens.tolist()]
    return [cut[i : i + num_answers] for i in range(0, len(cut), num_answers)]


def sample_tokens(
    model: IXCForCausalLM,
    prompts: Sequence[list[int]],
    features: Float[Tensor, "P D"] | None,
    num_answers: int,
    temperature: float,
    max_new_tokens: int,
    generator: torch.Generator,
) -> Int[Tensor, "B N"]:
    """Tokens of `num_answers` answers to each prompt in turn; prompts are read once, and their caches kept once.

    Args:
        features: picture tokens of all prompts, in reading order.
    """
    batch = collate([Tree(prompt, []) for prompt in prompts]).to(model.device)
    read = DynamicCache()
    hidden = model.model(**batch.inputs(), features=features, past_key_values=read)
    lengths = torch.tensor([len(p) for p in prompts], device=model.device)
    last, start = (x.repeat_interleave(num_answers, 0) for x in (hidden[0, lengths.cumsum(0) - 1], lengths))
    said = Branches(read, batch.forest, num_answers) if len(last) > 1 else read  # one alone has nobody to share with
    return _decode(model, said, last, start, temperature, max_new_tokens, generator)


def _decode(
    model: IXCForCausalLM,
    said: DynamicCache,
    last: Float[Tensor, "B D"],
    start: Int[Tensor, " B"],
    temperature: float,
    max_new_tokens: int,
    generator: torch.Generator,
) -> Int[Tensor, "B N"]:
    """Sample token by token until every row has ended; `start`: the position of its first token."""
    end = model.config.end_of_turn_token_id
    tokens: list[Tensor] = []
    done = torch.zeros(len(last), dtype=torch.bool, device=last.device)
    for step in range(max_new_tokens):
        logits = model.output(last).float() / temperature
        logits[:, model.config.image_token_id] = float("-inf")  # a picture's place is no word
        probabilities = torch.softmax(logits, -1)
        token = torch.multinomial(probabilities, 1, generator=generator)
        tokens.append(token)
        done |= token[:, 0] == end
        if done.all() or step + 1 == max_new_tokens:
            break
        last = model.model(token, position_ids=(start + step)[:, None], past_key_values=said)[:, -1]
    return torch.cat(tokens, 1)


def _until(ids: list[int], end: int) -> list[int]:
    """The ids up to and with the first `end`."""
    return ids[: ids.index(end) + 1] if end in ids else ids
