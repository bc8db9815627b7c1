"""What a page is made of; `page.html.jinja` knows how each looks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True)
class Tile:
    """A headline number, and what it means in a sentence."""

    label: str
    value: str
    meaning: str
    before: str = ""
    """The value it is compared with, shown in front of an arrow."""


@dataclass(frozen=True)
class Tiles:
    """The headline numbers."""

    tiles: Sequence[Tile]
    kind: str = "tiles"


@dataclass(frozen=True)
class Figure:
    """A plot with its title and what to look for."""

    title: str
    svg: Markup
    caption: str = ""
    wide: bool = False
    """Takes the place of two."""


@dataclass(frozen=True)
class Figures:
    """Plots next to each other, as many as the window is wide."""

    figures: Sequence[Figure]
    kind: str = "figures"


@dataclass(frozen=True)
class Table:
    """Rows under a head; all columns but the first `num_texts` are numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    num_texts: int = 1
    kind: str = "table"


@dataclass(frozen=True)
class Answer:
    """One answer on a card."""

    text: str
    reward: float | None = None
    mark: str = ""
    """`good` or `bad`, where that is known."""
    label: str = ""


@dataclass(frozen=True)
class Card:
    """A prompt with its picture and its answers."""

    question: str
    answers: Sequence[Answer]
    image: str | None = None
    """A `data:` address."""
    missing: str = ""
    """Why there is no picture although the sample has one."""
    tag: str = ""
    group: str = ""
    """What the filter of the gallery selects by."""


@dataclass(frozen=True)
class Gallery:
    """Cards under a title; with more than one group, buttons select among them."""

    title: str
    cards: Sequence[Card]
    caption: str = ""
    groups: Sequence[str] = field(default_factory=tuple)
    kind: str = "gallery"


@dataclass(frozen=True)
class Note:
    """Something that could not be shown, and why."""

    text: str
    kind: str = "note"


Block = Tiles | Figures | Table | Gallery | Note
