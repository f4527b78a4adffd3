"""A process that is stopped keeps its connections; whatever the others wait for, they end within the timeout."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

PLACES = [("integers", 1), ("main", 0), ("sum", 1)]


def start(where: str, stopped: int) -> tuple[list[subprocess.Popen[bytes]], int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        # the store is in a process of its own under torchrun, and must not be in the stopped one
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("hung.py")), where, str(stopped)],
            env={**common, "RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    return processes, port


@pytest.mark.parametrize(("where", "stopped"), PLACES)
def test_a_stopped_process_ends_those_that_wait_for_it(where: str, stopped: int) -> None:
    from torch.distributed import TCPStore

    processes, port = start(where, stopped)
    store = TCPStore("127.0.0.1", port, None, is_master=True, wait_for_workers=False)
    try:
        # A process starts for as long as a busy machine lets it; the timeout begins when they have met.
        store.wait(["met/0", "met/1"], timedelta(seconds=300))
        assert processes[1 - stopped].wait(60) == 7
        assert processes[stopped].poll() is None
    finally:
        for process in processes:
            process.kill()
            process.wait()
        del store
