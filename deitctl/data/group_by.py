"""What `--group-by` may say: a column, a level of folders, or a pattern of file names."""

from __future__ import annotations

import re

from deitctl.errors import ConfigError

FOLDER, NAME = "folder:", "name:"
NOTATIONS = (
    "A group is a column of a table (patient), a folder of the images' paths below the data "
    "(folder:1 the outermost, folder:-1 the image's own), or a part of the file names "
    "(name:REGEX with one group in parentheses)."
)


def is_of_path(group_by: str) -> bool:
    """Return whether `--group-by` names a part of the images' paths, not a column."""
    return group_by.startswith((FOLDER, NAME))


def check_group_by(group_by: str) -> None:
    """Raise `ConfigError` unless `--group-by` is a column, a folder's level or a pattern of names."""
    if group_by.startswith(FOLDER):
        level = group_by.removeprefix(FOLDER)
        if not re.fullmatch(r"-?[1-9]\d{0,3}", level):
            raise ConfigError(f"--group-by {group_by!r} names no level of folders.", NOTATIONS)
    elif group_by.startswith(NAME):
        pattern = group_by.removeprefix(NAME)
        try:
            num_groups = re.compile(pattern).groups
        except re.error as error:
            raise ConfigError(
                f"--group-by {group_by!r} is no regular expression: {error}.", NOTATIONS
            ) from error
        if num_groups != 1:
            raise ConfigError(
                f"--group-by {group_by!r} has {num_groups} groups in parentheses, not one.",
                r"name:^(\w+?)_ takes what stands before the first underscore.",
            )
