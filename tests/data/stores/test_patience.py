"""Errors of connections name the server and what to do; errors of this side are not waited for."""

from __future__ import annotations

import socket

import pytest

pytest.importorskip("aiohttp")

from deitctl.data.readers.read_options import ReadOptions
from deitctl.data.readers.stored import open_address
from deitctl.data.stores import listing, patience, stores
from deitctl.data.stores.patience import describe, is_permanent
from deitctl.data.stores.stores import OtherStore
from deitctl.errors import DataError, StoreLost
from deitctl.events import SilentReporter


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(listing, "OPENING_PATIENCE_S", 0.01)


def open_it(ref: str) -> None:
    open_address(ref, SilentReporter(), ReadOptions())


@pytest.fixture
def closed_port():
    """A port that nothing listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("name", ["x-{000000..000003}.tar", "x.tar", "folder", "x-{0..1}.parquet"])
def test_a_server_that_is_not_there_is_named_with_the_address_of_the_user(name, closed_port):
    host = f"127.0.0.1:{closed_port}"
    with pytest.raises(StoreLost) as caught:
        open_it(f"http://{host}/{name}?sig=secret")
    line = f"{caught.value.message} {caught.value.hint}"
    assert line.startswith(f"http://{host}/{name.partition('-')[0]}")
    assert f"(cannot connect to {host})" in line
    assert not any(word in line for word in ("_info.json", "index.deitctl", "secret"))


def test_a_host_that_does_not_exist_is_named():
    with pytest.raises(StoreLost, match=r"\(there is no host no-such-host.invalid\)"):
        open_it("http://no-such-host.invalid/x-{0..3}.tar")


class Bucket:
    """Fails in every request."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def info(self, address: str) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("endpoint", "hint"),
    [("", "not Amazon's set AWS_ENDPOINT_URL"), ("http://minio:9", "See whether AWS_ENDPOINT_URL")],
)
def test_an_s3_that_is_away_is_named_with_its_variable(endpoint, hint, monkeypatch):
    errors = pytest.importorskip("botocore.exceptions")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    error = errors.EndpointConnectionError(endpoint_url="http://me:pw@minio:9/wds?x=1", error="")
    monkeypatch.setattr(stores, "_open_store", lambda scheme, pid: OtherStore(Bucket(error)))
    with pytest.raises(StoreLost) as caught:
        open_it("s3://bucket/wds")
    assert caught.value.message.startswith("s3://bucket/wds cannot be read")
    assert caught.value.message.endswith("(cannot connect to http://minio:9).")
    assert hint in caught.value.hint


def test_a_name_that_no_bucket_can_have_is_not_a_silent_store(monkeypatch):
    errors = pytest.importorskip("botocore.exceptions")
    report = 'Invalid bucket name "my bucket": Bucket name must match the regex "^[a-z"'
    error = errors.ParamValidationError(report=report)
    assert is_permanent(error)
    assert describe(error) == 'Invalid bucket name "my bucket"'
    monkeypatch.setattr(stores, "_open_store", lambda scheme, pid: OtherStore(Bucket(error)))
    with pytest.raises(DataError, match='s3://my bucket/wds cannot be read: Invalid bucket name "'):
        open_it("s3://my bucket/wds")


def test_a_store_that_says_when_to_come_again_is_not_asked_before():
    assert patience._choose_pause(0, patience.Busy("429", 120.0)) == 120.0
    assert patience._choose_pause(0, patience.Busy("429")) <= patience.FIRST_PAUSE_S


def test_the_pause_of_a_store_ends_with_the_patience_for_it(monkeypatch):
    pauses = []
    monkeypatch.setattr(patience.time, "sleep", pauses.append)
    answers = [patience.Busy("429", 120.0), None]

    def read():
        if error := answers.pop(0):
            raise error
        return "read"

    assert patience.read_from_store(read, "x", patience_s=50.0) == "read"
    assert pauses == [pytest.approx(50.0, abs=1.0)]
