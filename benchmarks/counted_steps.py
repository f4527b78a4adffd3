"""The command line of deitctl, which writes a byte to the file $COUNTED_STEPS after each step of an optimizer.

A run that was stopped and resumed wrote as many bytes too many as steps were lost. For kill_and_resume.py.
"""

from __future__ import annotations

import os

from torch.optim.optimizer import register_optimizer_step_post_hook

from deitctl.__main__ import main


def count_steps() -> None:
    """Count the steps of the main process."""
    if os.environ.get("RANK", "0") == "0":
        file = os.open(os.environ["COUNTED_STEPS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        register_optimizer_step_post_hook(lambda *_: os.write(file, b"."))


if __name__ == "__main__":
    count_steps()
    main()
