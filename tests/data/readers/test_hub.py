"""Data sets on the hub are downloaded once, at a commit, and read from there; without a network too."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from deitctl.data.dataset import ImageDataset
from deitctl.data.open import open_dataset
from deitctl.data.readers.hub import is_pin_of, pin_reference
from deitctl.data.readers.hub_address import HubAddress, is_hub, parse_address
from deitctl.errors import DataError
from tests.fake_hub import Hub, Repository, connect

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = ("bee", "ant")
FEATURES = {"image": {"_type": "Image"}, "label": {"names": list(NAMES), "_type": "ClassLabel"}}
METADATA = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
REF = "hf://datasets/ann/bugs"


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    with connect(monkeypatch, tmp_path) as served:
        yield served


def encode(*numbers: int) -> bytes:
    """Return a Parquet file of images with these contents."""
    images = [{"bytes": f"{n}".encode() * 40, "path": f"{n}.jpg"} for n in numbers]
    table = pa.table({"image": images, "label": [n % 2 for n in numbers]})
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(METADATA), file)
    return file.getvalue()


def publish(hub: Hub, files: dict[str, bytes], branch: str = "main") -> str:
    """Put files into a branch; return the commit."""
    repository = hub.datasets.setdefault("ann/bugs", Repository(private=False))
    repository.branches[branch] = files
    return repository.commit(branch)


FILES = {
    "README.md": b"# Bugs",
    "data/train-00000-of-00002.parquet": encode(0, 1, 2),
    "data/train-00001-of-00002.parquet": encode(3, 4, 5),
    "data/test-00000-of-00001.parquet": encode(6, 7),
}


def list_contents(dataset: ImageDataset | None) -> list[int]:
    assert dataset is not None
    return [int(dataset.read_bytes(n)[:1]) for n in range(len(dataset.labels))]


def count_downloads(hub: Hub) -> int:
    return sum(request.startswith("GET") and "/resolve/" in request for request in hub.requests)


def test_the_files_of_a_data_set_are_downloaded_once_at_a_commit(hub, reporter):
    commit = publish(hub, dict(FILES))
    data = open_dataset(REF, reporter)
    assert data.name == f"{REF}@{commit}"
    assert (list_contents(data.train), list_contents(data.test)) == ([0, 1, 2, 3, 4, 5], [6, 7])
    assert data.train.class_names == ("ant", "bee")
    assert data.train.name(4) == f"{REF}:4.jpg"
    assert any("3 files" in note and "to download into" in note for note in reporter.notes)
    assert count_downloads(hub) == 4
    publish(hub, {"data/train.parquet": encode(8, 9)})
    # what the run recorded means the same data, and needs no request
    hub.requests.clear()
    assert list_contents(open_dataset(data.name, reporter).train) == [0, 1, 2, 3, 4, 5]
    assert hub.requests == []
    assert list_contents(
        open_dataset(REF, reporter).unsplit or open_dataset(REF, reporter).train
    ) == [8, 9]


def test_a_run_records_the_commit_and_is_recognized_by_the_address(hub, reporter):
    commit = publish(hub, dict(FILES))
    publish(hub, dict(FILES) | {"more.txt": b""}, "v2")
    pinned = open_dataset(REF, reporter).name
    assert pin_reference(REF) == pinned == f"{REF}@{commit}"
    assert pin_reference("photos") == "photos"
    assert is_pin_of(pinned, REF)
    open_dataset(f"{REF}@v2", reporter)
    assert not is_pin_of(pinned, f"{REF}@v2")
    assert is_pin_of(pin_reference(f"{REF}@v2"), f"{REF}@v2")


def test_a_run_on_named_data_of_the_hub_records_the_commit(hub, reporter):
    repository = hub.datasets.setdefault("ILSVRC/imagenet-1k", Repository(private=False))
    repository.branches["main"] = dict(FILES)
    address = f"hf://datasets/ILSVRC/imagenet-1k@{repository.commit('main')}"
    named = open_dataset("imagenet-1k", reporter)
    assert pin_reference("imagenet-1k") == pin_reference("ImageNet_1k") == address
    assert is_pin_of(address, "imagenet-1k")
    assert not is_pin_of(address, "cifar10")
    pinned = open_dataset(address, reporter)
    assert list_contents(pinned.train) == list_contents(named.train)
    assert pinned.train.name(4) == named.train.name(4)


def test_without_a_network_what_was_downloaded_is_read(hub, reporter, monkeypatch, tmp_path):
    commit = publish(hub, dict(FILES))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="not on this machine, and HF_HUB_OFFLINE is set"):
        open_dataset(REF, reporter)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    open_dataset(REF, reporter)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    data = open_dataset(REF, reporter)
    assert list_contents(data.train) == [0, 1, 2, 3, 4, 5]
    assert any(f"main is commit {commit[:7]}" in note for note in reporter.notes)
    snapshot = tmp_path / f"hub/datasets--ann--bugs/snapshots/{commit}"
    (snapshot / "data/test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match="1 of its 3 files are not on this machine.*test-00000"):
        open_dataset(REF, reporter)


def test_a_snapshot_that_others_downloaded_is_read_without_a_network(hub, reporter, monkeypatch):
    from huggingface_hub import snapshot_download

    publish(hub, dict(FILES))
    snapshot_download("ann/bugs", repo_type="dataset")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert list_contents(open_dataset(REF, reporter).test) == [6, 7]
    assert [
        warning for warning in reporter.warnings if "whether these are all is not known" in warning
    ]


def test_a_download_that_breaks_goes_on_where_it_stopped(hub, reporter, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    publish(hub, dict(FILES))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    hub.breaks = [500]
    assert list_contents(open_dataset(REF, reporter).train) == [0, 1, 2, 3, 4, 5]
    ranges = [request for request in hub.requests if "bytes=" in request and "GET" in request]
    assert {request.rpartition(" ")[2] for request in ranges} == {"bytes=500-"}
    assert not caplog.records


@pytest.mark.parametrize(
    ("status", "what"),
    [
        (401, "has no data set 'ann/bugs' that may be read from here.*hf auth login"),
        (403, "is gated.*https://huggingface.co/datasets/ann/bugs.*hf auth login"),
        (404, "has no data set 'ann/bugs'|cannot be downloaded"),
        (422, "cannot be downloaded"),
    ],
)
def test_what_the_hub_refuses_is_one_line_with_what_to_do(status, what, hub, reporter):
    publish(hub, dict(FILES))
    hub.status = status
    with pytest.raises(DataError, match=what) as caught:
        open_dataset(REF, reporter)
    assert len(str(caught.value).splitlines()) == 1


def test_too_many_requests_are_one_line(hub, reporter, monkeypatch):
    publish(hub, dict(FILES))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.status = 429
    with pytest.raises(DataError, match=r"no more requests.*\(429\).*in some minutes"):
        open_dataset(REF, reporter)


def test_what_is_not_there_is_named(hub, reporter):
    publish(hub, dict(FILES))
    with pytest.raises(DataError, match="has no data set 'ann/bags'"):
        open_dataset("hf://datasets/ann/bags", reporter)
    with pytest.raises(DataError, match="has no revision 'v9'"):
        open_dataset(f"{REF}@v9", reporter)
    with pytest.raises(DataError, match="has no configuration 'tiny'"):
        open_dataset(f"{REF}/tiny", reporter)


def test_several_configurations_are_named_and_one_is_chosen(hub, reporter):
    files = {
        "large/train-00000-of-00001.parquet": encode(0, 1),
        "small/train-00000-of-00001.parquet": encode(2, 3),
        "small/test/0000.parquet": encode(4),
    }
    publish(hub, files)
    with pytest.raises(DataError, match=f"the configurations large, small.*{REF}/large"):
        open_dataset(REF, reporter)
    data = open_dataset(f"{REF}/small", reporter)
    assert (list_contents(data.train), list_contents(data.test)) == ([2, 3], [4])
    assert count_downloads(hub) == 2
    assert data.name.endswith("/small")


def test_the_readme_says_which_files_are_which_part(hub, reporter):
    card = """---
configs:
- config_name: plain
  default: true
  data_files:
  - split: train
    path: a/*.parquet
  - split: validation
    path: ["b/x.parquet"]
- config_name: other
  data_files: c/**
---
"""
    files = {
        "README.md": card.encode(),
        "a/1.parquet": encode(0, 1),
        "a/2.parquet": encode(2),
        "b/x.parquet": encode(3),
        "c/d/1.parquet": encode(4, 5),
    }
    publish(hub, files)
    data = open_dataset(REF, reporter)
    assert (list_contents(data.train), list_contents(data.val)) == ([0, 1, 2], [3])
    assert list_contents(open_dataset(f"{REF}/other", reporter).unsplit) == [4, 5]


def publish_splits(hub: Hub, *splits: str) -> None:
    """Put a README with these splits into a repository, and a file of the first two."""
    lines = [f"  - split: {split}\n    path: {split}.parquet" for split in splits]
    card = "\n".join(["---", "configs:", "- data_files:", *lines, "---"])
    files = {f"{split}.parquet": encode(number) for number, split in enumerate(splits[:2])}
    publish(hub, {"README.md": card.encode(), **files})


def test_splits_that_are_no_part_are_left_out_in_a_line_and_not_read_as_one(hub, reporter):
    publish_splits(hub, "train", "extra")
    data = open_dataset(REF, reporter)
    assert list_contents(data.unsplit or data.train) == [0]
    assert [note for note in reporter.notes if note.endswith("test part: extra.")]
    publish_splits(hub, "easy", "hard")
    with pytest.raises(DataError, match="the splits easy, hard, and none of them is called as"):
        open_dataset(REF, reporter)


def test_a_split_without_its_files_is_refused(hub, reporter):
    publish_splits(hub, "train", "test", "validation")
    with pytest.raises(DataError, match="validation.parquet for the split 'validation'.*no such"):
        open_dataset(REF, reporter)


def test_of_a_repository_in_another_form_the_hubs_own_parquet_is_read(hub, reporter):
    publish(hub, {"bugs.py": b"import datasets", "images.zip": b"PK"})
    with pytest.raises(DataError, match=r"but \.py, \.zip, and the hub has no Parquet of it"):
        open_dataset(REF, reporter)
    files = {"default/train/0000.parquet": encode(0, 1), "default/test/0000.parquet": encode(2)}
    commit = publish(hub, files, "refs/convert/parquet")
    data = open_dataset(REF, reporter)
    assert list_contents(data.train) == [0, 1]
    assert data.name == f"{REF}@{commit}"
    publish(hub, {"default/partial-train/0000.parquet": encode(0)}, "refs/convert/parquet")
    with pytest.raises(DataError, match="no more than the first 5 GB"):
        open_dataset(REF, reporter)


def test_a_repository_of_image_files_is_a_folder_of_them(hub, reporter, make_image):
    def draw(number: int) -> bytes:
        file = io.BytesIO()
        make_image(20, 20, number).save(file, "JPEG")
        return file.getvalue()

    publish(hub, {f"train/{name}/{n}.jpg": draw(n) for name in NAMES for n in range(3)})
    data = open_dataset(REF, reporter)
    assert data.train.class_names == ("ant", "bee")
    assert hashlib.sha1(data.train.read_bytes(1)).digest() == hashlib.sha1(draw(1)).digest()


@pytest.mark.parametrize(
    ("ref", "address"),
    [
        ("hf://datasets/a/b", HubAddress("a/b")),
        ("hf://datasets/a/b/", HubAddress("a/b")),
        ("hf://datasets/a/b@v1/c", HubAddress("a/b", "v1", "c")),
        ("hf://datasets/a/b@refs/pr/7/c", HubAddress("a/b", "refs/pr/7", "c")),
        ("hf://datasets/a/b@refs%2Fconvert%2Fparquet", HubAddress("a/b", "refs/convert/parquet")),
    ],
)
def test_addresses_have_a_revision_and_a_configuration(ref: str, address: HubAddress) -> None:
    assert parse_address(ref) == address
    assert parse_address(str(address)) == address


def test_no_room_on_the_disk_is_noticed_before_the_download(hub, reporter, monkeypatch):
    publish(hub, dict(FILES))
    usage: Any = type("Usage", (), {"free": 100})
    monkeypatch.setattr("deitctl.data.readers.hub_client.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"to download, and the disk of .* free.*HF_HUB_CACHE"):
        open_dataset(REF, reporter)
    assert not is_hub("s3://a/b")
    assert Path("hf://datasets/a/b").name == "b"
