"""Images in Arrow files, as `datasets` saves them, are those of the files that were put in."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deitctl.data.dataset import ImageDataset
from deitctl.data.fingerprint import fingerprint_dataset
from deitctl.data.open import open_dataset
from deitctl.errors import DataChanged, DataError

pa = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")

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


def build_table(files: list[bytes], **columns: Any) -> Any:
    images = [{"bytes": file, "path": f"{n}.img"} for n, file in enumerate(files)]
    table = pa.table({"image": images, "label": [n % 3 for n in range(len(files))]} | columns)
    return table.replace_schema_metadata(METADATA)


def write(path: Path, table: Any, *, form: str = "stream", **options: Any) -> Path:
    """Write a table as `datasets` does, five rows in a batch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
    with new(str(path), table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=5)
    return path


def open_all(path: Path, reporter: Any) -> ImageDataset:
    dataset = open_dataset(str(path), reporter).unsplit
    assert dataset is not None
    return dataset


def list_labels(dataset: ImageDataset) -> list[str]:
    return [dataset.class_names[label] for label in dataset.labels]


@pytest.mark.parametrize("form", ["stream", "file"])
def test_an_arrow_file_has_its_images_names_sizes_and_classes(form, files, tmp_path, reporter):
    dataset = open_all(write(tmp_path / "t.arrow", build_table(files), form=form), reporter)
    assert [dataset.read_bytes(n) for n in range(12)] == files
    assert [dataset.num_bytes(n) for n in range(12)] == list(map(len, files))
    assert list_labels(dataset) == list(NAMES) * 4
    assert dataset.relative_path(7) == "7.img"
    assert dataset.blocks is None
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.read_bytes(11) == files[11]


def test_a_data_set_that_datasets_saved_is_read_with_its_parts(files, tmp_path, reporter):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(decode=False),
        label=datasets.ClassLabel(names=list(NAMES)),
        note=datasets.Value("string"),
        boxes=datasets.Sequence(datasets.Value("float32")),
    )
    images = [{"bytes": file, "path": f"{n}.img"} for n, file in enumerate(files)]
    columns = {"note": ["x"] * 12, "boxes": [[1.0] * (n % 3) for n in range(12)]}
    rows = {"image": images, "label": [n % 3 for n in range(12)]} | columns
    saved = datasets.Dataset.from_dict(rows, features=features)
    parts = {"train": saved.select(range(9)), "validation": saved.select(range(9, 12))}
    datasets.DatasetDict(parts).save_to_disk(
        tmp_path / "saved", num_shards={"train": 2, "validation": 1}
    )
    write(tmp_path / "saved/train/cache-0123.arrow", build_table(files))
    data = open_dataset(str(tmp_path / "saved"), reporter)
    assert [data.train.read_bytes(n) for n in range(9)] == files[:9]
    assert [data.val.read_bytes(n) for n in range(3)] == files[9:]
    assert list_labels(data.train) == list(NAMES) * 3


def test_classes_are_those_of_the_saved_info_where_the_schema_has_none(files, tmp_path, reporter):
    write(tmp_path / "data.arrow", build_table(files).replace_schema_metadata(None))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    assert list_labels(open_all(tmp_path, reporter)) == list(NAMES) * 4


@pytest.mark.parametrize(
    "kind", ["binary", "large_binary", "dictionary of another column", "nested lists"]
)
def test_columns_of_other_types_beside_the_images_are_passed_by(kind, files, tmp_path, reporter):
    columns: dict[str, Any] = {"species": list(NAMES) * 4}
    columns["a"] = pa.array([[{"x": [1, 2]}]] * 12) if kind == "nested lists" else pa.nulls(12)
    if kind.startswith("dictionary"):
        columns["b"] = pa.array(["x", "y"] * 6).dictionary_encode()
    columns["pixels"] = pa.array(files, pa.large_binary() if "large" in kind else pa.binary())
    dataset = open_all(write(tmp_path / "t.arrow", pa.table(columns)), reporter)
    assert [dataset.read_bytes(n) for n in range(12)] == files
    assert list_labels(dataset) == list(NAMES) * 4


def test_a_row_without_bytes_is_an_unreadable_image(files, tmp_path, reporter):
    images = [{"bytes": file, "path": f"{n}"} for n, file in enumerate(files)]
    images[4]["bytes"] = None
    images[7] = None
    dataset = open_all(write(tmp_path / "t.arrow", build_table(files, image=images)), reporter)
    for index in (4, 7):
        assert dataset.num_bytes(index) == 0
        with pytest.raises(DataError, match="has no bytes"):
            dataset.read_bytes(index)
    assert dataset.read_bytes(5) == files[5]


def test_the_fingerprint_is_that_of_parquet_and_of_a_folder(files, tmp_path, reporter):
    table = build_table(files)
    write(tmp_path / "t.arrow", table)
    pa.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=3)
    for number, file in enumerate(files):
        path = tmp_path / "folder" / NAMES[number % 3] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file)
    order = np.argsort([f"{NAMES[n % 3]}/{n}.jpg" for n in range(12)])
    images = [{"bytes": files[n], "path": f"{n}.jpg"} for n in order]
    labels = [int(n) % 3 for n in order]
    sorted_table = build_table(files, image=images, label=labels)
    write(tmp_path / "sorted.arrow", sorted_table)
    one, other = (
        fingerprint_dataset(open_all(tmp_path / f"t{s}", reporter), reporter)
        for s in (".arrow", ".parquet")
    )
    assert one == other
    one, other = (
        fingerprint_dataset(open_all(tmp_path / p, reporter), reporter)
        for p in ("sorted.arrow", "folder")
    )
    assert one == other


def test_classes_may_be_coded_by_a_dictionary(files, tmp_path, reporter):
    table = build_table(files, label=pa.array(list(NAMES) * 4).dictionary_encode())
    for form in ("stream", "file"):
        dataset = open_all(write(tmp_path / "t.arrow", table, form=form), reporter)
        assert list_labels(dataset) == list(NAMES) * 4
        assert dataset.read_bytes(7) == files[7]


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_compressed_file_is_refused_with_a_way_on(compression, files, tmp_path, reporter):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    write(tmp_path / "t.arrow", build_table(files), options=options)
    with pytest.raises(DataError, match="is compressed, which is not read.*to_parquet"):
        open_all(tmp_path / "t.arrow", reporter)


def test_a_file_that_is_cut_is_one_line_wherever_it_is_cut(files, tmp_path, reporter):
    for form in ("stream", "file"):
        data = write(tmp_path / "t.arrow", build_table(files), form=form).read_bytes()
        for size in np.linspace(0, len(data) - 9, 60).astype(int).tolist():
            (tmp_path / "t.arrow").write_bytes(data[:size])
            try:
                dataset = open_all(tmp_path / "t.arrow", reporter)
            except DataError as error:
                assert len(str(error).splitlines()) == 1
            else:  # between two batches
                count = len(dataset.labels)
                assert [dataset.read_bytes(n) for n in range(count)] == files[:count]


def test_changed_bytes_are_other_images_or_one_line(files, tmp_path, reporter):
    data = write(tmp_path / "t.arrow", build_table(files)).read_bytes()
    random = np.random.default_rng(0)
    for _ in range(150):
        changed = bytearray(data)
        for at in random.integers(0, len(data), 3):
            changed[at] = random.integers(256)
        # the headers more often than the images
        changed[random.integers(0, 1500)] = random.integers(256)
        (tmp_path / "t.arrow").write_bytes(changed)
        try:
            dataset = open_all(tmp_path / "t.arrow", reporter)
            for index in range(len(dataset.labels)):
                dataset.read_bytes(index)
        except DataError as error:
            assert len(str(error).splitlines()) == 1


def test_a_file_that_is_replaced_in_use_is_noticed(files, tmp_path, reporter):
    path = write(tmp_path / "t.arrow", build_table(files))
    dataset = open_all(path, reporter)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataChanged):
        dataset.read_bytes(0)
