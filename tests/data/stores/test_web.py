from __future__ import annotations

import os
import time

import pytest

pytest.importorskip("aiohttp")

from deitctl.data.stores import patience, stores, web
from deitctl.data.stores.store_settings import reading_stores
from deitctl.data.stores.stored_file import open_stored
from deitctl.errors import DataError
from deitctl.events import SilentReporter
from tests.data.stores.web_server import serve

CONTENT = os.urandom(100_000)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    with serve() as server:
        server.files = {"/x.tar": CONTENT, "/y.tar": CONTENT[::-1]}
        yield server


def test_a_whole_file_now_and_then_does_not_end_the_ranges_of_a_server(server):
    file = open_stored(f"{server.url}/x.tar")
    server.failures = ["whole", "whole"]
    assert file.read(5, 10) == CONTENT[5:15]
    assert web.has_ranges(file.address)


def test_a_file_that_always_comes_whole_is_copied_and_others_are_read_by_ranges(server, tmp_path):
    one, other = (open_stored(f"{server.url}/{name}.tar") for name in "xy")
    server.failures = ["whole"] * web.MAX_WHOLE
    with reading_stores(str(tmp_path), "", SilentReporter()):
        assert one.read(5, 10) == CONTENT[5:15]
    assert [web.has_ranges(file.address) for file in (one, other)] == [False, True]
    server.requests.clear()
    assert other.read(5, 10) == CONTENT[::-1][5:15]
    assert server.requests == [("/y.tar", "bytes=5-14")]


@pytest.mark.parametrize("when", ["opened", "read"])
def test_a_server_that_compresses_what_it_sends_is_refused_by_name(server, when):
    if when == "read":
        file = open_stored(f"{server.url}/x.tar")
    server.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(DataError, match=r"x\.tar cannot be read: its server sends it compressed"):
        open_stored(f"{server.url}/x.tar") if when == "opened" else file.read(5, 10)


def test_a_slow_steady_answer_is_waited_for_and_a_trickle_is_none(monkeypatch):
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    pace = stores.Pace()
    now_s += stores.TIMEOUT_S - 1
    pace.require(1)
    now_s += 3600
    pace.require(3700 * stores.MIN_RATE)
    with pytest.raises(TimeoutError, match="less than"):
        pace.require(3600)
