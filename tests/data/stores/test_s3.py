from __future__ import annotations

import hashlib
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

import fsspec.asyn

from deitctl.data.stores import remote_file, stores
from deitctl.data.stores.listing import list_addresses
from deitctl.data.stores.s3 import S3Store
from deitctl.data.stores.stored_file import open_stored
from deitctl.data.stores.stores import StoredPath
from deitctl.errors import DataChanged, DataError, StoreLost

CONTENT = os.urandom(100_000)


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """A bucket of a local S3, and what puts an object into it."""
    import boto3
    from moto import server as moto_server

    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    client = boto3.client("s3")
    client.create_bucket(Bucket="photos")
    stores._open_store.cache_clear()
    yield lambda key, body: client.put_object(
        Bucket="photos", Key=key, Body=body, ACL="public-read"
    )
    server.stop()


def test_objects_of_a_bucket_are_listed_read_and_known_again(bucket, monkeypatch):
    for key in ("train/x-1.tar", "train/x-0.tar", "train/notes.txt", "val/deep/x-0.tar"):
        bucket(key, CONTENT)
    assert [f.address for f in list_addresses("s3://photos", (".tar",))] == [
        "s3://photos/train/x-0.tar",
        "s3://photos/train/x-1.tar",
        "s3://photos/val/deep/x-0.tar",
    ]
    assert [f.address for f in list_addresses("s3://photos/tr*/x-0.tar")] == [
        "s3://photos/train/x-0.tar"
    ]
    system = stores.get_store("s3://photos").system
    found = Mock(wraps=system.find)
    monkeypatch.setattr(system, "find", found)
    (listed,) = list_addresses("s3://photos/train/x-[1-9].t*")
    found.assert_called_once_with("s3://photos/train", detail=True, prefix="x-")
    assert listed.identity == (100_000, hashlib.md5(CONTENT).hexdigest())
    with pytest.raises(FileNotFoundError):
        list_addresses("s3://photos/test/")

    file = open_stored(listed.address)
    assert file.identity == listed.identity
    file.prefetch([(0, 10), (50_000, 70_000)])
    assert file.read(0, 10) == CONTENT[:10]
    assert file.read(50_000, 70_000) == CONTENT[50_000:]
    assert file.read(0, 100_000) == CONTENT  # whole, so that its MD5 is verified

    bucket("train/x-1.tar", CONTENT[::-1])
    with pytest.raises(DataChanged, match="s3://photos/train/x-1.tar was replaced"):
        file.read(20, 10)

    # a bucket that anybody may read, and nobody has credentials
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(Path, "home", lambda: Path("/nonexistent"))
    stores._open_store.cache_clear()
    stores.open_file_system("s3").clear_instance_cache()
    assert open_stored("s3://photos/train/x-0.tar").read(0, 10) == CONTENT[:10]


def test_a_store_without_its_package_is_a_line(monkeypatch):
    import fsspec

    def refuse(scheme, **settings):
        raise ImportError("Install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "filesystem", refuse)
    stores._open_store.cache_clear()
    with pytest.raises(DataError, match=r"pip install 'deitctl\[gcs\]'"):
        open_stored("gs://bucket/x.tar")


class Server:
    """What s3fs is to `S3Store`, and answers each request alike."""

    def __init__(self, body: bytes, span: str | None):
        self.body, self.span, self.taken = body, span, 0
        self.loop = fsspec.asyn.get_loop()

    def split_path(self, address):
        return "bucket", "key", None

    async def _call_s3(self, method, **conditions):
        span = {} if self.span is None else {"ContentRange": self.span}
        return {"Body": self, "ETag": '"tag"'} | span

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        pass

    async def read(self, size):
        piece = self.body[self.taken : self.taken + min(size, 7)]
        self.taken += len(piece)
        return piece


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ("bytes 5-24/100000", None),
        (None, "sends no parts of objects"),
        ("bytes 0-19/100000", "sent another range"),
        ("bytes 5-24/99", "sent another range"),
    ],
)
def test_what_a_server_sends_must_be_the_range_that_was_requested(span, expected):
    server = Server(CONTENT[5:25] if expected is None else CONTENT, span)
    file = StoredPath("s3://bucket/key", len(CONTENT), "tag")
    if expected is None:
        assert S3Store(server).fetch(file, 5, 20) == CONTENT[5:25]
    else:
        with pytest.raises((DataError, OSError), match=expected):
            S3Store(server).fetch(file, 5, 20)
        assert server.taken == 0


def test_no_more_of_an_answer_is_read_than_shows_that_it_is_too_long(monkeypatch):
    server = Server(CONTENT, "bytes 5-24/100000")
    monkeypatch.setattr(remote_file, "get_store", lambda address: S3Store(server))
    with pytest.raises(StoreLost, match="more bytes than were requested"):
        open_stored("s3://bucket/key", (len(CONTENT), "tag")).read(5, 20)
    assert server.taken == 21
