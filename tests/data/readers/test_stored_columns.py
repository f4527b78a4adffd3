"""Parquet and Arrow files in a store are read by ranges: footers, labels and row groups, nothing else."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Iterator

import pytest

from deitctl.data.dataset import ImageDataset
from deitctl.data.open import open_dataset
from deitctl.data.readers.parquet_images import name_content
from deitctl.data.stores import patience
from deitctl.data.stores.remote_file import RemoteFile
from deitctl.errors import DataChanged, DataError
from tests.data.stores.web_server import WebServer, serve

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("aiohttp")

NAMES = ["bee", "ant"]
FEATURES = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
METADATA = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
IMAGES = [os.urandom(20_000) for _ in range(60)]


def encode(kind: str, images: list[bytes]) -> bytes:
    structs = [{"bytes": image, "path": f"{IMAGES.index(image)}.jpg"} for image in images]
    labels = [IMAGES.index(image) % 2 for image in images]
    table = pa.table({"image": structs, "label": labels}).replace_schema_metadata(METADATA)
    file = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, file, row_group_size=20)
    else:
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=20)
    return file.getvalue()


@pytest.fixture
def server(monkeypatch) -> Iterator[WebServer]:
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(patience, "PATIENCE_S", 0.3)
    with serve() as served:
        yield served


def count_bytes(server: WebServer) -> int:
    """Return the bytes of all ranges that were requested."""
    spans = [span.removeprefix("bytes=").split("-") for _, span in server.requests]
    return sum(int(last) - int(first) + 1 for first, last in spans)


def require_part(dataset: ImageDataset | None) -> ImageDataset:
    assert dataset is not None
    return dataset


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_what_is_read_of_a_file_is_its_labels_and_then_the_images(kind, server, reporter):
    data = encode(kind, IMAGES)
    server.files[f"/t.{kind}"] = data
    address = f"{server.url}/t.{kind}?signature=secret"
    opened = open_dataset(address, reporter)
    dataset = require_part(opened.unsplit)
    assert [dataset.class_names[label] for label in dataset.labels] == NAMES * 30
    assert count_bytes(server) < len(data) // 5
    assert "secret" not in opened.name + dataset.name(3) + " ".join(reporter.notes)
    server.requests.clear()
    assert dataset.read_bytes(50) == IMAGES[50]
    assert count_bytes(server) < len(data) // 2  # its row group
    server.requests.clear()
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.read_bytes(59) == IMAGES[59]
    assert len(server.requests) <= 1  # of another row group's, where each image is a read
    dataset.prefetch([1, 2])
    assert [dataset.read_bytes(n) for n in range(60)] == IMAGES


def test_files_in_braces_are_the_parts_that_their_names_say(server, reporter):
    server.files |= {
        "/train-00000-of-00002.parquet": encode("parquet", IMAGES[:20]),
        "/train-00001-of-00002.parquet": encode("parquet", IMAGES[20:40]),
        "/test-00000-of-00001.parquet": encode("parquet", IMAGES[40:]),
    }
    names = "{train-0000{0,1}-of-00002,test-00000-of-00001}"
    data = open_dataset(f"{server.url}/{names}.parquet", reporter)
    train, test = require_part(data.train), require_part(data.test)
    assert [train.read_bytes(n) for n in range(40)] == IMAGES[:40]
    assert [test.read_bytes(n) for n in range(20)] == IMAGES[40:]


def test_files_whose_urls_differ_behind_the_path_alone_are_all_read(server, reporter):
    for n in range(3):
        file, images = io.BytesIO(), IMAGES[20 * n : 20 * n + 20]
        pq.write_table(pa.table({"image": images, "label": NAMES * 10}), file)
        server.files[f"/get.parquet?id={n}"] = file.getvalue()
    data = open_dataset(f"{server.url}/get.parquet?id={{0..2}}", reporter)
    dataset = require_part(data.unsplit)
    assert [dataset.read_bytes(n) for n in range(60)] == IMAGES
    assert len({dataset.name(n) for n in range(60)}) == 60


def test_files_of_a_store_share_no_block_unless_they_are_one():
    def name(query: str) -> str:
        date = "Mon, 30 Nov 2026 21:35:22 GMT"
        return name_content(RemoteFile(f"https://host/get.parquet?{query}", 9, date))

    assert name("id=1") == name("id=1") != name("id=2")


def test_a_store_that_fails_for_a_moment_is_asked_again_and_a_changed_file_noticed(
    server, reporter
):
    server.files["/t.parquet"] = encode("parquet", IMAGES)
    dataset = require_part(open_dataset(f"{server.url}/t.parquet", reporter).unsplit)
    server.failures = [503, "cut", "reset"]
    assert dataset.read_bytes(30) == IMAGES[30]
    server.files["/t.parquet"] = encode("parquet", IMAGES[::-1])
    with pytest.raises(DataChanged):
        dataset.read_bytes(59)


def test_what_is_not_there_and_what_is_no_parquet_are_one_line(server, reporter):
    server.files["/t.parquet"] = b"<html>" * 1000
    for name in ("t", "u"):
        with pytest.raises(DataError, match=f"/{name}.parquet") as caught:
            open_dataset(f"{server.url}/{name}.parquet", reporter)
        assert len(str(caught.value).splitlines()) == 1
