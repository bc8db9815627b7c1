"""The reward model on held-out pairs: by domain, modality, source and length, and again with every picture swapped."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ixc import distributed
from ixc.features import Features
from ixc.inference import score
from ixc.metrics import Log, Metrics, calibration_error, ignore
from ixc.model import IXCForRewardModel
from ixc.model.folder import load
from ixc.params import EvaluateRMParams
from ixc.samples import Media, Sample, read_samples, write_samples

LENGTHS = (16, 64, 256)
"""Words of a pair's longer answer: where its group ends."""


def run(
    params: EvaluateRMParams, pairs: Path, media: Path, reward: Path, scored: Path, *, log: Log = ignore
) -> Metrics:
    """Score the pairs as they are and with swapped media; a tie counts as wrong."""
    samples = list(read_samples(pairs))
    place = distributed.device(), params.precision
    model, processor = load(reward, IXCForRewardModel, *place, attention=params.attention)
    features = Features(model, processor, media, params.features)
    rewards = _score(params, model, features, samples)
    write_samples((replace(s, rewards=r) for s, r in zip(samples, rewards, strict=True)), scored)

    swapped = swap_media(samples, random.Random(params.seed))
    misled = _score(params, model, features, swapped)
    rng = np.random.default_rng(params.seed)
    metrics: Metrics = {"pairs": len(samples)}
    for group, margins in sorted(by_group(samples, rewards).items()):
        right = [margin > 0 for margin in margins]
        low, high = interval(right, params.num_resamples, rng)
        metrics |= {f"accuracy/{group}": float(np.mean(right)), f"pairs/{group}": len(right)}
        metrics |= {f"accuracy_low/{group}": low, f"accuracy_high/{group}": high}
        metrics |= {f"margin/{group}": float(np.mean(margins)), f"ece/{group}": calibration_error(margins)}
    for group, margins in sorted(by_group(swapped, misled).items()):
        if group in ("image", "video"):
            metrics[f"accuracy_swapped_media/{group}"] = float(np.mean([margin > 0 for margin in margins]))
    return metrics


def _score(
    params: EvaluateRMParams, model: IXCForRewardModel, features: Features, samples: Sequence[Sample]
) -> list[tuple[float, ...]]:
    answers = [(s.chosen[0].content, s.rejected[0].content) for s in samples]
    return [tuple(row) for row in score(model, features, samples, answers, params.batch_size, params.pass_tokens)]


def by_group(samples: Sequence[Sample], rewards: Sequence[tuple[float, ...]]) -> dict[str, list[float]]:
    """How far the better answer is ahead in each pair, for all, and by modality, domain, source and length."""
    groups: dict[str, list[float]] = defaultdict(list)
    for sample, (chosen, rejected) in zip(samples, rewards, strict=True):
        names = ("all", sample.modality, f"domain:{sample.domain}", f"source:{sample.source}", *lengths(sample))
        for name in names:
            groups[name].append(chosen - rejected)
    return groups


def lengths(sample: Sample) -> tuple[str, str]:
    """How long a pair's longer answer is, and which one it is: a model may have learned no more than the latter.

    >>> from ixc.samples import answer
    >>> lengths(Sample(id="", source="", domain="general", modality="text", prompt=(), chosen=answer("a b"),
    ...                rejected=answer("c")))
    ('length:to 16 words', 'longer:chosen')
    """
    chosen, rejected = (len(turns[0].content.split()) for turns in (sample.chosen, sample.rejected))
    most = next((limit for limit in LENGTHS if max(chosen, rejected) <= limit), None)
    longer = "chosen" if chosen > rejected else "rejected" if rejected > chosen else "neither"
    return f"length:to {most} words" if most else f"length:over {LENGTHS[-1]} words", f"longer:{longer}"


def swap_media(samples: Sequence[Sample], rng: random.Random) -> list[Sample]:
    """Give every sample with media those of another prompt of its domain and modality.

    A model that looks at pictures then answers no better than chance; one that reads only the text does not notice.
    """
    pools: dict[tuple[str, str, int], list[tuple[Media, ...]]] = defaultdict(list)
    for s in samples:
        pools[s.domain, s.modality, len(s.media)].append(s.media)
    swapped = []
    for s in samples:
        others = [m for m in dict.fromkeys(pools[s.domain, s.modality, len(s.media)]) if m != s.media]
        swapped.append(replace(s, media=rng.choice(others)) if s.media and others else s)
    return swapped


def interval(right: Sequence[bool], num_resamples: int, rng: np.random.Generator) -> tuple[float, float]:
    """95 % bootstrap interval of an accuracy, as fractions (Efron 1979, percentile method)."""
    hits = rng.binomial(len(right), float(np.mean(right)), num_resamples) / len(right)
    low, high = np.quantile(hits, (0.025, 0.975))
    return float(low), float(high)
