"""A stage shared out over processes of this machine.

As `torchrun --standalone` does it, but the stage's own exit code comes back, which says whether a second try makes
sense, and no process outlives the starter.
"""

import os
import socket
import sys
import time
from collections.abc import Sequence

from tasks import launch


def in_processes(arguments: Sequence[str], number: int) -> int:
    """Run Python with `arguments` in so many processes that know of each other; when one fails, the others end.

    Returns:
        The lowest exit code of those that failed, or 0: bad input (1) is why others lost their connection (70) or were
        ended (143).
    """
    # Threads are shared out too: with all cores for each they would be in each other's way.
    num_threads = max(1, len(os.sched_getaffinity(0)) // number)
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "OMP_NUM_THREADS": str(num_threads),
    }
    command = [sys.executable, *arguments]
    started = []
    for rank in map(str, range(number)):
        own = {"RANK": rank, "LOCAL_RANK": rank}
        started.append(launch.popen(command, env=shared | own))

    # Until all have ended, or one has failed.
    try:
        while not any(codes := [process.poll() for process in started]) and None in codes:
            time.sleep(0.05)
    finally:
        codes = [launch.stop(process) for process in started]
    return min(filter(None, codes), default=0)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
