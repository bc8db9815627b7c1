"""What the stages have left behind so far, read a column at a time."""

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ixc.metrics import Metrics
from ixc.params import Params
from ixc.report.svg import Points

STAGES = tuple(field.name for field in fields(Params) if field.name != "seed")
MODALITIES = ("text", "image", "video")
DEFECTS = ("hallucination", "empty", "mismatch")
NONE_PLANTED = "none planted"
MADE_BY = {
    "prompts": "collect",
    "corpus": "collect",
    "pairs/public": "collect",
    "quarantine/collect": "collect",
    "candidates": "generate",
    "judged": "judge",
    "pairs/train": "validate",
    "pairs/val": "validate",
    "quarantine/validate": "validate",
    "scored/val": "evaluate_rm",
    "scored/best_of_n": "best_of_n",
    "cleaned": "clean",
    "removed": "clean",
    "unscored": "clean",
    "scored/corpus": "clean",
}
"""The stage of each table below `data`, as `dvc.yaml` has it."""


@dataclass(frozen=True)
class Origin:
    """Where the numbers of a stage come from, as `metrics/provenance/<stage>.json` says."""

    stage: str
    run: str = ""
    """The id of its MLflow run."""
    commit: str = ""
    """Of the code, with `-dirty` where it had changes."""
    data: Mapping[str, str] = field(default_factory=dict)
    """md5 of each file or folder that was read, by its path."""
    command: str = ""

    @property
    def is_known(self) -> bool:
        """Whether nothing of it is missing."""
        return bool(self.run and self.commit and self.data and self.command)

    @property
    def data_hash(self) -> str:
        """One digest for all data; where there is one file, its md5."""
        if len(self.data) == 1:
            return next(iter(self.data.values()))
        listing = json.dumps(dict(self.data), sort_keys=True)
        return hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest()


class Record:
    """The files of one pipeline, below `root`; what is missing is empty, what is damaged raises."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.read: set[str] = set()
        """The stages whose results were read since this was last emptied."""

    def origins(self, stages: Iterable[str]) -> list[Origin]:
        """Where the numbers of some stages come from, in the order of the graph; those that do not know it, empty."""
        requested = set(stages)
        ordered = [stage for stage in STAGES if stage in requested]
        ordered += sorted(requested - set(STAGES))  # files that no stage of ours has written
        return [self._origin(stage) for stage in ordered]

    def _origin(self, stage: str) -> Origin:
        """Where the numbers of one stage come from."""
        name = f"metrics/provenance/{stage}.json"
        # A number whose origin cannot be read is still a number: the page says that it is unknown.
        try:
            text = (self.root / name).read_text(encoding="utf-8")
            content = _json_object(text, name)
            data = {str(path): str(md5) for path, md5 in dict(content["data"]).items()}
            return Origin(
                stage=stage,
                run=str(content["run"]),
                commit=str(content["commit"]),
                data=data,
                command=str(content["command"]),
            )
        except (OSError, ValueError, LookupError, TypeError):
            return Origin(stage)

    def metrics(self, stage: str) -> Metrics:
        """`metrics/<stage>.json`; empty before the stage has run.

        Raises:
            ValueError: the file is not a flat JSON object of numbers.
        """
        name = f"metrics/{stage}.json"
        path = self.root / name
        if not path.exists():
            return {}
        self.read.add(stage)
        content = _json_object(path.read_text(encoding="utf-8"), name)
        for key, value in content.items():
            if not isinstance(value, int | float):
                remedy = f"run `dvc repro {stage}`"
                raise ValueError(f"{name}: {key}: {value!r}: not a number; {remedy}")
        return {key: float(value) for key, value in content.items()}

    def curves(self, stage: str) -> dict[str, Points]:
        """(step, value) pairs by column of `metrics/curves/<stage>.csv`; a blank cell is no point."""
        path = self.root / "metrics" / "curves" / f"{stage}.csv"
        # A row may lack a value, for not every step measures everything.
        curves: dict[str, list[tuple[float, float]]] = {}
        if not path.exists():
            return {}
        self.read.add(stage)
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                step = float(row.pop("step"))
                for name, value in row.items():
                    if value:
                        curves.setdefault(name, []).append((step, float(value)))
        return dict(curves)

    def table(
        self,
        name: str,
        columns: Sequence[str] | None = None,
    ) -> pa.Table | None:
        """Columns of `data/<name>.parquet`; None before the file is there."""
        path = self.root / "data" / f"{name}.parquet"
        if not path.exists():
            return None
        # The page names the run that made what it shows.
        self.read.add(MADE_BY.get(name, f"data/{name}.parquet"))
        return pq.read_table(path, columns=None if columns is None else list(columns))

    def done(self) -> list[str]:
        """The stages that have reported, in the order of the graph."""
        return [stage for stage in STAGES if (self.root / "metrics" / f"{stage}.json").exists()]


def rows(table: pa.Table, indexes: Sequence[int]) -> list[dict[str, Any]]:
    """Some rows of a table as plain Python."""
    return [table.slice(int(index), 1).to_pylist()[0] for index in indexes]


def metas(table: pa.Table) -> list[dict[str, Any]]:
    """The column `meta`, decoded."""
    texts = table["meta"].to_pylist()
    return [_json_object(text or "{}", f"meta of row {row}") for row, text in enumerate(texts)]


def named(metrics: Metrics, prefix: str) -> list[str]:
    """What follows `<prefix>/` in the names of metrics."""
    keys = [key for key in metrics if key.startswith(f"{prefix}/")]
    return [key.removeprefix(f"{prefix}/") for key in keys]


def kinds(names: Iterable[str]) -> list[str]:
    """Each kind once, sound samples first, then the known defects."""
    # Always in one order, so that a colour means one kind on every page.
    known = (NONE_PLANTED, *DEFECTS)

    def rank(kind: str) -> tuple[int, str]:
        """Known kinds in their order, then the others by name."""
        return known.index(kind) if kind in known else len(known), kind

    return sorted(set(names), key=rank)


def pair_rewards(table: pa.Table) -> np.ndarray:
    """Rewards of (chosen, rejected), a pair a row."""
    rewards = table["rewards"].to_pylist()
    for row, pair in enumerate(rewards):
        if pair is None or len(pair) != 2:
            problem = f"rewards of row {row}: {pair!r}: two were expected"
            raise ValueError(f"{problem}; run its stage again")
    return np.array(rewards, float).reshape(-1, 2)


def _json_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object, or an error that says what to do."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: no JSON ({error}); run its stage again") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{where}: a JSON object was expected, not {type(content).__name__}; run its stage again"
        )
    return content
