"""Shards whose bytes are not those that the `_info.json` of `pack` beside them records."""

from __future__ import annotations

from deitctl.checks.issues import Issue, report
from deitctl.data.readers.shard_checksums import find_changed_shards
from deitctl.events import Reporter


def check_shards(data: str, reporter: Reporter) -> list[Issue]:
    """Return an issue of the shards that are missing, or whose SHA-256 is not the recorded one.

    Args:
        data: a folder that `pack` wrote, a part of it, or one of its files; of others there is no issue.
        reporter: shows progress.
    """
    changed = find_changed_shards(data, reporter)
    return list(report("changed_shard", len(changed), changed))
