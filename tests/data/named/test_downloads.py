"""Downloads: resumed, verified, retried, and one line that says which file goes where."""

import hashlib
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import Mock

import pytest

from deitctl.data.named import downloads
from deitctl.data.named.downloads import Download, fetch_files
from deitctl.errors import DataError
from deitctl.events import SilentReporter
from deitctl.paths import DiskError

DATA = bytes(range(256)) * 40
MD5 = hashlib.md5(DATA).hexdigest()


class Server:
    """Serves `DATA` by ranges, and remembers where each request began."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.num_dropped = 0
        """Answers to cut in the middle, which are counted down."""
        self.refusals: list[tuple[int, str]] = []
        """Statuses that the next requests get, with `Retry-After`."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                start = int((self.headers["Range"] or "bytes=0-")[6:-1])
                outer.starts.append(start)
                if outer.refusals:
                    status, pause = outer.refusals.pop(0)
                    self.send_response(status)
                    self.send_header("Retry-After", pause)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if self.path != "/file" or start >= len(DATA):
                    self.send_error(404 if self.path != "/file" else 416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(DATA) - start))
                self.end_headers()
                is_dropped = outer.num_dropped > 0
                outer.num_dropped -= is_dropped
                self.wfile.write(DATA[start : len(DATA) // 2 if is_dropped else None])

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


def fetch(server: Server, folder, name: str = "file", md5: str = MD5) -> list:
    download = Download(f"{server.address}/{name}", "data.tgz", md5)
    return fetch_files("cifar10", [download], folder, SilentReporter(), pause=0.0)


def test_a_file_is_downloaded_once(server: Server, tmp_path) -> None:
    assert fetch(server, tmp_path) == [tmp_path / "data.tgz"]
    assert (tmp_path / "data.tgz").read_bytes() == DATA
    assert fetch(server, tmp_path) == []
    assert server.starts == [0]


def test_a_dropped_connection_goes_on_where_it_was(server: Server, tmp_path) -> None:
    server.num_dropped = 1
    fetch(server, tmp_path)
    assert (tmp_path / "data.tgz").read_bytes() == DATA
    assert server.starts == [0, len(DATA) // 2]


@pytest.mark.parametrize("content", [DATA[:100], DATA, DATA + b"more", b"another file"])
def test_what_an_interrupted_start_left_is_continued_or_replaced(
    server: Server, tmp_path, content: bytes
) -> None:
    (tmp_path / "data.tgz.part").write_bytes(content)
    fetch(server, tmp_path)
    assert (tmp_path / "data.tgz").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["data.tgz"]


def test_a_server_that_is_busy_is_tried_again_when_it_says(server: Server, tmp_path, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(downloads.time, "sleep", pauses.append)
    in_a_minute = formatdate(time.time() + 60, usegmt=True)
    server.refusals = [(429, "120"), (408, ""), (503, in_a_minute)]
    assert fetch(server, tmp_path)[0].read_bytes() == DATA
    assert pauses == [120.0, 0.0, pytest.approx(60, abs=2)]


def test_a_server_that_is_busy_for_longer_is_an_error(server: Server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", Mock(side_effect=AssertionError))
    server.refusals = [(429, "3600")]
    with pytest.raises(DataError, match="HTTP 429.*in 3,600 s"):
        fetch(server, tmp_path)


def test_without_a_checksum_nothing_is_continued(server: Server, tmp_path) -> None:
    (tmp_path / "data.tgz.part").write_bytes(b"another file")
    fetch(server, tmp_path, md5="")
    assert (tmp_path / "data.tgz").read_bytes() == DATA


def test_another_file_than_the_published_is_an_error(server: Server, tmp_path) -> None:
    with pytest.raises(
        DataError, match=f"cifar10 cannot be downloaded: what came has the MD5 {MD5}, not 0"
    ):
        fetch(server, tmp_path, md5="0" * 32)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_that_was_put_there_is_an_error(server: Server, tmp_path) -> None:
    (tmp_path / "data.tgz").write_bytes(DATA[:-1])
    with pytest.raises(DataError, match=r"data.tgz is not the published file: its MD5 is"):
        fetch(server, tmp_path)
    assert server.starts == []


def test_an_error_says_which_file_goes_where(server: Server, tmp_path) -> None:
    folder = tmp_path / "downloads"
    with pytest.raises(DataError) as caught:
        fetch(server, folder, "gone")
    assert str(caught.value) == (
        f"cifar10 cannot be downloaded: Not Found. Put into {folder}, and start again: "
        f"{server.address}/gone as data.tgz (MD5 {MD5})."
    )
    assert folder.is_dir()
    assert len(server.starts) == 1  # no second attempt


def test_a_full_disk_is_known_before_the_download(server: Server, tmp_path, monkeypatch) -> None:
    usage = type("Usage", (), {"free": 2 * len(DATA) - 1})
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskError, match=r"data.tgz takes 0.0 GB with what is in it"):
        fetch(server, tmp_path)
