"""The picture once: what the frozen tower makes of a picture or film is computed once and kept."""

import hashlib
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ixc.data.samples import Media, Sample
from ixc.engine import distributed
from ixc.engine.batching import pack_by_budget, prefetch
from ixc.engine.feature_stores import GB, DiskStore, MemoryStore
from ixc.io.files import track
from ixc.models.ixc25 import IXCPreTrainedModel, IXCProcessor
from ixc.models.ixc25.processing import ImageTiles
from ixc.models.ixc25.tiles import num_tokens
from ixc.packing.attention import to_device
from ixc.params import VisionCacheParams

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
    "video_lengths",
    "video_decoder",
)
"""The processor's options that a picture's tokens depend on, beside the number of tiles, which is in the key."""
T = TypeVar("T")


class ImageRef(NamedTuple):
    """A picture or film, and how many tiles it may have, which depends on what it is shown with."""

    media: Media
    hd_num: int


class VisionCache:
    """Projected picture tokens by content hash, for a model whose vision tower no longer changes.

    The base, the reward model, the policy and the critic share the frozen tower, hence one store serves them all.
    Memory is bounded: a picture that has gone from it is read from the disk store, or encoded again. What
    rows that are read ahead show is read from the disk, or decoded, before a step asks for it.
    """

    def __init__(
        self,
        model: IXCPreTrainedModel,
        processor: IXCProcessor,
        root: Path,
        params: VisionCacheParams = VisionCacheParams(),  # noqa: B008 - frozen
    ) -> None:
        self.model, self.processor, self.root = model, processor, root
        self.memory = MemoryStore(round(params.memory_gb * GB))
        self.disk = (
            DiskStore(Path(params.disk), round(params.disk_gb * GB)) if params.disk else None
        )
        self.counts: dict[str, int] = {}
        """Tokens of every picture met so far."""
        self.num_encoded = 0
        """Pictures that have passed the tower, for tests of "once"."""
        self.waited = 0.0
        """Seconds that a caller of `of` or `timed` waited for something else than the tower."""
        self.waiting: dict[str, ImageTiles | Tensor] = {}
        """What was read ahead, decoded pictures or kept tokens, until the last row that it was read for has used it."""
        self.uses: Counter[str] = Counter()
        """Such rows, by picture."""
        self.lock = Lock()
        self.suffix = self._suffix() if self.disk else ""

    @cached_property
    @torch.no_grad()
    def dtype(self) -> torch.dtype:
        """What the tower makes, which is what it computes in and not always what its weights are."""
        side = self.processor.tile_size
        [tokens] = self.model.encode_images([ImageTiles(torch.zeros(2, 3, side, side), 1)])
        return tokens.dtype

    def _suffix(self) -> str:
        precision = str(self.dtype).removeprefix("torch.")
        return f"-{geometry_of(self.processor)}-{encoder_of(self.model)}-{precision}"

    def image_refs(self, samples: Iterable[Sample]) -> list[ImageRef]:
        """What the samples show, in reading order."""
        found = [
            (media, self.processor.hd_num_of(len(sample.media)))
            for sample in samples
            for media in sample.media
        ]
        return [ImageRef(*ref) for ref in found]

    def key(self, ref: ImageRef) -> str:
        """What a picture's tokens are kept under; on disk also by geometry, encoder and precision."""
        return f"{ref.media.kind}-{ref.media.sha256}-{ref.hd_num}{self.suffix}"

    def prepare(self, samples: Iterable[Sample]) -> None:
        """Count the tokens of the samples' pictures, and encode as many of the new ones as can be kept.

        Processes that work together share the pictures out, and tell each other the counts.
        """
        wanted = {self.key(ref): ref for ref in self.image_refs(samples)}
        new = [(key, ref) for key, ref in wanted.items() if not self._counted_as_kept(key)]
        new = (
            new[distributed.rank() :: distributed.world_size()]
            if distributed.is_distributed()
            else new
        )
        self._announce(len(new))
        self._encode_some(new, self._room(wanted))
        for counts in distributed.gathered(self.counts):
            self.counts |= counts

    def load_ahead(self, samples: Iterable[Sample]) -> None:
        """Read what rows show that will soon be asked for, once each; safe beside a thread that encodes.

        Until then decoded pictures and tokens stay at hand, whatever memory's bound; so it is rows that bound them.

        Raises:
            BadMedia: a picture cannot be read; the rows are then as if never read.
        """
        rows = list(samples)
        shown = self._shown(rows)
        with self.lock:
            self.uses += shown
        try:
            new = {
                key: ref
                for ref in self.image_refs(rows)
                if (key := self.key(ref)) not in self.waiting
            }
            for key, value in prefetch(
                new.items(), lambda item: (item[0], self._fetch(*item)), LOADERS, LOADERS
            ):
                self.waiting[key] = value
        except BaseException:
            self._release(shown)
            raise

    def forget(self, samples: Iterable[Sample]) -> None:
        """Rows whose prompts were read will not be asked for."""
        self._release(self._shown(samples), uses=False)

    def release(self, samples: Iterable[Sample]) -> None:
        """Rows that were loaded ahead will not be asked for after all."""
        self._release(self._shown(samples))

    def of(self, samples: Iterable[Sample]) -> list[Float[Tensor, "_ D"]]:
        """Tokens of each picture, in reading order; those that are not kept pass the tower together."""
        rows = list(samples)
        image_refs = self.image_refs(rows)
        with self._stopwatch():
            at_hand = {
                key: self._take(key, ref)
                for key, ref in {self.key(ref): ref for ref in image_refs}.items()
            }
            self._release(self._shown(rows))
        found = {key: value for key, value in at_hand.items() if isinstance(value, Tensor)}
        new = [(key, value) for key, value in at_hand.items() if not isinstance(value, Tensor)]
        for places in pack_by_budget(
            range(len(new)), [len(image.tiles) for _, image in new], TILES_AT_ONCE
        ):
            found |= self._encode(dict(new[i] for i in places))
        return [found[self.key(ref)] for ref in image_refs]

    def prompt(self, sample: Sample) -> list[int]:
        """Ids of the sample's prompt, with as many picture places as its pictures have tokens."""
        return self.processor.prompt(
            sample.prompt, [self._count(self.key(ref), ref) for ref in self.image_refs([sample])]
        )

    def concat_features(self, samples: Iterable[Sample]) -> Float[Tensor, "P D"] | None:
        """The picture tokens of a batch, in reading order, where the model is; None when there is no picture."""
        found = self.of(samples)
        with self._stopwatch():
            tokens = torch.cat(found) if found else None
        return None if tokens is None else to_device(tokens, self.model.device)

    def timed(self, coming: Iterable[T]) -> Iterator[T]:
        """What is read ahead, and how long it was waited for."""
        rest = iter(coming)
        while True:
            with self._stopwatch():
                each = next(rest, None)
            if each is None:
                return
            yield each

    @contextmanager
    def _stopwatch(self) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            self.waited += perf_counter() - start

    @property
    def _token_bytes(self) -> int:
        return self.model.config.hidden_size * self.dtype.itemsize

    def _announce(self, new: int) -> None:
        """How much a disk store will take, before it takes it; and whether it is full of what is of no use here."""
        if self.disk is None or not new:
            return
        side = self.processor.tile_size // self.processor.patch_size // 2
        size = num_tokens(self.processor.hd_num, 1, side) * self._token_bytes / GB
        room = (self.disk.max_bytes - self.disk.bytes) / GB
        print(
            f"{self.disk.folder}: {new:,} new pictures of up to about {size:.4f} GB, {new * size:.2f} GB in all; "
            f"room for {room:.2f} GB",
            file=sys.stderr,
        )
        if new * size > room and (others := self.disk.others(self.suffix)):
            files = f"-name '*.safetensors' -not -name '*{self.suffix}.safetensors'"
            print(
                f"{self.disk.folder}: {others / GB:.2f} GB are another encoder's, geometry's or precision's; if no run "
                f"needs them any more: find {shlex.quote(str(self.disk.folder))} {files} -delete",
                file=sys.stderr,
            )

    def _room(self, wanted: Iterable[str]) -> int:
        """Bytes that can be kept of new pictures, nothing driven out that is wanted too."""
        held = sum(
            value.nbytes for key in wanted if (value := self.memory.kept.get(key)) is not None
        )
        room = self.memory.max_bytes - held
        return max(room, self.disk.max_bytes - self.disk.bytes) if self.disk is not None else room

    def _encode_some(self, new: Sequence[tuple[str, ImageRef]], room: int) -> None:
        """Encode pictures until so many bytes are full, and count the others."""
        chunk: dict[str, ImageTiles] = {}

        def load_or_count(item: tuple[str, ImageRef]) -> tuple[str, ImageTiles | None]:
            key, ref = item
            if room > 0:
                return key, self._load(key, ref)
            if key not in self.counts:
                self.counts[key] = self.processor.count(self.root, *ref)
            return key, None

        loaded = prefetch(new, load_or_count, 2 * LOADERS, LOADERS)
        for key, image in track(loaded, "pictures", len(new)) if new else []:
            if image is None:
                continue
            chunk[key] = image
            room -= self.counts[key] * self._token_bytes
            if sum(len(p.tiles) for p in chunk.values()) >= TILES_AT_ONCE:
                self._encode(chunk)
                chunk = {}
        self._encode(chunk)

    def _counted_as_kept(self, key: str) -> bool:
        """Whether a picture's tokens are kept, as far as can be told without reading them; if so, they are counted."""
        value = self.memory.kept.get(key)
        count = (
            len(value)
            if value is not None
            else self.disk.length(key)
            if self.disk is not None
            else None
        )
        if count is not None:
            self.counts[key] = count
        return count is not None

    def _shown(self, samples: Iterable[Sample]) -> Counter[str]:
        """How many of the rows show a picture."""
        return Counter(
            key
            for sample in samples
            for key in {self.key(ref) for ref in self.image_refs([sample])}
        )

    def _release(self, shown: Counter[str], uses: bool = True) -> None:
        """Rows are done with what they show; what no other row waits for goes."""
        with self.lock:
            if uses:
                self.uses -= shown
            for key in shown:
                if key not in self.uses:
                    self.waiting.pop(key, None)

    def _take(self, key: str, ref: ImageRef) -> ImageTiles | Tensor:
        value = self.memory.get(key)
        if value is None:
            value = (
                waiting if (waiting := self.waiting.get(key)) is not None else self._fetch(key, ref)
            )
        if isinstance(value, Tensor):
            self.memory.put(key, value)
        return value

    def _fetch(self, key: str, ref: ImageRef) -> ImageTiles | Tensor:
        """Tokens that are kept, or the picture."""
        value = self.memory.kept.get(key)
        if value is None and self.disk is not None:
            value = self.disk.get(key)
        if value is None:
            return self._load(key, ref)
        self.counts[key] = len(value)
        return value

    def _load(self, key: str, ref: ImageRef) -> ImageTiles:
        image = self.processor.load(self.root, *ref)
        self.counts[key] = self.processor.num_tokens(image)
        return image

    def _count(self, key: str, ref: ImageRef) -> int:
        """By the header; a film has none that tells, and is kept for `load_ahead` or `forget`."""
        if key not in self.counts:
            if ref.media.kind == "video":
                self.waiting[key] = self._load(key, ref)
            else:
                self.counts[key] = self.processor.count(self.root, *ref)
        return self.counts[key]

    @torch.no_grad()
    def _encode(self, images: dict[str, ImageTiles]) -> dict[str, Float[Tensor, "_ D"]]:
        """Let pictures pass the tower together, and keep what comes out."""
        tokens = self.model.encode_images(list(images.values()))
        encoded = {key: value.cpu().clone() for key, value in zip(images, tokens, strict=True)}
        with self._stopwatch():
            for key, value in encoded.items():
                self.memory.put(key, value)
                if self.disk is not None:
                    self.disk.put(key, value)
        self.num_encoded += len(images)
        return encoded


def geometry_of(processor: IXCProcessor) -> str:
    """A name for the way a processor cuts pictures."""
    told = asdict(processor.options)
    return hashlib.sha256(repr([told[name] for name in GEOMETRY]).encode()).hexdigest()[:16]


def tower_of(model: IXCPreTrainedModel) -> dict[str, Tensor]:
    """The weights that make tokens of pictures, by name: tower, projector, newline and separator."""
    parts = {**model.vit.state_dict(), **model.vision_proj.state_dict(prefix="proj.")}
    return {**parts, "glb": model.plora_glb_GN, "sub": model.plora_sub_GN}


@torch.no_grad()
def encoder_of(model: IXCPreTrainedModel) -> str:
    """A name for what makes tokens of pictures: the weights, and the sizes that they do not show."""
    config = model.config
    digest = hashlib.sha256(
        f"{config.vision_num_attention_heads} {config.vision_layer_norm_eps}".encode()
    )
    for name, value in tower_of(model).items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
