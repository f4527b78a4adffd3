"""The cache of targets survives kills, truncation and concurrent writers, and refuses what is not its own."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deitctl.data import reading
from deitctl.distillation import target_cache
from deitctl.distillation.target_cache import STAMP, TargetCache, open_cache, read_stamp
from deitctl.distillation.targets import MAX_CLASSES, TargetCodec
from deitctl.errors import DeitctlError, TeacherError

HARD = TargetCodec("hard", 7)
SOFT = TargetCodec("soft", 7, 3)
FULL = TargetCodec("soft", 7, 7)
CODECS = pytest.mark.parametrize("codec", [HARD, SOFT, FULL], ids=["hard", "soft", "full"])
EXAMPLE_STAMP = {
    "teacher": "regnety_160 0123",
    "view_seed": 0,
    "mode": "soft",
    "tau": 3.0,
    "view_augmentation": {"hflip": 0.5, "crop_scale": (0.35, 1.0)},
}


def without_target(cache: TargetCache, view: int) -> list[int]:
    """The images of a view without a target, unreadable ones among them."""
    return sorted(set(range(cache.num_images)) - set(cache.cached_indices(view).tolist()))


def make_targets(
    codec: TargetCodec, count: int = 1, seed: int = 0, sharpness: float = 2.0
) -> torch.Tensor:
    """What a teacher might say: distributions [B,K], decisions where the codec is hard."""
    logits = sharpness * torch.randn(
        count, codec.num_classes, generator=torch.Generator().manual_seed(seed)
    )
    if codec.mode == "hard":
        return torch.nn.functional.one_hot(logits.argmax(1), codec.num_classes).float()
    return logits.softmax(1)


def zeros(codec: TargetCodec) -> np.ndarray:
    return np.zeros((1, codec.width), np.uint16)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


def open_example(folder: Path, codec: TargetCodec = SOFT, num_images: int = 5) -> TargetCache:
    return open_cache(folder, EXAMPLE_STAMP, codec, num_images)


@CODECS
def test_every_target_of_a_new_cache_is_missing(codec, folder):
    cache = open_example(folder, codec)
    assert cache.missing_indices(0).tolist() == without_target(cache, 0) == [0, 1, 2, 3, 4]
    assert cache.missing_indices(1, 2, 4).tolist() == [2, 3]
    assert cache.count_missing(3) == 15
    assert not cache.has_target(2, 4)


@CODECS
def test_targets_are_read_by_every_reader(codec, folder):
    records = codec.encode(make_targets(codec, 2))
    cache = open_example(folder, codec)
    cache.write([(0, 3), (2, 1)], records)
    for reader in (cache, open_example(folder, codec)):
        records_read, valid = reader.read([(2, 1), (0, 0), (0, 3)])
        assert valid.tolist() == [True, False, True]
        assert np.array_equal(records_read[[2, 0]], records)
        assert reader.has_target(0, 3)
        assert not reader.has_target(0, 1)
        assert reader.missing_indices(0).tolist() == [0, 1, 2, 4]
        assert reader.missing_indices(0, 2, 9).tolist() == [2, 4]
        assert [reader.count_missing(n) for n in (0, 1, 3)] == [0, 4, 13]


@CODECS
def test_records_that_were_read_are_copies(codec, folder):
    first, second = (
        codec.encode(make_targets(codec, 1)),
        codec.encode(make_targets(codec, 1, seed=2)),
    )
    assert not np.array_equal(first, second)
    cache = open_example(folder, codec)
    cache.write([(0, 0)], first)
    records, _ = cache.read([(0, 0)])
    cache.write([(0, 0)], second)
    assert np.array_equal(records, first)


@CODECS
def test_an_unreadable_image_is_not_missing_until_it_has_a_target(codec, folder):
    cache = open_example(folder, codec)
    cache.mark_damaged([(0, 1), (0, 4)])
    assert cache.missing_indices(0).tolist() == [0, 2, 3]
    assert without_target(cache, 0) == [0, 1, 2, 3, 4]
    assert not cache.has_target(0, 1)
    assert cache.count_missing(2) == 8  # it was seen in one view only
    cache.write([(0, 1)], codec.encode(make_targets(codec)))
    assert cache.has_target(0, 1)
    assert without_target(cache, 0) == [0, 2, 3, 4]


@CODECS
def test_a_cache_is_pickled_without_its_maps(codec, folder):
    cache = open_example(folder, codec, num_images=5000)
    cache.write([(0, 1)], codec.encode(make_targets(codec)))
    packed = pickle.dumps(cache)
    assert len(packed) < 1000  # without the maps
    there = pickle.loads(packed)
    assert there.has_target(0, 1)
    there.write([(1, 4)], codec.encode(make_targets(codec)))
    assert cache.has_target(1, 4)


def test_each_view_has_its_own_file(folder):
    cache = open_example(folder, HARD, num_images=3)
    places = [(view, index) for view in range(60) for index in range(3)]
    labels = [(2 * view + index) % 7 for view, index in places]
    cache.write(places, HARD.encode(torch.eye(7)[labels]))
    again = open_example(folder, HARD, num_images=3)
    assert again.count_missing(60) == 0
    assert HARD.decode(again.read(places)[0]).argmax(1).tolist() == labels
    assert {f.stat().st_size for f in folder.glob("view-*.bin")} == {3 * 4}
    assert len(list(folder.glob("view-*.bin"))) == 60


@CODECS
@pytest.mark.parametrize("left", [0, 2, 6, 20])
def test_a_truncated_file_keeps_its_complete_records(codec, left, folder):
    records = codec.encode(make_targets(codec, 5))
    open_example(folder, codec).write([(0, i) for i in range(5)], records)
    (file,) = folder.glob("view-*.bin")
    os.truncate(file, min(left, file.stat().st_size))
    cache = open_example(folder, codec)
    whole = min(left, 10 * codec.width) // (2 * codec.width)
    assert cache.missing_indices(0).tolist() == list(range(whole, 5))
    cache.write([(0, i) for i in range(whole, 5)], records[whole:])
    assert np.array_equal(open_example(folder, codec).read([(0, i) for i in range(5)])[0], records)


def test_a_deleted_file_is_created_again(folder):
    open_example(folder).write([(0, 0), (1, 0)], SOFT.encode(make_targets(SOFT, 2)))
    (folder / "view-00000.bin").unlink()
    cache = open_example(folder)
    assert (cache.has_target(0, 0), cache.has_target(1, 0)) == (False, True)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["write", "mark", "cut"]),
        st.integers(0, 2),
        st.integers(0, 3),
        st.integers(0, 1),
    ),
    max_size=12,
)


@CODECS
@given(ACTIONS)
def test_concurrent_users_see_the_last_write(codec, actions):
    """Two who have the folder open, and now and then one who opens it after a file was cut."""
    with TemporaryDirectory() as name:
        caches = [open_cache(Path(name), EXAMPLE_STAMP, codec, 4) for _ in range(2)]
        expected: dict[tuple[int, int], int | None] = {}
        for number, (action, view, index, who) in enumerate(actions):
            if action == "write":
                caches[who].write([(view, index)], codec.encode(make_targets(codec, 1, number)))
                expected[view, index] = number
            elif action == "mark":
                caches[who].mark_damaged([(view, index)])
                expected.setdefault((view, index), None)  # a target stays
            else:
                file = Path(name) / f"view-{view:05d}.bin"
                file.write_bytes(
                    file.read_bytes()[: index * codec.width * 2] if file.exists() else b""
                )
                expected = {(v, i): n for (v, i), n in expected.items() if v != view or i < index}
                caches = [open_cache(Path(name), EXAMPLE_STAMP, codec, 4) for _ in range(2)]
        for cache in (*caches, pickle.loads(pickle.dumps(caches[0]))):
            for view in range(3):
                assert cache.missing_indices(view).tolist() == [
                    i for i in range(4) if (view, i) not in expected
                ]
                assert without_target(cache, view) == [
                    i for i in range(4) if expected.get((view, i)) is None
                ]
                for index in range(4):
                    number = expected.get((view, index))
                    assert cache.has_target(view, index) == (number is not None)
                    if number is not None:
                        records, _ = cache.read([(view, index)])
                        assert np.array_equal(records, codec.encode(make_targets(codec, 1, number)))
            assert cache.count_missing(3) == 12 - len(expected)


KILLED = """
import itertools, sys
import torch
from pathlib import Path
from deitctl.distillation.target_cache import TargetCache
from deitctl.distillation.targets import TargetCodec
root, classes = Path(sys.argv[1]), int(sys.argv[2])
codec = TargetCodec("soft", classes, classes)
logits = torch.randn(2, classes, generator=torch.Generator().manual_seed(0))
records, cache = codec.encode(logits.softmax(1)), TargetCache(root, codec, 50)
for turn in itertools.count():
    for index in range(50):
        cache.write([(0, index)], records[(turn + index) % 2, None])
    if turn == 20:
        print("going", flush=True)
"""


def test_a_kill_while_writing_loses_at_most_one_target(folder):
    """At most the record that was being written is lost, and none holds anything else."""
    classes = 2000
    codec = TargetCodec("soft", classes, classes)
    cache = open_cache(folder, EXAMPLE_STAMP, codec, 50)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(classes)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "going\n"
        child.kill()
    assert child.returncode == -signal.SIGKILL
    whole = codec.encode(
        torch.randn(2, classes, generator=torch.Generator().manual_seed(0)).softmax(1)
    )
    for reader in (cache, open_cache(folder, EXAMPLE_STAMP, codec, 50)):
        records, valid = reader.read([(0, i) for i in range(50)])
        assert valid.sum() >= 49
        assert all(any(np.array_equal(record, w) for w in whole) for record in records[valid])


def test_a_cache_with_the_same_stamp_is_opened_again(folder):
    open_example(folder).write([(0, 0)], SOFT.encode(make_targets(SOFT)))
    assert open_example(folder).has_target(0, 0)
    # a tuple comes back as a list and is the same
    assert read_stamp(folder) == json.loads(json.dumps(EXAMPLE_STAMP))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"teacher": "regnety_160 9999"}, 'teacher was "regnety_160 0123", is "regnety_160 9999"'),
        ({"view_seed": 1}, "view_seed was 0, is 1"),
        ({"mode": "hard"}, 'mode was "soft", is "hard"'),
        ({"tau": 1.5}, "tau was 3.0, is 1.5"),
        ({"tau": None}, "tau was 3.0, is not set"),
        ({"topk": 100}, "topk was not set, is 100"),
        (
            {"view_augmentation": {"hflip": 0.0, "crop_scale": (0.35, 1.0)}},
            "view_augmentation: hflip was 0.5, is 0.0",
        ),
        (
            {"view_augmentation": {"hflip": 0.5, "crop_scale": (0.25, 1.0)}},
            "view_augmentation: crop_scale was [0.35, 1.0], is [0.25, 1.0]",
        ),
        (
            {"view_augmentation": {"hflip": 0.5}},
            "view_augmentation: crop_scale was [0.35, 1.0], is not set",
        ),
        (
            {"view_augmentation": {"hflip": 0.0, "crop_scale": (0.25, 1.0)}, "view_seed": 3},
            "view_seed was 0, is 3; view_augmentation: hflip was 0.5, is 0.0; crop_scale was [0.35, 1.0], "
            "is [0.25, 1.0]",
        ),
    ],
    ids=lambda x: None if isinstance(x, dict) else x.partition(" was")[0],
)
def test_a_cache_with_another_stamp_is_refused_with_the_differences(changes, reason, folder):
    open_example(folder).write([(0, 0)], SOFT.encode(make_targets(SOFT)))
    with pytest.raises(TeacherError) as refused:
        open_cache(
            folder,
            {k: v for k, v in {**EXAMPLE_STAMP, **changes}.items() if v is not None},
            SOFT,
            5,
        )
    assert refused.value.message == f"The teacher targets in {folder} are stale: {reason}."
    assert "--teacher-cache" in refused.value.hint
    assert open_example(folder).has_target(0, 0)  # it is unchanged


def test_a_folder_with_other_files_is_refused(folder):
    folder.mkdir()
    (folder / "thesis.txt").write_text("all of it")
    with pytest.raises(TeacherError, match="holds other files and no teacher targets"):
        open_example(folder)
    assert os.listdir(folder) == ["thesis.txt"]


def test_hidden_files_do_not_count_as_other_files(folder):
    folder.mkdir()
    (folder / ".DS_Store").write_bytes(b"x")
    assert open_example(folder).count_missing(1) == 5


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"\xff"])
def test_a_stamp_that_cannot_be_read_is_refused(text, folder):
    open_example(folder)
    (folder / STAMP).write_bytes(text)
    with pytest.raises(TeacherError, match=r"cache\.json cannot be read.*Delete that folder"):
        open_example(folder)


def test_a_file_in_place_of_the_folder_is_refused(folder):
    folder.write_text("")
    with pytest.raises(DeitctlError, match="Cannot write"):
        open_example(folder)


def test_a_full_disk_is_reported_when_a_view_is_created(folder, monkeypatch):
    cache = open_example(folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(target_cache, "_reserve", full)
    with pytest.raises(DeitctlError, match=r"view-00003\.bin: No space left"):
        cache.write([(3, 0)], SOFT.encode(make_targets(SOFT)))


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EROFS, "Name another --teacher-cache"),
        (errno.EIO, "disk or mount"),
        (errno.ESTALE, "disk or mount"),
    ],
    ids=["full", "open files", "read-only", "broken", "away"],
)
def test_what_fails_is_said_with_what_helps(number, advice, folder, monkeypatch):
    cache = open_example(folder)

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(reading, "PAUSES_S", ())
    monkeypatch.setattr(target_cache, "open_no_follow", fail)
    for act in (
        lambda: cache.write([(0, 0)], SOFT.encode(make_targets(SOFT))),
        lambda: cache.count_missing(1),
    ):
        with pytest.raises(TeacherError, match=r"Cannot (read|write) .*view-00000\.bin") as failed:
            act()
        assert advice in failed.value.hint


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
@pytest.mark.parametrize("name", ["open_no_follow", "read_at", "write_at"])
def test_a_mount_that_is_away_for_a_moment_is_waited_for(name, number, folder, monkeypatch):
    """The handle that it made stale is not used again."""
    monkeypatch.setattr(reading, "PAUSES_S", (0.001,) * 6)
    monkeypatch.setattr(reading, "_patient_from_s", 0.0)
    records = SOFT.encode(make_targets(SOFT, 2))
    cache = open_example(folder)
    cache.write([(0, 0)], records[:1])
    stale = cache._views[0].handle
    if name == "open_no_follow":
        cache = open_example(folder)
    act, failures = getattr(target_cache, name), []

    def fail_at_first(*args: object) -> object:
        if len(failures) < 3 or (args[0] == stale and name != "open_no_follow"):
            failures.append(number)
            raise OSError(number, os.strerror(number))
        return act(*args)

    # So that the number of the stale handle is not given to another file.
    kept = cache._views.get(0)
    monkeypatch.setattr(target_cache, name, fail_at_first)
    if name == "write_at":
        cache.write([(0, 1)], records[1:])
    read, valid = cache.read([(0, 0)])
    assert valid.all()
    assert np.array_equal(read, records[:1])
    assert failures == [number] * 3
    assert cache._views[0] is not kept
    assert cache.has_target(0, 1) == (name == "write_at")


@CODECS
def test_a_target_that_was_computed_meanwhile_is_not_marked_as_damaged(codec, folder):
    records = codec.encode(make_targets(codec))
    cache, other = open_example(folder, codec), open_example(folder, codec)
    other.write([(0, 1)], records)
    cache.mark_damaged([(0, 1), (0, 2)])
    assert cache.has_target(0, 1)
    assert cache.damaged_indices(1) == {2}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="Linux counts open files there")
def test_more_views_than_files_may_be_open_are_read(folder):
    """The limit of open files is met: the views that are open are closed, and the next one is opened."""
    resource = pytest.importorskip("resource")
    cache = open_example(folder)
    cache.write([(view, 0) for view in range(8)], SOFT.encode(make_targets(SOFT, 8)))
    cache = open_example(folder)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 4, limits[1]))
    try:
        # the last of them has no file yet
        assert [cache.has_target(view, 0) for view in range(9)] == [True] * 8 + [False]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for filler in fillers:
            os.close(filler)


@CODECS
def test_a_view_of_several_names_is_not_written(codec, folder, tmp_path):
    """A hard link to a file of the user's, as an archive can hold one."""
    cache = open_example(folder, codec)
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    os.link(precious, folder / "view-00000.bin")
    with pytest.raises(DeitctlError, match="hard links"):
        cache.write([(0, 0)], codec.encode(make_targets(codec)))
    assert precious.read_bytes() == b"precious"


def test_too_many_classes_are_refused(folder):
    with pytest.raises(TeacherError, match=r"at most 65,000 classes, the data has 65,001"):
        open_example(folder, TargetCodec("hard", MAX_CLASSES + 1))
    assert not folder.exists()
    assert open_example(folder, TargetCodec("hard", MAX_CLASSES)).count_missing(1) == 5
