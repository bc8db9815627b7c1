"""Cleaning of an instruction-tuning corpus by reward (paper, section 4.3)."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ixc import distributed
from ixc.defects import plant
from ixc.features import Features
from ixc.inference import score
from ixc.metrics import Log, Metrics, ignore
from ixc.model import IXCForRewardModel
from ixc.model.folder import load
from ixc.params import CleanParams
from ixc.samples import Sample, read_samples, write_samples


def run(
    params: CleanParams,
    corpus: Path,
    media: Path,
    reward: Path,
    cleaned: Path,
    removed: Path,
    *,
    log: Log = ignore,
) -> Metrics:
    """Remove the share with the lowest rewards of each domain; measure how well planted defects are found."""
    samples = plant(list(read_samples(corpus)), params.plant, random.Random(params.seed))
    place = distributed.device(), params.precision
    model, processor = load(reward, IXCForRewardModel, *place, attention=params.attention)
    answers = [[s.chosen[0].content] for s in samples]
    features = Features(model, processor, media, params.features)
    rewards = score(model, features, samples, answers, params.batch_size, params.pass_tokens)
    scored = [replace(s, rewards=tuple(r)) for s, r in zip(samples, rewards, strict=True)]
    low = lowest(scored, params.remove)
    write_samples((s for i, s in enumerate(scored) if i not in low), cleaned)
    write_samples(sorted((scored[i] for i in low), key=lambda s: s.rewards), removed)
    return {"rows": len(scored), "removed": len(low), **found(scored, low)}


def lowest(samples: Sequence[Sample], share: float) -> set[int]:
    """Indices of the lowest-rewarded `share` within each domain: average rewards differ between domains."""
    domains: dict[str, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        domains[sample.domain].append(i)
    ranked = (sorted(members, key=lambda i: samples[i].rewards) for members in domains.values())
    return {i for members in ranked for i in members[: round(share * len(members))]}


def found(samples: Sequence[Sample], low: set[int]) -> Metrics:
    """AUROC of a low reward as a sign of each kind of planted defect, and what the removed rows are."""
    kinds = [str(s.meta.get("defect", "")) for s in samples]
    rewards = np.array([s.rewards[0] for s in samples])
    clean = rewards[[not kind for kind in kinds]]
    metrics: Metrics = {}
    for kind in sorted(set(kinds) - {""}):
        bad = rewards[[k == kind for k in kinds]]
        metrics |= {f"auroc/{kind}": auroc(bad, clean), f"planted/{kind}": len(bad)}
        metrics[f"recall/{kind}"] = sum(kinds[i] == kind for i in low) / len(bad)
    if len(clean) < len(rewards):
        metrics["auroc/all"] = auroc(rewards[[bool(kind) for kind in kinds]], clean)
        metrics["precision"] = sum(bool(kinds[i]) for i in low) / max(1, len(low))
    return metrics


def auroc(bad: np.ndarray, good: np.ndarray) -> float:
    """Chance that a bad row has a lower reward than a good one, ties half (Mann-Whitney U).

    >>> auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    0.875
    """
    if not len(bad) or not len(good):
        return float("nan")
    ordered = np.sort(good)
    above = len(good) - np.searchsorted(ordered, bad, "right")
    ties = np.searchsorted(ordered, bad, "right") - np.searchsorted(ordered, bad, "left")
    return float((above + ties / 2).mean() / len(good))
