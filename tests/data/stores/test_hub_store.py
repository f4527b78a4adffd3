from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("huggingface_hub")

from huggingface_hub.hf_file_system import HfFileSystemResolvedRepositoryPath

from deitctl.data.stores.hub_store import HubStore


class Hub:
    """The hub's file system, of a repository that is one commit after another."""

    def __init__(self):
        self.commit, self.files, self._api = "c1", {"c1": b"one", "c2": b"two"}, self

    def resolve_path(self, path):
        _, owner, name, path = path.removeprefix("hf://").split("/", 3)
        name, _, revision = name.partition("@")
        return HfFileSystemResolvedRepositoryPath(
            "dataset", f"{owner}/{name}", revision or "main", path
        )

    def repo_info(self, repository, revision, repo_type):
        return SimpleNamespace(sha=self.commit)

    def info(self, path):
        return {"size": len(self.cat_file(path, 0, 9))}

    def find(self, path, detail):
        return {f"{path}/x.tar": {"size": 3, "type": "file"}}

    def cat_file(self, path, start, end):
        assert path.startswith("datasets/me/set@")
        return self.files[self.resolve_path(path).revision][start:end]


def test_files_of_the_hub_are_those_of_the_commit_they_were_opened_at():
    system = Hub()
    store = HubStore(system)
    file = store.describe("hf://datasets/me/set/x.tar")
    assert file.identity == (3, "c1")
    system.commit = "c2"
    assert store.fetch(file, 0, 3) == b"one"
    assert HubStore(system).describe(file.address).identity == (3, "c2")


def test_a_folder_of_the_hub_is_listed_at_a_commit_by_its_own_name():
    entries = HubStore(Hub()).find("hf://datasets/me/set/train")
    assert {path: entry["commit"] for path, entry in entries.items()} == {
        "datasets/me/set/train/x.tar": "c1"
    }
