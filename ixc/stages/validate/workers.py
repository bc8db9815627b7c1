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
from ixc.stages.validate.facts import Observer, Part

MANY = 20_000
"""Rows from which it pays to start processes, which takes seconds."""


class Workers:
    """Observers in this process, or in several; the results are the same."""

    def __init__(self, observer: Observer, pool: ProcessPoolExecutor | None) -> None:
        self._observer, self._pool = observer, pool
        self._shown: dict[tuple[Media, ...], tuple[Media, ...]] = {}

    def parts(self, tables: Sequence[Path], sign: bool = False) -> Iterator[Part]:
        """The row groups of the tables, in order; `sign`: with signatures."""
        groups = [
            (table, group) for table in tables for group in range(open_table(table).num_row_groups)
        ]
        look = map if self._pool is None else self._pool.map
        ask = self._observer.part if self._pool is None else _part
        for part in look(ask, *zip(*groups, strict=True), repeat(sign)) if groups else ():
            # Every process names a picture anew; a million names of one are 400 MB.
            shared = [self._shown.setdefault(shown, shown) for shown in part.facts["media"]]
            part.facts["media"] = pd.Series(shared, part.facts.index, dtype=object)
            yield part


@contextmanager
def workers(params: ValidateParams, benchmarks: Benchmarks, num_rows: int) -> Iterator[Workers]:
    """Those for so many rows; their processes end with the context, whatever they are doing.

    Raises:
        BadParams: the tokenizer cannot be read.
    """
    observer, cores = Observer(params, benchmarks), len(os.sched_getaffinity(0))
    if num_rows < MANY or cores == 1:
        yield Workers(observer, None)
        return
    # Not forked: this process has threads, whose locks would stay as they are.
    pool = ProcessPoolExecutor(cores, get_context("spawn"), _begin, (params, benchmarks))
    try:
        yield Workers(observer, pool)
    finally:
        pool.shutdown(cancel_futures=True)


class _Own:
    """What a worker process looks with."""

    observer: Observer


def _begin(params: ValidateParams, benchmarks: Benchmarks) -> None:
    _Own.observer = Observer(params, benchmarks)


def _part(path: Path, group: int, sign: bool) -> Part:
    return _Own.observer.part(path, group, sign)
