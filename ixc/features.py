"""The picture once: what the frozen tower makes of a picture or film is computed once and kept."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ixc.files import track
from ixc.model import IXCPreTrainedModel, IXCProcessor
from ixc.model.processing import Picture
from ixc.samples import Media, Sample

TILES_AT_ONCE = 256


class Features:
    """Projected picture tokens by content hash, for a model whose vision tower no longer changes.

    The base, the reward model, the policy and the critic share the frozen tower, hence one store serves them all.
    """

    def __init__(self, model: IXCPreTrainedModel, processor: IXCProcessor, root: Path) -> None:
        self.model, self.processor, self.root = model, processor, root
        self.kept: dict[str, Float[Tensor, "_ D"]] = {}
        self.num_encoded = 0
        """Pictures that have passed the tower, for tests of "once"."""

    def prepare(self, samples: Iterable[Sample]) -> None:
        """Encode the media of `samples` that are not kept yet."""
        new = {m.sha256: m for sample in samples for m in sample.media if m.sha256 not in self.kept}
        waiting: dict[str, Picture] = {}
        for media in track(new.values(), "pictures", len(new)) if new else []:
            waiting[media.sha256] = self.processor.load(self.root, media)
            if sum(len(p.tiles) for p in waiting.values()) >= TILES_AT_ONCE:
                self._encode(waiting)
                waiting = {}
        self._encode(waiting)

    @torch.no_grad()
    def _encode(self, pictures: dict[str, Picture]) -> None:
        encoded = self.model.encode_pictures(list(pictures.values()))
        self.kept |= {sha: f.clone() for sha, f in zip(pictures, encoded, strict=True)}
        self.num_encoded += len(pictures)

    def of(self, media: Sequence[Media]) -> list[Float[Tensor, "_ D"]]:
        """Tokens of each picture, in order; prepared before."""
        return [self.kept[m.sha256] for m in media]

    def prompt(self, sample: Sample) -> list[int]:
        """Ids of the sample's prompt, with as many picture places as its pictures have tokens."""
        return self.processor.prompt(sample.prompt, [len(f) for f in self.of(sample.media)])

    def together(self, samples: Iterable[Sample]) -> Float[Tensor, "P D"] | None:
        """The picture tokens of a batch, in reading order; None when there is no picture."""
        found = [f for sample in samples for f in self.of(sample.media)]
        return torch.cat(found) if found else None
