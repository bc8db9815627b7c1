"""The picture once: what the frozen tower makes of a picture or film is computed once and kept."""

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ixc import distributed
from ixc.batches import ahead
from ixc.files import track
from ixc.model import IXCPreTrainedModel, IXCProcessor
from ixc.model.pictures import num_tokens
from ixc.model.processing import Picture
from ixc.params import FeatureParams
from ixc.samples import Media, Sample
from ixc.stores import GB, DiskStore, MemoryStore

TILES_AT_ONCE = 256
LOADERS = min(4, os.cpu_count() or 1)
"""Threads that read pictures."""
GEOMETRY = (
    "tile_size",
    "patch_size",
    "geometry",
    "transparency",
    "max_frames",
    "include_last",
)
"""The processor's options that a picture's tokens depend on, beside the number of tiles, which is in the key."""


class Look(NamedTuple):
    """A picture or film, and how many tiles it may have, which depends on what it is shown with."""

    media: Media
    hd_num: int


class Features:
    """Projected picture tokens by content hash, for a model whose vision tower no longer changes.

    The base, the reward model, the policy and the critic share the frozen tower, hence one store serves them all.
    Memory is bounded: a picture that has gone from it is read from the disk store, or encoded again.
    """

    def __init__(
        self,
        model: IXCPreTrainedModel,
        processor: IXCProcessor,
        root: Path,
        params: FeatureParams = FeatureParams(),  # noqa: B008 - frozen
    ) -> None:
        self.model, self.processor, self.root = model, processor, root
        self.memory = MemoryStore(round(params.memory_gb * GB))
        self.disk = DiskStore(Path(params.disk), round(params.disk_gb * GB)) if params.disk else None
        self.counts: dict[str, int] = {}
        """Tokens of every picture met so far."""
        self.num_encoded = 0
        """Pictures that have passed the tower, for tests of "once"."""
        self.waiting: dict[str, Picture] = {}
        """Loaded ahead of their use."""
        self.suffix = f"-{geometry_of(processor)}-{encoder_of(model)}" if self.disk else ""

    def looks(self, samples: Iterable[Sample]) -> list[Look]:
        """What the samples show, in reading order."""
        found = [(media, self.processor.hd_num_of(len(sample.media))) for sample in samples for media in sample.media]
        return [Look(*look) for look in found]

    def key(self, look: Look) -> str:
        """What a picture's tokens are kept under; on disk also by geometry and encoder."""
        return f"{look.media.kind}-{look.media.sha256}-{look.hd_num}{self.suffix}"

    def prepare(self, samples: Iterable[Sample]) -> None:
        """Count the tokens of the samples' pictures, and encode as many of the new ones as can be kept.

        Processes that work together share the pictures out, and tell each other the counts.
        """
        wanted = {self.key(look): look for look in self.looks(samples)}
        new = [(key, look) for key, look in wanted.items() if not self._counted_as_kept(key)]
        new = new[distributed.rank() :: distributed.world_size()] if distributed.together() else new
        self._announce(len(new))
        self._encode_some(new, self._room(wanted))
        for counts in distributed.gathered(self.counts):
            self.counts |= counts

    def load_ahead(self, samples: Iterable[Sample]) -> None:
        """Read pictures that will soon be needed and are not kept; safe beside a thread that encodes.

        Raises:
            BadMedia: one cannot be read.
        """
        new = {key: look for look in self.looks(samples) if not self._at_hand(key := self.key(look))}
        for key, picture in ahead(new.items(), lambda item: (item[0], self._load(*item)), LOADERS, LOADERS):
            self.waiting[key] = picture

    def of(self, samples: Iterable[Sample]) -> list[Float[Tensor, "_ D"]]:
        """Tokens of each picture, in reading order; those that are not kept pass the tower together."""
        looks = self.looks(samples)
        wanted = {self.key(look): look for look in looks}
        found = {key: value for key in wanted if (value := self._find(key)) is not None}
        chunk = {key: self._load(key, look) for key, look in wanted.items() if key not in found}
        for key in found:
            self.waiting.pop(key, None)
        found |= self._encode(chunk)
        return [found[self.key(look)] for look in looks]

    def prompt(self, sample: Sample) -> list[int]:
        """Ids of the sample's prompt, with as many picture places as its pictures have tokens."""
        return self.processor.prompt(
            sample.prompt, [self._count(self.key(look), look) for look in self.looks([sample])]
        )

    def together(self, samples: Iterable[Sample]) -> Float[Tensor, "P D"] | None:
        """The picture tokens of a batch, in reading order, where the model is; None when there is no picture."""
        found = self.of(samples)
        return torch.cat(found).to(self.model.device) if found else None

    @property
    def _token_bytes(self) -> int:
        return self.model.config.hidden_size * self.model.plora_glb_GN.element_size()

    def _announce(self, new: int) -> None:
        """How much a disk store will take, before it takes it."""
        if self.disk is not None and new:
            side = self.processor.tile_size // self.processor.patch_size // 2
            size = num_tokens(self.processor.hd_num, 1, side) * self._token_bytes / GB
            room = (self.disk.max_bytes - self.disk.bytes) / GB
            print(
                f"{self.disk.folder}: {new:,} new pictures of up to about {size:.4f} GB, {new * size:.2f} GB in all; "
                f"room for {room:.2f} GB",
                file=sys.stderr,
            )

    def _room(self, wanted: Iterable[str]) -> int:
        """Bytes that can be kept of new pictures, nothing driven out that is wanted too."""
        held = sum(value.nbytes for key in wanted if (value := self.memory.kept.get(key)) is not None)
        room = self.memory.max_bytes - held
        return max(room, self.disk.max_bytes - self.disk.bytes) if self.disk is not None else room

    def _encode_some(self, new: Sequence[tuple[str, Look]], room: int) -> None:
        """Encode pictures until so many bytes are full, and count the others."""
        chunk: dict[str, Picture] = {}

        def load_or_count(item: tuple[str, Look]) -> tuple[str, Picture | None]:
            key, look = item
            if room > 0:
                return key, self._load(key, look)
            self._count(key, look)
            return key, None

        loaded = ahead(new, load_or_count, 2 * LOADERS, LOADERS)
        for key, picture in track(loaded, "pictures", len(new)) if new else []:
            if picture is None:
                continue
            chunk[key] = picture
            room -= self.counts[key] * self._token_bytes
            if sum(len(p.tiles) for p in chunk.values()) >= TILES_AT_ONCE:
                self._encode(chunk)
                chunk = {}
        self._encode(chunk)

    def _counted_as_kept(self, key: str) -> bool:
        """Whether a picture's tokens are kept, as far as can be told without reading them; if so, they are counted."""
        value = self.memory.kept.get(key)
        count = len(value) if value is not None else self.disk.length(key) if self.disk is not None else None
        if count is not None:
            self.counts[key] = count
        return count is not None

    def _find(self, key: str) -> Float[Tensor, "_ D"] | None:
        value = self.memory.get(key)
        if value is None and self.disk is not None and (value := self.disk.get(key)) is not None:
            self.memory.put(key, value)
        return value

    def _at_hand(self, key: str) -> bool:
        return key in self.memory or key in self.waiting or (self.disk is not None and key in self.disk)

    def _load(self, key: str, look: Look) -> Picture:
        picture = self.waiting.pop(key, None) or self.processor.load(self.root, *look)
        self.counts[key] = self.processor.num_tokens(picture)
        return picture

    def _count(self, key: str, look: Look) -> int:
        if key not in self.counts:
            self.counts[key] = self.processor.count(self.root, *look)
        return self.counts[key]

    @torch.no_grad()
    def _encode(self, pictures: dict[str, Picture]) -> dict[str, Float[Tensor, "_ D"]]:
        """Let pictures pass the tower together, and keep what comes out."""
        tokens = self.model.encode_pictures(list(pictures.values()))
        encoded = {key: value.cpu().clone() for key, value in zip(pictures, tokens, strict=True)}
        for key, value in encoded.items():
            self.memory.put(key, value)
            if self.disk is not None:
                self.disk.put(key, value)
        self.num_encoded += len(pictures)
        return encoded


def geometry_of(processor: IXCProcessor) -> str:
    """A name for the way a processor cuts pictures."""
    told = asdict(processor.options)
    return hashlib.sha256(repr([told[name] for name in GEOMETRY]).encode()).hexdigest()[:16]


@torch.no_grad()
def encoder_of(model: IXCPreTrainedModel) -> str:
    """A name for the weights that make tokens of pictures."""
    digest = hashlib.sha256()
    parts = {**model.vit.state_dict(), **model.vision_proj.state_dict(prefix="proj.")}
    for name, value in {**parts, "glb": model.plora_glb_GN, "sub": model.plora_sub_GN}.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
