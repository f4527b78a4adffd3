from __future__ import annotations

import pytest

from deitctl.data.stores import stores
from deitctl.data.stores.stores import OtherStore, StoredPath
from deitctl.errors import DataChanged

PATH = "az://box/x.tar"


class Box:
    """A file system of one file, as fsspec's for Azure."""

    def __init__(self):
        self.tag, self.content = '"a"', b"0123456789"

    def info(self, path):
        return {"size": len(self.content), "etag": self.tag}

    def invalidate_cache(self):
        pass

    def cat_file(self, path, start, end):
        return self.content[start:end]


def test_a_file_that_is_replaced_in_a_store_without_conditions_is_noticed():
    system = Box()
    store = OtherStore(system)
    file = store.describe(PATH)
    assert file == StoredPath(PATH, 10, "a")
    assert store.fetch(file, 2, 3) == b"234"
    system.tag, system.content = '"b"', b"9876543210"
    with pytest.raises(DataChanged, match="was replaced"):
        store.fetch(file, 2, 3)


def test_a_store_without_versions_gives_each_run_its_own_and_warns_once(monkeypatch):
    warnings = []
    monkeypatch.setattr(stores, "warn", warnings.append)
    monkeypatch.setattr(stores, "_warned", set())
    system = Box()
    system.tag = ""
    store = OtherStore(system)
    file = store.describe(PATH)
    assert store.describe(PATH) == file  # in one run
    assert store.fetch(file, 2, 3) == b"234"
    monkeypatch.setattr(stores, "_run", "another")
    assert store.describe(PATH) != file
    assert len(warnings) == 1
