"""Files in repositories of the hub: `hf://datasets/OWNER/NAME[@REVISION]/x.tar`, read at one commit."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from deitctl.data.stores.stores import OtherStore, StoredPath, make_stored_path

SAME_S = 60.0
"""For which the commit that a revision means is not looked up again: a thousand shards are of one."""


class HubStore(OtherStore):
    """Files by `huggingface_hub`'s file system. The version of one is the commit of its repository."""

    def __init__(self, system: Any) -> None:
        """Read by a file system.

        Args:
            system: `HfFileSystem`.
        """
        super().__init__(system)
        self._commits: dict[tuple[str, str, str], tuple[float, str]] = {}

    def describe(self, address: str) -> StoredPath:
        """Return the size of a file, and the commit that its revision means now."""
        place = self.system.resolve_path(address)
        if not hasattr(place, "revision"):  # in a bucket, which has no commits
            return super().describe(address)
        commit = self._find_commit(place)
        info = self.system.info(_pin(place, commit).unresolve())
        return make_stored_path(address, {**info, "commit": commit})

    def find(self, folder: str, prefix: str = "") -> dict[str, dict[str, Any]]:
        """Return the descriptions of all files below a folder, by path, see `Store`."""
        place = self.system.resolve_path(folder)
        if not hasattr(place, "revision"):
            return super().find(folder, prefix)
        commit = self._find_commit(place)
        pinned = _pin(place, commit)
        entries = self.system.find(pinned.unresolve(), detail=True)
        return {
            place.root + path.removeprefix(pinned.root): {**entry, "commit": commit}
            for path, entry in entries.items()
        }

    def fetch(self, file: StoredPath, offset: int, size: int) -> bytes:
        """Return bytes of a file, see `Store`."""
        place = self.system.resolve_path(file.address)
        if not hasattr(place, "revision"):
            return super().fetch(file, offset, size)
        path = _pin(place, file.version).unresolve()
        return bytes(self.system.cat_file(path, start=offset, end=offset + size))

    def _find_commit(self, place: Any) -> str:
        key, now_s = (place.repo_type, place.repo_id, place.revision), time.monotonic()
        noted_s, commit = self._commits.get(key, (-SAME_S, ""))
        if not commit or now_s - noted_s > SAME_S:
            kind, repository, revision = key
            info = self.system._api.repo_info(repository, revision=revision, repo_type=kind)
            commit = str(info.sha)
            self._commits[key] = now_s, commit
        return commit


def _pin(place: Any, commit: str) -> Any:
    """Return a place in a repository, at a commit of it."""
    return dataclasses.replace(place, revision=commit, _raw_revision=None)
