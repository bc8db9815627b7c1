"""Test-time scaling: N samples of the chat model, the reward model picks (paper, section 4.2)."""

from collections.abc import Sequence
from dataclasses import replace
from math import comb
from pathlib import Path

import numpy as np

from ixc.data.samples import Sample, balanced, read_samples, verifiable, write_samples
from ixc.engine import distributed
from ixc.engine.sampling import Answer, generate
from ixc.engine.scoring import score
from ixc.engine.towers import Reader, refuse_unequal
from ixc.engine.vision_cache import VisionCache
from ixc.metrics import Log, Metrics, ignore
from ixc.models import load_policy, load_scorer
from ixc.params import BestOfNParams
from ixc.verifiers.rules import check


def run(
    params: BestOfNParams,
    prompts: Path,
    media: Path,
    chat: Path,
    reward: Path,
    scored: Path,
    *,
    log: Log = ignore,
) -> Metrics:
    """Gold accuracy, reward and length of the picked answer for each N, on held-out prompts.

    Where no answer to any of them is known, reward and length alone.
    """
    samples = balanced(verifiable(read_samples(prompts)), params.max_prompts, params.seed)
    with distributed.joined():
        answers, rewards = sample_and_score(params, samples, media, chat, reward)
    texts = [[answer.text for answer in row] for row in answers]
    right = [correct(sample, row) for sample, row in zip(samples, texts, strict=True)]
    if distributed.rank() == 0:
        write_samples(map(scored_sample, samples, texts, rewards, right), scored)
    if not samples:
        return {"prompts": 0}
    lengths = [[len(answer.ids) for answer in row] for row in answers]
    known = [
        row for row in right if row is not None
    ]  # of all prompts, or of none: see `verifiable`
    return {"prompts": len(samples), **curve(params.n, rewards, known, lengths)}


def sample_and_score(
    params: BestOfNParams, samples: Sequence[Sample], media: Path, chat: Path, reward: Path
) -> tuple[list[list[Answer]], list[list[float]]]:
    """The chat model's answers to each prompt, as many as the largest N, and their rewards."""
    loading = distributed.device(), params.precision, params.attention
    policy, processor = load_policy(chat, *loading)
    judge, judges_processor = load_scorer(reward, *loading)
    refuse_unequal(Reader(chat, policy, processor), Reader(reward, judge, judges_processor))
    vision_cache = VisionCache(policy, processor, media, params.vision_cache)
    answers = generate(
        policy,
        vision_cache,
        samples,
        max(params.n),
        params.temperature,
        params.max_new_tokens,
        params.batch_size,
        params.seed,
        params.max_tokens_per_microbatch,
    )
    texts = [[answer.text for answer in row] for row in answers]
    return answers, score(
        judge, vision_cache, samples, texts, params.batch_size, params.max_tokens_per_microbatch
    )


def scored_sample(
    sample: Sample, texts: Sequence[str], rewards: Sequence[float], right: list[int] | None
) -> Sample:
    """A prompt with its answers and rewards; `meta.correct` says which the verifier accepts, where it knows."""
    meta = sample.meta if right is None else {**sample.meta, "correct": right}
    return replace(sample, candidates=tuple(texts), rewards=tuple(rewards), meta=meta)


def correct(sample: Sample, texts: Sequence[str]) -> list[int] | None:
    """Which answers the verifier accepts; None where it knows none."""
    if sample.gold is None or sample.gold.check == "open":
        return None
    return [int(check(sample.gold, text) or 0) for text in texts]


def curve(
    sizes: Sequence[int],
    rewards: Sequence[Sequence[float]],
    right: Sequence[Sequence[int]],
    lengths: Sequence[Sequence[int]],
) -> Metrics:
    """For each N, the mean over all sets of N of a prompt's K answers: the picked one, and an oracle's, a right one.

    An answer is picked from those sets whose others are all behind it: of C(K, N), C(behind, N - 1). So one sample of
    K estimates every N, without bias (pass@k: Codex, arXiv:2107.03374, eq. 1). `gold` never exceeds `oracle`.

    Args:
        right: which answers are, prompt by prompt; empty: nobody knows, and there is neither `gold` nor `oracle`.
    """
    r, c, tokens = (np.array(x, dtype=float) for x in (rewards, right, lengths))
    measured = (
        {"gold": c, "reward": r, "length": tokens} if len(c) else {"reward": r, "length": tokens}
    )
    answers = r.shape[1]
    best, behind = np.argsort(-r, axis=1, kind="stable"), range(answers - 1, -1, -1)
    metrics: Metrics = {}
    for n in sizes:
        share = np.array([comb(others, n - 1) for others in behind]) / comb(answers, n)
        for name, values in measured.items():
            metrics[f"{name}/{n}"] = float(np.mean(np.take_along_axis(values, best, 1) @ share))
        if len(c):
            metrics[f"oracle/{n}"] = float(np.mean(-np.sort(-c, axis=1) @ share))
    return metrics
