"""One reader per data-set family: native rows in, `Row`s out. `collect` stores their media and sorts them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

from pydantic import ValidationError, validate_call

from ixc.data.media import File
from ixc.data.samples import Domain, Gold, Turn
from ixc.data.sources.licences import Licence


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a source: a ready pair (`chosen` and `rejected`), an answer to be cleaned, or a prompt."""

    id: str
    """Unique within the source."""
    domain: Domain
    prompt: tuple[Turn, ...]
    media: tuple[File, ...] = ()
    gold: Gold | None = None
    chosen: str = ""
    rejected: str = ""
    answer: str | None = None
    """The one answer of a row that may be for cleaning, perhaps empty; `collect.sources[].role` decides. None: none."""
    wrong: tuple[str, ...] = ()
    """Answers in full words that the source knows to be wrong: what a hallucination would say."""
    split: Literal["train", "val"] | None = None
    """None: `val` if its file's name says that it is for tests, else `collect` decides."""
    group: str = ""
    """Rows of one group are held out together, as those of one image or prompt always are; empty: of none."""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A row that cannot be used, and why: file, row, reason, remedy."""

    where: str
    reason: str


class BadSource(ValueError):
    """A source that cannot be read at all: what was looked for, and what to do."""


class BadOption(ValueError):
    """An argument that a reader does not take: its name, and what is wrong with it."""


@dataclass(frozen=True)
class Reader:
    """A module with `read(origin, seed, **options)` and `LICENCE`, imported when it is first used."""

    module: str

    def __call__(self, origin: Any, seed: int, /, **options: Any) -> Iterator[Row | Refused]:
        """The rows of a local path or of a `Hub`, in the order of the files.

        Raises:
            BadOption: the reader takes no such option, or not this value; or it reads no hub.
            BadSource: when the first row is asked for: the path holds no such data.
        """
        try:
            return validate_call(self._loaded.read)(origin, seed, **options)
        except ValidationError as error:
            detail = error.errors()[0]
            # The first argument: a reader of files takes no hub.
            if detail["loc"][0] == 0:
                raise BadOption(
                    "hub: this reader reads files only; download the data set and set `path`"
                ) from error
            raise BadOption(
                f"options.{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
            ) from error

    @property
    def licence(self) -> Licence:
        return self._loaded.LICENCE

    @property
    def _loaded(self) -> ModuleType:
        return import_module(self.module)


_NAMES = (
    "ai2d",
    "aokvqa",
    "chartqa",
    "clevr_math",
    "dvqa",
    "embedded",
    "funqa",
    "geoqa",
    "gsm8k",
    "hh_rlhf",
    "hhh_alignment",
    "iconqa",
    "ifeval",
    "ixc_pairs",
    "kvqa",
    "llava_critic",
    "math_vision",
    "mia_dpo",
    "miradata",
    "mmif",
    "nlvr",
    "photos",
    "pku_saferlhf",
    "pmc_vqa",
    "preferences",
    "puzzlevqa",
    "rlaif_v",
    "scienceqa",
    "shp",
    "super_clevr",
    "tabmwp",
    "tqa",
    "trafficqa",
    "tulu_if",
    "ultrafeedback",
    "videos",
    "vlfeedback",
    "wildvision",
)
READERS: dict[str, Reader] = {name: Reader(f"ixc.data.sources.{name}") for name in _NAMES}
"""By the name that `collect.sources[].reader` gives."""
