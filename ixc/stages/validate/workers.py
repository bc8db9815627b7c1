"""Tables of samples in small, row group by row group: by all cores, where there are many rows."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

from ixc.data.samples import Media, open_table
from ixc.params import ValidateParams
from ixc.stages.validate.contamination import Benchmarks
from ixc.stages.validate.facts import Observer, RowGroup

MANY = 20_000
"""Rows from which it pays to start processes, which takes seconds."""


class Workers:
    """Observers in this process, or in several; the results are the same."""

    def __init__(self, observer: Observer, pool: ProcessPoolExecutor | None) -> None:
        self._observer = observer
        self._pool = pool
        self._media: dict[tuple[Media, ...], tuple[Media, ...]] = {}

    def row_groups(
        self,
        tables: Sequence[Path],
        sign: bool = False,
    ) -> Iterator[RowGroup]:
        """The row groups of the tables, in order; `sign`: with signatures."""
        # A task for each row group, whatever its table.
        paths: list[Path] = []
        numbers: list[int] = []
        for table in tables:
            num_groups = open_table(table).num_row_groups
            paths += [table] * num_groups
            numbers += range(num_groups)

        if self._pool is None:
            groups = map(self._observer.row_group, paths, numbers, repeat(sign))
        else:
            groups = self._pool.map(_row_group, paths, numbers, repeat(sign))
        for group in groups:
            # Every process names an image anew; a million names of one are 400 MB.
            shared = [self._media.setdefault(media, media) for media in group.facts["media"]]
            group.facts["media"] = pd.Series(shared, group.facts.index, dtype=object)
            yield group


@contextmanager
def workers(
    params: ValidateParams,
    benchmarks: Benchmarks,
    num_rows: int,
) -> Iterator[Workers]:
    """Those for so many rows; their processes end with the context, whatever they are doing.

    Raises:
        BadParams: the tokenizer cannot be read.
    """
    observer = Observer(params, benchmarks)
    cores = len(os.sched_getaffinity(0))
    if num_rows < MANY or cores == 1:
        yield Workers(observer, None)
        return
    # Not forked: this process has threads, whose locks would stay as they are.
    context = get_context("spawn")
    pool = ProcessPoolExecutor(cores, context, _begin, (params, benchmarks))
    try:
        yield Workers(observer, pool)
    finally:
        pool.shutdown(cancel_futures=True)


class _Own:
    """What a worker process observes with: it is made once, not for every row group."""

    observer: Observer


def _begin(params: ValidateParams, benchmarks: Benchmarks) -> None:
    """What every worker process does first."""
    _Own.observer = Observer(params, benchmarks)


def _row_group(path: Path, group: int, sign: bool) -> RowGroup:
    """What a worker process does with a row group."""
    return _Own.observer.row_group(path, group, sign)
