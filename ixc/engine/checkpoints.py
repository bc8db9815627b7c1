"""A training run that can be killed at any time and goes on as if it had not been."""

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ixc.engine import distributed
from ixc.engine.feature_stores import GB
from ixc.engine.optim import copied
from ixc.io.digests import OtherRun, digest, digest_of
from ixc.io.files import remove_folder, replacing, replacing_folder, sweep
from ixc.metrics import Lineage

WEIGHTS, PROGRESS, METADATA = PARTS = ("model.safetensors", "optimizer.pt", "state.json")
"""The files of a state."""
History = list[dict[str, float]]
"""The numbers of every step."""


__all__ = ("Checkpoints", "History", "NotSaved", "OtherRun", "State", "digest", "digest_of")


class NotSaved(OSError):
    """A state that could not be written; the one before it is whole."""


@dataclass(frozen=True)
class State:
    """All that a run consists of after some step."""

    weights: dict[str, Tensor]
    """The trained ones, as `<model>/<parameter>`."""
    progress: dict[str, Any]
    """What optimizers, generators and statistics go on from: numbers, tensors, lists, tuples and dictionaries."""
    history: History


class Checkpoints:
    """The newest state of one run, in `folder`; the first process writes, and beside the training.

    A state is a folder `step-<number>` that appears whole; it is the same whatever ZeRO shares out, and among how many
    processes. The state before goes when the new one is there. While one is written, main memory holds it; the next
    one waits for it, and so does the end of a `with` block, which raises what went wrong.
    """

    def __init__(self, folder: Path, about: dict[str, Any], lineage: Lineage | None = None) -> None:
        """Where the states of a run are.

        Args:
            about: what a state must agree in to be gone on from, JSON.
            lineage: names this run in its states; `load` notes there whose state it took.

        Raises:
            OtherRun: there is a state of another run.
        """
        self.folder = folder
        self.about = json.loads(json.dumps(about))
        self.lineage = lineage or Lineage()
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.written = Future[None]()
        self.written.set_result(None)
        if not distributed.rank():
            self._tidy()
        for state in self.states():
            self._check(state)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.wait()
        finally:
            self._release()

    def reserve(self, size: int) -> None:
        """Take the disk space, bytes, that what is trained will need, until the `with` block ends.

        Raises:
            NotSaved: there is not so much.
        """
        if distributed.rank() or not hasattr(os, "posix_fallocate"):
            return
        what = f"{self.folder}: {size / GB:.2f} GB for the trained model"
        # A full disk is found out now, and not after days of training.
        with self.saving(what), replacing(self.reserved) as part, part.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)

    def _release(self) -> None:
        if not distributed.rank():
            self.reserved.unlink(missing_ok=True)
            with suppress(OSError):  # there are states
                self.folder.rmdir()

    @property
    def reserved(self) -> Path:
        """A file without content, as large as the trained model."""
        return self.folder / "reserved"

    @property
    def best(self) -> Path:
        """The weights that did best on held-out data."""
        return self.folder / "best.safetensors"

    def states(self) -> list[Path]:
        """The states there are, newest last; only a crash between writing and tidying leaves two."""
        return [folder for folder in sorted(self.folder.glob("step-*")) if _is_whole(folder)]

    def _tidy(self) -> None:
        """Delete what a kill has left half written or half deleted."""
        sweep(self.folder)
        self._release()
        for half in {*self.folder.glob("*step-*")} - {*self.states()}:
            shutil.rmtree(half, ignore_errors=True)

    def wait(self) -> None:
        """Until the last state is on disk.

        Raises:
            NotSaved: it could not be written.
        """
        self.written.result()

    def save(self, state: State) -> None:
        """Begin to write a state; the first process has it, the others call this with what they have.

        Raises:
            NotSaved: the one before could not be written.
        """
        self.wait()
        if distributed.rank():
            return
        # The next step changes the tensors while a thread still writes them.
        progress = copied(state.progress)
        metadata = {
            "about": self.about,
            "run_id": self.lineage.run_id,
            "history": state.history,
        }
        folder = self.folder / f"step-{len(state.history):08d}"
        self.written = self.writer.submit(
            self._write, folder, state.weights, progress, json.dumps(metadata)
        )

    def _write(
        self, new: Path, weights: dict[str, Tensor], progress: dict[str, Any], metadata: str
    ) -> None:
        # The state before stays until the new one is whole.
        older = self.states()
        with self.saving(new), replacing_folder(new) as part:
            save_file(weights, part / WEIGHTS)
            torch.save(progress, part / PROGRESS)
            (part / METADATA).write_text(metadata)
        for folder in older:
            if folder != new:
                remove_folder(folder)

    @contextmanager
    def saving(self, what: object) -> Iterator[None]:
        """Say what to do where there is no room for something.

        Raises:
            NotSaved: it could not be written.
        """
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            states = self.states()
            last = str(states[-1]) if states else "the beginning"
            raise NotSaved(
                f"{what}: {error}; make room, and start again: it goes on from {last}"
            ) from error

    def load(self) -> State | None:
        """The newest state; None where there is none."""
        states = self.states()
        if not states:
            return None
        newest = states[-1]
        metadata = json.loads((newest / METADATA).read_text())
        self.lineage.resumed_from = metadata["run_id"]
        return State(
            weights=load_file(newest / WEIGHTS),
            progress=torch.load(newest / PROGRESS, map_location="cpu", weights_only=True),
            history=metadata["history"],
        )

    def _check(self, state: Path) -> None:
        about = json.loads((state / METADATA).read_text())["about"]
        # Keys that are new or gone differ too.
        keys = sorted(key for key in {*about, *self.about} if about.get(key) != self.about.get(key))
        if keys:
            changes = ", ".join(
                f"{key} was {about.get(key)!r}, is {self.about.get(key)!r}" for key in keys
            )
            raise OtherRun(
                f"{state}: {changes}; set it back to go on, or delete {self.folder} to start anew"
            )

    def save_best(self, weights: dict[str, Tensor]) -> None:
        """Remember weights as the best so far; the first process has them.

        Raises:
            NotSaved: they could not be written.
        """
        if not distributed.rank():
            with self.saving(self.best), replacing(self.best) as part:
                save_file(weights, part)

    def load_best(self) -> dict[str, Tensor]:
        """The best weights, by name."""
        return load_file(self.best)

    def remove(self) -> None:
        """The run is done."""
        if not distributed.rank():
            remove_folder(self.folder)


def _is_whole(folder: Path) -> bool:
    return all((folder / part).exists() for part in PARTS)
