"""What may be done with a data set."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Licence:
    """The licence of a data set, as its authors state it."""

    name: str
    commercial: bool
    """Whether commercial use is allowed; no where the authors are silent."""
    note: str = ""
    """What the name does not say."""
