"""A pack holds its dataset's images in order; damage is detected."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from deitctl.data.arrays import StoredArray, StringArray
from deitctl.data.decode import decode, read_plain_ppm
from deitctl.data.fingerprint import fingerprint_dataset
from deitctl.data.index import Listing
from deitctl.data.loader import build_train_loader
from deitctl.data.open import open_dataset
from deitctl.data.readers import pack
from deitctl.data.readers.pack import MAGIC, START, open_pack, write_pack
from deitctl.data.samplers import TrainBatches
from deitctl.data.training_data import Source, open_for_training
from deitctl.errors import DataChanged, DataError
from deitctl.events import SilentReporter
from deitctl.packing.encode import Encoding, compute_digest, encode_images
from deitctl.recipes import RECIPES

COUNTS = {"train/ant": 5, "train/bee": 4, "val/ant": 1, "val/bee": 2}


@pytest.fixture
def root(image_folder) -> Path:
    return image_folder(COUNTS)


def write(path: Path, parts: dict[str, Listing], images: list[bytes]) -> Path:
    with path.open("wb") as file:
        assert write_pack(
            file, parts, ((data, compute_digest(data)) for data in images)
        ) == file.seek(0, 2)
    return path


@pytest.fixture
def packed(root, tmp_path, reporter) -> Path:
    """The folder, image by image."""
    data = open_dataset(str(root), reporter)
    datasets = {"train": data.train, "val": data.val}
    parts = {
        name: Listing(s.paths.with_prefix(""), s.labels, s.class_names)
        for name, s in datasets.items()
    }
    return write(
        tmp_path / "x.pack",
        parts,
        [k.data for k in encode_images([*datasets.values()], Encoding(), 0)],
    )


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


def test_a_pack_is_laid_out_as_its_first_lines_say(tmp_path):
    """By hand: a line, where the index begins, images from byte 64 on, the index at the next multiple of 64."""
    parts = {"": Listing(StringArray.from_strings(["a/0", "b/1"]), np.array([0, 1]), ("a", "b"))}
    data = write(tmp_path / "x.pack", parts, [b"first", b"second image"]).read_bytes()
    assert data[:15] == b"deitctl pack 2\n"
    assert int.from_bytes(data[15:23], "little") == 128  # 64 + 5 + 12 bytes, rounded up
    assert data[64:81] == b"firstsecond image"
    assert int.from_bytes(data[128:132], "little") == zlib.crc32(data[132:])
    dataset = open_pack(tmp_path / "x.pack")[""]
    assert dataset.spans.tolist() == [[64, 5], [69, 12]]
    assert dataset.checksums.tolist() == [zlib.crc32(b"first"), zlib.crc32(b"second image")]
    assert [dataset.name(i) for i in range(2)] == [
        f"{tmp_path}/x.pack:a/0",
        f"{tmp_path}/x.pack:b/1",
    ]


def test_folder_tar_and_pack_are_the_same_data(root, tar, packed, reporter):
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
def test_the_same_seed_gives_the_same_views_of_folder_tar_and_pack(
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


def test_an_unsplit_pack_is_split_as_its_folder(image_folder, tmp_path, reporter):
    root = image_folder({"ant": 10, "bee": 5, "cat": 2})
    dataset = open_dataset(str(root), reporter).unsplit
    parts = {"": Listing(dataset.paths.with_prefix(""), dataset.labels, dataset.class_names)}
    write(tmp_path / "x.pack", parts, [k.data for k in encode_images([dataset], Encoding(), 0)])
    for seed in (0, 1):
        pairs = [
            open_for_training(Source(str(p), split_seed=seed), reporter=reporter)
            for p in (root, tmp_path / "x.pack")
        ]
        for ours, theirs in zip(*pairs, strict=True):
            assert ours.indices.tolist() == theirs.indices.tolist()
            assert theirs.name(0).partition(":")[2] == str(Path(ours.name(0)).relative_to(root))


def test_names_that_are_not_utf8_and_odd_classes_survive(tmp_path):
    names = [os.fsdecode(b"\xff/\xfe.png"), "ü/a\nb.png", "ü/../../etc/passwd"]
    parts = {
        "train": Listing(StringArray.from_strings(names), np.array([0, 1, 1]), ("", "ü\x1b[2J"))
    }
    dataset = open_pack(write(tmp_path / "x.pack", parts, [b"1", b"2", b"3"]))["train"]
    assert [dataset.name(i).removeprefix(f"{tmp_path}/x.pack:train/") for i in range(3)] == names
    assert dataset.class_names == ("", "ü\x1b[2J")


def test_a_class_that_is_not_utf8_is_refused(tmp_path, reporter):
    parts = {"": Listing(StringArray.from_strings(["a/1"]), np.array([0]), ("\ud800",))}
    with pytest.raises(DataError, match="not UTF-8"):
        open_dataset(str(write(tmp_path / "x.pack", parts, [b"1"])), reporter)


def read_one(dataset, index: int) -> tuple[str, tuple[int, int]]:
    return dataset.name(index), dataset.read(index).size


def test_a_spawned_process_opens_the_same_file(packed):
    dataset = open_pack(packed)["train"]
    assert isinstance(dataset.labels, StoredArray)
    assert b"0.png" not in pickle.dumps(dataset)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_one, (dataset, 7)) == read_one(dataset, 7)


def test_open_packs_stay_readable_after_replacement_and_new_readers_fail(packed):
    dataset = open_pack(packed)["train"]
    before, sent = everything(dataset), pickle.dumps(dataset)
    packed.unlink()
    write(
        packed, {"": Listing(StringArray.from_strings(["a/1"]), np.array([0]), ("a",))}, [b"other"]
    )
    assert everything(dataset) == before
    with pytest.raises(DataChanged, match="was replaced"):
        pickle.loads(sent)


def test_a_damaged_image_is_unreadable_and_others_are_not(packed):
    dataset, times = open_pack(packed)["train"], packed.stat()
    before = everything(dataset)
    with packed.open("r+b") as file:
        file.seek(int(dataset.spans[3].sum()) - 1)
        file.write(b"\xff")
    # nobody wrote to it, as far as its times say
    os.utime(packed, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DataError, match=r"3\.png is damaged: its bytes do not match"):
        dataset.read(3)
    assert [dataset.read_bytes(i) for i in (2, 4)] == [before[i][1] for i in (2, 4)]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="Linux counts open files there")
def test_a_pack_that_is_no_longer_used_is_closed(packed):
    def handles() -> int:
        return sum(
            os.path.realpath(f"/proc/self/fd/{fd}") == str(packed)
            for fd in os.listdir("/proc/self/fd")
        )

    dataset = open_pack(packed)["train"]
    assert handles() > 0
    del dataset
    assert handles() == 0


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "line alone": lambda data: data[: len(MAGIC)],
    "start alone": lambda data: data[:START],
    "half": lambda data: data[: len(data) // 2],
    "all but one": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "another version": lambda data: data.replace(b"pack 2", b"pack 3", 1),
    "another program": lambda data: b"PK\3\4" + data,
    "index outside": lambda data: (
        MAGIC + (len(data) + 1).to_bytes(8, "little") + data[len(MAGIC) + 8 :]
    ),
    "index at the end of numbers": lambda data: MAGIC + b"\xff" * 8 + data[len(MAGIC) + 8 :],
    "index at the end": lambda data: (
        MAGIC + len(data).to_bytes(8, "little") + data[len(MAGIC) + 8 :]
    ),
    "index of zeros": lambda data: data[:START] + bytes(len(data) - START),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_packs_are_refused_in_one_line(damage, packed, reporter):
    packed.write_bytes(DAMAGES[damage](packed.read_bytes()))
    with pytest.raises(
        DataError, match=r"is (not a pack|a damaged pack|a pack of another version)"
    ) as caught:
        open_dataset(str(packed), reporter)
    assert len(str(caught.value).splitlines()) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    cut=st.sampled_from([1, 1, 0.9, 0.3]),
)
def test_damage_never_changes_an_image(damage, cut, packed):
    whole = packed.read_bytes()
    expected = {name: everything(dataset) for name, dataset in open_pack(packed).items()}
    data = bytearray(whole)
    for place, value in damage:
        data[int(place * (len(data) - 1))] = value
    packed.write_bytes(data[: int(cut * len(data))])
    try:
        for name, dataset in open_pack(packed).items():
            for index, (label, image) in enumerate(expected[name]):
                assert dataset.class_names[dataset.labels[index]] == label
                try:
                    assert dataset.read_bytes(index) == image
                except DataError as error:
                    assert "is damaged" in str(error)
    except DataError as error:
        assert len(str(error).splitlines()) == 1
    finally:
        packed.write_bytes(whole)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(data=st.data())
def test_an_index_with_a_forged_checksum_is_validated(data, packed):
    """Numbers that lead outside are not followed: it opens as something sound, or is refused in one line."""
    whole = packed.read_bytes()
    made, at = bytearray(whole), int.from_bytes(whole[len(MAGIC) : len(MAGIC) + 8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        made[data.draw(st.integers(at + 4, len(made) - 1))] = data.draw(st.integers(0, 255))
    made[at : at + 4] = zlib.crc32(made[at + 4 :]).to_bytes(4, "little")
    packed.write_bytes(made)
    try:
        for dataset in open_pack(packed).values():
            assert len(list(dataset.names)) == len(dataset.labels) > 0
            for index, label in enumerate(dataset.labels):
                assert 0 <= label < len(dataset.class_names)
                assert dataset.num_bytes(index) <= len(made)
                try:
                    dataset.read_bytes(index)
                except DataError as error:
                    assert "is damaged" in str(error)
    except DataError as error:
        assert len(str(error).splitlines()) == 1
    finally:
        packed.write_bytes(whole)


HOSTILE: dict[str, tuple[str, object]] = {
    "names in no order": ("ends", [0, 3, 2]),
    "label outside": ("labels", [0, 2]),
    "label below": ("labels", [0, -1]),
    "image before the first": ("spans", [[0, 64], [69, 1]]),
    "image behind the last": ("spans", [[64, 5], [69, 500]]),
    "image that goes round": ("spans", [[64, 5], [2**62, 2**62]]),
    "image of less than nothing": ("spans", [[64, 5], [69, -1]]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_inconsistent_arrays_are_refused(name, tmp_path, monkeypatch):
    what, values = HOSTILE[name]
    real = pack.encode_block

    def lying(header, columns, at):
        lies = dict(zip((*pack.LISTING_DTYPES, *pack.CHECKSUM_DTYPES), columns, strict=True))
        lies[what] = (lies[what][0], np.array(values, np.int64))
        return real(header, [*lies.values()], at)

    monkeypatch.setattr(pack, "encode_block", lying)
    parts = {"": Listing(StringArray.from_strings(["a/0", "b/1"]), np.array([0, 1]), ("a", "b"))}
    with pytest.raises(
        DataError, match="damaged pack: (its arrays are inconsistent|an image lies outside)"
    ):
        open_pack(write(tmp_path / "x.pack", parts, [b"first", b"second"]))


@pytest.mark.parametrize(
    ("parts", "classes"),
    [(("",), ("a", "a")), (("", "train"), ("a", "b")), (("holdout",), ("a", "b")), ((), ())],
    ids=["doubled class", "whole and part", "unknown part", "no part"],
)
def test_impossible_splits_and_classes_are_refused(parts, classes, tmp_path):
    listing = Listing(StringArray.from_strings(["a/0", "b/1"]), np.array([0, 1]), classes)
    with pytest.raises(DataError, match="damaged pack: it has"):
        open_pack(
            write(tmp_path / "x.pack", dict.fromkeys(parts, listing), [b"1", b"2"] * len(parts))
        )


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(DataError, match="damaged pack"):
        open_pack(
            write(
                tmp_path / "x.pack",
                {"": Listing(StringArray.from_strings([]), np.empty(0, np.int64), ("a",))},
                [],
            )
        )


def test_an_image_larger_than_any_is_not_read(packed, monkeypatch):
    monkeypatch.setattr("deitctl.data.decode.MAX_BYTES", 10)
    with pytest.raises(DataError, match="bytes, more than 10"):
        open_pack(packed)["train"].read_bytes(0)


@given(width=st.integers(1, 9), height=st.integers(1, 9), seed=st.integers(0, 99))
def test_plain_ppm_reads_as_decoded(width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes()
    found = read_plain_ppm(data)
    assert np.array_equal(np.asarray(found), pixels)
    assert found.tobytes() == decode(data, "x").tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"P6\n",
        b"P6\n0 1\n255\n",
        b"P6\n1 1\n255\nab",
        b"P6\n1 1\n255\nabcd",
        b"P6\n1 1\n65535\nabcdef",
        b"P6\n1 1\n128\nabc",
        b"P6\n#x\n1 1\n255\nabc",
        b"P5\n1 1\n255\na",
        b"P6\n" + b"9" * 5000 + b" 1\n255\n",
        b"P6\n99999 1\n255\n" + bytes(3 * 99999),
    ],
    ids=range(11),
)
def test_other_ppm_is_left_to_the_decoder(data):
    assert read_plain_ppm(data) is None


def test_plain_ppm_has_the_limits_of_all_images(monkeypatch, tmp_path):
    data = b"P6\n20 20\n255\n" + bytes(1200)
    parts = {"": Listing(StringArray.from_strings(["a/0"]), np.array([0]), ("a",))}
    dataset = open_pack(write(tmp_path / "x.pack", parts, [data]))[""]
    assert dataset.read(0).size == (20, 20)
    monkeypatch.setenv("DEITCTL_MAX_PIXELS", "399")
    with pytest.raises(DataError, match="more than 399"):
        dataset.read(0)


def test_packs_are_recognized_by_content_and_pipes_do_not_block(packed, tmp_path):
    os.mkfifo(tmp_path / "pipe.pack")
    assert pack.is_pack(packed)
    for path in (tmp_path / "pipe.pack", tmp_path, tmp_path / "none"):
        assert not pack.is_pack(path)
    with pytest.raises(DataError, match="is a pipe"):
        open_dataset(str(tmp_path / "pipe.pack"), SilentReporter())


def test_images_are_consumed_one_by_one(tmp_path):
    """Nothing but numbers is kept of an image that was written."""
    alive: list[int] = []

    def images():
        for number in range(50):
            alive.append(number)
            yield bytes([number]) * 1000, 1

    parts = {
        "": Listing(
            StringArray.from_strings(f"a/{n}" for n in range(50)), np.zeros(50, np.int64), ("a",)
        )
    }

    class Watching(io.BytesIO):
        written = 0

        def write(self, data) -> int:
            if len(data) == 1000:
                assert alive == list(range(Watching.written + 1))
                Watching.written += 1
            return super().write(data)

    write_pack(Watching(), parts, images())
    assert Watching.written == 50


def test_grey_and_rotated_images_come_out_as_from_their_files(tmp_path, make_image):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    make_image(30, 20).save(buffer, "JPEG", exif=exif)
    parts = {"": Listing(StringArray.from_strings(["a/0.jpg"]), np.array([0]), ("a",))}
    dataset = open_pack(write(tmp_path / "x.pack", parts, [buffer.getvalue()]))[""]
    assert dataset.read(0).size == (20, 30)
