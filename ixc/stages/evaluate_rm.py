"""The reward model on held-out pairs: by domain, modality, source and length, and again with every image swapped."""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ixc.data.samples import Media, Sample, Turn, read_pairs, write_samples
from ixc.engine import distributed
from ixc.engine.scoring import score
from ixc.engine.vision_cache import VisionCache
from ixc.metrics import Log, Metrics, accuracy_interval, calibration_error, ignore
from ixc.models import load_scorer
from ixc.models.base import ScoringModel
from ixc.params import EvaluateRMParams

LENGTHS = (16, 64, 256)
"""Words of a pair's longer answer: where its group ends."""
_EAST_ASIAN = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
Rewards = tuple[float, float]
"""Of the chosen and of the rejected answer."""


def run(
    params: EvaluateRMParams,
    pairs: Path,
    media: Path,
    reward: Path,
    scored: Path,
    *,
    log: Log = ignore,
) -> Metrics:
    """Score the pairs as they are, and those that can be with swapped media; a tie counts as wrong.

    Raises:
        BadRecord: a pair has an answer that cannot be scored whole.
    """
    samples = read_pairs(pairs)
    swapped = [
        after
        for before, after in zip(
            samples, swap_media(samples, random.Random(params.seed)), strict=True
        )
        if after.media != before.media
    ]
    with distributed.joined():
        device = distributed.device()
        model, processor = load_scorer(reward, device, params.precision, params.attention)
        vision_cache = VisionCache(model, processor, media, params.vision_cache)
        rewards = _score(params, model, vision_cache, samples)
        misled = _score(params, model, vision_cache, swapped)
    if distributed.rank():
        return {}  # the first process speaks for all
    write_samples((replace(s, rewards=r) for s, r in zip(samples, rewards, strict=True)), scored)
    rng = np.random.default_rng(params.seed)
    metrics: Metrics = {"pairs": len(samples)}
    for group, members in sorted(by_group(samples).items()):
        few = [samples[i] for i in members]
        metrics |= _measured(group, few, [rewards[i] for i in members], params.num_resamples, rng)
    return metrics | swapped_metrics(samples, swapped, misled)


def _score(
    params: EvaluateRMParams,
    model: ScoringModel,
    vision_cache: VisionCache,
    samples: Sequence[Sample],
) -> list[Rewards]:
    answers = [(s.chosen, s.rejected) for s in samples]
    rows = score(
        model, vision_cache, samples, answers, params.batch_size, params.max_tokens_per_microbatch
    )
    return [(chosen, rejected) for chosen, rejected in rows]


def _measured(
    group: str,
    samples: Sequence[Sample],
    rewards: Sequence[Rewards],
    num_resamples: int,
    rng: np.random.Generator,
) -> Metrics:
    """What is told of a group of pairs; `length_only` beside it is what a look at lengths alone would get right."""
    margins = [chosen - rejected for chosen, rejected in rewards]
    right = [margin > 0 for margin in margins]
    prompts = [(sample.prompt, sample.media) for sample in samples]
    low, high = accuracy_interval(right, prompts, num_resamples, rng)
    words = np.array(
        [(num_words(sample.chosen), num_words(sample.rejected)) for sample in samples], dtype=float
    )
    numbers = {
        "accuracy": float(np.mean(right)),
        "accuracy_low": low,
        "accuracy_high": high,
        "pairs": len(samples),
        "prompts": len(set(prompts)),
        "ties": margins.count(0.0),
        "margin": float(np.mean(margins)),
        "ece": calibration_error(margins),
        "length_only": float(np.mean((1 + np.sign(words[:, 0] - words[:, 1])) / 2)),
        "words_chosen": float(words[:, 0].mean()),
        "words_rejected": float(words[:, 1].mean()),
    }
    return {f"{name}/{group}": value for name, value in numbers.items()}


def swapped_metrics(
    samples: Sequence[Sample], swapped: Sequence[Sample], rewards: Sequence[Rewards]
) -> Metrics:
    """The accuracy of pairs with swapped media by modality, and how many of its pairs could be swapped at all."""
    metrics: Metrics = {}
    for modality in sorted({sample.modality for sample in samples if sample.media}):
        pairs = zip(swapped, rewards, strict=True)
        right = [
            chosen > rejected for sample, (chosen, rejected) in pairs if sample.modality == modality
        ]
        metrics[f"pairs_swapped/{modality}"] = len(right)
        if right:
            metrics[f"accuracy_swapped_media/{modality}"] = float(np.mean(right))
    return metrics


def by_group(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Which pairs belong to each group: all, and by modality, domain, source and length."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        names = (
            "all",
            sample.modality,
            f"domain:{sample.domain}",
            f"source:{sample.source}",
            *lengths(sample),
        )
        for name in names:
            groups[name].append(i)
    return groups


def lengths(sample: Sample) -> tuple[str, str]:
    """How long a pair's longer answer is, and which one it is: a model may have learned no more than the latter.

    >>> from ixc.data.samples import answer
    >>> lengths(Sample(id="", source="", domain="general", modality="text", prompt=(), chosen=answer("a b"),
    ...                rejected=answer("c")))
    ('length:to 16 words', 'longer:chosen')
    """
    chosen, rejected = num_words(sample.chosen), num_words(sample.rejected)
    most = next((limit for limit in LENGTHS if max(chosen, rejected) <= limit), None)
    longer = "chosen" if chosen > rejected else "rejected" if rejected > chosen else "neither"
    return (
        f"length:to {most} words" if most else f"length:over {LENGTHS[-1]} words",
        f"longer:{longer}",
    )


def num_words(turns: Sequence[Turn]) -> int:
    """Words of an answer, all its turns; a Chinese or Japanese character is one, for nothing stands between them.

    >>> num_words([Turn(role="assistant", content="It is \u7ea2\u8272.")])
    5
    """
    texts = (_EAST_ASIAN.sub(" \\g<0> ", turn.content) for turn in turns)
    return sum(len(text.split()) for text in texts)


def swap_media(samples: Sequence[Sample], rng: random.Random) -> list[Sample]:
    """Give every sample with media those of another prompt of its domain and modality; where there is none, its own.

    A model that looks at images then answers no better than chance; one that reads only the text does not notice.
    """
    pools: dict[tuple[str, str, int], dict[tuple[Media, ...], int]] = defaultdict(dict)
    for s in samples:
        pool = pools[s.domain, s.modality, len(s.media)]
        pool.setdefault(s.media, len(pool))
    choices = {key: list(pool) for key, pool in pools.items()}
    swapped = []
    for s in samples:
        key = s.domain, s.modality, len(s.media)
        if s.media and len(choices[key]) > 1:
            place = rng.randrange(len(choices[key]) - 1)
            place += place >= pools[key][s.media]  # any but its own
            swapped.append(replace(s, media=choices[key][place]))
        else:
            swapped.append(s)
    return swapped
