"""Images in Parquet files, as the hub has them, are those of the files that were put in."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import pickle
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from deitctl.data import open_file
from deitctl.data.dataset import ImageDataset
from deitctl.data.open import open_dataset
from deitctl.data.range_survey import survey_datasets
from deitctl.data.readers import parquet_images, row_groups
from deitctl.data.readers.parquet import ParquetFile
from deitctl.data.spot_check import require_images
from deitctl.data.stores.block_cache import BlockCache
from deitctl.data.subsets import join, select
from deitctl.data.training_data import Source, open_for_training
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


@pytest.fixture
def no_cache(monkeypatch):
    """Each process decodes, in memory."""
    cache = BlockCache(max_bytes=0)
    monkeypatch.setattr("deitctl.data.readers.parquet_table.get_cache", lambda: cache)


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
    train, val = open_for_training(Source(str(tmp_path / "hub")), reporter=reporter)
    assert [train.read_bytes(n) for n in range(9)] == files[:9]
    assert [val.read_bytes(n) for n in range(3)] == files[9:]
    assert [train.class_names[label] for label in train.labels] == list(NAMES) * 3
    assert train.relative_path(6) == "6.img"
    pq.write_table(pa.table({"x": [1]}), tmp_path / "hub/data/test-00000-of-00001.parquet")
    with pytest.raises(DataError, match="test-00000-of-00001.parquet has the columns 'x'"):
        open_dataset(str(tmp_path / "hub"), reporter)


def note_decoded(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of the row groups that are decoded from now on, in order."""
    decoded = list[int]()
    decode = dataset.images._rows.decode
    monkeypatch.setattr(dataset.images._rows, "decode", lambda n: decoded.append(n) or decode(n))
    return decoded


def test_few_row_groups_are_kept_in_memory_and_each_image_is_right(
    files, tmp_path, reporter, monkeypatch, no_cache
):
    dataset = open_all(write_hub(tmp_path / "t.parquet", files), reporter)
    column = dataset.images._rows
    decoded = note_decoded(dataset, monkeypatch)
    monkeypatch.setattr(row_groups, "CACHE_BYTES", 2 * max(map(len, files)) * 3)
    for index in np.random.default_rng(0).integers(0, 12, 60).tolist():
        assert dataset.read_bytes(index) == files[index]
        assert column._num_bytes == sum(block.nbytes for block in column._blocks.values())
        assert len(column._blocks) == 1 or column._num_bytes <= row_groups.CACHE_BYTES
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


@pytest.mark.parametrize("has_cache", [True, False])
def test_threads_read_the_same(has_cache, files, tmp_path, reporter, monkeypatch, request):
    if not has_cache:
        request.getfixturevalue("no_cache")
    dataset = open_all(write_hub(tmp_path / "t.parquet", files), reporter)
    monkeypatch.setattr(row_groups, "CACHE_BYTES", 1)
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


def test_what_a_dictionary_repeats_is_decoded_in_small_blocks(
    tmp_path, reporter, monkeypatch, no_cache
):
    monkeypatch.setattr(row_groups, "CACHE_BYTES", 10**6)
    monkeypatch.setattr(parquet_images, "BLOCK_BYTES", 10**6)
    table = pa.table({"image": pa.array([bytes(200_000)] * 300), "label": ["a", "b"] * 150})
    pq.write_table(table, tmp_path / "t.parquet", compression="zstd")
    assert (tmp_path / "t.parquet").stat().st_size < 20_000
    dataset = open_all(tmp_path / "t.parquet", reporter)
    before = pa.total_allocated_bytes()
    assert [dataset.num_bytes(n) for n in range(300)] == [200_000] * 300
    assert dataset.read_bytes(299) == bytes(200_000)
    assert pa.total_allocated_bytes() - before < 5 * 10**6


def test_sizes_and_images_in_order_decode_each_row_group_once(
    files, tmp_path, reporter, monkeypatch, no_cache
):
    monkeypatch.setattr(row_groups, "CACHE_BYTES", 1)
    monkeypatch.setattr(parquet_images, "BLOCK_ROWS", 2)
    dataset = open_all(write_hub(tmp_path / "t.parquet", files), reporter)
    decoded = note_decoded(dataset, monkeypatch)
    assert [dataset.read_bytes(n) for n in range(12)] == files
    assert [dataset.num_bytes(n) for n in range(12)] == list(map(len, files))
    assert decoded == [0, 1, 2, 3]


def test_a_quick_look_is_at_the_beginnings_of_few_row_groups(
    files, tmp_path, reporter, monkeypatch
):
    monkeypatch.setattr(parquet_images, "NUM_GROUPS", 2)
    dataset = open_all(write_hub(tmp_path / "t.parquet", files), reporter)
    assert dataset.list_cheap().tolist() == [0, 1, 2, 9, 10, 11]
    decoded = note_decoded(dataset, monkeypatch)
    survey_datasets([dataset])
    require_images(dataset, "", "t", reporter)
    assert sorted(decoded) == [0, 3]
    some = select(dataset, [1, 4, 7, 10])
    assert some.list_cheap().tolist() == [0, 3]
    assert join([some, dataset]).list_cheap().tolist() == [0, 3, 4, 5, 6, 13, 14, 15]


def test_few_files_are_open_at_a_time_and_a_want_of_handles_is_no_damage(
    files, tmp_path, reporter, monkeypatch
):
    for number, file in enumerate(files):
        write_hub(tmp_path / f"train-{number:05}-of-00012.parquet", [file], number)
    monkeypatch.setattr(row_groups, "MAX_OPEN", 2)
    train = open_dataset(str(tmp_path), reporter).train
    for _ in range(2):
        assert [train.read_bytes(n) for n in range(12)] == files
        assert len(train.images._rows._readers) <= 2
    error = OSError(errno.EMFILE, "Too many open files")
    monkeypatch.setattr(open_file.os, "open", Mock(side_effect=error))
    with pytest.raises(OSError, match="Too many open files"):
        open_dataset(str(tmp_path), reporter)


def test_lists_are_not_read_and_of_texts_that_do_not_matter_the_first_rows(
    files, tmp_path, reporter, monkeypatch
):
    in_all, in_first = set(), set()

    read_rows = ParquetFile.read_rows

    def read(file: ParquetFile, columns: Mapping[int, str], *batch_rows: int) -> Any:
        (in_first if batch_rows else in_all).update(columns.values())
        return read_rows(file, columns, *batch_rows)

    monkeypatch.setattr(ParquetFile, "read_rows", read)
    extra = {"embedding": [[0.5] * 8] * 12, "caption": ["x"] * 12, "subset": ["a"] * 12}
    open_all(write_hub(tmp_path / "t.parquet", files, **extra), reporter)
    assert in_all == {"image.path", "label", "subset"}
    assert "subset" in in_first
    assert "embedding" not in in_first


def test_a_column_of_parts_is_found_by_its_values(files, tmp_path, reporter):
    stage = ["train"] * 30 + ["val"] * 6
    path = write_hub(tmp_path / "t.parquet", files * 3, caption=["train"] * 35 + ["x"], stage=stage)
    data = open_dataset(str(path), reporter)
    assert (len(data.train.labels), len(data.val.labels)) == (30, 6)
    assert any("splits by the column 'stage'" in note for note in reporter.notes)


def test_numbers_of_parts_are_named_by_the_metadata(files, tmp_path, reporter):
    features = {
        "label": {"_type": "ClassLabel", "names": ["a", "b", "c"]},
        "stage": {"_type": "ClassLabel", "names": ["train", "validation"]},
    }
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    path = write_hub(tmp_path / "t.parquet", files, stage=[0] * 9 + [1] * 3)
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    data = open_dataset(str(path), reporter)
    assert (len(data.train.labels), len(data.val.labels)) == (9, 3)
    assert data.train.class_names == ("a", "b", "c")


def test_a_split_that_begins_late_is_found(files, tmp_path, reporter):
    files = files * 3
    subset = [""] * 30 + ["test"] * 6
    path = write_hub(tmp_path / "t.parquet", files, subset=subset)
    with pytest.raises(DataError, match="rows without a split"):
        open_dataset(str(path), reporter)
    path = write_hub(tmp_path / "t.parquet", files, is_test=[0] * 30 + [1] * 6)
    assert len(open_dataset(str(path), reporter).test.labels) == 6


def test_lists_of_images_are_refused_in_words(files, tmp_path, reporter):
    images = [[{"bytes": file, "path": "x"}] * 2 for file in files]
    write_hub(tmp_path / "t.parquet", files, image=images)
    with pytest.raises(
        DataError, match="lists of images in its column 'image'; a row is one image"
    ):
        open_all(tmp_path / "t.parquet", reporter)


def test_columns_of_one_name_are_refused_in_words(files, tmp_path, reporter):
    names = ["image", "label", "label"]
    table = pa.table([pa.array(files), pa.array([0] * 12), pa.array([1] * 12)], names)
    pq.write_table(table, tmp_path / "t.parquet")
    with (
        pa.OSFile(str(tmp_path / "t.arrow"), "wb") as file,
        pa.ipc.new_file(file, table.schema) as to,
    ):
        to.write_table(table)
    for name in ("t.parquet", "t.arrow"):
        with pytest.raises(DataError, match=f"{name} has several columns called 'label'"):
            open_all(tmp_path / name, reporter)


def test_the_hubs_usual_form_has_no_line(files, tmp_path, reporter):
    open_all(write_hub(tmp_path / "t.parquet", files), reporter)
    assert reporter.notes == []


def test_a_cache_that_is_of_no_use_is_one_line(files, tmp_path, reporter, monkeypatch):
    monkeypatch.setattr(parquet_images, "CACHE_BYTES", 100)
    write_hub(tmp_path / "t.parquet", files)
    cache = BlockCache(str(tmp_path / "blocks"), 1000)
    monkeypatch.setattr("deitctl.data.readers.parquet_table.get_cache", lambda: cache)
    dataset = open_all(tmp_path / "t.parquet", reporter)
    assert [dataset.read_bytes(n) for n in range(12)] == files
    assert [w for w in reporter.warnings if "--cache-size makes it larger" in w]
    monkeypatch.setattr(parquet_images, "can_write", lambda _: False)
    open_all(tmp_path / "t.parquet", reporter)
    assert [w for w in reporter.warnings if "cannot be written" in w and "--cache-dir" in w]


def test_a_row_group_is_decoded_once_for_all_processes(files, tmp_path, reporter, monkeypatch):
    dataset = open_all(write_hub(tmp_path / "t.parquet", files), reporter)
    copy = pickle.loads(pickle.dumps(dataset))  # another process's
    decoded, decoded_by_copy = note_decoded(dataset, monkeypatch), note_decoded(copy, monkeypatch)
    for index in np.random.default_rng(0).permutation(12).tolist():
        assert dataset.read_bytes(index) == files[index]
        assert copy.read_bytes(index) == files[index]
    assert (sorted(decoded), decoded_by_copy) == ([0, 1, 2, 3], [])
    assert dataset.blocks.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert dataset.num_cached_blocks >= 4


def test_a_damaged_block_of_the_cache_is_written_anew(files, tmp_path, reporter):
    dataset = open_all(write_hub(tmp_path / "t.parquet", files), reporter)
    assert dataset.read_bytes(4) == files[4]
    folder = dataset.images.cache.room.folder
    blocks = [
        block for block in folder.rglob("*") if block.stat().st_size > 1000 and block.is_file()
    ]
    for block in blocks:
        data = bytearray(block.read_bytes())
        data[len(data) // 2] ^= 1
        block.write_bytes(data)
    assert blocks
    assert [dataset.read_bytes(n) for n in range(12)] == files
    copy = pickle.loads(pickle.dumps(dataset))
    assert [copy.read_bytes(n) for n in range(12)] == files


def test_sizes_of_many_images_are_found_once(tmp_path, reporter, monkeypatch):
    monkeypatch.setattr("deitctl.data.readers.image_sizes.MIN_IMAGES", 2)
    images = [bytes(n) for n in range(1, 13)]
    dataset = open_all(write_hub(tmp_path / "t.parquet", images), reporter)
    assert dataset.read_sizes().tolist() == list(range(1, 13))
    again = open_all(tmp_path / "t.parquet", reporter)
    monkeypatch.setattr(again.images._blocks, "find", Mock(side_effect=AssertionError))
    assert again.read_sizes().tolist() == list(range(1, 13))


@pytest.mark.parametrize("bomb", ["images", "text", "rows", "values"])
def test_what_a_dictionary_repeats_without_end_is_one_line(bomb, tmp_path, reporter, monkeypatch):
    monkeypatch.setattr(row_groups, "MIN_LIMIT", 10**6)
    monkeypatch.setattr("deitctl.data.readers.parquet_table.MAX_TEXT", 10**6)
    columns = {
        "image": pa.array([bytes([n % 256]) * 60 for n in range(2000)]),
        "label": ["a", "b"] * 1000,
    }
    code = pa.array([0, 1] * 1000, pa.int32())
    if bomb == "images":
        columns["image"] = pa.DictionaryArray.from_arrays(code, [bytes(10**6), bytes(10**5)])
        columns["note"] = [f"{n * 7919 % 2000:030}" for n in range(2000)]
    elif bomb == "text":
        columns["label"] = pa.DictionaryArray.from_arrays(code, ["x" * 10**6, "y"])
    elif bomb == "rows":
        columns = {"image": pa.nulls(10**6, pa.binary()), "label": pa.array([1] * 10**6)}
    else:
        columns["label"] = pa.array([[7] * 10**6, *[[1]] * 1999], pa.list_(pa.int8()))
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", compression="zstd")
    before = pa.total_allocated_bytes()
    with pytest.raises(DataError, match="too often|gigabytes of text|it claims") as caught:
        open_all(tmp_path / "t.parquet", reporter).read_bytes(1999)
    assert len(str(caught.value).splitlines()) == 1
    assert pa.total_allocated_bytes() - before < 10**8


def test_changed_bytes_are_other_images_or_one_line(files, tmp_path, reporter):
    path = tmp_path / "t.parquet"
    data = write_hub(path, files).read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    random = np.random.default_rng(0)
    for number in range(100):
        changed = bytearray(data)
        for at in random.integers(footer if number % 2 else 0, len(data), 3):
            changed[at] = random.integers(256)
        path.write_bytes(changed if number % 5 else changed[: random.integers(len(data))])
        try:
            dataset = open_all(path, reporter)
        except DataError as error:
            assert len(str(error).splitlines()) == 1
            continue
        for index in range(len(dataset.labels)):
            try:
                dataset.read_bytes(index)
            except DataError as error:
                assert len(str(error).splitlines()) == 1
