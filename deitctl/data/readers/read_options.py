"""How data is read: what a user says about it beside its name."""

from __future__ import annotations

from dataclasses import dataclass

from deitctl.config import TaskChoice

AUTO: TaskChoice = "auto"


@dataclass(frozen=True)
class ReadOptions:
    """How data is read; the defaults read what it says itself."""

    image_folder: str = ""
    """That the paths of a table are below; empty: that of the table, or one beside it."""
    task: TaskChoice = AUTO
    """Whether an image has one label or several; auto: as the data has them."""
    group_by: str = ""
    """Column of a table that names the group of each image; empty: none, as where no column is called so."""
    with_missing: bool = False
    """Whether a table's images that are not there stay in it, to be listed."""


AS_IS = ReadOptions()
"""The data speaks for itself."""
