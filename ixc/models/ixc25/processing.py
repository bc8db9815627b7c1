"""From conversations, images and videos to what the model reads.

The official geometry, template and special tokens; the parts are in `images` (geometry, tiles, video strips), `inputs`
(what an image may come as), `prompts` (the template, built from ids) and `tokenizers`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from ixc.data.images import BadMedia, image_size
from ixc.data.samples import Media, Reply, Turn, objection_to_turns
from ixc.io.files import replacing
from ixc.models.base import ChatProcessor, ImageRef, ImageSize, Kind, Reading
from ixc.models.inputs import is_video, read_image, read_video
from ixc.models.ixc25.agreement import config_in, objection
from ixc.models.ixc25.auto_tokenizer import CONFIG, IXCTokenizer
from ixc.models.ixc25.configuration import IXCConfig
from ixc.models.ixc25.options import BadProcessor, OnOverflow, ProcessorOptions, checked_options
from ixc.models.ixc25.padding import Padding
from ixc.models.ixc25.prompts import (
    PLACEHOLDER,
    BadConversation,
    Layout,
    Message,
    ParsedMessage,
    Slot,
    Template,
    media_apart,
    parse,
)
from ixc.models.ixc25.tiles import (
    ImageTiles,
    Partition,
    num_tokens,
    partition,
    strip,
    to_tiles,
    video_strip,
)
from ixc.models.ixc25.tokenizers import (
    SPECIAL,
    BadTokenizer,
    is_byte,
    official_tokenizer,
    special_ids,
    train_tokenizer,
)
from ixc.packing.layout import Prompt

__all__ = [
    "PLACEHOLDER",
    "SPECIAL",
    "BadConversation",
    "BadProcessor",
    "Dropped",
    "IXCBatch",
    "IXCProcessor",
    "ImageTiles",
    "Partition",
    "ProcessorOptions",
    "TooLong",
    "partition",
    "strip",
    "to_tiles",
    "train_tokenizer",
    "video_strip",
]
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
"""The options that an image's tokens depend on, beside the number of tiles."""
READING = ("hd_num", "hd_num_several", "strip_turns", "tail_newline")
"""The other options that ids depend on."""
Conversation = Sequence[Message]
_FROM_AUTO = (
    *(
        "_from_auto",
        "_from_pipeline",
        "_commit_hash",
        "revision",
        "code_revision",
        "trust_remote_code",
        "token",
    ),
    *("local_files_only", "cache_dir", "force_download", "proxies", "use_fast", "backend"),
    *(
        "dtype",
        "torch_dtype",
        "device_map",
        "attn_implementation",
        "low_cpu_mem_usage",
    ),  # the model's, in a pipeline
)
"""What `AutoProcessor` and pipelines pass on; it means nothing for a folder."""


class TooLong(BadConversation):
    """A conversation of more tokens than allowed that the asked policy could not shorten enough."""


class Dropped(NamedTuple):
    """What a conversation lost to fit into `max_length`; nothing: all defaults."""

    turns: int = 0
    """Messages, from the oldest."""
    images: tuple[int, ...] = ()
    """Which of its images went with them."""
    hd_num: int | None = None
    """Tiles that its images were shrunk to."""


class IXCBatch(BatchFeature):
    """`input_ids` and `attention_mask` [B, T]; with images, `pixel_values` [N, 3, S, S] and `tile_grids` [P, 2].

    What a model's forward takes, so `model(**batch)`. Images are in reading order, each with its global view first.
    """

    def __init__(self, data: dict[str, Any], dropped: list[Dropped]) -> None:
        super().__init__(data)
        self.dropped = dropped
        """What each conversation lost."""

    @property
    def images(self) -> list[ImageTiles]:
        """The images one by one: tiles and rows."""
        if "pixel_values" not in self:
            return []
        grids: list[list[int]] = self["tile_grids"].tolist()
        tiles = self["pixel_values"].split([rows * columns + 1 for rows, columns in grids])
        return [ImageTiles(some, rows) for some, (rows, _) in zip(tiles, grids, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data, "dropped": self.dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.data, self.dropped = state["data"], state["dropped"]


@dataclass(frozen=True, eq=False)
class _Canvas:
    """An image or a video's strip, decoded; one per source, however many conversations show it."""

    image: Image.Image
    kind: Kind
    tiles: dict[int, ImageTiles] = field(default_factory=dict)
    """By `hd_num`."""


class _Draft(NamedTuple):
    """A conversation that fits."""

    layout: Layout
    canvases: list[_Canvas]
    hd_num: int
    counts: list[int]
    dropped: Dropped


class IXCProcessor(ProcessorMixin, ChatProcessor):
    """Tokenizer, template and image geometry of one model.

    Called as a processor of transformers is, with its file names (`processor_config.json`, `tokenizer.json`), and known
    to `AutoProcessor`. Of `ProcessorMixin`, which writes a prompt as one string with the control tokens in it and
    tokenizes that, it has the name alone, for pipelines ask for it: here a prompt is built from ids, so that no text
    becomes a control token. Text that strangers wrote may still hold `<ImageHere>`: give it as parts, see `prompts`.
    """

    model_input_names = ["input_ids", "attention_mask", "pixel_values", "tile_grids"]  # pyright: ignore

    def __init__(
        self,
        tokenizer: Tokenizer | IXCTokenizer,
        tile_size: int = 560,
        patch_size: int = 14,
        hd_num: int = 9,
        **options: Any,
    ) -> None:
        """`options`: the other fields of `ProcessorOptions`.

        Raises:
            BadProcessor: an unknown option or a bad value.
            BadTokenizer: the tokenizer lacks a special token.
        """
        self.options = checked_options(
            {"tile_size": tile_size, "patch_size": patch_size, "hd_num": hd_num, **options}
        )
        self.backend = (
            tokenizer.backend_tokenizer if isinstance(tokenizer, IXCTokenizer) else tokenizer
        )
        """What encodes and decodes, without Transformers around it."""
        self.ids = special_ids(self.backend)
        self.backend.encode_special_tokens = True
        self.template = Template(self.ids, self.encode)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As copies and worker processes get it: a copied backend has forgotten that control strings are text."""
        for name, value in state.items():
            setattr(self, name, value)
        self.backend.encode_special_tokens = True

    @cached_property
    def tokenizer(self) -> IXCTokenizer:
        """The tokenizer as Transformers' users hold it, with the processor's ids; made when asked for."""
        chosen = {
            "strip_turns": self.options.strip_turns,
            "tail_newline": self.options.tail_newline,
        }
        return IXCTokenizer.of(self.backend, **chosen)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.options})"

    @property
    def tile_size(self) -> int:
        """Side of an image tile, pixels."""
        return self.options.tile_size

    @property
    def patch_size(self) -> int:
        """Side of a patch, pixels."""
        return self.options.patch_size

    @property
    def hd_num(self) -> int:
        """Tiles per image at most."""
        return self.options.hd_num

    def hd_num_of(self, images: int) -> int:
        """Tiles per image at most, in a conversation that shows so many."""
        return self.options.hd_num_of(images)

    # Files

    def save_pretrained(self, folder: str | Path) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write `tokenizer.json`, `tokenizer_config.json` (for `AutoTokenizer`) and `processor_config.json`."""
        folder = Path(folder)
        with replacing(folder / "tokenizer.json") as part:
            self.backend.save(str(part))
        with replacing(folder / "tokenizer_config.json") as part:
            part.write_text(json.dumps(CONFIG, indent=2) + "\n")
        stored = {"processor_class": type(self).__name__, **asdict(self.options)}
        with replacing(folder / "processor_config.json") as part:
            part.write_text(json.dumps(stored, indent=2) + "\n")

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, folder: str | Path, **changes: Any
    ) -> "IXCProcessor":
        """Read what `save_pretrained` wrote.

        Args:
            changes: options that differ from the stored ones.

        Raises:
            BadProcessor, BadTokenizer: a file is missing or is not of this form; or the model beside it has another
                tile size, patch size or vocabulary.
        """
        stored = _read_json(Path(folder) / "processor_config.json")
        stored.pop("processor_class", None)
        changes = {name: value for name, value in changes.items() if name not in _FROM_AUTO}
        path = Path(folder) / "processor_config.json"
        try:
            processor = cls(_fast_tokenizer(Path(folder) / "tokenizer.json"), **(stored | changes))
        except BadProcessor as error:
            raise BadProcessor(f"{path}: {error}") from error
        if why := objection(config_in(Path(folder)), asdict(processor.options), processor.backend):
            raise BadProcessor(f"{path}: {why}")
        return processor

    @classmethod
    def from_official(cls, folder: str | Path, **options: Any) -> "IXCProcessor":
        """The processor of an official checkpoint: `config.json` and `tokenizer.model`, or else `tokenizer.json`.

        As official inference: at most 6 tiles per image where there are several, transparency dropped, a video's
        composite in official pixels. What official training does is `geometry="official_train", strip_turns=True`.

        Args:
            options: fields of `ProcessorOptions` that shall differ.

        Raises:
            BadProcessor, BadTokenizer: a file is missing or damaged.
        """
        stored = _read_json(Path(folder) / "config.json")
        vision = stored.get("vision", stored.get("vision_config", {}))
        if not isinstance(vision, dict):
            raise BadProcessor(
                f"{Path(folder) / 'config.json'}: vision: {vision!r:.80}: not an object; fetch it again"
            )
        sizes = {
            "tile_size": vision.get("image_size", 560),
            "patch_size": vision.get("patch_size", 14),
        }
        several = 6 if options.get("geometry", "official") == "official" else None
        official = {
            "transparency": "official",
            "hd_num_several": several,
            "video_lengths": "official",
        }
        return cls(_official_tokenizer(Path(folder)), **(sizes | official | options))

    # A batch of conversations

    def __call__(
        self,
        conversations: Any = None,
        images: Any = None,
        videos: Any = None,
        *,
        text: Any = None,
        for_reward: bool | None = None,
        hd_num: int | None = None,
        max_length: int | None = None,
        on_overflow: OnOverflow | None = None,
        padding: bool | str | None = None,
        padding_side: Literal["right", "left"] | None = None,
        pad_to_multiple_of: int | None = None,
        truncation: bool | str | None = None,
        return_tensors: str | None = "pt",
    ) -> IXCBatch:
        """What the model reads of one conversation or several.

        Args:
            conversations: messages (`prompts.Message`), oldest first, or a list of such lists; see `prompts` for
                images' places, and for text that strangers wrote.
            images: images of the conversation, or for several conversations a list of such lists; see
                `inputs.PictureSource`. A file with a video's suffix is a video.
            videos: likewise videos, `inputs.FilmSource`; they come after the images.
            text: another name for `conversations`, as other processors have it; a string, or a list of them, is
                what a user says.
            for_reward: conversations end in an answer, and the tail that the score is read from is added; else they
                end before an answer, and its opening is added. None: so, but for strings.
            hd_num: tiles per image at most, whatever the options say.
            max_length, on_overflow: instead of the options.
            padding: True or "longest" (default), "max_length", or False: rows of unequal lengths are then refused.
            padding_side: default: the option's for what is scored, left for what is to be answered, as `generate`
                needs it.
            pad_to_multiple_of: lengthen the padding to a multiple of so many tokens.
            truncation: none but False: an answer is never cut off; see `on_overflow`.
            return_tensors: none: `input_ids` and `attention_mask` are lists, not padded.

        Raises:
            BadConversation: a message of another form; images and placeholders that do not match; nothing to score.
            TooLong: more tokens than `max_length`.
            BadMedia: an image or video that cannot be read.
        """
        conversations, for_reward = _spoken(conversations, text, for_reward)
        pad = Padding.of(padding, pad_to_multiple_of, truncation, return_tensors)
        given = {
            "hd_num": hd_num,
            "max_length": max_length,
            "on_overflow": on_overflow,
            "padding_side": padding_side,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        if hd_num is not None:
            changes["hd_num_several"] = None
        options = checked_options(asdict(self.options) | changes)
        chats = _chats(conversations, images, videos)
        seen: dict[Any, _Canvas] = {}
        drafts: list[_Draft] = []
        for number, (messages, media) in enumerate(chats):
            try:
                drafts.append(self._draft(messages, media, for_reward, options, seen))
            except (BadConversation, BadMedia) as error:
                raise type(error)(
                    f"conversation {number}: {error}" if len(chats) > 1 else str(error)
                ) from error
        rows = [draft.layout.ids(draft.counts, self.ids["image"]) for draft in drafts]
        side = padding_side or (options.padding_side if for_reward else "left")
        data = (
            pad.tensors(rows, side, self.ids["eos"], options.max_length)
            if return_tensors
            else _unpadded(rows)
        )
        images = [
            self._tiles(draft.canvases[n], draft.hd_num)
            for draft in drafts
            for n in draft.layout.images()
        ]
        if images:
            data["pixel_values"] = torch.cat([image.tiles for image in images])
            data["tile_grids"] = torch.tensor(
                [[p.rows, (len(p.tiles) - 1) // p.rows] for p in images]
            )
        return IXCBatch(data, [draft.dropped for draft in drafts])

    def with_options(self, **changes: Any) -> "IXCProcessor":
        """The same tokenizer under options of which some differ; a `hd_num` given here holds for several images too.

        Args:
            changes: `ProcessorOptions`, or `image_budget`, the pipeline's name of `hd_num`.

        Raises:
            BadProcessor: an unknown option or a bad value.
        """
        if "image_budget" in changes:
            changes["hd_num"] = changes.pop("image_budget")
        options: dict[str, Any] = asdict(self.options)
        if "hd_num" in changes:
            options["hd_num_several"] = None
        return type(self)(self.tokenizer, **{**options, **changes})

    def read(
        self,
        messages: Conversation,
        media: Sequence[tuple[Kind, Any]],
        seen: dict[Any, Any],
        for_reward: bool = True,
    ) -> Reading:
        """One conversation of many that share their images and videos, which are decoded and cut into tiles once.

        Args:
            media: kind and source of each, as in `__call__`.
            seen: what was decoded so far; the same dictionary, at first empty, for all conversations that share.

        Raises:
            As `__call__`.
        """
        draft = self._draft(messages, media, for_reward, self.options, seen)
        ids = draft.layout.ids(draft.counts, self.ids["image"])
        images = [self._tiles(draft.canvases[n], draft.hd_num) for n in draft.layout.images()]
        return Reading(Prompt.counted(ids), images, draft.dropped)

    def _draft(
        self,
        messages: Conversation,
        media: Sequence[tuple[Kind, Any]],
        for_reward: bool,
        options: ProcessorOptions,
        seen: dict[Any, _Canvas],
    ) -> _Draft:
        layout = self._layout(
            parse(messages, options.strip_turns), [kind for kind, _ in media], for_reward
        )
        canvases = [self._show(kind, source, seen) for kind, source in media]
        return self._fit(layout, canvases, options.hd_num_of(len(media)), options)

    def _layout(
        self, parsed: Sequence[ParsedMessage], kinds: Sequence[str], for_reward: bool
    ) -> Layout:
        _check_end(parsed[-1].role, for_reward)
        plain = self.template.layout(parsed, kinds)
        return (
            self.template.to_score(plain, self.options.tail_newline)
            if for_reward
            else self.template.to_answer(plain)
        )

    def _fit(
        self, layout: Layout, canvases: list[_Canvas], hd_num: int, options: ProcessorOptions
    ) -> _Draft:
        """Shorten as the policy says until the conversation fits; the last exchange and the tail always stay."""
        limit, counts = options.max_length, self._counts(canvases, hd_num)
        whole, tokens = layout, layout.length(counts)
        if options.on_overflow == "drop_oldest_turns":
            while (
                layout.length(counts) > limit and (shorter := layout.without_oldest()) is not None
            ):
                layout = shorter
        least = hd_num
        if options.on_overflow == "shrink_images":
            while layout.length(counts) > limit and least > 1:
                least -= 1
                counts = self._counts(canvases, least)
        if layout.length(counts) > limit:
            raise TooLong(
                _too_long(tokens, layout, [one.kind for one in canvases], counts, options)
            )
        gone = tuple(sorted(set(whole.images()) - set(layout.images())))
        turns = len(whole.blocks) - len(layout.blocks)
        return _Draft(
            layout, canvases, least, counts, Dropped(turns, gone, least if least < hd_num else None)
        )

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        conversation: Any,
        chat_template: None = None,
        *,
        tools: Any = None,
        documents: Any = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        processor_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """What `__call__` does, by the name and with the form of parts that Transformers' pipelines use.

        Args:
            conversation: as in `__call__`; a part may also hold its image or video, `{"type": "image", "image": ...}`.
            add_generation_prompt: the opening of an answer follows; else what the score is read from.
            tokenize: False: a text for people to read, a list of them for several conversations. The model must not be
                given that: what a user wrote and what steers the model look alike in it.
            return_dict: False: only `input_ids`.
            processor_kwargs, options: of `__call__`.

        Raises:
            BadConversation: as in `__call__`; or another template or an answer begun is asked for.
        """
        if chat_template is not None or continue_final_message:
            form = "not done here; leave them out, and end with a user's message"
            raise BadConversation(f"chat_template, continue_final_message: {form}")
        if tools or documents:
            raise BadConversation(
                "tools, documents: the template has no place for them; write them into a message"
            )
        _check_list(conversation)
        several = isinstance(conversation[0], list | tuple)
        apart = [media_apart(chat) for chat in (conversation if several else [conversation])]
        chats, options = (
            [messages for messages, _ in apart],
            {**options, **(processor_kwargs or {})},
        )
        for name, kind in (("images", "image"), ("videos", "video")):
            if any(media[kind] for _, media in apart):
                if options.get(name) is not None:
                    raise BadConversation(
                        f"{name}: in the parts and beside them; give them in one place"
                    )
                options[name] = [media[kind] for _, media in apart]
            elif not several:
                options[name] = [options.get(name)]
        if not tokenize:
            media = (options.get("images"), options.get("videos"))
            texts = [
                self._readable(*chat, not add_generation_prompt) for chat in _chats(chats, *media)
            ]
            return texts if several else texts[0]
        batch = self(chats, for_reward=not add_generation_prompt, **options)
        return batch if return_dict else batch["input_ids"]

    def _readable(
        self, messages: Conversation, media: Sequence[tuple[Kind, Any]], for_reward: bool
    ) -> str:
        parsed = parse(messages, self.options.strip_turns)
        kinds = [kind for kind, _ in media] or [
            p.kind for one in parsed for p in one.parts if isinstance(p, Slot)
        ]
        pieces = self._layout(parsed, kinds, for_reward).pieces()
        return "".join(
            PLACEHOLDER if isinstance(p, int) else self.decode(p, skip_special_tokens=False)
            for p in pieces
        )

    # Images

    def image_refs(self, media: Sequence[Media]) -> list[ImageRef]:
        """Each with its tiles at most, which depend on how many there are."""
        return [ImageRef(medium, self.hd_num_of(len(media))) for medium in media]

    def measure(self, root: Path, media: Media, budget: int) -> ImageSize:
        """Tokens of a stored image by its header, or of a video."""
        return ImageSize(self.count(root, media, budget))

    def size_of(self, image: ImageTiles) -> ImageSize:
        """Tokens of a loaded one."""
        return ImageSize(self.num_tokens(image))

    @property
    def max_image_tokens(self) -> int:
        """Those of an image of `hd_num` tiles below each other."""
        return num_tokens(self.hd_num, 1, self._side)

    def geometry(self) -> dict[str, object]:
        """The options that an image's tokens depend on, beside the number of its tiles."""
        return {name: getattr(self.options, name) for name in GEOMETRY}

    def reading(self) -> dict[str, object]:
        """Those, and what ids depend on."""
        return {name: getattr(self.options, name) for name in (*GEOMETRY, *READING)}

    def composite(self, frames: Sequence[Image.Image]) -> Image.Image:
        """A video's frames on one canvas."""
        return video_strip(frames, self.tile_size if self.options.video_lengths == "tile" else 560)

    def load(self, root: Path, media: Media, hd_num: int) -> ImageTiles:
        """A stored image or video as `hd_num` tiles at most; see `hd_num_of`."""
        return self._tiles(self._show(media.kind, root / media.path, {}), hd_num)

    def count(self, root: Path, media: Media, hd_num: int) -> int:
        """Tokens of a stored image, of which only the header is read, or of a video."""
        if media.kind == "video":
            return self.num_tokens(self.load(root, media, hd_num))
        size = image_size(root / media.path, self.options.max_pixels)
        place = partition(*size, hd_num, self.tile_size, self.options.geometry)
        return num_tokens(place.rows, place.columns, self._side)

    def num_tokens(self, image: ImageTiles) -> int:
        """Tokens of an image; see `images.num_tokens`."""
        return num_tokens(image.rows, (len(image.tiles) - 1) // image.rows, self._side)

    @property
    def _side(self) -> int:
        """Tokens along one side of a tile."""
        return self.tile_size // self.patch_size // 2

    def _show(self, kind: Kind, source: Any, seen: dict[Any, _Canvas]) -> _Canvas:
        """Decode a source that was not seen yet."""
        key = (kind, str(source) if isinstance(source, str | Path) else id(source))
        if key not in seen:
            reading = self.options.transparency, self.options.max_pixels
            if kind == "video":
                sampling = self.options.max_frames, self.options.include_last
                frames = read_video(source, *sampling, *reading, self.options.video_decoder)
                seen[key] = _Canvas(self.composite(frames), kind)
            else:
                seen[key] = _Canvas(read_image(source, *reading), kind)
        return seen[key]

    def _place(self, canvas: _Canvas, hd_num: int) -> Partition:
        if canvas.kind == "video":
            return strip(*canvas.image.size, self.tile_size)
        return partition(*canvas.image.size, hd_num, self.tile_size, self.options.geometry)

    def _counts(self, canvases: Sequence[_Canvas], hd_num: int) -> list[int]:
        places = [self._place(one, hd_num) for one in canvases]
        return [num_tokens(place.rows, place.columns, self._side) for place in places]

    def _tiles(self, canvas: _Canvas, hd_num: int) -> ImageTiles:
        if hd_num not in canvas.tiles:
            place = self._place(canvas, hd_num)
            canvas.tiles[hd_num] = ImageTiles(
                to_tiles(canvas.image, place, self.tile_size), place.rows
            )
        return canvas.tiles[hd_num]

    # Ids

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; control strings in it stay text."""
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            form = 'no Unicode text (half a surrogate pair); take text.encode("utf-8", "replace").decode()'
            raise BadConversation(f"{text!r:.80}: {form}") from error

    def decode(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, ids: Sequence[int], skip_special_tokens: bool = True
    ) -> str:
        """Text of ids, control tokens left out."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def batch_decode(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, rows: Any, skip_special_tokens: bool = True
    ) -> list[str]:
        """Texts of rows of ids, as a list or a tensor."""
        rows = rows.tolist() if isinstance(rows, Tensor) else rows
        return [self.decode(row, skip_special_tokens) for row in rows]

    def is_byte(self, token: int) -> bool:
        """Whether a token stands for one byte of a character."""
        return is_byte(self.backend, token)

    def vocabulary(self) -> dict[str, int]:
        """Every token with its id."""
        return self.backend.get_vocab()

    def read_prompt(self, turns: Sequence[Turn], images: Sequence[ImageSize]) -> Prompt:
        """As `prompt`; positions count the tokens, those of images too."""
        return Prompt.counted(self.prompt(turns, [size.tokens for size in images]))

    def shared_length(self, prompt: Prompt) -> int:
        """Up to the last image, which stands at the start where it is the only one; of a text, `<s>` alone."""
        places = [place for place, id_ in enumerate(prompt.ids) if id_ == self.ids["image"]]
        return places[-1] + 1 if places else 1

    def as_turn(self, sampled_ids: Sequence[int]) -> list[int]:
        """`</s>`, which ends an answer too, becomes the end of the turn."""
        *text, last = sampled_ids
        return [*text, self.ids["turn_end"] if last == self.ids["eos"] else last]

    def has_ended(self, sampled_ids: Sequence[int]) -> bool:
        """Whether the turn's end, or `</s>`, is there."""
        return sampled_ids[-1] in (self.ids["turn_end"], self.ids["eos"])

    def prompt(self, turns: Sequence[Turn], num_tokens: Sequence[int]) -> list[int]:
        """Ids from `<s>` to the opening of the assistant's answer.

        One image without a placeholder goes to the very start; else each placeholder takes one image, in order.

        Args:
            num_tokens: tokens of each image.

        Raises:
            BadConversation: images and placeholders do not match.
        """
        layout = self.template.layout(
            parse(turns, self.options.strip_turns), ["any"] * len(num_tokens)
        )
        return self.template.to_answer(layout).ids(num_tokens, self.ids["image"])

    def opening(self) -> list[int]:
        """What stands before an assistant's answer."""
        return self.template.opening()

    def answer(self, reply: Reply) -> list[int]:
        """Ids of an answer as the chat model writes it: the text, then the end of the turn; of all its turns.

        It is encoded apart from the prompt, so that all answers share the prompt's ids. An answer that begins with a
        newline therefore differs by one id from the whole conversation encoded at once, where two newlines are one.

        Raises:
            BadConversation: turns that are no answer, see `samples.objection_to_turns`.
        """
        if isinstance(reply, str):
            return [
                *self.encode(reply.strip() if self.options.strip_turns else reply),
                self.ids["turn_end"],
            ]
        if objection := objection_to_turns(reply):
            raise BadConversation(objection)
        first, *later = reply
        ids = self.answer(first.content)
        return (
            ids + self.template.continued(parse(later, self.options.strip_turns)) if later else ids
        )

    def scored(self, answer_ids: Sequence[int]) -> list[int]:
        """An answer with the tail that the score is read from: `</s>` and the reward token; see `tail_newline`."""
        return [*answer_ids, *self.template.tail(self.options.tail_newline)]


def _official_tokenizer(folder: Path) -> Tokenizer:
    fast = folder / "tokenizer.json"
    if fast.is_file() and not (folder / "tokenizer.model").is_file():
        return _fast_tokenizer(fast)
    return official_tokenizer(folder / "tokenizer.model")


def _fast_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise BadTokenizer(f"{path}: missing or damaged ({error}); fetch it again") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BadProcessor(f"{path}: no such file; name the folder of a model")
    try:
        stored = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadProcessor(f"{path}: no JSON ({error}); fetch it again") from error
    if not isinstance(stored, dict):
        raise BadProcessor(f"{path}: a JSON {type(stored).__name__}, not an object; fetch it again")
    return stored


def _spoken(conversations: Any, text: Any, for_reward: bool | None) -> tuple[Any, bool]:
    """Conversations by either name, and whether they are to be scored; strings by the name of text are questions."""
    if conversations is not None and text is not None:
        raise BadConversation("text: is another name for conversations; give one of them")
    if isinstance(text, str):
        return [{"role": "user", "content": text}], bool(for_reward)
    if isinstance(text, list | tuple) and text and all(isinstance(one, str) for one in text):
        return [[{"role": "user", "content": one}] for one in text], bool(for_reward)
    return conversations if text is None else text, for_reward is not False


def _chats(
    conversations: Any, images: Any, videos: Any
) -> list[tuple[Conversation, list[tuple[Kind, Any]]]]:
    """Every conversation with its media."""
    _check_list(conversations)
    if isinstance(conversations[0], Mapping | Turn):
        conversations, images, videos = [conversations], [images], [videos]
    media_lists = [
        _spread(media, len(conversations), name)
        for media, name in ((images, "images"), (videos, "videos"))
    ]
    return [
        (chat, _media(*media)) for chat, *media in zip(conversations, *media_lists, strict=True)
    ]


def _check_list(conversations: Any) -> None:
    if (
        not isinstance(conversations, Sequence)
        or isinstance(conversations, str | bytes)
        or not conversations
    ):
        raise BadConversation(
            f"{conversations!r:.80}: give a list of messages, or a list of such lists"
        )


def _spread(media: Any, count: int, name: str) -> Sequence[Any]:
    if media is None:
        return [None] * count
    if not isinstance(media, list | tuple) or len(media) != count:
        given = f"{len(media)}" if isinstance(media, list | tuple) else type(media).__name__
        raise BadConversation(
            f"{name}: {given} for {count} conversations; give one list per conversation, empty for none"
        )
    return media


def _media(images: Any, videos: Any) -> list[tuple[Kind, Any]]:
    """Kind and source of each, images first; a single one needs no list."""
    images, videos = (
        [] if m is None else list(m) if isinstance(m, list | tuple) else [m]
        for m in (images, videos)
    )
    return [
        *(("video" if is_video(p) else "image", p) for p in images),
        *(("video", video) for video in videos),
    ]


def _check_end(role: str, for_reward: bool) -> None:
    if for_reward and role != "assistant":
        raise BadConversation(
            f"ends with {role!r}: nothing to score; end with an assistant's answer, or for_reward=False"
        )
    if not for_reward and role == "assistant":
        raise BadConversation(
            "ends with 'assistant': already answered; end with a question, or for_reward=True"
        )


def _unpadded(rows: Sequence[list[int]]) -> dict[str, Any]:
    return {"input_ids": list(rows), "attention_mask": [[1] * len(row) for row in rows]}


def _too_long(
    tokens: int,
    layout: Layout,
    kinds: Sequence[Kind],
    counts: Sequence[int],
    options: ProcessorOptions,
) -> str:
    """`layout` and `counts`: after the policy has done what it can."""
    numbers, least = layout.images(), layout.length(counts)
    tried = "" if least == tokens else f", {least:,} after {options.on_overflow}"
    ways = ["raise max_length"]
    if any(kinds[i] == "image" for i in numbers) and options.on_overflow != "shrink_images":
        ways.append("lower hd_num (image_budget) or set on_overflow to shrink_images")
    if any(kinds[i] == "video" for i in numbers):
        ways.append(
            "lower max_frames (a video has as many tokens as its frames need, whatever hd_num is)"
        )
    if layout.without_oldest() is not None:
        ways.append("set on_overflow to drop_oldest_turns")
    images = sum(counts[i] for i in numbers)
    length = f"{tokens:,} tokens{tried}, more than max_length {options.max_length:,} ({images:,} are images')"
    return f"{length}; {', or '.join(ways)}"


AutoProcessor.register(IXCConfig, IXCProcessor)
