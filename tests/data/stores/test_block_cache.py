from __future__ import annotations

import errno
import multiprocessing
import os
import threading
import time
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deitctl.data.stores import cache_room
from deitctl.data.stores.block_cache import CHUNK, FOLDER, BlockCache, DamagedBlock
from deitctl.data.stores.cache_room import CacheFailed

OVERHEAD = 24
"""Bytes of checksums of a block of one chunk."""


def write(content: bytes):
    return lambda target: target.write(content)


def list_blocks(folder):
    return [path for path in folder.glob(f"{FOLDER}/??/*") if not path.name.endswith(".part")]


def count_bytes(folder) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"{FOLDER}/??/*"))


def test_a_block_is_written_once_and_read_at_any_offset(tmp_path):
    cache, content = BlockCache(str(tmp_path)), os.urandom(3 * CHUNK + 17)
    block = cache.get("a", write(content))
    again = cache.get("a", lambda target: pytest.fail("written twice"))
    assert block.size == len(content)
    for offset, size in [(0, 5), (CHUNK - 3, 7), (3 * CHUNK, 99), (len(content), 1), (0, 2**30)]:
        assert again.read(offset, size) == content[offset : offset + size]


def test_a_block_that_is_not_there_is_none(tmp_path):
    assert BlockCache(str(tmp_path / "none")).find("a") is None


def test_a_block_may_be_written_out_of_order(tmp_path):
    def write_backwards(target):
        target.seek(4)
        target.write(b"5678")
        target.seek(0)
        target.write(b"1234")

    assert BlockCache(str(tmp_path)).get("a", write_backwards).read(0, 9) == b"12345678"


@pytest.mark.parametrize("place", [0, CHUNK + 5, -1, -21, -30])
def test_a_damaged_block_is_noticed_and_written_again(tmp_path, place):
    cache, content = BlockCache(str(tmp_path)), os.urandom(2 * CHUNK)
    cache.get("a", write(content))
    (path,) = list_blocks(tmp_path)
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 1
    path.write_bytes(damaged)
    block = cache.find("a")
    if block is not None:  # of a chunk, which only its reading shows
        with pytest.raises(DamagedBlock, match="damaged"):
            block.read(0, 2 * CHUNK)
    assert cache.get("a", write(content)).read(0, 2 * CHUNK) == content


@pytest.mark.parametrize("size", [0, 10, CHUNK])
def test_a_block_that_was_cut_is_written_again(tmp_path, size):
    cache, content = BlockCache(str(tmp_path)), os.urandom(2 * CHUNK)
    cache.get("a", write(content))
    os.truncate(list_blocks(tmp_path)[0], size)
    assert cache.get("a", write(content)).read(5, 9) == content[5:14]


def test_what_the_writer_raises_is_raised_and_leaves_nothing(tmp_path):
    cache = BlockCache(str(tmp_path), 10_000)

    def fail(target):
        target.write(b"x" * 1000)
        raise KeyError("k")

    with pytest.raises(KeyError):
        cache.get("a", fail)
    assert count_bytes(tmp_path) == 0
    assert int((tmp_path / FOLDER / cache_room.TOTAL).read_text()) == 0


def test_the_least_recently_used_block_makes_room_and_its_reader_reads_on(tmp_path):
    cache = BlockCache(str(tmp_path), 4 * (1000 + OVERHEAD))
    opened = {key: cache.get(key, write(key.encode() * 1000)) for key in "abcd"}
    for age, key in enumerate("bcad"):  # used in this order
        path, status = opened[key].path, os.stat(opened[key].path)
        os.utime(path, ns=(status.st_atime_ns - (100 - age) * 10**9, status.st_mtime_ns))
    cache.get("e", write(b"e" * 1000))
    assert cache.find("b") is None
    assert all(cache.find(key) for key in "cade")
    assert opened["b"].read(0, 3) == b"bbb"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=8)
@given(sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=9), bound=st.integers(1, 9000))
def test_the_files_of_a_cache_are_never_more_than_its_bound(tmp_path_factory, sizes, bound):
    folder = tmp_path_factory.mktemp("cache")
    cache = BlockCache(str(folder), bound)
    for key, size in enumerate(sizes):
        try:
            assert cache.get(str(key), write(b"x" * size)).read(0, size) == b"x" * size
        except CacheFailed:
            assert size + OVERHEAD > bound
        assert count_bytes(folder) <= bound
        assert int((folder / FOLDER / cache_room.TOTAL).read_text()) == count_bytes(folder)


def test_several_writers_hold_the_bound_together(tmp_path):
    bound, most, cache = 6000, 0, BlockCache(str(tmp_path), 6000)
    cache.get("first", write(b"x"))
    done = threading.Event()

    def watch():
        nonlocal most
        while not done.is_set():
            with cache.room._locked():  # else a block is counted that made room for another
                most = max(most, count_bytes_of_now(tmp_path))

    def fill(name):
        for number in range(15):
            BlockCache(str(tmp_path), bound).get(f"{name}{number}", write(b"x" * 1000))

    threads = [threading.Thread(target=fill, args=(name,)) for name in "abc"]
    watcher = threading.Thread(target=watch)
    watcher.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    watcher.join()
    assert 0 < most <= bound
    assert count_bytes(tmp_path) <= bound


def count_bytes_of_now(folder) -> int:
    sizes = {}  # of a file once, which may be renamed meanwhile
    for path in list(folder.glob(f"{FOLDER}/??/*")):
        with suppress(FileNotFoundError):
            status = path.stat()
            sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


def _get_slowly(folder, log):
    def write_slowly(target):
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.2)
        target.write(b"content")

    assert BlockCache(folder).get("a", write_slowly).read(0, 9) == b"content"


def test_processes_and_threads_that_want_one_block_write_it_once(tmp_path):
    log = tmp_path / "log"
    arguments = (str(tmp_path / "cache"), str(log))
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_get_slowly, args=arguments) for _ in range(2)]
    workers += [threading.Thread(target=_get_slowly, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(log.read_text().split()) == 1


def test_what_a_killed_writer_left_is_deleted_when_room_is_needed(tmp_path):
    cache = BlockCache(str(tmp_path), 3000)
    cache.get("a", write(b"x" * 500))
    left = list_blocks(tmp_path)[0].parent / f"{cache_room.PREFIX}tmp{cache_room.PART}"
    left.write_bytes(b"x" * 2400)
    os.utime(left, (1, 1))
    (tmp_path / FOLDER / cache_room.TOTAL).write_text("not a number")
    assert cache.get("b", write(b"y" * 2000)).read(0, 1) == b"y"
    assert not left.exists()


def test_a_full_disk_and_a_folder_that_is_none_are_failures_of_the_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheFailed):
        BlockCache(str(tmp_path / "file")).get("a", write(b"x"))

    def fill_disk(room, num_bytes, grow):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_room.CacheRoom, "take", fill_disk)
    with pytest.raises(CacheFailed, match="No space"):
        BlockCache(str(tmp_path / "full")).get("a", write(b"x"))
    assert count_bytes(tmp_path / "full") == 0


def test_a_cache_of_size_zero_holds_nothing(tmp_path):
    cache = BlockCache(str(tmp_path), 0)
    assert not cache.fits(1)
    with pytest.raises(CacheFailed):
        cache.get("a", write(b"x"))


def test_the_default_is_bounded_by_half_of_the_disk(tmp_path, monkeypatch):
    usage = cache_room.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(cache_room.shutil, "disk_usage", lambda path: usage)
    assert BlockCache(str(tmp_path)).room.max_bytes == 500
    assert BlockCache(str(tmp_path), 900).room.max_bytes == 900


def test_files_of_others_in_the_folder_of_a_cache_are_left_alone(tmp_path):
    cache = BlockCache(str(tmp_path), 2000)
    names = ("en/thesis.txt", "ab/" + "0" * 40, f"{FOLDER}/ab/notes", f"{FOLDER}/ab/x.part")
    for path in map(tmp_path.joinpath, names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 5000)
        os.utime(path, (1, 1))
    for key in "abc":
        assert cache.get(key, write(b"x" * 1500)).read(0, 1) == b"x"
    assert all((tmp_path / name).exists() for name in names)


def test_a_block_that_is_being_written_outlives_a_clock_that_is_ahead(tmp_path):
    cache = BlockCache(str(tmp_path), 3000)

    def write_for_long(target):
        target.write(b"x" * 500)
        os.utime(target._path, (1, 1))
        cache.get("other", write(b"y" * 2000))
        cache.get("another", write(b"z" * 2000))
        target.write(b"x" * 100)

    assert cache.get("a", write_for_long).read(0, 900) == b"x" * 600


def test_the_age_of_what_is_written_is_of_the_clock_of_its_folder(tmp_path, monkeypatch):
    cache = BlockCache(str(tmp_path), 3000)
    cache.get("a", write(b"x" * 500))
    part = list_blocks(tmp_path)[0].parent / f"{cache_room.PREFIX}tmp{cache_room.PART}"
    part.write_bytes(b"x" * 400)  # by another host
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + 10 * cache_room.STALE_S)
    cache.get("b", write(b"y" * 2400))
    assert part.exists()


def test_checksums_are_right_where_reads_return_less_than_was_requested(tmp_path, monkeypatch):
    readinto = cache_room.BoundedFile.readinto
    monkeypatch.setattr(
        cache_room.BoundedFile,
        "readinto",
        lambda file, buffer: readinto(file, memoryview(buffer)[:1000]),
    )
    content = os.urandom(CHUNK + 17)
    assert BlockCache(str(tmp_path)).get("a", write(content)).read(0, 2**20) == content


def test_a_block_that_is_made_of_blocks_waits_for_none_of_their_locks(tmp_path, monkeypatch):
    cache = BlockCache(str(tmp_path))
    find_path = BlockCache._find_path
    monkeypatch.setattr(  # all keys have one lock
        BlockCache, "_find_path", lambda self, key: find_path(self, key).with_name("0" * 39 + key)
    )

    def write_of_block(target):
        target.write(cache.get("2", write(b"inner")).read(0, 9) * 2)

    def get_outer():
        assert cache.get("1", write_of_block, reads_blocks=True).read(0, 99) == b"innerinner"
        done.set()

    done = threading.Event()
    threading.Thread(target=get_outer, daemon=True).start()
    assert done.wait(20)
