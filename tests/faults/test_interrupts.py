"""Ctrl-C and SIGTERM end a command within seconds, whatever it waits for: docs/reliability.md."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
READY = """
import sys
from deitctl.data import decode
def slow(*args):
    sys.stderr.write("decoding\\n")
    return original(*args)
original = decode._open
decode._open = slow
sys.argv = ["deitctl", *sys.argv[1:]]
from deitctl.cli.app import main
main()
"""
"""`deitctl`, which says on stderr when it begins to decode."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A data set whose images take half a minute: Pillow reads gray of 16 levels pixel by pixel."""
    root = tmp_path_factory.mktemp("slow")
    for name in ("a", "b"):
        (root / name).mkdir()
        (root / name / "slow.pgm").write_bytes(b"P5 8000 8000 15\n" + b"\1" * 8000 * 8000)
    return root


@pytest.fixture(scope="module")
def slow_server() -> Iterator[tuple[str, threading.Event]]:
    """An address whose answer never ends, and whether it was asked for."""
    asked, closed = threading.Event(), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            asked.set()
            while not closed.wait(0.1):
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", asked
    closed.set()
    server.shutdown()
    server.server_close()


def start(*arguments: str, code: str = READY) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stderr is not None
    lines = []
    for said in process.stderr:
        lines.append(said)
        if line in said:
            return
    raise AssertionError("".join(lines))


def require_quick_end(process: subprocess.Popen[str], signum: int) -> None:
    begun = time.monotonic()
    process.send_signal(signum)
    try:
        _, errors = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    # Two seconds by the watching thread, and what a busy machine takes.
    assert time.monotonic() - begun < 8
    assert process.returncode == 128 + signum
    assert errors.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors


def test_predict_ends_while_an_image_is_decoded(folder, saved):
    process = start("predict", str(folder / "a/slow.pgm"), "--model", str(saved))
    wait_for(process, "decoding")
    require_quick_end(process, signal.SIGINT)


def test_predict_ends_while_a_server_is_slow(slow_server, saved):
    address, asked = slow_server
    process = start("predict", address, "--model", str(saved))
    assert asked.wait(60)
    require_quick_end(process, signal.SIGTERM)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_check_ends_while_an_image_is_decoded(workers, folder):
    process = start("check", str(folder), "--workers", workers)
    wait_for(process, "decoding")
    require_quick_end(process, signal.SIGTERM)


def test_pack_ends_while_an_image_is_decoded(folder, tmp_path):
    pack = tmp_path / "x"
    process = start("pack", str(folder), str(pack), "--max-size", "64", "--workers", "0")
    wait_for(process, "decoding")
    require_quick_end(process, signal.SIGINT)
    assert not pack.exists()


def test_a_python_program_ends_while_an_image_is_decoded(folder):
    """No thread is joined when the interpreter ends."""
    code = (
        "import sys; from deitctl.inference.inputs import load_batches\n"
        "from deitctl.models.model_config import Preprocessing\n"
        "sys.stderr.write('decoding\\n'); list(load_batches([sys.argv[1]], Preprocessing(), 4))"
    )
    process = start(str(folder / "a/slow.pgm"), code=code)
    wait_for(process, "decoding")
    time.sleep(0.5)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert time.monotonic() - begun < 8
    assert process.returncode == -signal.SIGINT
