"""Images from a web server and an S3 on this machine that answer after 30 ms: how many a second, and outages.

`python benchmarks/remote_data.py reads`: random reads of images of 110 KB, by reads in flight, without a cache,
with a cold one and a full one. `python benchmarks/remote_data.py outage IMAGES`: trains on shards that a server
sends, which is killed and started again in the middle, then one that stays away longer than a run waits; the
weights are compared with those of an unbroken run. Both write below a temporary folder, which is deleted.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from deitctl.data.open import open_dataset
from deitctl.data.stores import read_threads
from deitctl.data.stores.store_settings import reading_stores
from deitctl.events import SilentReporter

DELAY_S = 0.03
IMAGE_BYTES = 110_000
SHARDS, IMAGES = 8, 100
BATCH = 64
PORT = 8799


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("reads", "outage", "serve"))
    parser.add_argument("arguments", nargs="*")
    args = parser.parse_args()
    if args.part == "serve":
        serve(Path(args.arguments[0]), int(args.arguments[1]))
        return
    folder = Path(tempfile.mkdtemp(prefix="remote-data-"))
    os.environ["DEITCTL_CACHE"] = str(folder / "cache")
    try:
        measure_reads(folder) if args.part == "reads" else show_outage(folder, args.arguments[0])
    finally:
        shutil.rmtree(folder)


class Handler(BaseHTTPRequestHandler):
    """Files of a folder with ranges, each after a delay."""

    protocol_version = "HTTP/1.1"
    root = Path()

    def do_GET(self) -> None:
        time.sleep(DELAY_S)
        path = self.root / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(match[1]), min(int(match[2]), size - 1)) if match else (0, size - 1)
        with path.open("rb") as file:
            file.seek(first)
            body = file.read(last + 1 - first)
        self.send_response(206 if match else 200)
        self.send_header("ETag", f'"{size}-{path.stat().st_mtime_ns}"')
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def serve(root: Path, requests: int) -> None:
    """Serve a folder until the process is killed, or ends itself after so many requests; 0: never."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 256
        daemon_threads = True
        count = 0

        def handle_error(self, request: object, client_address: object) -> None:
            """Say nothing of connections that are closed."""

    class Counting(Handler):
        def do_GET(self) -> None:
            Server.count += 1
            if requests and Server.count > requests:
                os._exit(1)
            super().do_GET()

    Handler.root = root
    Server(("127.0.0.1", PORT), Counting).serve_forever()


@contextmanager
def serving(root: Path, requests: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """Serve a folder in a process for a block."""
    command = [sys.executable, __file__, "serve", str(root), str(requests)]
    process = subprocess.Popen(command)
    time.sleep(2)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def serving_s3(root: Path) -> Iterator[None]:
    """Serve the shards of a folder as objects of a bucket, by moto, for a block."""
    import boto3

    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT + 1}",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ.update(environment)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(PORT + 1)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(5)
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket="bench")
        for path in root.glob("*.tar"):
            client.put_object(Bucket="bench", Key=path.name, Body=path.read_bytes())
        yield
    finally:
        process.kill()
        process.wait()


def measure_reads(folder: Path) -> None:
    """Print images a second by reads in flight, and the processor time of a read."""
    root = folder / "shards"
    root.mkdir()
    for shard in range(SHARDS):
        with tarfile.open(root / f"x-{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(IMAGES):
                add(tar, f"{shard}-{number}.jpg", b"\xff\xd8\xff" + os.urandom(IMAGE_BYTES))
                add(tar, f"{shard}-{number}.cls", str(number % 10).encode())
    web = f"http://127.0.0.1:{PORT}/x-{{000000..{SHARDS - 1:06d}}}.tar"
    measure("local shards", str(root), "0")
    with serving(root):
        for in_flight in (1, 4, 16, 32, 64):
            measure(f"web, {in_flight} in flight", web, "0", in_flight)
        measure("web, 32 in flight, cold cache", web, "1GB")
        measure("web, 32 in flight, full cache", web, "1GB")
    with serving_s3(root):
        for in_flight in (1, 32):
            measure(f"S3 (moto, no delay), {in_flight} in flight", "s3://bench/", "0", in_flight)
        measure("S3, 32 in flight, cold cache", "s3://bench/", "1GB")
        measure("S3, 32 in flight, full cache", "s3://bench/", "1GB")


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def measure(what: str, ref: str, cache_size: str, in_flight: int = 32) -> None:
    """Read every image once, at random, a batch after the other, as a loader does."""
    read_threads.IN_FLIGHT = in_flight
    read_threads._make_reads_ahead.cache_clear()
    with reading_stores("", cache_size, SilentReporter()):
        (dataset,) = open_dataset(ref, SilentReporter()).list_parts().values()
        order = random.Random(0).sample(range(len(dataset.labels)), len(dataset.labels))
        if in_flight == 1:
            order = order[:BATCH]
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        start, used = time.perf_counter(), time.process_time()
        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            dataset.prefetch([*batch, *following])
            for index in batch:
                dataset.read_bytes(index)
        seconds, used = time.perf_counter() - start, time.process_time() - used
    count = len(order)
    print(
        f"{what:38} {count / seconds:8,.0f} images/s {1000 * used / count:7.2f} ms of a core an image"
    )


SETTINGS = (
    "--model deit_tiny --img-size 32 --epochs 4 --no-pretrained --seed 0 --device cpu --precision fp32 --quiet "
    "--set model.depth=1 --set model.embed_dim=48 --set model.num_heads=2 --cache-size 0"
)


def show_outage(folder: Path, images: str) -> None:
    """Train through outages, and compare the weights with those of an unbroken run."""
    root = folder / "shards"
    run("pack", images, str(root), "--shard-size", "300KB", "--quiet")
    last = max(path.stem for path in root.glob("*.tar"))  # all-000006
    ref = f"http://127.0.0.1:{PORT}/all-{{000000..{last[-6:]}}}.tar"
    train = ["train", ref, *SETTINGS.split()]
    with serving(root):
        run(*train, "--workers", "2", "--output", str(folder / "unbroken"))
    for name, patience_s, absent_s in (("short", 300, 6), ("long", 3, 8)):
        output = folder / name
        with serving(root, requests=int(os.environ.get("REQUESTS", "900"))) as server:
            process = start(
                *train, "--workers", "2", "--output", str(output), patience_s=patience_s
            )
            server.wait()
            print(f"{name} outage: the server is gone")
        time.sleep(absent_s)
        with serving(root):
            code = process.wait()
            print(f"{name} outage: exit code {code}")
            if code:
                run("train", "--resume", str(output), "--quiet")
        equal = digest(output) == digest(folder / "unbroken")
        print(
            f"{name} outage: weights {'equal those' if equal else 'DIFFER from those'} of the unbroken run"
        )


def start(*arguments: str, patience_s: float = 300) -> subprocess.Popen[bytes]:
    """Start a command whose patience with a store is another."""
    code = (
        "import sys, deitctl.data.stores.patience as p; "
        f"p.PATIENCE_S = {patience_s}; from deitctl.__main__ import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *arguments], stdout=subprocess.DEVNULL
    )


def run(*arguments: str) -> None:
    """Run a command to its end."""
    if code := start(*arguments).wait():
        raise SystemExit(f"{arguments[0]} ended with {code}")


def digest(output: Path) -> str:
    """Return a hash of the weights of a run."""
    return hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
