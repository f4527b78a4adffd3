"""What a setting is beside its type and default: help, range, panel of `--help`; and the limits that settings share."""

from __future__ import annotations

from dataclasses import dataclass

MAX_COUNT = 1_000_000
"""Epochs, images a step and views beyond which a number is a slip or an attack."""
MAX_FOLDS = 1000
MAX_CHANS = 256
"""Channels of the input; hyperspectral cameras have some 220."""
MAX_SIZE = 2048  # timm's largest is 1,280
"""Largest side of an input in pixels."""

# Panels of `--help`. A setting without a panel has no option of its own: `--set` reaches it.
EVERYDAY = "Options"
TEACHER = "Teacher"
OPTIMIZATION = "Optimization"
MACHINE = "Machine"
RESUMING = "Resuming"

MODEL_HELP = (
    "Alias, timm name, hf-hub:owner/name, run folder, or weights file; see `deitctl models`."
)
RECIPE = "the recipe's"


@dataclass(frozen=True)
class Option:
    """What a setting is beside its type and default."""

    help: str
    panel: str = ""
    default: str = ""
    """What `--help` says of a default that is not a fixed value."""
    flag: str = ""
    """Empty: the setting's name with dashes; for a boolean `--name/--no-name`."""
    keyword: str = ""
    """In the Python API; empty: the flag without its dashes."""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    @property
    def limits(self) -> str:
        """The range in words, empty for none."""
        bounds = (
            ("at least", self.ge),
            ("more than", self.gt),
            ("at most", self.le),
            ("less than", self.lt),
        )
        return " and ".join(f"{word} {bound:,}" for word, bound in bounds if bound is not None)

    def allows(self, value: float) -> bool:
        """Return whether a number lies in the range."""
        return not (
            (self.ge is not None and value < self.ge)
            or (self.gt is not None and value <= self.gt)
            or (self.le is not None and value > self.le)
            or (self.lt is not None and value >= self.lt)
        )
