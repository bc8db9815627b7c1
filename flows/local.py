"""Prefect on this machine: `python -m flows.local demo` runs the whole graph, `ui` shows what there is.

Whatever is started here ends with this process, however that ends (`tasks.launch`).
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from tasks import launch
from tasks.report import numbers

DEMO_S, PROBE_S = 920.0, 0.0285
"""Seconds of the laptop preset, about, and of `probe_s` on two cores of an Intel Xeon (Sapphire Rapids)."""
SERVER_START_S = 300
"""A first start creates the database: 9 s on two idle cores, minutes on busy ones."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(prog="flows.local", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo_parser = commands.add_parser("demo", help="run every stage")
    demo_parser.add_argument(
        "--params", help="a parameter file other than params.yaml; has its own workspace"
    )
    demo_parser.add_argument(
        "--data", type=Path, help="the folder that the sources' paths start at"
    )
    demo_parser.add_argument(
        "-S", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE"
    )
    ui_parser = commands.add_parser("ui", help="Prefect and MLflow until Ctrl-C")
    ui_parser.add_argument("--worker", action="store_true", help="also run what is scheduled")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if options.command == "ui":
            return ui(options.worker)
        return demo(options.params, options.data, options.overrides)
    except KeyboardInterrupt:
        return 130


def _terminate(number: int, frame: object) -> None:
    """Unwind, so that the flow ends before its server; once, for `make` repeats what its group receives."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


def demo(params: str | None, data: Path | None, overrides: Sequence[str]) -> int:
    """Run `align` against a server of our own, unless PREFECT_API_URL names one; the exit code."""
    started = time.monotonic()
    print(announcement(params, overrides), flush=True)
    if data is not None:
        overrides = [*overrides, f"collect.root={data.resolve()}"]
    name = Path(params or "params").stem
    with prefect_server():
        # A process of its own, whose last log lines reach the server before that stops
        arguments = json.dumps({"params": params, "overrides": overrides, "name": name})
        flow = launch.popen([sys.executable, "-m", "flows.align", arguments])
        try:
            code = flow.wait()
        finally:
            launch.stop(flow)

    # Where the run had a workspace of its own, its numbers are there.
    root = Path(".runs", name) if params or overrides else Path()
    outcome = "Failed" if code else "Completed"
    print(f"\n{outcome} after {time.monotonic() - started:.0f} s")
    for key, value in numbers(root).items():
        print(f"  {key:34} {value:g}")
    report = (root / "reports" / "index.html").resolve()
    print(f"Report: {report}\nPrefect and MLflow: make ui")
    return code


def announcement(params: str | None, overrides: Sequence[str]) -> str:
    """What a run will take on this machine, as far as that is known."""
    if params or overrides:
        return "How long this takes depends on your parameters; Prefect's page and this log tell how far it is."
    minutes = expected_s() / 60
    takes = f"All stages of the laptop preset take about {minutes:.0f} minutes on this machine"
    return f"{takes}; what is done is not redone."


def expected_s() -> float:
    """Seconds of the laptop preset here: those of the machine in README, by how much faster or slower this one is.

    The preset starts two processes: with one core they take turns.
    """
    turns = 1 if len(os.sched_getaffinity(0)) > 1 else 1.8
    return DEMO_S * probe_s() / PROBE_S * turns


def probe_s(repeats: int = 7) -> float:
    """Seconds, the least of some tries, of what the stages of a tiny model do all the time: small matrix products."""
    matrix = np.full((96, 96), 1 / 96, np.float32)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(1500):
            matrix = np.tanh(matrix @ matrix) + 1 / 96
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def ui(worker: bool) -> int:
    """Show Prefect and MLflow until Ctrl-C."""
    with prefect_server(port=4200) as api, ExitStack() as stack:
        print(f"Prefect  {api.removesuffix('/api')}", flush=True)
        print(f"MLflow   {stack.enter_context(mlflow_server())}\nCtrl-C stops both.", flush=True)
        if worker:
            _prefect("work-pool", "create", "local", "--type", "process", "--overwrite")
            _prefect("--no-prompt", "deploy", "--all", "--prefect-file", "infra/prefect.yaml")
            worker_command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "local"]
            stack.enter_context(running(worker_command))
        while True:
            time.sleep(3600)


def _prefect(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "prefect", *arguments], check=True)


@contextmanager
def prefect_server(port: int | None = None) -> Iterator[str]:
    """A server's API, in PREFECT_API_URL too: the one named there, the one `ui` runs, or one of our own."""
    home = Path(os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").resolve())))
    note = home / "server.url"
    known = os.environ.get("PREFECT_API_URL", "")
    if not known and note.exists():
        known = note.read_text()
    if known and _healthy(known):
        os.environ["PREFECT_API_URL"] = known
        yield known
        return

    # One of our own: the note leads the next caller to it.
    port = port if port and _is_free(port) else _free_port()
    api = os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    home.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    log = home / "server.log"
    with running(command, log) as process:
        _wait(lambda: _healthy(api), process, log)
        note.write_text(api)
        try:
            yield api
        finally:
            note.unlink(missing_ok=True)


@contextmanager
def mlflow_server() -> Iterator[str]:
    """The address of MLflow's pages over MLFLOW_TRACKING_URI."""
    # Somebody else's server has pages of its own.
    store = os.environ["MLFLOW_TRACKING_URI"]
    if store.startswith("http"):
        yield store
        return
    port = 5000 if _is_free(5000) else _free_port()
    # By default it starts fifteen processes more, of 3 GB.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--workers",
        "1",
        "--backend-store-uri",
        store,
    ]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    log = Path(os.environ["PREFECT_HOME"]) / "mlflow.log"
    with running(command, log) as process:
        _wait(lambda: _answers(f"http://127.0.0.1:{port}/health"), process, log)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def running(command: Sequence[str], log: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process for as long as the block lasts; Ctrl-C does not reach it before those who talk to it."""
    with log.open("w") if log else ExitStack() as output:
        stream = output if log else None
        process = launch.popen(command, stdout=stream, stderr=stream, start_new_session=True)
        try:
            yield process
        finally:
            launch.stop(process)


def _wait(ready: Callable[[], bool], process: subprocess.Popen[str], log: Path) -> None:
    # A server that ends, or hangs, has its reason in its log.
    deadline = time.monotonic() + SERVER_START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            command: Any = process.args
            raise RuntimeError(f"{' '.join(map(str, command[-8:]))} does not answer; see {log}")
        time.sleep(0.1)


def _healthy(api: str) -> bool:
    return _answers(f"{api}/health")


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:
        return response.status == 200
    return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
