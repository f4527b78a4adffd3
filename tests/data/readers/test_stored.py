from __future__ import annotations

import io
import tarfile

import pytest
from PIL import Image

pytest.importorskip("aiohttp")

from deitctl.data.fingerprint import fingerprint_split
from deitctl.data.open import open_dataset
from deitctl.data.stores import stores
from deitctl.data.stores.store_settings import reading_stores
from deitctl.data.stores.stores import OtherStore
from deitctl.errors import DataError
from deitctl.events import SilentReporter
from tests.data.stores.web_server import serve


@pytest.fixture
def shards(tmp_path):
    """A folder of two WebDataset shards."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"x-{shard}.tar", "w") as tar:
            for number in range(4):
                image = io.BytesIO()
                Image.new("RGB", (9, 9), (shard * 99, number * 60, 7)).save(image, "JPEG")
                key = f"{shard}{number}"
                for name, content in (
                    (f"{key}.jpg", image.getvalue()),
                    (f"{key}.cls", str(number % 2).encode()),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize("cache_size", ["0", "1MB"])
def test_shards_of_a_server_are_what_they_are_on_a_disk(shards, tmp_path, cache_size, has_ranges):
    local = open_dataset(str(shards), SilentReporter()).unsplit
    with serve() as server:
        server.has_ranges = has_ranges
        server.files |= {f"/{path.name}": path.read_bytes() for path in shards.glob("*.tar")}
        with reading_stores(str(tmp_path / "cache"), cache_size, SilentReporter()):
            if not has_ranges and cache_size == "0":
                with pytest.raises(DataError, match="sends no parts of a file"):
                    open_dataset(f"{server.url}/x-{{0..1}}.tar", SilentReporter())
                return
            data = open_dataset(f"{server.url}/x-{{0..1}}.tar?sig=secret", SilentReporter())
        remote = data.unsplit
        assert data.name == f"{server.url}/x-{{0..1}}.tar"
        assert "secret" not in remote.name(0)
        remote.prefetch(range(8))
        assert [remote.read_bytes(i) for i in range(8)] == [local.read_bytes(i) for i in range(8)]
        assert fingerprint_split(remote, remote) == fingerprint_split(local, local)
        assert (remote.blocks is None) == has_ranges


def test_a_folder_of_images_in_a_bucket_says_the_way_on(monkeypatch):
    class Bucket:
        def invalidate_cache(self):
            pass

        def info(self, address):
            raise FileNotFoundError(address)

        def find(self, folder, detail):
            names = ("a/1.jpg", "a/2.jpg", "readme.txt")
            return {f"bucket/{name}": {"size": 1, "type": "file"} for name in names}

    monkeypatch.setattr(stores, "_open_store", lambda scheme, pid: OtherStore(Bucket()))
    with pytest.raises(DataError, match="2 images among 3 files.*pack"):
        open_dataset("gs://bucket", SilentReporter())
    with pytest.raises(DataError, match="is not read from a store"):
        open_dataset("gs://bucket/labels.csv", SilentReporter())
