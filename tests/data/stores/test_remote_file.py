from __future__ import annotations

import base64
import hashlib
import multiprocessing
import os
import pickle
import threading

import pytest

pytest.importorskip("aiohttp")

from deitctl.data.stores import patience, read_threads, remote_file, stores
from deitctl.data.stores.block_cache import BlockCache
from deitctl.data.stores.listing import describe_file, describe_files, list_addresses
from deitctl.data.stores.store_settings import reading_stores
from deitctl.data.stores.stored_file import open_stored
from deitctl.errors import ConfigError, DataChanged, DataError, StoreLost
from deitctl.events import SilentReporter
from tests.data.stores.web_server import serve

CONTENT = os.urandom(3 * 2**20 + 123)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(patience, "PATIENCE_S", 0.3)


@pytest.fixture
def server():
    with serve() as server:
        server.files["/x.tar"] = CONTENT
        yield server


def test_ranges_are_read_and_end_with_the_file(server):
    file = open_stored(f"{server.url}/x.tar")
    assert file.size == len(CONTENT)
    for offset, size in [(0, 10), (1_000_000, 70_000), (len(CONTENT) - 3, 10), (len(CONTENT), 5)]:
        assert file.read(offset, size) == CONTENT[offset : offset + size]
    assert file.read(0, len(CONTENT)) == CONTENT
    assert pickle.loads(pickle.dumps(file)) == file


def test_a_file_of_a_known_identity_is_opened_without_a_request(server):
    identity = open_stored(f"{server.url}/x.tar").identity
    server.requests.clear()
    file = open_stored(f"{server.url}/x.tar", identity)
    assert server.requests == []
    assert (file.identity, file.read(5, 3)) == (identity, CONTENT[5:8])


@pytest.mark.parametrize("failures", [[503, 503], ["cut"], ["reset"], [429, "cut", 500]])
def test_what_fails_for_a_moment_is_read_again(server, failures):
    file = open_stored(f"{server.url}/x.tar")
    server.failures = list(failures)
    assert file.read(7, 200_000) == CONTENT[7:200_007]
    assert server.failures == []


def test_a_store_that_stays_away_is_a_line_without_secrets(server):
    file = open_stored(f"{server.url}/x.tar?sig=secret")
    server.failures = [503] * 99
    with pytest.raises(StoreLost, match="has not answered") as caught:
        file.read(0, 10)
    assert "secret" not in str(caught.value)


def test_waiting_for_a_store_is_reported_once(server, monkeypatch):
    warnings = []
    monkeypatch.setattr(patience, "WARN_AFTER_S", 0.05)
    monkeypatch.setattr(SilentReporter, "warn", lambda self, message: warnings.append(message))
    file = open_stored(f"{server.url}/x.tar")
    server.failures = [503] * 99
    with reading_stores("", "", SilentReporter()), pytest.raises(StoreLost):
        file.read(0, 10)
    assert len(warnings) == 1
    assert "waiting for its store" in warnings[0]


def test_a_file_that_changes_while_it_is_read_is_an_error(server):
    file = open_stored(f"{server.url}/x.tar")
    server.files["/x.tar"] = bytes(len(CONTENT))
    with pytest.raises(DataChanged, match="was replaced while in use"):
        file.read(0, 10)
    del server.files["/x.tar"]
    with pytest.raises(DataChanged, match="is gone"):
        file.read(0, 10)


@pytest.mark.parametrize(
    ("status", "message"),
    [(403, "403"), (401, "wants credentials")],
)
def test_a_file_that_may_not_be_opened_is_a_line(server, status, message):
    server.failures = [status]
    with pytest.raises(DataError, match=message):
        describe_file(f"{server.url}/x.tar")


def test_a_store_that_may_be_misspelled_is_not_waited_for_long(server, monkeypatch):
    monkeypatch.setattr("deitctl.data.stores.listing.OPENING_PATIENCE_S", 0.1)
    server.failures = [500] * 99
    with pytest.raises(StoreLost, match="spelled as it is meant"):
        describe_file(f"{server.url}/x.tar")


def test_a_missing_file_is_not_there_and_the_web_has_no_folders(server):
    with pytest.raises(FileNotFoundError):
        describe_file(f"{server.url}/y.tar")
    with pytest.raises(DataError, match="cannot be listed"):
        list_addresses(f"{server.url}/")


def test_files_are_described_in_order(server):
    server.files |= {f"/{number}.tar": bytes(number) for number in range(5)}
    files = describe_files([f"{server.url}/{number}.tar" for number in range(5)])
    assert [file.size for file in files] == [0, 1, 2, 3, 4]


def test_what_is_read_ahead_is_not_read_again(server):
    file = open_stored(f"{server.url}/x.tar")
    ranges = [(number * 1000, 500) for number in range(40)]
    server.requests.clear()
    file.prefetch(ranges)
    assert [file.read(*span) for span in ranges] == [CONTENT[o : o + n] for o, n in ranges]
    assert len(server.requests) == 40


def test_a_failed_read_ahead_is_raised_by_the_read_and_then_tried_anew(server):
    file = open_stored(f"{server.url}/x.tar")
    server.failures = [403]
    file.prefetch([(0, 10)])
    with pytest.raises(StoreLost, match=r"HTTP 403.*expired\?"):
        file.read(0, 10)
    assert file.read(0, 10) == CONTENT[:10]


def test_reads_ahead_are_bounded_by_bytes(server, monkeypatch):
    monkeypatch.setattr(read_threads, "MAX_BYTES", 1000)
    file = open_stored(f"{server.url}/x.tar")
    server.requests.clear()
    file.prefetch([(0, 600), (600, 600), (1200, 300)])
    assert file.read(0, 600) == CONTENT[:600]
    assert len(server.requests) == 1  # the second had no place, and what follows it waits for it
    file.prefetch([(600, 600)])
    assert file.read(600, 600) == CONTENT[600:1200]
    assert file.read(1200, 300) == CONTENT[1200:1500]


def _read_in_child(file, queue):
    queue.put(file.read(10, 10))


def test_a_file_is_read_in_processes_that_are_forked_after_it_was_read(server):
    file = open_stored(f"{server.url}/x.tar")
    file.prefetch([(0, 10)])
    assert file.read(0, 10) == CONTENT[:10]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_read_in_child, args=(file, queue))
    process.start()
    assert queue.get(timeout=20) == CONTENT[10:20]
    process.join()


def test_a_cache_is_filled_by_blocks_and_then_asks_its_store_nothing(server, tmp_path):
    cache = BlockCache(str(tmp_path))
    file = open_stored(f"{server.url}/x.tar", cache=cache)
    across = remote_file.BLOCK - 5, 10
    file.prefetch([across])
    assert file.read(*across) == CONTENT[across[0] : across[0] + 10]
    assert file.read(0, len(CONTENT)) == CONTENT
    server.requests.clear()
    again = open_stored(f"{server.url}/x.tar", file.identity, BlockCache(str(tmp_path)))
    assert again.read(0, len(CONTENT)) == CONTENT
    assert server.requests == []


def test_a_url_that_is_signed_anew_finds_its_blocks(server, tmp_path):
    cache = BlockCache(str(tmp_path))
    file = open_stored(f"{server.url}/x.tar?sig=1", cache=cache)
    file.read(0, 10)
    server.requests.clear()
    again = open_stored(f"{server.url}/x.tar?sig=2", file.identity, cache)
    assert again.read(0, 10) == CONTENT[:10]
    assert server.requests == []


def test_a_damaged_block_is_fetched_again(server, tmp_path):
    cache = BlockCache(str(tmp_path))
    file = open_stored(f"{server.url}/x.tar", cache=cache)
    file.read(0, 10)
    (path,) = tmp_path.glob("blocks-1/??/*")
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    assert file.read(0, 10) == CONTENT[:10]


def test_a_folder_that_cannot_hold_blocks_is_a_warning_and_files_are_read_without(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    cache, warnings = BlockCache(str(tmp_path / "file")), []

    class Listener(SilentReporter):
        def warn(self, message):
            warnings.append(message)

    with reading_stores("", "", Listener()):
        file = open_stored(f"{server.url}/x.tar", cache=cache)
        assert file.read(0, 10) + file.read(50, 10) == CONTENT[:10] + CONTENT[50:60]
    assert len(warnings) == 1
    assert "cannot hold blocks" in warnings[0]


def test_a_server_without_ranges_is_copied_once(server, tmp_path):
    server.has_ranges = False
    server.headers = {
        "x-goog-hash": f"md5={base64.b64encode(hashlib.md5(CONTENT).digest()).decode()}"
    }
    with reading_stores(str(tmp_path), "", SilentReporter()):
        file = open_stored(f"{server.url}/x.tar")
        server.failures = ["cut"]
        assert file.read(5, 10) == CONTENT[5:15]
        server.requests.clear()
        threads = [threading.Thread(target=file.read, args=(9, 9)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert file.read(2**20, 10) == CONTENT[2**20 : 2**20 + 10]
    assert server.requests == []


def test_a_server_without_ranges_needs_room_for_a_file(server, tmp_path):
    server.has_ranges = False
    with reading_stores(str(tmp_path), "1MB", SilentReporter()):
        file = open_stored(f"{server.url}/x.tar")
        with pytest.raises(DataError, match="--cache-size"):
            file.read(5, 10)


@pytest.mark.parametrize("name", ["x-amz-checksum-sha256", "x-goog-hash", "content-md5"])
def test_a_whole_file_that_is_not_what_its_checksum_says_is_not_taken(server, name):
    file = open_stored(f"{server.url}/x.tar")
    wrong = base64.b64encode(b"0" * 32).decode()
    server.headers = {name: f"md5={wrong}" if name == "x-goog-hash" else wrong}
    with pytest.raises(StoreLost, match="is not what its store says"):
        file.read(0, file.size)


def test_a_size_of_the_cache_is_a_number_of_bytes():
    with (
        pytest.raises(ConfigError, match="cache_size"),
        reading_stores("", "big", SilentReporter()),
    ):
        pass


def test_reading_ahead_fills_a_cache_and_holds_nothing_in_memory(server, tmp_path, monkeypatch):
    monkeypatch.setattr(read_threads, "MAX_BYTES", 2 * remote_file.BLOCK)
    file = open_stored(f"{server.url}/x.tar", cache=BlockCache(str(tmp_path)))
    for number in range(4):  # more than there is room for at a time
        file.prefetch([(number * remote_file.BLOCK, 10)])
        file.read(number * remote_file.BLOCK, 10)
    server.requests.clear()
    file.prefetch([(0, file.size)])
    assert file.read(0, file.size) == CONTENT
    assert server.requests == []


def test_the_cache_keeps_no_file_without_a_version_for_another_run(server, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_warned", set())
    warnings = []
    monkeypatch.setattr(SilentReporter, "warn", lambda self, message: warnings.append(message))
    server.has_etags = False
    with reading_stores(str(tmp_path), "", SilentReporter()):
        cache = BlockCache(str(tmp_path))
        for run in ("first", "second"):
            monkeypatch.setattr(stores, "_run", run)
            server.files["/x.tar"] = content = os.urandom(len(CONTENT))
            file = open_stored(f"{server.url}/x.tar", cache=cache)
            assert file.read(5, 10) == content[5:15]
            server.requests.clear()
            assert open_stored(file.address, file.identity, cache).read(9, 9) == content[9:18]
            assert server.requests == []
    assert len(warnings) == 1
    assert "which version" in warnings[0]
