"""A training run that can be killed at any time and goes on as if it had not been."""

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ixc.engine import distributed
from ixc.engine.feature_stores import GB
from ixc.engine.optim import Optimizer, copied
from ixc.io.digests import OtherRun, digest, digest_of
from ixc.io.files import remove_folder, replacing, replacing_folder, sweep

RUN_ID = "MLFLOW_RUN_ID"
"""The environment variable that names the run in whose curves the numbers are kept; any string, kept as it is."""
RESUMED_FROM = "IXC_RESUMED_FROM"
"""The environment variable in which `load` tells whose state it took: what RUN_ID was then."""
WEIGHTS, OPTIMIZER, TOLD = PARTS = ("model.safetensors", "optimizer.pt", "state.json")
"""The files of a state."""


__all__ = ("Checkpoints", "NotSaved", "OtherRun", "digest", "digest_of")


class NotSaved(OSError):
    """A state that could not be written; the one before it is whole."""


class Checkpoints:
    """The newest state of one run, in `folder`; the first process writes, and beside the training.

    A state is a folder `step-<number>` that appears whole: trained weights, optimizer with its schedule, random
    numbers, and the history; the same whatever ZeRO shares out, and among how many processes. Which rows come next
    follows from the step alone. The state before goes when the new one is there. While one is written, main memory
    holds it; the next one waits for it, and so does the end of a `with` block, which tells what went wrong.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        """`about` is what a state must agree in to be gone on from, JSON.

        Raises:
            OtherRun: there is a state of another run.
        """
        self.folder, self.about = folder, json.loads(json.dumps(about))
        self.writer, self.written = ThreadPoolExecutor(1, "checkpoint"), Future[None]()
        self.written.set_result(None)
        if not distributed.rank():
            self._tidy()
        for state in self.found():
            self._check(state)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.written.result()
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
        """The weights that did best on held-out pairs."""
        return self.folder / "best.safetensors"

    def found(self) -> list[Path]:
        """The states there are, newest last; only a crash between writing and tidying leaves two."""
        states = sorted(self.folder.glob("step-*"))
        return [state for state in states if all((state / part).exists() for part in PARTS)]

    def _tidy(self) -> None:
        """Delete what a kill has left half written or half deleted."""
        sweep(self.folder)
        self._release()
        for half in {*self.folder.glob("*step-*")} - {*self.found()}:
            shutil.rmtree(half, ignore_errors=True)

    def save(self, model: nn.Module, optimizer: Optimizer, history: list[dict[str, float]]) -> None:
        """Begin to write a state; called by all processes.

        Raises:
            NotSaved: the one before could not be written.
        """
        self.written.result()
        weights, state = optimizer.weights(model), optimizer.state_dict()
        if distributed.rank():
            return
        kept = copied({"optimizer": state, "random": _random()})
        told = {"about": self.about, "run_id": os.environ.get(RUN_ID, ""), "history": history}
        new = self.folder / f"step-{len(history):08d}"
        self.written = self.writer.submit(self._write, new, weights, kept, json.dumps(told))

    def _write(
        self, new: Path, weights: dict[str, Tensor], kept: dict[str, Any], told: str
    ) -> None:
        older = self.found()
        with self.saving(new), replacing_folder(new) as part:
            save_file(weights, part / WEIGHTS)
            torch.save(kept, part / OPTIMIZER)
            (part / TOLD).write_text(told)
        for folder in older:
            if folder != new:
                remove_folder(folder)

    @contextmanager
    def saving(self, what: object) -> Iterator[None]:
        """Tell what to do where there is no room for something.

        Raises:
            NotSaved: it could not be written.
        """
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            last = str(self.found()[-1]) if self.found() else "the beginning"
            raise NotSaved(
                f"{what}: {error}; make room, and start again: it goes on from {last}"
            ) from error

    def load(self, model: nn.Module, optimizer: Optimizer) -> list[dict[str, float]]:
        """Put model, optimizer and random numbers into the newest state, and return the numbers of every step so far.

        Without a state, all stays as it is.
        """
        if not (found := self.found()):
            return []
        optimizer.restore(model, load_file(found[-1] / WEIGHTS))
        kept = torch.load(found[-1] / OPTIMIZER, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(kept["optimizer"])
        _set_random(kept["random"])
        told = json.loads((found[-1] / TOLD).read_text())
        os.environ[RESUMED_FROM] = told["run_id"]
        return told["history"]

    def _check(self, found: Path) -> None:
        about = json.loads((found / TOLD).read_text())["about"]
        keys = sorted(key for key in {*about, *self.about} if about.get(key) != self.about.get(key))
        if keys:
            changes = ", ".join(
                f"{key} was {about.get(key)!r}, is {self.about.get(key)!r}" for key in keys
            )
            raise OtherRun(
                f"{found}: {changes}; set it back to go on, or delete {self.folder} to start anew"
            )

    def keep_best(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Remember the weights of now as the best ones; called by all processes.

        Raises:
            NotSaved: they could not be written.
        """
        weights = optimizer.weights(model)
        if not distributed.rank():
            with self.saving(self.best), replacing(self.best) as part:
                save_file(weights, part)

    @torch.no_grad()
    def restore_best(self, model: nn.Module) -> None:
        """Put the best weights into an ordinary model."""
        for name, value in load_file(self.best).items():
            model.get_parameter(name).copy_(value)

    def remove(self) -> None:
        """The run is done."""
        if not distributed.rank():
            remove_folder(self.folder)


def _random() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
