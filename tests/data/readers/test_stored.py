from __future__ import annotations

import io
import json
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

        def find(self, folder, detail, prefix=""):
            names = ("a/1.jpg", "a/2.jpg", "readme.txt")
            return {f"bucket/{name}": {"size": 1, "type": "file"} for name in names}

    monkeypatch.setattr(stores, "_open_store", lambda scheme, pid: OtherStore(Bucket()))
    with pytest.raises(DataError, match="2 images among 3 files.*pack"):
        open_dataset("gs://bucket", SilentReporter())
    with pytest.raises(DataError, match="is not read from a store"):
        open_dataset("gs://bucket/labels.csv", SilentReporter())


def open_it(ref):
    return open_dataset(ref, SilentReporter())


@pytest.fixture
def server(shards):
    with serve() as server:
        server.files |= {f"/wds/{path.name}": path.read_bytes() for path in shards.glob("*.tar")}
        yield server


def test_a_list_of_shards_is_read_from_a_server(server):
    lines = (
        f"# of all\nx-0.tar\n\n{server.url.upper().replace('HTTP', 'Http')}/wds/x-{{1..1}}.tar\n"
    )
    server.files["/wds/list.txt"] = lines.encode()
    assert len(open_it(f"{server.url}/wds/list.txt").unsplit.labels) == 8
    server.files["/wds/words.txt"] = b"rose\ntulip\n"
    with pytest.raises(DataError, match="is not read from a store"):
        open_it(f"{server.url}/wds/words.txt")
    server.files["/wds/list.txt"] = b"x-0.tar\npipe:cat x-1.tar\n"
    with pytest.raises(DataError, match="would run a program"):
        open_it(f"{server.url}/wds/list.txt")
    with pytest.raises(DataError, match=r"There is nothing at .*/wds/no.txt"):
        open_it(f"{server.url}/wds/no.txt")


@pytest.mark.parametrize("name", ["wds", "wds/", "wds/_info.json"])
def test_a_folder_of_a_server_is_what_its_info_lists(name, server):
    server.files["/wds/_info.json"] = json.dumps(
        {"splits": {"train": {"filenames": ["x-0.tar"]}, "validation": {"filenames": ["x-1.tar"]}}}
    ).encode()
    data = open_it(f"{server.url}/{name}")
    assert (len(data.train.labels), len(data.val.labels)) == (4, 4)


def test_what_a_server_cannot_list_is_named_by_braces(server):
    with pytest.raises(DataError, match="web server lists no files") as caught:
        open_it(server.url)
    with pytest.raises(DataError, match="web server lists no files") as caught:
        open_it(f"{server.url}/hubpq/")
    assert "hubpq/x-{000000..000146}.tar" in caught.value.hint
    assert "hubpq/train-{00000..00003}-of-00004.parquet" in caught.value.hint
    for pattern, suffix in (("wds/*.tar", "tar"), ("hubpq/[0-9].parquet", "parquet")):
        with pytest.raises(DataError, match="web server lists no files") as caught:
            open_it(f"{server.url}/{pattern}")
        assert f"x-{{000000..000146}}.{suffix}" in caught.value.hint


def test_missing_shards_of_a_server_are_counted_and_named(server):
    ref = f"{server.url}/wds/x-{{0..4}}.tar"
    with pytest.raises(DataError) as caught:
        open_it(f"{ref}?sig=secret")
    assert caught.value.message == (
        f"3 of the 5 files {ref} are missing: x-2.tar, x-3.tar, x-4.tar."
    )
    server.files["/pq/a-0.parquet"] = b"PAR1"
    with pytest.raises(DataError, match="2 of the 3 files .*: a-1.parquet, a-2.parquet"):
        open_it(f"{server.url}/pq/a-{{0..2}}.parquet")
    for name in ("wds/y.tar", "pq/b.parquet"):
        with pytest.raises(DataError, match=rf"There is no file .*/{name}\."):
            open_it(f"{server.url}/{name}")


def test_a_bucket_that_does_not_exist_is_no_empty_folder(monkeypatch):
    class Store:
        def invalidate_cache(self):
            pass

        def info(self, address):
            raise FileNotFoundError(address)

        def find(self, folder, detail, prefix=""):
            if folder.startswith("s3://none"):
                raise FileNotFoundError("The specified bucket does not exist")
            raise FileNotFoundError(folder)

    monkeypatch.setattr(stores, "_open_store", lambda scheme, pid: OtherStore(Store()))
    with pytest.raises(DataError, match="There is no bucket 'none' for s3://none/wds"):
        open_it("s3://none/wds")
    with pytest.raises(DataError, match="There is nothing at s3://my-bucket/wds"):
        open_it("S3://my-bucket/wds")
