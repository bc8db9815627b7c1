"""Bad answers of the kinds that the paper found in instruction-tuning corpora (section 4.3, figure 2)."""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from ixc.samples import Media, Sample, answer

EVASIVE = (
    "",
    "I am not sure.",
    "I cannot tell.",
    "Sorry, I do not know.",
    "It depends.",
    "Let me think about it.",
)
"""Empty or evasive answers."""


def plant(samples: Sequence[Sample], share: float, rng: random.Random) -> list[Sample]:
    """Spoil a share of the samples, each in one of the ways open to it; `meta.defect` says which."""
    pools: dict[tuple[str, str, int], list[tuple[Media, ...]]] = defaultdict(list)
    for s in samples:
        pools[s.domain, s.modality, len(s.media)].append(s.media)

    def spoil(s: Sample) -> Sample:
        others = [m for m in pools[s.domain, s.modality, len(s.media)] if m != s.media] if s.media else []
        ways: dict[str, Callable[[], Sample]] = {"empty": lambda: replace(s, chosen=answer(rng.choice(EVASIVE)))}
        if s.meta.get("wrong"):
            ways["hallucination"] = lambda: replace(s, chosen=answer(rng.choice(s.meta["wrong"])))
        if others:
            ways["mismatch"] = lambda: replace(s, media=rng.choice(others))
        kind = rng.choice(sorted(ways))
        spoiled = ways[kind]()
        return replace(spoiled, meta={**s.meta, "defect": kind})

    chosen = set(rng.sample(range(len(samples)), round(share * len(samples))))
    return [spoil(s) if i in chosen else s for i, s in enumerate(samples)]
