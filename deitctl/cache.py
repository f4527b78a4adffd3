"""Where the user's cache is: what can be made again, and costs time to make."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "DEITCTL_CACHE"


def cache_root() -> Path:
    """Return the folder of teachers, their words and indexes of data: `$DEITCTL_CACHE`, or one in the user's cache."""
    named = os.environ.get(CACHE_VARIABLE)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named).expanduser() if named else Path(home) / "deitctl"
