"""What is asked of a server, what became of it, and what it took."""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from ixc.params import ServerParams

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

MAX_REASKS = 2
"""More replies that are asked, and paid, for a job, when one cannot be read."""
MAX_WARNINGS = 10
"""Unusable images and videos that are named."""


class Paid(NamedTuple):
    """What one job took, re-asking included, in earlier runs, too."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    """US dollars."""
    attempts: int = 0
    """Replies, those that could not be read among them."""

    def plus(self, params: ServerParams, tokens_in: int, tokens_out: int) -> "Paid":
        """With another reply."""
        cost = (tokens_in * params.input_price + tokens_out * params.output_price) / 1e6
        return Paid(
            self.input_tokens + tokens_in,
            self.output_tokens + tokens_out,
            self.cost + cost,
            self.attempts + 1,
        )

    @classmethod
    def stored(cls, line: Mapping[str, Any]) -> "Paid":
        """As a line of a file has it; what is less than nothing lowers no sum."""
        known = [name for name in cls._fields if name in line]
        return cls(**{name: max(line[name], cls._field_defaults[name]) for name in known})

    @property
    def given_up(self) -> bool:
        """Whether so many replies could not be read that no other is asked for."""
        return self.attempts > MAX_REASKS


@dataclass
class Usage:
    """What asking took."""

    requests: int = 0
    """Sent, those among them that failed and were tried again; of a batch, its questions."""
    cost: float = 0.0
    """US dollars, in this run."""
    spent: float = 0.0
    """US dollars for the same jobs, in earlier runs, too: what `max_cost` bounds."""
    done: int = 0
    unreadable: int = 0
    """Jobs given up on, in this run or an earlier one, for no reply could be read; they are not asked again."""
    refused: int = 0
    """Jobs that the server or its model refused, in this run or an earlier one; they are not asked again."""
    unreachable: int = 0
    """Jobs whose requests failed, however often they were tried; the next run asks them again."""
    left: int = 0
    """Jobs that the budget left for the next run."""
    media: Counter[str] = field(default_factory=Counter)
    """Why jobs could not be asked, for want of an image or video, and how many; the next run tries them again."""
    last_error: str = ""
    last_refusal: str = ""

    @property
    def unusable_media(self) -> int:
        """Jobs that could not be asked."""
        return self.media.total()

    def metrics(self) -> dict[str, float | int]:
        """Its numbers by name."""
        names = (
            "requests",
            "cost",
            "unreadable",
            "refused",
            "unreachable",
            "unusable_media",
            "left",
        )
        return {name: getattr(self, name) for name in names}

    def warn_media(self, where: str) -> None:
        """Name the media that could not be sent to the server."""
        for reason, count in self.media.most_common(MAX_WARNINGS):
            print(f"{where}: {count} not asked: {reason}", file=sys.stderr)
        if len(self.media) > MAX_WARNINGS:
            print(
                f"{where}: and {len(self.media) - MAX_WARNINGS:,} other images or videos",
                file=sys.stderr,
            )

    def warn_unanswered(self, where: str, path: Path, empty: str) -> None:
        """Say what got no answer, and how it is asked again: `empty` is what its lines of a file have."""
        refusal = f"refused ({self.last_refusal or 'in an earlier run'})"
        outcomes = (
            (self.unreadable, "without a readable reply", empty),
            (self.refused, refusal, '"refused": "'),
        )
        # These are on file, so that only a person can have them asked again.
        for count, outcome, mark in outcomes:
            if count:
                remedy = f"to ask them again, remove the lines of {path} with {mark}"
                message = f"{where}: {count} {outcome}; they are not asked again; {remedy}"
                print(message, file=sys.stderr)
        if self.unreachable:
            outcome = f"{self.unreachable} got no reply ({self.last_error})"
            print(f"{where}: {outcome}; the next run asks them again", file=sys.stderr)


@runtime_checkable
class Ledger(Protocol[T_contra]):
    """How jobs are put, and what is written down about them."""

    max_bytes: int
    """Of a reply's text, in UTF-8; one that is longer counts as refused."""

    def request(self, job: T_contra, /) -> dict[str, Any]:
        """The arguments of `chat.completions.create`, all but the model; may take its time over images.

        Raises:
            BadMedia: one cannot be used.
        """
        ...

    def answered(self, job: T_contra, /) -> bool:
        """Whether a reply was kept."""
        ...

    def refused(self, job: T_contra, /) -> bool:
        """Whether it was refused, and is not to be asked again."""
        ...

    def refuse(self, job: T_contra, reason: str, paid: Paid, /) -> None:
        """Store that it was refused, and why."""
        ...

    def paid(self, job: T_contra, /) -> Paid:
        """What the replies so far took."""
        ...

    def keep(self, job: T_contra, text: str | None, paid: Paid, /) -> bool:
        """Store a reply, and what all took; False if it cannot be read, and only `paid` was stored."""
        ...


@dataclass(frozen=True)
class Due(Generic[T]):
    """What is to be asked, and what was paid before."""

    jobs: list[T]
    spent: float
    """US dollars, in earlier runs."""
    max_cost_seen: float
    """The highest price of a reply, in US dollars; 0 where none is known."""
    answered: int
    refused: int
    given_up: int

    def usage(self) -> Usage:
        """At the start."""
        return Usage(spent=self.spent, unreadable=self.given_up, refused=self.refused)


def due(jobs: Iterable[T], ledger: Ledger[T]) -> Due[T]:
    """Leave out what is answered, refused, or given up."""
    remaining, spent, max_cost_seen = [], 0.0, 0.0
    counts: Counter[str] = Counter()
    for job in jobs:
        paid = ledger.paid(job)
        spent += paid.cost
        cost_per_reply = paid.cost / max(paid.attempts, 1)
        max_cost_seen = max(max_cost_seen, cost_per_reply)
        # An answer counts even if the job was refused, or given up, at some earlier time.
        if ledger.answered(job):
            counts["answered"] += 1
        elif ledger.refused(job):
            counts["refused"] += 1
        elif paid.given_up:
            counts["given_up"] += 1
        else:
            remaining.append(job)
    return Due(
        jobs=remaining,
        spent=spent,
        max_cost_seen=max_cost_seen,
        answered=counts["answered"],
        refused=counts["refused"],
        given_up=counts["given_up"],
    )
