"""Pictures that look the same although their files differ: scaled, recompressed, in another format.

A difference hash finds candidates (Krawetz, "Kind of like that", 2013); a look at both decides, for rendered
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


class Look(NamedTuple):
    """What a picture looks like, in 2 kB."""

    hash: np.uint64
    """64 bits: whether each of 8 x 8 cells is darker than its right neighbour."""
    small: UInt8[np.ndarray, "24 24 3"]


class Looks:
    """Pictures that can be compared with others."""

    def __init__(self, looks: Sequence[Look]) -> None:
        self.hashes: UInt64[np.ndarray, " n"] = np.array([look.hash for look in looks], np.uint64)
        self.smalls: UInt8[np.ndarray, "n 24 24 3"] = (
            np.stack([look.small for look in looks])
            if looks
            else np.zeros((0, CELLS, CELLS, 3), np.uint8)
        )

    def like(self, look: Look, distance: int) -> list[int]:
        """Places of the pictures that look like this one; `distance`: differing bits of the hash at most."""
        near = np.flatnonzero(np.bitwise_count(self.hashes ^ look.hash) <= distance)
        return near[_alike(self.smalls[near], look.small)].tolist() if len(near) else []


def look(file: Path | bytes) -> Look:
    """A picture in small, upright and on white.

    Raises:
        OSError, ValueError: it cannot be decoded.
    """
    with recognised(file, MAX_PIXELS) as image:
        image.draft("RGB", (2 * SIDE, 2 * SIDE))  # a JPEG is decoded at a fraction of its size
        upright = to_rgb(image, "a picture")
    pixels = np.asarray(upright.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    cells = pixels.mean(axis=2).reshape(8, SIDE // 8, 9, SIDE // 9).mean(axis=(1, 3))
    bits = np.packbits(np.diff(cells, axis=1) > _FLAT)
    return Look(
        bits.view(">u8")[0].astype(np.uint64), np.rint(_averaged(pixels, CELLS)).astype(np.uint8)
    )


def _averaged(pixels: np.ndarray, cells: int) -> np.ndarray:
    size = pixels.shape[-2] // cells
    return pixels.reshape(*pixels.shape[:-3], cells, size, cells, size, 3).mean(axis=(-4, -2))


def _alike(
    smalls: UInt8[np.ndarray, "n 24 24 3"], one: UInt8[np.ndarray, "24 24 3"]
) -> Bool[np.ndarray, " n"]:
    """Scaling and compression change much a little, an exchanged digit changes little much.

    The limits, of 255, were found on a thousand drawn and photographed pictures, recompressed and scaled.
    """
    difference = smalls.astype(np.float32) - one
    grey = np.abs(difference.mean(axis=-1))
    mean, peak = grey.mean(axis=(1, 2)), grey.max(axis=(1, 2))
    colour = np.abs(difference).mean(axis=(1, 2, 3))
    patch = np.abs(_averaged(difference, 8)).max(axis=(1, 2, 3))
    local = peak <= 4 + np.minimum(50 * mean, 25 + 8 * mean)
    return (mean <= 5) & local & (colour <= 2 + 2 * mean) & (patch <= 30)
