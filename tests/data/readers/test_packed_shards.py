"""Packed shards hold their dataset's images in order; damage and changes are detected."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deitctl.data.arrays import StoredArray, StringArray
from deitctl.data.fingerprint import fingerprint_dataset
from deitctl.data.index import Listing
from deitctl.data.loader import build_train_loader
from deitctl.data.open import open_dataset
from deitctl.data.readers.packed_shards import (
    INDEX,
    MAGIC,
    is_packed,
    open_packed,
    write_index,
)
from deitctl.data.samplers import TrainBatches
from deitctl.data.shard_files import Spans
from deitctl.data.training_data import Source, open_for_training
from deitctl.errors import DataChanged, DataError
from deitctl.packing.pack import pack
from deitctl.recipes import RECIPES
from tests.data.stores.web_server import serve

COUNTS = {"train/ant": 5, "train/bee": 4, "val/ant": 1, "val/bee": 2}
SHARD_SIZE = 18_000
"""Of three images each."""


@pytest.fixture
def root(image_folder) -> Path:
    return image_folder(COUNTS)


@pytest.fixture
def packed(root, tmp_path) -> Path:
    """The folder, image by image, in several shards."""
    pack(str(root), str(tmp_path / "x"), shard_size=SHARD_SIZE, workers=0)
    assert len(list((tmp_path / "x").glob("train-*.tar"))) > 2
    return tmp_path / "x"


@pytest.fixture
def tar(root) -> Path:
    path = root.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        archive.add(root, arcname=".")
    return path


def everything(dataset) -> list[tuple[str, bytes]]:
    return [
        (dataset.class_names[label], dataset.read_bytes(i))
        for i, label in enumerate(dataset.labels.tolist())
    ]


def test_a_sample_is_a_label_a_name_and_an_image(packed, root):
    """By the tar's own reader; keys are numbers over all shards, in the order of the data."""
    samples: dict[str, dict[str, bytes]] = {}
    for shard in sorted(packed.glob("*.tar"), key=lambda path: (path.name < "val", path.name)):
        with tarfile.open(shard, "r:") as archive:
            assert {(m.mtime, m.uid, m.mode, m.isreg()) for m in archive} == {(0, 0, 0o644, True)}
            for member in archive:
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, {})[extension] = archive.extractfile(member).read()
    assert sorted(samples) == [f"{number:09}" for number in range(12)]
    files = sorted((root / "train").rglob("*.png")) + sorted((root / "val").rglob("*.png"))
    for (_, sample), file in zip(sorted(samples.items()), files, strict=True):
        assert sample["png"] == file.read_bytes()
        assert sample["cls"] == b"%d" % ["ant", "bee"].index(file.parent.name)
        assert json.loads(sample["json"]) == {"filename": f"{file.parent.name}/{file.name}"}


def test_folder_tar_and_shards_are_the_same_data(root, tar, packed, reporter):
    found = [
        open_for_training(Source(str(path)), reporter=reporter) for path in (root, tar, packed)
    ]
    for part in range(2):
        folder, *others = (pair[part] for pair in found)
        for other in others:
            assert everything(other) == everything(folder)
            assert other.class_names == folder.class_names
            assert other.num_bytes(2) == folder.num_bytes(2) == len(folder.read_bytes(2))
            assert fingerprint_dataset(other, reporter) == fingerprint_dataset(folder, reporter)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_seed_gives_the_same_views_of_folder_tar_and_shards(
    workers, root, tar, packed, reporter
):
    def views(path: Path) -> list[tuple[torch.Tensor, torch.Tensor, list[object]]]:
        dataset, _ = open_for_training(Source(str(path)), reporter=reporter)
        keys = TrainBatches(len(dataset.labels), 4, seed=3, epochs=2, repeats=2)
        augment = RECIPES["small"].augment
        batches = build_train_loader(dataset, augment, 24, keys, workers=workers, pin_memory=False)
        return [(b.images, b.labels, b.keys) for b in batches]

    folder, *others = (views(path) for path in (root, tar, packed))
    assert len(folder) == 6
    for other in others:
        for ours, theirs in zip(other, folder, strict=True):
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])
            assert ours[2] == theirs[2]


def test_unsplit_shards_are_split_as_their_folder(image_folder, tmp_path, reporter):
    root = image_folder({"ant": 10, "bee": 5, "cat": 2})
    pack(str(root), str(tmp_path / "x"), workers=0)
    for seed in (0, 1):
        pairs = [
            open_for_training(Source(str(p), split_seed=seed), reporter=reporter)
            for p in (root, tmp_path / "x")
        ]
        for ours, theirs in zip(*pairs, strict=True):
            assert ours.indices.tolist() == theirs.indices.tolist()
            assert theirs.relative_path(0) == ours.relative_path(0)


def test_names_that_are_not_utf8_and_odd_classes_survive(tmp_path, make_image, reporter):
    folder = os.fsencode(tmp_path) + b"/photos/\xc3\xbc \x1b[2J"
    names = [b"\xff.\xfe.png", b"a\nb.png", b"c" * 251 + b".png"]
    os.makedirs(folder)
    for name in names:
        make_image(8, 8).save(os.fsdecode(folder + b"/" + name))
    pack(str(tmp_path / "photos"), str(tmp_path / "x"), workers=0)
    dataset = open_packed(tmp_path / "x")[""]
    assert {dataset.relative_path(i) for i in range(3)} == {
        os.fsdecode(b"\xc3\xbc \x1b[2J/" + name) for name in names
    }
    assert dataset.class_names == ("ü \x1b[2J",)


def read_one(dataset, index: int) -> tuple[str, tuple[int, int]]:
    return dataset.name(index), dataset.read(index).size


def test_a_spawned_process_opens_the_same_files(packed):
    dataset = open_packed(packed)["train"]
    assert isinstance(dataset.labels, StoredArray)
    assert b"0.png" not in pickle.dumps(dataset)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_one, (dataset, 7)) == read_one(dataset, 7)


def test_open_shards_stay_readable_after_replacement_and_new_readers_fail(packed, root):
    dataset = open_packed(packed)["train"]
    before, sent = everything(dataset), pickle.dumps(dataset)
    (root / "train/ant/0.png").unlink()
    pack(str(root), str(packed), workers=0)
    assert everything(dataset) == before
    with pytest.raises(DataChanged, match="was replaced"):
        pickle.loads(sent)


@pytest.mark.parametrize("what", ["image", "label", "name"])
def test_a_sample_that_was_changed_is_unreadable_and_others_are_not(what, packed):
    dataset = open_packed(packed)["train"]
    before, shard = everything(dataset), packed / "train-000001.tar"
    index = int(np.flatnonzero(dataset.spans.shards == 1)[1])
    end = int(dataset.spans.offsets[index] + dataset.spans.sizes[index])
    start = int(dataset.spans.offsets[index] - dataset.spans.leads[index])
    times = shard.stat()
    with shard.open("r+b") as file:
        file.seek({"image": end - 1, "label": start + 512, "name": start + 1536 + 20}[what])
        file.write(b"7")
    # nobody wrote to it, as far as its times say
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    dataset = open_packed(packed)["train"]
    with pytest.raises(DataError, match=r"\.png is damaged: its bytes do not match"):
        dataset.read(index)
    for other in (index - 1, index + 1):
        assert dataset.read_bytes(other) == before[other][1]


def test_a_copy_on_another_machine_is_as_good(packed, tmp_path):
    """The index goes by sizes: times and inodes of a copy are others."""
    shutil.copytree(packed, tmp_path / "copy", copy_function=shutil.copyfile)
    expected = {name: everything(dataset) for name, dataset in open_packed(packed).items()}
    copied = {name: everything(dataset) for name, dataset in open_packed(tmp_path / "copy").items()}
    assert copied == expected


def cut(folder: Path) -> None:
    os.truncate(folder / "train-000001.tar", 1024)


SHARD_CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (cut, r"train-000001\.tar has 1,024 bytes, and had [\d,]+ when it was packed"),
    "missing": (
        lambda folder: (folder / "val-000000.tar").unlink(),
        r"val-000000\.tar cannot be read: No such file",
    ),
}


@pytest.mark.parametrize("change", SHARD_CHANGES)
def test_shards_that_are_not_as_packed_are_one_line(change, packed, reporter):
    apply, message = SHARD_CHANGES[change]
    apply(packed)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(str(packed), reporter)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).endswith("Copy the folder again, or pack the data again.")


def add_tar(folder: Path) -> None:
    shutil.copy(folder / "val-000000.tar", folder / "val-000001.tar")


def rename_class(folder: Path) -> None:
    info = folder / "_info.json"
    info.write_text(info.read_text().replace('"ant"', '"ape"'))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_tar, r"holds val-000001\.tar, which index\.deitctl does not list"),
        (rename_class, r"_info\.json has other class names than index\.deitctl"),
    ],
)
def test_what_was_changed_after_packing_and_is_not_read_is_one_warning(
    change, message, packed, reporter
):
    open_dataset(str(packed), reporter)
    assert reporter.warnings == []
    change(packed)
    open_dataset(str(packed), reporter)
    (warning,) = reporter.warnings
    assert re.search(message, warning)


def test_a_shard_of_the_same_size_in_place_of_another_is_noticed_at_each_image(packed):
    """Keys are in what is checked."""
    first, second = (packed / f"train-00000{number}.tar" for number in range(2))
    assert first.stat().st_size == second.stat().st_size
    shutil.copy(first, second)
    dataset = open_packed(packed)["train"]
    for index in np.flatnonzero(dataset.spans.shards == 1).tolist():
        with pytest.raises(DataError, match="is damaged"):
            dataset.read_bytes(index)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "line alone": lambda data: data[: len(MAGIC)],
    "half": lambda data: data[: len(data) // 2],
    "all but one": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "another version": lambda data: data.replace(b"shards 1", b"shards 2", 1),
    "zeros": lambda data: data[: len(MAGIC)] + bytes(len(data) - len(MAGIC)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_refused_in_one_line(damage, packed, reporter):
    path = packed / INDEX
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(DataError, match=rf"{INDEX} cannot be used: ") as caught:
        open_dataset(str(packed), reporter)
    assert len(str(caught.value).splitlines()) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_damage_never_changes_an_image(data, packed):
    expected = {name: everything(dataset) for name, dataset in open_packed(packed).items()}
    path = packed / data.draw(st.sampled_from([INDEX, "train-000000.tar", "val-000000.tar"]))
    whole = path.read_bytes()
    made = bytearray(whole)
    for place, value in data.draw(
        st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4)
    ):
        made[int(place * (len(made) - 1))] = value
    path.write_bytes(made)
    try:
        for name, dataset in open_packed(packed).items():
            for index, (label, image) in enumerate(expected[name]):
                assert dataset.class_names[dataset.labels[index]] == label
                try:
                    assert dataset.read_bytes(index) == image
                except DataError as error:
                    assert "is damaged" in str(error)
    except DataError as error:
        assert len(str(error).splitlines()) == 1
    finally:
        path.write_bytes(whole)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_an_index_with_a_forged_checksum_is_validated(data, packed):
    """Numbers that lead outside are not followed: it opens as something sound, or is refused in one line."""
    path = packed / INDEX
    whole = path.read_bytes()
    made, at = bytearray(whole), len(MAGIC)
    for _ in range(data.draw(st.integers(1, 4))):
        made[data.draw(st.integers(at + 4, len(made) - 1))] = data.draw(st.integers(0, 255))
    made[at : at + 4] = zlib.crc32(made[at + 4 :]).to_bytes(4, "little")
    path.write_bytes(made)
    try:
        for dataset in open_packed(packed).values():
            assert len(list(dataset.names)) == len(dataset.labels) > 0
            for index, label in enumerate(dataset.labels):
                assert 0 <= label < len(dataset.class_names)
                try:
                    dataset.read_bytes(index)
                except DataError as error:
                    assert "is damaged" in str(error)
    except DataError as error:
        assert len(str(error).splitlines()) == 1
    finally:
        path.write_bytes(whole)


@pytest.fixture
def write_listing(tmp_path) -> Callable[..., Path]:
    """An index of two images in a shard of 4,096 bytes, with something else in it."""

    def write(
        classes: tuple[str, ...] = ("a", "b"),
        splits: tuple[str, ...] = ("",),
        shard: str = "all-000000.tar",
        **columns: list[int],
    ) -> Path:
        arrays: dict[str, list[int]] = {
            **{"shards": [0, 0], "offsets": [1536, 3072], "sizes": [5, 500]},
            **{"crc32s": [0, 0], "digests": [0, 0], "leads": [1536, 1024]},
        }
        arrays |= columns
        spans = Spans(**{name: np.array(values, np.int64) for name, values in arrays.items()})
        names = StringArray.from_strings(["a/0", "b/1"])
        listing = Listing(names, np.array([0, 1]), classes, spans)
        (tmp_path / "all-000000.tar").write_bytes(bytes(4096))
        with (tmp_path / INDEX).open("wb") as file:
            write_index(
                file,
                dict.fromkeys(splits, listing),
                {name: [(shard, 4096)] for name in splits},
                value_range=None,
                is_rgb=False,
            )
        return tmp_path

    return write


def test_an_index_of_two_images_opens(write_listing):
    dataset = open_packed(write_listing())[""]
    assert [dataset.num_bytes(i) for i in range(2)] == [5, 500]


HOSTILE: dict[str, tuple[dict[str, object], str]] = {
    "image behind the last": ({"sizes": [5, 1025]}, "an image lies outside of its shard"),
    "image that goes round": ({"offsets": [1536, 2**62]}, "an image lies outside of its shard"),
    "image of less than nothing": ({"sizes": [5, -1]}, "has less than no bytes"),
    "lead before the shard": ({"leads": [1537, 0]}, "an image lies outside of its shard"),
    "no such shard": ({"shards": [0, 1]}, "an image lies outside of its shard"),
    "shard elsewhere": ({"shard": "../all-000000.tar"}, "a shard is not in its folder"),
    "absolute shard": ({"shard": "/all-000000.tar"}, "a shard is not in its folder"),
    "doubled class": ({"classes": ("a", "a")}, "two classes with the same name"),
    "whole and part": ({"splits": ("", "train")}, "it has no splits"),
    "unknown part": ({"splits": ("holdout",)}, "it has no splits"),
    "no part": ({"splits": ()}, "it has no splits"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_index_that_contradicts_itself_is_refused(name, write_listing):
    changes, message = HOSTILE[name]
    with pytest.raises(DataError, match=message):
        open_packed(write_listing(**changes))


def test_an_image_larger_than_any_is_not_read(packed, monkeypatch):
    monkeypatch.setattr("deitctl.data.decode.MAX_BYTES", 10)
    with pytest.raises(DataError, match="bytes, more than 10"):
        open_packed(packed)["train"].read_bytes(0)


def test_packed_folders_are_recognized_by_their_index(packed, root):
    assert is_packed(packed)
    assert not is_packed(root)
    assert not is_packed(packed / "train-000000.tar")


def test_a_pack_of_an_earlier_version_is_named(tmp_path, reporter):
    (tmp_path / "folder").mkdir()
    for name in ("old.pack", "old", "folder/old.pack"):
        (tmp_path / name).write_bytes(b"deitctl pack 2\n" + bytes(100))
    for name in ("old.pack", "old", "folder"):
        with pytest.raises(DataError, match="old.* was packed by an earlier version of deitctl"):
            open_dataset(str(tmp_path / name), reporter)


def test_packed_shards_on_a_web_server_are_found_by_their_index(packed, reporter):
    """A server lists no folders; one request for the index, then ranges of samples."""
    expected = {name: everything(dataset) for name, dataset in open_packed(packed).items()}
    with serve() as server:
        server.files = {f"/x/{file.name}": file.read_bytes() for file in packed.iterdir()}
        parts = open_dataset(f"{server.url}/x", reporter).list_parts()
        assert {name: everything(dataset) for name, dataset in parts.items()} == expected
        server.files["/x/val-000000.tar"] += bytes(512)
        with pytest.raises(DataError, match=r"val-000000\.tar has [\d,]+ bytes, and had"):
            open_dataset(f"{server.url}/x", reporter)
