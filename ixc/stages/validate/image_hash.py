"""Images that look the same although their files differ: scaled, recompressed, in another format.

A difference hash finds candidates (Krawetz, "Kind of like that", 2013); thumbnails decide, for rendered
charts and sums differ in a digit that no hash of 64 bits sees. Crops and mirror images are not found.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8, UInt64
from PIL import Image

from ixc.data.images import MAX_PIXELS, recognised, to_rgb

SIDE, CELLS = 72, 24
"""Pixels of a thumbnail before and after it is averaged: 8, 9 and 24 divide the first."""
_FLAT = 2.0
"""Brighter by less than this, of 255, is as bright: compression must not decide a bit of the hash."""


class ImageHash(NamedTuple):
    """What an image looks like, in 2 kB."""

    bits: np.uint64
    """64 of them: whether each of 8 x 8 cells is darker than its right neighbour."""
    thumbnail: UInt8[np.ndarray, "24 24 3"]


class ImageIndex:
    """Images that can be compared with others."""

    bits: UInt64[np.ndarray, " n"]
    thumbnails: UInt8[np.ndarray, "n 24 24 3"]

    def __init__(self, hashes: Sequence[ImageHash]) -> None:
        self.bits = np.array([each.bits for each in hashes], np.uint64)
        self.thumbnails = np.zeros((0, CELLS, CELLS, 3), np.uint8)
        if hashes:
            self.thumbnails = np.stack([each.thumbnail for each in hashes])

    def similar(self, one: ImageHash, distance: int) -> list[int]:
        """Places of the images that look like this one; `distance`: differing bits of the hash at most."""
        num_different = np.bitwise_count(self.bits ^ one.bits)
        near = np.flatnonzero(num_different <= distance)
        if not len(near):
            return []
        # The hash only proposes; the thumbnails decide.
        is_alike = _alike(self.thumbnails[near], one.thumbnail)
        return near[is_alike].tolist()


def image_hash(file: Path | bytes) -> ImageHash:
    """A digest of what an image shows, upright and on white.

    Raises:
        OSError, ValueError: it cannot be decoded.
    """
    with recognised(file, MAX_PIXELS) as image:
        image.draft("RGB", (2 * SIDE, 2 * SIDE))  # a JPEG is decoded at a fraction of its size
        upright = to_rgb(image, "a picture")
    scaled = upright.resize((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(scaled, np.float32)

    # The hash: 8 rows of 9 grey cells, and of each whether it is darker than the next.
    grey = pixels.mean(axis=2)
    blocks = grey.reshape(8, SIDE // 8, 9, SIDE // 9)
    cells = blocks.mean(axis=(1, 3))
    is_darker = np.diff(cells, axis=1) > _FLAT
    bits = np.packbits(is_darker).view(">u8")[0]

    thumbnail = np.rint(_averaged(pixels, CELLS))
    return ImageHash(bits.astype(np.uint64), thumbnail.astype(np.uint8))


def _averaged(pixels: np.ndarray, cells: int) -> np.ndarray:
    """Means over cells: `cells` of them along height and width."""
    size = pixels.shape[-2] // cells
    blocks = pixels.reshape(*pixels.shape[:-3], cells, size, cells, size, 3)
    return blocks.mean(axis=(-4, -2))


def _alike(
    thumbnails: UInt8[np.ndarray, "n 24 24 3"],
    one: UInt8[np.ndarray, "24 24 3"],
) -> Bool[np.ndarray, " n"]:
    """Scaling and compression change much a little, an exchanged digit changes little much.

    The limits, of 255, were set on a thousand drawn and photographed images, recompressed and scaled.
    """
    difference = thumbnails.astype(np.float32) - one
    grey = np.abs(difference.mean(axis=-1))
    mean = grey.mean(axis=(1, 2))
    peak = grey.max(axis=(1, 2))
    colour = np.abs(difference).mean(axis=(1, 2, 3))
    patches = np.abs(_averaged(difference, 8))
    patch = patches.max(axis=(1, 2, 3))

    # A peak that stands out from the mean is an exchanged digit, and a patch an exchanged object.
    has_no_peak = peak <= 4 + np.minimum(50 * mean, 25 + 8 * mean)
    is_same_colour = colour <= 2 + 2 * mean
    return (mean <= 5) & has_no_peak & is_same_colour & (patch <= 30)
