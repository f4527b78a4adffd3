"""Packed shards in other libraries: webdataset, timm's reader and `datasets` find the same images and labels."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deitctl.data.dataset import ImageDataset
from deitctl.data.fingerprint import fingerprint_dataset
from deitctl.data.labels import name_label
from deitctl.data.open import open_dataset
from deitctl.errors import DataError
from deitctl.events import SilentReporter
from deitctl.packing.pack import pack
from deitctl.packing.verify import verify_pack

# webdataset leaves the shards that it has read to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
COUNTS = {"train/ant": 5, "train/bee": 4, "val/ant": 2, "val/bee": 3}


@pytest.fixture
def photos(tmp_path, make_image) -> Path:
    """JPEGs whose names end in `.JPEG`, as ImageNet's do, and have dots."""
    seed = 0
    for folder, count in COUNTS.items():
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for number in range(count):
            seed += 1
            make_image(24, 18, seed).save(tmp_path / "photos" / folder / f"v.{number}.JPEG", "JPEG")
    return tmp_path / "photos"


@pytest.fixture
def several(tmp_path, make_image) -> Path:
    """A table of several labels an image, or none."""
    rows = ["path,labels,split"]
    for number in range(8):
        make_image(24, 18, number).save(tmp_path / f"{number}.png")
        labels = "|".join(name for place, name in enumerate("abc") if (number + 1) >> place & 1)
        rows.append(f"{number}.png,{labels},{'train' if number < 5 else 'val'}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "table.csv"


def open_parts(data: Path) -> dict[str, ImageDataset]:
    return open_dataset(str(data), SilentReporter(), task="auto").list_parts()


def is_same(image: Image.Image, part: ImageDataset, index: int) -> bool:
    return np.array_equal(np.asarray(image.convert("RGB")), np.asarray(part.read(index)))


def test_timm_reads_the_shards(photos, tmp_path):
    pytest.importorskip("webdataset")
    from timm.data import create_dataset

    out = tmp_path / "x"
    pack(str(photos), str(out), shard_size=9000, workers=0)
    for split, part in open_parts(photos).items():
        read = list(create_dataset("wds/", root=str(out), split=split, is_training=False))
        assert len(read) == len(part.labels)
        for index, (image, label) in enumerate(read):
            assert is_same(image, part, index)
            assert label == part.labels[index]


def test_webdataset_reads_the_shards(photos, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    out = tmp_path / "x"
    pack(str(photos), str(out), shard_size=9000, workers=0)
    info = json.loads((out / "_info.json").read_text())
    for split, part in open_parts(photos).items():
        shards = [str(out / name) for name in info["splits"][split]["filenames"]]
        samples = webdataset.WebDataset(shards, shardshuffle=False).decode("pil")
        read = list(samples.to_tuple("jpg;png", "cls", "json"))
        assert len(read) == len(part.labels) == info["splits"][split]["num_samples"]
        for index, (image, label, record) in enumerate(read):
            assert is_same(image, part, index)
            assert info["class_names"][label] == name_label(part, index)[0]
            assert record["filename"] == part.relative_path(index)


def test_timm_reads_several_labels_an_image(several, tmp_path):
    pytest.importorskip("webdataset")
    from timm.data import create_dataset

    pack(str(several), str(tmp_path / "x"), task="multilabel", workers=0)
    read = list(create_dataset("wds/", root=str(tmp_path / "x"), split="train", is_training=False))
    assert [labels for _, labels in read] == [[0], [1], [0, 1], [2], [0, 2]]


def test_datasets_reads_parquet_files_as_images_and_class_labels(photos, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    out = tmp_path / "x"
    assert pack(str(photos), str(out), to="parquet", workers=0).num_shards == 2
    read = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    for split, part in open_parts(photos).items():
        rows = read["validation" if split == "val" else split]
        assert rows.features["label"].names == ["ant", "bee"]
        assert isinstance(rows.features["image"], datasets.Image)
        for index, row in enumerate(rows):
            assert is_same(row["image"], part, index)
            assert row["label"] == part.labels[index]


@pytest.mark.parametrize("to", ["wds", "parquet"])
def test_datasets_reads_unsplit_images_and_not_what_is_beside_them(
    to, photos, tmp_path, monkeypatch
):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    out = tmp_path / "x"
    pack(str(photos / "train"), str(out), to=to, workers=0)
    read = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    (part,) = open_parts(photos / "train").values()
    assert list(read) == ["train"]
    assert [row["label" if to == "parquet" else "cls"] for row in read["train"]] == list(
        part.labels
    )


@pytest.mark.parametrize("data", ["photos", "several"])
def test_parquet_files_are_the_same_data(data, request, tmp_path):
    source, out = request.getfixturevalue(data), tmp_path / "x"
    task = "multilabel" if data == "several" else "auto"
    pack(str(source), str(out), to="parquet", shard_size=2500, task=task, workers=0)
    names = [file.name for file in sorted((out / "data").iterdir())]
    assert names[0].startswith("train-00000-of-0000")
    assert names[-1].startswith("validation-")
    packed = open_parts(out)
    opened = open_dataset(str(source), SilentReporter(), task=task).list_parts()
    for split, part in opened.items():
        for index in range(len(part.labels)):
            assert packed[split].read_bytes(index) == part.read_bytes(index)
        ours, theirs = (fingerprint_dataset(d, SilentReporter()) for d in (packed[split], part))
        assert ours == theirs
    assert verify_pack(str(source), str(out)).num_different == 0


@pytest.mark.parametrize("to", ["wds", "parquet"])
def test_an_own_folder_is_replaced_by_the_other_form(to, photos, tmp_path):
    out = tmp_path / "x"
    pack(str(photos), str(out), to="parquet" if to == "wds" else "wds", workers=0)
    pack(str(photos), str(out), to=to, workers=0)
    names = {file.suffix for file in out.rglob("*") if file.is_file()}
    assert names == {"wds": {".tar", ".json", ".deitctl"}, "parquet": {".parquet", ".json"}}[to]


def test_shuffled_shards_have_the_order_of_the_data_in_their_index(photos, tmp_path):
    """Streaming readers get mixed classes, and views, splits and teacher targets stay as they are."""
    out = tmp_path / "x"
    pack(str(photos), str(out), shuffle=True, workers=0)
    source, packed = open_parts(photos), open_parts(out)
    assert verify_pack(str(photos), str(out)).num_different == 0
    for split, part in source.items():
        assert packed[split].labels.tolist() == part.labels.tolist()
        assert not np.array_equal(
            np.argsort(packed[split].spans.offsets), np.arange(len(part.labels))
        )
    os.unlink(out / "index.deitctl")
    assert open_parts(out)["train"].labels.tolist() != source["train"].labels.tolist()


@pytest.mark.parametrize("shuffle", [False, True])
def test_without_the_index_the_shards_say_the_same(shuffle, photos, tmp_path):
    pack(str(photos), str(tmp_path / "x"), shard_size=9000, shuffle=shuffle, workers=0)
    indexed = open_parts(tmp_path / "x")
    os.unlink(tmp_path / "x" / "index.deitctl")
    for split, part in open_parts(tmp_path / "x").items():
        images = {
            (d.relative_path(i), name_label(d, i), d.read_bytes(i))
            for d in (part, indexed[split])
            for i in range(len(d.labels))
        }
        assert len(images) == len(part.labels) == len(indexed[split].labels)
        assert part.class_names == indexed[split].class_names


@pytest.mark.parametrize("to", ["wds", "parquet"])
def test_names_that_are_not_utf8_are_no_difference(to, photos, tmp_path):
    folder = os.fsencode(photos / "train" / "ant")
    for number, name in enumerate((b"\xff.JPEG", b"\xfe.JPEG")):  # which are two names in any form
        os.rename(photos / f"train/ant/v.{number}.JPEG", os.fsdecode(folder + b"/" + name))
    pack(str(photos), str(tmp_path / "x"), to=to, workers=0)
    assert verify_pack(str(photos), str(tmp_path / "x")).examples == ()


def test_without_the_index_a_shard_of_another_size_is_one_line(photos, tmp_path):
    pack(str(photos), str(tmp_path / "x"), workers=0)
    os.unlink(tmp_path / "x" / "index.deitctl")
    with (tmp_path / "x" / "val-000000.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(DataError, match=r"has [\d,]+ bytes, and _info\.json beside it says"):
        open_parts(tmp_path / "x")
