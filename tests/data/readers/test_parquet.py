"""Images in Parquet files, as the hub has them, are those of the files that were put in."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deitctl.data.dataset import ImageDataset
from deitctl.data.open import open_dataset, open_for_training
from deitctl.data.readers import parquet_images
from deitctl.errors import DataChanged, DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = ("bee", "ant", "wasp")
FEATURES = {"image": {"_type": "Image"}, "label": {"names": list(NAMES), "_type": "ClassLabel"}}
METADATA = {"huggingface": json.dumps({"info": {"features": FEATURES}})}


@pytest.fixture(scope="module")
def files(make_image) -> list[bytes]:
    """Twelve images, half of them JPEGs."""
    files = []
    for number in range(12):
        buffer = io.BytesIO()
        make_image(40 + number, 30, number).save(buffer, "JPEG" if number % 2 else "PNG")
        files.append(buffer.getvalue())
    return files


def write_hub(path: Path, files: list[bytes], start: int = 0, **changes: Any) -> Path:
    """Write images as `datasets` does, three in a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "image": [{"bytes": f, "path": f"{start + n}.img"} for n, f in enumerate(files)],
        "label": [(start + n) % 3 for n in range(len(files))],
    }
    table = pa.table(columns | changes).replace_schema_metadata(METADATA)
    pq.write_table(table, path, row_group_size=3)
    return path


def open_all(path: Path, reporter: Any) -> ImageDataset:
    dataset = open_dataset(str(path), reporter).unsplit
    assert dataset is not None
    return dataset


def list_labels(dataset: ImageDataset) -> list[str]:
    return [dataset.class_names[label] for label in dataset.labels]


def test_the_hubs_form_has_its_images_names_and_classes(files, tmp_path, reporter):
    dataset = open_all(write_hub(tmp_path / "t.parquet", files), reporter)
    assert [dataset.read_bytes(n) for n in range(12)] == files
    assert [dataset.num_bytes(n) for n in range(12)] == list(map(len, files))
    assert list_labels(dataset) == list(NAMES) * 4
    assert dataset.class_names == ("ant", "bee", "wasp")
    assert dataset.relative_path(7) == "7.img"
    assert dataset.name(7) == f"{tmp_path}/t.parquet:7.img"
    assert dataset.read(4).size == (44, 30)


@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view"])
def test_a_column_of_bytes_and_texts_is_read_too(kind, files, tmp_path, reporter):
    columns: Mapping[str, Any] = {
        "species": list(NAMES) * 4,
        "pixels": pa.array(files, getattr(pa, kind)()),
        "split": ["train"] * 9 + ["valid"] * 3,
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    data = open_dataset(str(tmp_path / "t.parquet"), reporter)
    assert [data.train.read_bytes(n) for n in range(9)] == files[:9]
    assert [data.val.read_bytes(n) for n in range(3)] == files[9:]
    assert list_labels(data.val) == list(NAMES)
    assert len({data.train.relative_path(n) for n in range(9)}) == 9


def test_names_that_two_images_share_are_not_used(files, tmp_path, reporter):
    images = [{"bytes": f, "path": "image.jpg"} for f in files]
    dataset = open_all(write_hub(tmp_path / "t.parquet", files, image=images), reporter)
    assert [dataset.relative_path(n) for n in range(12)] == [f"t/{n}" for n in range(12)]


def test_structs_of_bytes_alone_are_images_without_names(files, tmp_path, reporter):
    images = [{"bytes": file} for file in files]
    dataset = open_all(write_hub(tmp_path / "t.parquet", files, image=images), reporter)
    assert [dataset.read_bytes(n) for n in range(12)] == files
    assert dataset.relative_path(3) == "t/3"


def test_a_row_without_bytes_is_an_unreadable_image(files, tmp_path, reporter):
    images = [{"bytes": f if n != 4 else None, "path": f"{n}"} for n, f in enumerate(files)]
    dataset = open_all(write_hub(tmp_path / "t.parquet", files, image=images), reporter)
    assert dataset.num_bytes(4) == 0
    with pytest.raises(DataError, match=r"t.parquet:4 has no bytes"):
        dataset.read_bytes(4)
    assert dataset.read_bytes(5) == files[5]


def test_paths_without_bytes_are_a_table_of_paths(files, tmp_path, reporter):
    for number, file in enumerate(files):
        (tmp_path / f"{number}.img").write_bytes(file)
    images = [{"bytes": None, "path": f"{n}.img"} for n in range(12)]
    dataset = open_all(write_hub(tmp_path / "t.parquet", files, image=images), reporter)
    assert [dataset.read_bytes(n) for n in range(12)] == files
    assert list_labels(dataset) == list(NAMES) * 4


@pytest.mark.parametrize("label", [3, None, -1])
def test_a_label_without_a_class_is_refused(label, files, tmp_path, reporter):
    labels = [0] * 11 + [label]
    path = write_hub(tmp_path / "t.parquet", files, label=labels)
    with pytest.raises(DataError, match="label 3, and names 3 classes|row 12 has no 'label'"):
        open_all(path, reporter)


def test_a_file_without_classes_is_refused_with_its_columns(files, tmp_path, reporter):
    pq.write_table(pa.table({"image": files, "caption": ["x"] * 12}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="the columns 'image', 'caption'.*classes"):
        open_all(tmp_path / "t.parquet", reporter)


def test_a_folder_of_the_hubs_files_is_a_data_set(files, tmp_path, reporter):
    write_hub(tmp_path / "hub/data/train-00000-of-00002.parquet", files[:5])
    write_hub(tmp_path / "hub/data/train-00001-of-00002.parquet", files[5:9], 5)
    write_hub(tmp_path / "hub/data/validation-00000-of-00001.parquet", files[9:], 9)
    train, val = open_for_training(str(tmp_path / "hub"), seed=0, reporter=reporter)
    assert [train.read_bytes(n) for n in range(9)] == files[:9]
    assert [val.read_bytes(n) for n in range(3)] == files[9:]
    assert [train.class_names[label] for label in train.labels] == list(NAMES) * 3
    assert train.relative_path(6) == "6.img"
    pq.write_table(pa.table({"x": [1]}), tmp_path / "hub/data/test-00000-of-00001.parquet")
    with pytest.raises(DataError, match="test-00000-of-00001.parquet has the columns 'x'"):
        open_dataset(str(tmp_path / "hub"), reporter)


def test_few_row_groups_are_kept_and_each_image_is_right(files, tmp_path, reporter, monkeypatch):
    dataset = open_all(write_hub(tmp_path / "t.parquet", files), reporter)
    column = dataset.images
    decoded = []
    decode = column._decode
    monkeypatch.setattr(column, "_decode", lambda n: decoded.append(n) or decode(n))
    monkeypatch.setattr(parquet_images, "CACHE_BYTES", 2 * max(map(len, files)) * 3)
    for index in np.random.default_rng(0).integers(0, 12, 60).tolist():
        assert dataset.read_bytes(index) == files[index]
        assert column._num_bytes == sum(block.nbytes for block in column._blocks.values())
        assert len(column._blocks) == 1 or column._num_bytes <= parquet_images.CACHE_BYTES
    decoded.clear()
    for index in range(12):
        dataset.read_bytes(index)
    assert len(decoded) <= 4


def read_last(dataset: ImageDataset, results: Any) -> None:
    results.put(dataset.read_bytes(11))


def test_a_forked_process_reads_the_same_while_a_thread_of_its_parent_reads(
    files, tmp_path, reporter
):
    dataset = open_all(write_hub(tmp_path / "t.parquet", files), reporter)
    assert dataset.read_bytes(0) == files[0]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=read_last, args=(dataset, results))
    with dataset.images._get_lock():
        process.start()
    assert results.get(timeout=30) == files[11]
    process.join()


def test_a_copy_for_another_process_reads_the_same(files, tmp_path, reporter):
    dataset = open_all(write_hub(tmp_path / "t.parquet", files), reporter)
    dataset.read_bytes(0)
    data = pickle.dumps(dataset)
    assert len(data) < 4000
    assert [pickle.loads(data).read_bytes(n) for n in range(12)] == files


def test_threads_read_the_same(files, tmp_path, reporter, monkeypatch):
    dataset = open_all(write_hub(tmp_path / "t.parquet", files), reporter)
    monkeypatch.setattr(parquet_images, "CACHE_BYTES", 1)
    found: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: dataset.read_bytes(n)}))
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(12)] == files


def test_a_file_that_is_replaced_in_use_is_noticed(files, tmp_path, reporter):
    path = write_hub(tmp_path / "t.parquet", files)
    dataset = open_all(path, reporter)
    copy = pickle.loads(pickle.dumps(dataset))
    path.write_bytes(path.read_bytes()[:-1])
    for opened in (dataset, copy):
        with pytest.raises(DataChanged):
            opened.read_bytes(0)


def test_damaged_images_are_unreadable_and_the_others_are_not(files, tmp_path, reporter):
    path = tmp_path / "t.parquet"
    table = pq.read_table(write_hub(path, files))
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    pq.write_table(table, path, row_group_size=3, **options)
    data = bytearray(path.read_bytes())
    at = data.index(files[4])
    data[at - 8 : at] = b"\xff" * 8  # its length
    path.write_bytes(data)
    dataset = open_all(path, reporter)
    for index in (3, 4, 5):
        with pytest.raises(DataError) as caught:
            dataset.read_bytes(index)
        assert len(str(caught.value).splitlines()) == 1
        assert dataset.num_bytes(index) == 0
    for index in (0, 2, 6, 11):
        assert dataset.read_bytes(index) == files[index]


def test_a_large_file_is_advised_to_be_packed(files, tmp_path, reporter, monkeypatch):
    monkeypatch.setattr("deitctl.data.readers.parquet_table.CACHE_BYTES", 100)
    open_all(write_hub(tmp_path / "t.parquet", files), reporter)
    assert any("deitctl pack" in note for note in reporter.notes)
