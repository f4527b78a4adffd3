"""An index gives what a new scan gives, and is ignored when stale or damaged."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deitctl.data import index
from deitctl.data.arrays import StoredArray
from deitctl.data.fingerprint import fingerprint_dataset
from deitctl.data.open import open_dataset
from deitctl.data.readers import folder as scan
from deitctl.data.readers import tar as tars
from deitctl.data.readers.folder import open_folder
from deitctl.data.training_data import Source, open_for_training
from deitctl.errors import DataChanged, DataError
from deitctl.events import SilentReporter

REST = 0.03
COUNTS = {"ant": 3, "bee/2020/june": 2, "cow": 0, "dog": 1}


@pytest.fixture(autouse=True)
def _few_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index for any number of images, after a rest of less than two seconds."""
    monkeypatch.setattr(index, "MIN_IMAGES", 1)
    monkeypatch.setattr(index, "MIN_AGE_NS", int(REST * 1e9 * 2 / 3))


@pytest.fixture
def root(image_folder) -> Path:
    folder = image_folder(COUNTS)
    time.sleep(REST)
    return folder


def content(dataset) -> tuple[list[str], list[int], tuple[str, ...]]:
    return (
        [dataset.name(i) for i in range(len(dataset.labels))],
        dataset.labels.tolist(),
        dataset.class_names,
    )


@pytest.fixture
def scans(monkeypatch) -> Callable[[], int]:
    """How often something was listed since the last call."""
    counted = [0]
    for module, name in ((scan, "_scan"), (tars, "scan_shards")):
        real = getattr(module, name)

        def listing(*args, real=real):
            counted[0] += 1
            return real(*args)

        monkeypatch.setattr(module, name, listing)

    def taken() -> int:
        number, counted[0] = counted[0], 0
        return number

    return taken


def fresh(root: Path, reporter) -> tuple[list[str], list[int], tuple[str, ...]]:
    """What a scan without an index gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEITCTL_CACHE", str(root.parent / f"none-{time.time_ns()}"))
        return content(open_folder(root, reporter))


def test_the_second_start_lists_no_directory(root, reporter, scans, monkeypatch):
    first = open_folder(root, reporter)
    assert scans() == 1
    warned, reporter.warnings[:] = reporter.warnings[:], []
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", None)
        second = open_folder(root, reporter)
    assert scans() == 0
    assert content(second) == content(first)
    assert reporter.warnings == warned
    assert "'cow'" in warned[0]
    assert second.read(0).size == (24, 18)


def test_names_are_those_that_the_folder_is_called_by(root, reporter, monkeypatch, scans):
    monkeypatch.chdir(root.parent)
    before = {ref: fresh(Path(ref), SilentReporter()) for ref in ("images", str(root))}
    open_folder(root, reporter), scans()
    for ref, expected in before.items():
        assert content(open_folder(Path(ref), reporter)) == expected
    monkeypatch.chdir(root)
    assert open_folder(Path("."), reporter).name(0) == "ant/0.png"
    (root.parent / "link").symlink_to(root)
    assert open_folder(root.parent / "link", reporter).name(0) == f"{root.parent}/link/ant/0.png"
    assert scans() == 0


def test_what_was_passed_over_is_said_at_every_start(root, reporter, scans):
    (root / "ant" / "a.jxl").write_bytes(b"x")
    time.sleep(REST)
    for _ in range(2):
        open_dataset(str(root), reporter)
    assert scans() == 1
    said = [warning for warning in reporter.warnings if "1 file is not read: 1 .jxl" in warning]
    assert len(said) == 2


def test_a_decoder_that_was_installed_makes_an_index_stale(root, reporter, scans, monkeypatch):
    open_folder(root, reporter), scans()
    open_folder(root, reporter)
    assert scans() == 0
    monkeypatch.setattr(index, "get_extensions", lambda: frozenset((".png", ".new")))
    open_folder(root, reporter)
    assert scans() == 1


def test_small_datasets_are_not_indexed(root, reporter, monkeypatch):
    monkeypatch.setattr(index, "MIN_IMAGES", 7)
    open_folder(root, reporter)
    assert not index.get_index_path(root).exists()


def new_image(root: Path, place: str) -> None:
    shutil.copyfile(root / "ant" / "0.png", root / place)


def swap_link(root: Path) -> None:
    (root / "eel").unlink()
    (root / "eel").symlink_to(root.parent / "second", target_is_directory=True)


def restore_mtime(root: Path) -> None:
    status = os.stat(root / "ant")
    new_image(root, "ant/9.png")
    os.utime(root / "ant", ns=(status.st_atime_ns, status.st_mtime_ns))


def mount(root: Path) -> None:
    (root.parent / "disk").mkdir()
    new_image(root, "../disk/1.png")


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda root: new_image(root, "ant/9.png"),
    "removed": lambda root: (root / "ant" / "1.png").unlink(),
    "renamed": lambda root: (root / "ant" / "1.png").rename(root / "ant" / "9.png"),
    "moved": lambda root: (root / "ant" / "1.png").rename(root / "dog" / "1.png"),
    "added class": lambda root: shutil.copytree(root / "ant", root / "fox"),
    "removed class": lambda root: shutil.rmtree(root / "ant"),
    "renamed class": lambda root: (root / "ant").rename(root / "yak"),
    "emptied class": lambda root: (root / "dog" / "0.png").unlink(),
    "filled class": lambda root: new_image(root, "cow/0.png"),
    "added in a subfolder": lambda root: new_image(root, "bee/2020/june/9.png"),
    "added between": lambda root: new_image(root, "bee/2020/9.png"),
    "added subfolder": lambda root: shutil.copytree(root / "ant", root / "bee" / "more"),
    "linked folder": lambda root: (root / "ant" / "more").symlink_to(root / "dog"),
    "other target of a link": swap_link,
    "added where a link leads": lambda root: new_image(root, "../first/9.png"),
    "mounted where a link led nowhere": mount,
    "added and the time put back": restore_mtime,
    "finished what was no image": lambda root: shutil.copyfile(
        root / "ant" / "0.png", root / "dog" / "scan"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_is_listed_again(change, image_folder, root, reporter, scans):
    image_folder({"first": 1, "second": 2}, ".")
    (root / "eel").symlink_to(root.parent / "first", target_is_directory=True)
    (root / "dog" / "later").symlink_to(root.parent / "disk", target_is_directory=True)
    (root / "dog" / "scan").touch()
    time.sleep(REST)
    before = content(open_folder(root, reporter))
    assert (scans(), index.get_index_path(root).exists()) == (1, True)
    CHANGES[change](root)
    after = content(open_folder(root, reporter))
    assert scans() == 1
    assert after != before
    assert after == fresh(root, reporter)
    time.sleep(REST)
    open_folder(root, reporter), scans()
    assert content(open_folder(root, reporter)) == after  # the new index
    assert scans() == 0


def test_a_changed_image_changes_no_list(root, reporter, scans):
    open_folder(root, reporter)
    (root / "ant" / "0.png").write_bytes(b"not an image any more")
    dataset = open_folder(root, reporter)
    assert scans() == 1
    with pytest.raises(DataError, match="is a text file, not an image"):
        dataset.read(0)


def test_a_recently_changed_folder_is_not_indexed(root, reporter, scans, monkeypatch):
    """The next change may fall into the same tick of the clock and leave no trace."""
    monkeypatch.setattr(index, "MIN_AGE_NS", 3_600_000_000_000)
    open_folder(root, reporter)
    assert not index.get_index_path(root).exists()
    monkeypatch.setattr(index, "MIN_AGE_NS", int(REST * 1e9 * 2 / 3))
    open_folder(root, reporter), open_folder(root, reporter)
    assert scans() == 2


def test_directories_without_times_are_not_indexed(root, reporter):
    """As object stores mounted as folders have them."""
    os.utime(root / "bee", ns=(0, 0))
    time.sleep(REST)
    open_folder(root, reporter)
    assert not index.get_index_path(root).exists()


def test_a_change_during_the_scan_is_noticed(root, reporter, scans, monkeypatch):
    real = scan._list_images

    def meanwhile(where, folder, *args):
        yield from real(where, folder, *args)
        if folder == "dog":
            new_image(root, "ant/9.png")

    monkeypatch.setattr(scan, "_list_images", meanwhile)
    open_folder(root, reporter)
    monkeypatch.setattr(scan, "_list_images", real)
    assert "ant/9.png" in str(content(open_folder(root, reporter)))
    assert scans() == 2


@pytest.mark.unprivileged
def test_an_incomplete_scan_is_not_indexed(root, reporter):
    (root / "ant").chmod(0)
    time.sleep(REST)
    open_folder(root, reporter)
    (root / "ant").chmod(0o755)
    assert not index.get_index_path(root).exists()


def flip(place: float) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        at = int(place * (len(data) - 1))
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return damage


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "short": lambda data: data[:5],
    "half": lambda data: data[: len(data) // 2],
    "all but one": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "another version": lambda data: data.replace(b"index 8", b"index 6", 1),
    "another program": lambda data: b"PK\3\4" + data,
    "header": flip(0.1),
    "middle": flip(0.5),
    "last": flip(1.0),
    "length": lambda data: (
        data[: len(index.MAGIC) + 4] + b"\xff" * 8 + data[len(index.MAGIC) + 12 :]
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_rebuilt_silently(damage, root, reporter, scans):
    expected = content(open_folder(root, reporter))
    path = index.get_index_path(root)
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    reporter.warnings.clear()
    assert content(open_folder(root, reporter)) == expected
    assert scans() == 2
    assert path.read_bytes() == whole
    assert not reporter.notes
    assert len(reporter.warnings) == 1  # of the empty class, as ever


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=5),
    cut=st.floats(0.2, 1),
)
def test_damage_never_changes_the_listing(damage, cut, root):
    expected = content(open_folder(root, SilentReporter()))
    path = index.get_index_path(root)
    data = bytearray(path.read_bytes())
    for place, value in damage:
        data[int(place * (len(data) - 1))] = value
    path.write_bytes(data[: int(cut * len(data))])
    assert content(open_folder(root, SilentReporter())) == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_index_with_a_forged_checksum_is_validated(data, root):
    """Numbers that lead outside are not followed: it opens as something sound, or not at all."""
    open_folder(root, SilentReporter())
    path = index.get_index_path(root)
    content_of = bytearray(path.read_bytes())
    start = len(index.MAGIC) + 4
    for _ in range(data.draw(st.integers(1, 4))):
        content_of[data.draw(st.integers(start, len(content_of) - 1))] = data.draw(
            st.integers(0, 255)
        )
    content_of[start - 4 : start] = zlib.crc32(content_of[start:]).to_bytes(4, "little")
    path.write_bytes(content_of)
    for listing in (index.load_index(root) or {}).values():
        assert len(list(listing.names)) == len(listing.labels)
        assert all(0 <= label < len(listing.class_names) for label in listing.labels)


def test_the_index_of_another_folder_is_ignored(root, reporter, scans, tmp_path):
    open_folder(root, reporter)
    shutil.copytree(root, tmp_path / "other", copy_function=shutil.copy2)
    shutil.copyfile(index.get_index_path(root), index.get_index_path(tmp_path / "other"))
    assert open_folder(tmp_path / "other", reporter).name(0).startswith(str(tmp_path / "other"))
    assert scans() == 2


@pytest.mark.parametrize("obstacle", ["a file in the way", "a folder in the way"])
def test_a_cache_that_cannot_be_written_is_no_error(obstacle, root, reporter, scans, tmp_path):
    if obstacle == "a file in the way":
        (tmp_path / "cache").write_text("")
    else:
        (index.get_index_path(root) / "x").mkdir(parents=True)
    first, second = (content(open_folder(root, reporter)) for _ in range(2))
    assert first == second == fresh(root, SilentReporter())
    assert "was not saved" in reporter.notes[0]
    assert [p.name for p in (tmp_path / "cache").rglob(".*")] == []  # nor half a file left there


def test_names_that_are_not_unicode_are_kept(root, reporter, scans):
    os.rename(root / "ant" / "0.png", os.fsencode(root / "ant") + b"/\xff.png")
    os.rename(root / "dog", os.fsencode(root) + b"/d\xfeg")
    time.sleep(REST)
    first, second = (open_folder(root, reporter) for _ in range(2))
    assert scans() == 1
    assert content(first) == content(second)
    assert os.fsdecode(b"d\xfeg") in second.class_names
    assert all(second.read(i).size == (24, 18) for i in range(6))


@pytest.fixture
def tar(image_folder, tmp_path) -> Path:
    folder = image_folder({"train/a": 3, "train/b": 1, "val/a": 1, "val/b": 2})
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(folder, "around")
    time.sleep(REST)
    return tmp_path / "all.tar"


def test_a_tar_is_read_through_once(tar, reporter, scans, monkeypatch):
    first = open_for_training(Source(str(tar)), reporter=reporter)
    assert scans() == 1
    monkeypatch.setattr(tarfile, "open", None)
    second = open_for_training(Source(str(tar)), reporter=reporter)
    assert scans() == 0
    for a, b in zip(first, second, strict=True):
        assert content(a) == content(b)
        assert all(np.array_equal(a.read(i), b.read(i)) for i in range(len(a.labels)))
    assert content(second[0])[0] == [
        f"{tar}:{name}" for name in ("a/0.png", "a/1.png", "a/2.png", "b/0.png")
    ]


def test_a_tar_of_class_folders_is_read_through_once(image_folder, tmp_path, reporter, scans):
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(image_folder({"b": 1, "a": 2}), ".")
    time.sleep(REST)
    first, second = (open_dataset(str(tmp_path / "all.tar"), reporter).unsplit for _ in range(2))
    assert scans() == 1
    assert content(first) == content(second)
    assert second.class_names == ("a", "b")


def test_a_changed_tar_is_read_again(tar, image_folder, reporter, scans):
    open_dataset(str(tar), reporter)
    with tarfile.open(tar, "a") as archive:
        archive.add(image_folder({"c": 1}, "more"), "around/train")
    assert open_dataset(str(tar), reporter).train.class_names == ("a", "b", "c")
    assert scans() == 2


def test_a_fingerprint_does_not_depend_on_the_index(root, reporter, scans):
    first, second = (fingerprint_dataset(open_folder(root, reporter), reporter) for _ in range(2))
    assert first == second
    assert scans() == 1


@pytest.fixture
def full(image_folder, reporter):
    """A source from an index, of a folder without empty classes, whose arrays are all in the file."""
    folder = image_folder({"a": 30, "b": 20})
    time.sleep(REST)
    dataset = open_folder(folder, reporter)
    assert isinstance(dataset.labels, StoredArray)
    return dataset


def test_datasets_pickle_as_the_location_of_their_index(full):
    packed = pickle.dumps(full)
    assert b"0.png" not in packed
    assert content(pickle.loads(packed)) == content(full)


def test_slices_of_stored_arrays_pickle_by_content(full):
    for values in (full.labels[3:9], full.labels[[1, 40]], full.labels + 1):
        copy = pickle.loads(pickle.dumps(values))
        assert copy.tolist() == values.tolist()


@pytest.mark.parametrize("what", ["replaced", "gone"])
def test_datasets_pickle_by_content_without_their_index(what, full, reporter):
    expected, path = content(full), index.get_index_path(Path(full.paths.prefix))
    before = pickle.dumps(full)
    path.unlink()
    if what == "replaced":
        path.write_bytes(b"of other images")
    assert content(full) == expected
    assert content(pickle.loads(pickle.dumps(full))) == expected
    with pytest.raises(DataChanged, match="replaced|any more"):
        pickle.loads(before)


def name_of(dataset, place: int) -> str:
    return dataset.name(place)


def test_a_spawned_process_reads_the_same_file(full):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(name_of, (full, 7)) == full.name(7)


def test_writing_to_a_stored_array_does_not_change_the_file(full):
    before = index.get_index_path(Path(full.paths.prefix)).read_bytes()
    full.labels[0] = 1
    assert index.get_index_path(Path(full.paths.prefix)).read_bytes() == before


def test_several_processes_that_start_at_once_agree(root, reporter, tmp_path):
    code = (
        "import sys; from pathlib import Path; from deitctl.data import index;"
        "from deitctl.data.readers.folder import open_folder;"
        "from deitctl.events import SilentReporter; index.MIN_IMAGES, index.MIN_AGE_NS = 1, 1;"
        "found = [open_folder(Path(sys.argv[1]), SilentReporter()) for _ in range(30)];"
        "print({tuple(s.paths) for s in found} == {tuple(found[0].paths)}, len(found[0].labels))"
    )
    command = [sys.executable, "-c", code, str(root)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for number in range(20):  # and one that takes it away meanwhile
        index.get_index_path(root).unlink(missing_ok=True)
        time.sleep(0.05 + 0.01 * number)
    assert [p.communicate()[0].split() for p in running] == [["True", "6"]] * 2
    # and nothing half written
    assert all(p.suffix == ".index" for p in (tmp_path / "cache" / "indexes").iterdir())
