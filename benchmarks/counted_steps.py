"""The command line of deitctl, which writes a byte to the file $COUNTED_STEPS after each step of a training.

The few steps on a copy by which a training estimates its duration do not count.

A run that was stopped and resumed wrote as many bytes too many as steps were lost. For kill_and_resume.py.
"""

from __future__ import annotations

import os
from typing import Any

from deitctl.__main__ import main
from deitctl.training import trainer


def count_steps() -> None:
    """Count the steps of the main process."""
    if os.environ.get("RANK", "0") != "0":
        return
    file = os.open(os.environ["COUNTED_STEPS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    step = trainer.optimizer_step

    def step_and_count(*arguments: Any) -> None:
        step(*arguments)
        os.write(file, b".")

    trainer.optimizer_step = step_and_count  # type: ignore[assignment]


if __name__ == "__main__":
    count_steps()
    main()
