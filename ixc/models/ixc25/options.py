"""How conversations, images and videos are read: the options of a processor."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic import dataclasses as checked

from ixc.data.images import MAX_PIXELS, Transparency
from ixc.data.videos import VideoDecoder
from ixc.models.ixc25.configuration import MAX_TILE, MAX_TILES
from ixc.models.ixc25.tiles import Geometry

MAX_FRAMES = 8192
"""Frames of a video at most, whatever is asked for: its composite is one image in memory."""
OnOverflow = Literal["error", "drop_oldest_turns", "shrink_images"]


class BadProcessor(ValueError):
    """Options or files that make no processor: file, key, value, remedy."""


@checked.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ProcessorOptions:
    """What `processor_config.json` says; with the defaults, training and inference read the same."""

    tile_size: int = Field(default=560, gt=0, le=MAX_TILE)
    """Side of an image tile, pixels."""
    patch_size: int = Field(default=14, gt=0, le=MAX_TILE)
    """Side of a patch, pixels; a token is made of 2 x 2."""
    hd_num: int = Field(default=9, gt=0, le=MAX_TILES)
    """Tiles per image at most, the global view not counted. Official evaluation: 9; its API's default: 24."""
    hd_num_several: int | None = Field(default=None, gt=0, le=MAX_TILES)
    """The same where a conversation shows several images; none: `hd_num`. Official inference: 6, always."""
    geometry: Geometry = "official"
    """How images are cut; the official code differs between inference and training, see `images.partition`."""
    transparency: Transparency = "white"
    """What stands behind transparent pixels; `official`: the colour that the file happens to hold there. Either way a
    photograph stands upright as its EXIF data says; what the official code does with these is not known."""
    strip_turns: bool = False
    """Take white space off the ends of messages: the official training does, its inference does not."""
    tail_newline: bool = False
    """A newline between the last turn and `</s>`. The transformers that the authors pin (4.33.2) drops it; newer ones
    keep it. The released scores of the 7B, or its tokenizer's config, decide."""
    max_frames: int = Field(default=32, gt=0, le=MAX_FRAMES)
    """Frames of a video at most."""
    video_lengths: Literal["tile", "official"] = "tile"
    """Pixels of a video's composite: in proportion to the tile, or `official`: 1120 for a frame's long side, 40 for its
    label, 10 between frames, which are constants of the official code (its tile's 560 is one of its own). At 560 both
    are the same."""
    include_last: bool = False
    """Show the last frame of every video, which the official rule does not; see `videos.frames_seen`."""
    video_decoder: VideoDecoder = "pyav"
    """What reads videos: `decord`, the official code's, or `pyav`, which gives the same frames, and also reads AV1,
    10 bits a channel and rotated videos, which decord does not; see `ixc.data.videos`."""
    max_pixels: int = Field(default=MAX_PIXELS, gt=0)
    """Larger images, and videos of larger frames, are refused: a decompression bomb looks like this."""
    max_length: int = Field(default=16384, gt=0, le=2**31)
    """Tokens of a conversation at most. Official default: 16384."""
    on_overflow: OnOverflow = "error"
    """What becomes of a longer one: it is refused, or loses its oldest exchanges, or its images lose tiles. The
    answer and its tail are never cut."""
    padding_side: Literal["right", "left"] = "right"
    """Of conversations to be scored. Those to be answered are padded on the left, as `generate` needs it."""

    def __post_init__(self) -> None:
        if self.tile_size % (2 * self.patch_size):
            form = f"tile_size: {self.tile_size}: not a multiple of two patches ({2 * self.patch_size} pixels)"
            raise ValueError(form)
        if self.video_decoder == "decord" and find_spec("decord") is None:
            raise ValueError(
                "video_decoder: 'decord': not installed; pip install 'ixc[video]', or set it to pyav"
            )

    def hd_num_of(self, images: int) -> int:
        """Tiles per image at most, in a conversation that shows so many."""
        return (self.hd_num_several if images > 1 else None) or self.hd_num


def checked_options(options: Mapping[str, Any]) -> ProcessorOptions:
    """Options by name.

    Raises:
        BadProcessor: an unknown one, or a bad value.
    """
    try:
        return ProcessorOptions(**options)
    except ValidationError as error:
        bad = [
            (
                ".".join(map(str, detail["loc"])),
                detail["input"],
                detail["msg"].removeprefix("Value error, "),
            )
            for detail in error.errors()
        ]
        raise BadProcessor(
            "; ".join(f"{key}: {value!r}: {why}" if key else why for key, value, why in bad)
        ) from error
