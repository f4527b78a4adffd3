"""One of two processes of test_hung_process.py: python hung.py WHERE RANK-THAT-STOPS, with RANK and the like set."""

from __future__ import annotations

import os
import signal
import sys

import torch

from deitctl import distributed, heartbeat
from deitctl.distributed import ProcessLost, process_group

WAITS = {
    "integers": lambda world: world.all_gather_ints([1]),
    "main": lambda world: world.run_on_main(lambda: 1),
    "sum": lambda world: world.all_reduce_([torch.ones(9)]),
}


def main(where: str, stopped: int) -> None:
    """Meet once, then wait for a process that has stopped; exit with 7 where that was noticed and its rank named."""
    distributed.STEP_TIMEOUT_S, distributed.MARGIN_S, heartbeat.BEAT_S = 2.0, 0.2, 0.2
    with process_group(torch.device("cpu")) as world:
        WAITS[where](world)
        world.set_timeout(distributed.STEP_TIMEOUT_S)
        distributed._open_store()[0].set(f"met/{world.rank}", "1")
        if world.rank == stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        try:
            WAITS[where](world)
        except ProcessLost as lost:
            os._exit(7 if lost.message.startswith(f"Process {stopped} of this run did not") else 8)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
