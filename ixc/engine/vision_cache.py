"""The image once: what the frozen tower makes of an image or video is computed once, and stays at hand."""

import hashlib
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ixc.data.samples import Sample
from ixc.engine import distributed
from ixc.engine.batching import pack_by_budget, prefetch
from ixc.engine.feature_stores import GB, DiskStore, MemoryStore
from ixc.io.files import track
from ixc.models.base import ImageRef, ImageSize, Processor, VisionLanguageModel
from ixc.packing.attention import to_device
from ixc.packing.layout import Prompt
from ixc.params import VisionCacheParams

TILES_AT_ONCE = 256
LOADERS = min(4, os.cpu_count() or 1)
"""Threads that read images."""
T = TypeVar("T")


class VisionCache:
    """Image features by content hash, for a model whose vision tower no longer changes.

    The base, the reward model, the policy and the critic share the frozen tower, hence one store serves them all.
    Memory is bounded: an image that has gone from it is read from the disk store, or encoded again. What
    rows that are read ahead show is read from the disk, or decoded, before a step asks for it.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        processor: Processor,
        root: Path,
        params: VisionCacheParams = VisionCacheParams(),  # noqa: B008 - frozen
    ) -> None:
        self.model, self.processor, self.root = model, processor, root
        self.memory = MemoryStore(round(params.memory_gb * GB))
        self.disk = (
            DiskStore(Path(params.disk), round(params.disk_gb * GB)) if params.disk else None
        )
        self.sizes: dict[str, ImageSize] = {}
        """Of every image met so far."""
        self.num_encoded = 0
        """Images that have passed the tower, for tests of "once"."""
        self.waited = 0.0
        """Seconds that a caller of `of` or `timed` waited for something else than the tower."""
        self.waiting: dict[str, Any] = {}
        """What was read ahead, loaded images or stored features, until the last row that they are for has used them."""
        self.uses: Counter[str] = Counter()
        """Such rows, by image."""
        self.lock = Lock()
        self.suffix = self._suffix() if self.disk else ""

    @cached_property
    def dtype(self) -> torch.dtype:
        """What the tower makes, which is what it computes in and not always what its weights are."""
        return self.model.feature_dtype

    def _suffix(self) -> str:
        precision = str(self.dtype).removeprefix("torch.")
        return f"-{geometry_of(self.processor)}-{encoder_of(self.model)}-{precision}"

    def image_refs(self, samples: Iterable[Sample]) -> list[ImageRef]:
        """What the samples show, in reading order."""
        return [ref for sample in samples for ref in self.processor.image_refs(sample.media)]

    def key(self, ref: ImageRef) -> str:
        """What an image's features are stored under; on disk also by geometry, encoder and precision."""
        return f"{ref.media.kind}-{ref.media.sha256}-{ref.budget}{self.suffix}"

    def prepare(self, samples: Iterable[Sample]) -> None:
        """Measure the samples' images, and encode as many of the new ones as can be stored.

        Processes that work together share the images out, and tell each other the sizes.
        """
        refs = {self.key(ref): ref for ref in self.image_refs(samples)}
        new = [(key, ref) for key, ref in refs.items() if not self._is_stored(key)]
        if distributed.is_distributed():
            new = new[distributed.rank() :: distributed.world_size()]
        self._announce(len(new))
        self._encode_some(new, self._room(refs))
        for sizes in distributed.gathered(self.sizes):
            self.sizes |= sizes

    def load_ahead(self, samples: Iterable[Sample]) -> None:
        """Read what rows show that will soon be asked for, once each; safe beside a thread that encodes.

        Until then loaded images and features stay at hand, whatever memory's bound; so it is rows that bound them.

        Raises:
            BadMedia: an image cannot be read; the rows are then as if never read.
        """
        rows = list(samples)
        uses = self._uses_of(rows)
        with self.lock:
            self.uses += uses
        try:
            refs = {self.key(ref): ref for ref in self.image_refs(rows)}
            new = [(key, ref) for key, ref in refs.items() if key not in self.waiting]
            loaded = prefetch(new, lambda item: (item[0], self._read(*item)), LOADERS, LOADERS)
            for key, value in loaded:
                self.waiting[key] = value
        except BaseException:
            self._release(uses)
            raise

    def forget(self, samples: Iterable[Sample]) -> None:
        """Rows whose prompts were read will not be asked for."""
        self._release(self._uses_of(samples), used=False)

    def release(self, samples: Iterable[Sample]) -> None:
        """Rows that were loaded ahead will not be asked for after all."""
        self._release(self._uses_of(samples))

    def of(self, samples: Iterable[Sample]) -> list[Float[Tensor, "_ W"]]:
        """Features of each image, in reading order; images without stored ones pass the tower together."""
        rows = list(samples)
        keys = [self.key(ref) for ref in self.image_refs(rows)]
        refs = dict(zip(keys, self.image_refs(rows), strict=True))

        # what is stored or was read ahead
        with self._stopwatch():
            at_hand = {key: self._take(key, ref) for key, ref in refs.items()}
            self._release(self._uses_of(rows))
        features = {key: value for key, value in at_hand.items() if isinstance(value, Tensor)}

        # the others, as many together as the tower takes
        new = [(key, image) for key, image in at_hand.items() if key not in features]
        tiles = [image.num_tiles for _, image in new]
        for chunk in pack_by_budget(range(len(new)), tiles, TILES_AT_ONCE):
            features |= self._encode(dict(new[i] for i in chunk))
        return [features[key] for key in keys]

    def prompt(self, sample: Sample) -> Prompt:
        """The sample's prompt, with as many image tokens as its images have."""
        sizes = [self._measure(self.key(ref), ref) for ref in self.image_refs([sample])]
        return self.processor.read_prompt(sample.prompt, sizes)

    def concat_features(self, samples: Iterable[Sample]) -> Float[Tensor, "P W"] | None:
        """The features of a batch's images, in reading order, where the model is; None when there is no image."""
        features = self.of(samples)
        with self._stopwatch():
            concatenated = torch.cat(features) if features else None
        return None if concatenated is None else to_device(concatenated, self.model.device)

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
        return self.model.feature_width * self.dtype.itemsize

    def _announce(self, new: int) -> None:
        """How much a disk store will take, before it takes it; and whether it is full of what is of no use here."""
        if self.disk is None or not new:
            return
        size = self.processor.max_image_tokens * self._token_bytes / GB
        room = (self.disk.max_bytes - self.disk.bytes) / GB
        print(
            f"{self.disk.folder}: {new:,} new images of up to about {size:.4f} GB, {new * size:.2f} GB in all; "
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

    def _room(self, keys: Iterable[str]) -> int:
        """Bytes that new images can take, nothing driven out that these keys need too."""
        stored = [self.memory.tensors[key].nbytes for key in keys if key in self.memory]
        room = self.memory.max_bytes - sum(stored)
        return max(room, self.disk.max_bytes - self.disk.bytes) if self.disk is not None else room

    def _encode_some(self, new: Sequence[tuple[str, ImageRef]], room: int) -> None:
        """Encode images until so many bytes are full, and measure the others."""
        chunk: dict[str, Any] = {}

        def load_or_measure(item: tuple[str, ImageRef]) -> tuple[str, Any]:
            key, ref = item
            if room > 0:
                return key, self._load(key, ref)
            if key not in self.sizes:
                self.sizes[key] = self.processor.measure(self.root, *ref)
            return key, None

        loaded = prefetch(new, load_or_measure, 2 * LOADERS, LOADERS)
        for key, image in track(loaded, "images", len(new)) if new else []:
            if image is None:
                continue
            chunk[key] = image
            room -= self.sizes[key].tokens * self._token_bytes
            if sum(each.num_tiles for each in chunk.values()) >= TILES_AT_ONCE:
                self._encode(chunk)
                chunk = {}
        self._encode(chunk)

    def _is_stored(self, key: str) -> bool:
        """Whether an image's features are stored, by what can be seen without reading them; then it is measured."""
        if key in self.memory and key in self.sizes:
            return True
        size = None if self.disk is None else self.disk.size(key)
        if size is None:
            return False
        self.sizes[key] = size
        return True

    def _uses_of(self, samples: Iterable[Sample]) -> Counter[str]:
        """How many of the rows show each image."""
        uses: Counter[str] = Counter()
        for sample in samples:
            uses.update({self.key(ref) for ref in self.image_refs([sample])})
        return uses

    def _release(self, uses: Counter[str], used: bool = True) -> None:
        """Rows are done with what they show; what no other row waits for goes."""
        with self.lock:
            if used:
                self.uses -= uses
            for key in uses:
                if key not in self.uses:
                    self.waiting.pop(key, None)

    def _take(self, key: str, ref: ImageRef) -> Any:
        value = self.memory.get(key)
        if value is None:
            value = self.waiting.get(key)
        if value is None:
            value = self._read(key, ref)
        if isinstance(value, Tensor):
            self.memory.put(key, value)
        return value

    def _read(self, key: str, ref: ImageRef) -> Any:
        """Stored features, or the loaded image."""
        if (value := self.memory.tensors.get(key)) is not None:
            return value
        size = None if self.disk is None else self.disk.size(key)
        value = None if self.disk is None else self.disk.get(key)
        if value is None or size is None:
            return self._load(key, ref)
        self.sizes[key] = size
        return value

    def _load(self, key: str, ref: ImageRef) -> Any:
        image = self.processor.load(self.root, *ref)
        self.sizes[key] = self.processor.size_of(image)
        return image

    def _measure(self, key: str, ref: ImageRef) -> ImageSize:
        """By the header; a video has none that tells, and waits for `load_ahead` or `forget`."""
        if key not in self.sizes:
            if ref.media.kind == "video":
                self.waiting[key] = self._load(key, ref)
            else:
                self.sizes[key] = self.processor.measure(self.root, *ref)
        return self.sizes[key]

    @torch.no_grad()
    def _encode(self, images: dict[str, Any]) -> dict[str, Float[Tensor, "_ W"]]:
        """Let images pass the tower together, and store what comes out."""
        features = self.model.encode_images(list(images.values()))
        encoded = {key: value.cpu().clone() for key, value in zip(images, features, strict=True)}
        with self._stopwatch():
            for key, value in encoded.items():
                self.memory.put(key, value)
                if self.disk is not None:
                    self.disk.put(key, value, self.sizes[key].grid)
        self.num_encoded += len(images)
        return encoded


def geometry_of(processor: Processor) -> str:
    """A name for the way a processor reads images."""
    values = list(processor.geometry().values())
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


@torch.no_grad()
def encoder_of(model: VisionLanguageModel) -> str:
    """A name for what makes features of images: the weights, and the sizes that they do not show."""
    facts = " ".join(map(str, model.tower_facts().values()))
    digest = hashlib.sha256(facts.encode())
    for name, value in model.tower_weights().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
