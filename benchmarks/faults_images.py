"""Cases of faults.py: images that are odd, slow or gone, slow servers, and names that are markup."""

from __future__ import annotations

import contextlib
import csv
import http.server
import io
import json
import os
import re
import shutil
import signal
import struct
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from fault_rig import STUDENT, Case, Rig, Trial, count_steps, has_logged

SIDE = 64


def make_jpeg() -> bytes:
    """Return a small JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), "red").save(buffer, "JPEG")
    return buffer.getvalue()


def make_chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def make_png(before: bytes = b"", after: bytes = b"") -> bytes:
    """Return a PNG with chunks before its pixels and compressed rows behind them."""
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * SIDE * (SIDE * 3 + 1)) + after
    return (
        b"\x89PNG\r\n\x1a\n"
        + make_chunk(b"IHDR", head)
        + before
        + make_chunk(b"IDAT", pixels)
        + make_chunk(b"IEND", b"")
    )


def repeat_segment(marker: bytes, body: bytes, megabytes: int) -> bytes:
    """Return a JPEG with as many segments of a kind as fill some megabytes."""
    jpeg, segment = make_jpeg(), marker + struct.pack(">H", len(body) + 2) + body
    return jpeg[:2] + segment * (megabytes * 2**20 // len(segment)) + jpeg[2:]


GIF_HEAD = b"GIF89a\x40\0\x40\0\x80\0\0" + b"\0" * 6
GIF_IMAGE = b"\x2c\0\0\0\0\x40\0\x40\0\0\x02\x01\0\0\x3b"
SLOW: dict[str, Callable[[int], bytes]] = {
    "GIF of one comment": lambda mb: GIF_HEAD + b"\x21\xfe" + (b"\xff" + b"x" * 255) * (mb * 4096) + b"\0" + GIF_IMAGE,
    "GIF of tiny comments": lambda mb: GIF_HEAD + b"\x21\xfe\x01x\0" * (mb * 2**20 // 5) + GIF_IMAGE,
    "GIF of applications": lambda mb: GIF_HEAD + b"\x21\xff\x01x\0" * (mb * 2**20 // 5) + GIF_IMAGE,
    "JPEG of EXIF segments": lambda mb: repeat_segment(b"\xff\xe1", b"Exif\0\0MM\0*" + b"\0" * 65000, mb),
    "JPEG of small EXIF segments": lambda mb: repeat_segment(b"\xff\xe1", b"Exif\0\0MM\0*", mb),
    "JPEG of profiles": lambda mb: repeat_segment(b"\xff\xe2", b"ICC_PROFILE\0\1\1xx", mb),
    "JPEG of tables": lambda mb: repeat_segment(b"\xff\xdb", b"\0" + b"\1" * 64, mb),
    "JPEG of empty segments": lambda mb: repeat_segment(b"\xff\xeb", b"", mb),
    "JPEG of fill bytes": lambda mb: make_jpeg()[:2] + b"\xff" * (mb * 2**20) + make_jpeg()[2:],
    "PNG of texts": lambda mb: make_png(make_chunk(b"tEXt", b"a\0b") * (mb * 2**20 // 15)),
    "PPM of one comment": lambda mb: b"P6\n#" + b"c" * (mb * 2**20) + b"\n64 64\n255\n" + b"\0" * SIDE * SIDE * 3,
    "PPM of comments": lambda mb: b"P6\n" + b"#\n" * (mb * 2**19) + b"64 64\n255\n" + b"\0" * SIDE * SIDE * 3,
}  # fmt: skip


def decode_slow_images(rig: Rig) -> Iterator[Trial]:
    """20: small files whose decoding takes long, and whether a signal ends it."""
    base = rig.base()
    sizes = {"GIF of tiny comments": 12, "JPEG of EXIF segments": 100}
    for name, make in SLOW.items():
        path = rig.root / f"{name.replace(' ', '-')}.{name[:3].lower()}"
        path.write_bytes(make(sizes.get(name, 8)))
        end = rig.run("predict", path, "--model", base, "--quiet", "--topk", "1")
        size = path.stat().st_size / 1e6
        yield Trial(
            f"{name}, {size:.0f} MB: predict",
            f"{end.cpu_seconds:.1f} s of CPU, {end}",
            end.is_plain(0, 1, 3) and end.cpu_seconds < 6,
        )
        if name not in sizes:
            path.unlink()
    slow = rig.root / "GIF-of-tiny-comments.gif"
    for number in (signal.SIGTERM, signal.SIGINT):
        process = rig.start("predict", slow, "--model", base, "--quiet")
        time.sleep(5)
        ended = process.ended
        process.signal(number)
        end = process.finish(min(rig.patience, 30))
        note = " (was over before)" if ended else ""
        yield Trial(
            f"predict of it, {number.name} after 5 s",
            f"{end}{note}",
            end.code is not None and end.seconds < 3,
        )
    data = rig.copy_images()
    shutil.copy(slow, data / "rose")
    for command in ("check", "train", "eval"):
        if command == "train":
            end = rig.train("r", "--epochs", "1", data=data).finish(rig.patience)
        else:
            model = ("--model", base) if command == "eval" else ()
            end = rig.run(command, data, *model, "--workers", "0", "--quiet")
        yield Trial(
            f"it among the images: {command}", str(end), end.is_plain() and end.cpu_seconds < 20
        )


def wait_for_slow_servers(rig: Rig) -> Iterator[Trial]:
    """21: an address that answers a byte at a time, and redirects to what may not be."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == "/slow":
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                with contextlib.suppress(OSError):
                    for _ in range(600):
                        self.wfile.write(b"x")
                        self.wfile.flush()
                        time.sleep(0.2)
                return
            port = server.server_address[1]
            self.send_response(302)
            targets = {
                "/file": "file:///etc/passwd",
                "/ftp": "ftp://127.0.0.1/x",
                "/crlf": f"http://127.0.0.1:{port}/a%0d%0aX: y",
            }
            self.send_header(
                "Location", targets.get(self.path, f"http://127.0.0.1:{port}{self.path}")
            )
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    for path in ("file", "ftp", "crlf", "loop"):
        end = rig.run("predict", f"{address}/{path}", "--model", rig.base(), "--quiet")
        yield Trial(f"a redirect, {path}: predict", str(end), end.is_plain(1, 3))
    for command in ("predict", "explain"):
        for number in (signal.SIGINT, signal.SIGTERM):
            process = rig.start(command, f"{address}/slow", "--model", rig.base(), "--quiet")
            time.sleep(5)
            process.signal(number)
            end = process.finish(rig.patience)
            held = end.code not in (None, 0) and end.seconds < 3 and not end.has_traceback
            yield Trial(f"a slow server, {number.name}: {command}", str(end), held)
    server.shutdown()


def lose_the_data(rig: Rig) -> Iterator[Trial]:
    """16: images deleted, cut or replaced in mid-run; the folder renamed; a tar cut."""

    def cut_images(data: Path) -> None:
        for path in (data / "rose").iterdir():
            os.truncate(path, path.stat().st_size // 2)

    def hiccup(data: Path) -> None:
        data.rename(data.with_name("away"))
        time.sleep(2)
        data.with_name("away").rename(data)

    def pack_tar(data: Path) -> Path:
        with tarfile.open(rig.root / "d.tar", "w") as tar:
            for path in sorted(data.glob("*/*")):
                tar.add(path, str(path.relative_to(data)))
        return rig.root / "d.tar"

    changes: dict[str, Callable[[Path], object]] = {
        "one class deleted": lambda data: shutil.rmtree(data / "rose"),
        "data renamed away": lambda data: data.rename(data.with_name("data2")),
        "data away for 2 s": hiccup,
        "images cut to half": cut_images,
        "tar cut": lambda data: os.truncate(data.with_name("d.tar"), 300_000),
    }
    for what, change in changes.items():
        rig.enter("16-data-goes")
        data = rig.copy_images()
        source = pack_tar(data) if what == "tar cut" else data
        process = rig.train(
            "r", "--epochs", "8", "--workers", "2", "--save-every", "1h", data=source
        )
        process.wait_until(has_logged(rig.root / "r"))
        change(data)
        end = process.finish(rig.patience)
        step = count_steps(rig.root / "r")
        best = ""
        with contextlib.suppress(OSError, ValueError, KeyError):
            result = json.loads((rig.root / "r" / "result.json").read_text())
            top1, count = result["best"]["top1"], result["num_val_images"]
            best = (
                f"; best epoch {result['best']['epoch']} of {top1:.1f} %, {count} validation images"
            )
        held = end.is_plain(0, 3) or (end.is_plain(1) and step > 0)
        if what == "data away for 2 s":
            held = end.is_plain(0, 3)
        yield Trial(f"{what} in mid-run", f"{end}; checkpoint of step {step}{best}", held)


def read_while_a_mount_hiccups(rig: Rig) -> Iterator[Trial]:
    """23: one class folder is away for a moment while a teacher's targets are computed."""
    data = rig.copy_images()
    cache = ("data", "--teacher", rig.base(), *STUDENT, "--finetune-teacher", "none", "--views", "40",
             "--teacher-cache", "targets", "--workers", "0", "--format", "json")  # fmt: skip
    process = rig.start("cache-teacher", *cache)
    process.wait_until(lambda: len(list((rig.root / "targets").glob("view-*.bin"))) >= 3)
    (data / "rose").rename(rig.root / "rose")
    time.sleep(1.5)
    (rig.root / "rose").rename(data / "rose")
    first = process.finish(rig.patience * 2)
    again = rig.start("cache-teacher", *cache).finish(rig.patience * 2)
    unreadable = -1
    with contextlib.suppress(ValueError, KeyError):
        unreadable = len(json.loads(again.out)["unreadable"])
    yield Trial(
        "a class away for 1.5 s, then once more", f"first {first}; then {again}; unreadable: {unreadable}",
        first.is_plain() and again.is_plain(0) and unreadable == 0,
    )  # fmt: skip


def name_things_in_markup(rig: Rig) -> Iterator[Trial]:
    """13: classes and files named in HTML, Markdown, formulas, and with 255 bytes."""
    names = ("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "$policy ${title} `id` $(id)",
             '=HYPERLINK("http://evil")', "](javascript:alert(3)) **x** | a | b")  # fmt: skip
    rows = [("path", "label", "split")]
    (rig.root / "odd").mkdir()
    for number, folder in enumerate(sorted(p for p in rig.images.iterdir() if p.is_dir())):
        for index, image in enumerate(sorted(folder.iterdir())[:30]):
            name = f"odd/{number}-{index}{'<svg onload=alert(9)>' if index % 5 == 0 else ''}.jpg"
            shutil.copy(image, rig.root / name)
            rows.append((name, names[number % len(names)], "train" if index % 4 else "val"))
    with (rig.root / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    end = rig.train("m", "--epochs", "1", data=Path("t.csv")).finish(rig.patience)
    yield Trial("names in markup: train", str(end), end.is_plain(0))
    end = rig.run(
        "eval", "t.csv", "--model", "m", "--workers", "0", "--report", "r.html", "--quiet"
    )
    page = (rig.root / "r.html").read_text() if (rig.root / "r.html").exists() else ""
    raw = len(re.findall(r"<img src=x|<svg onload|</script><script>alert", page))
    yield Trial(
        "names in markup: eval --report",
        f"{end}; raw markup: {raw}",
        end.is_plain(0) and bool(page) and not raw,
    )
    end = rig.run("check", "t.csv", "--workers", "0", "--write-manifest", "w.csv", "--quiet")
    yield Trial("names in markup: check --write-manifest", str(end), end.is_plain())
    end = rig.run("export", "m", "--to", "timm", "--output", "timm", "--quiet")
    readme = (
        (rig.root / "timm" / "README.md").read_text()
        if (rig.root / "timm" / "README.md").exists()
        else ""
    )
    bare = re.sub(r"`+[^`]*`+", "", readme)
    yield Trial("names in markup: export", str(end), end.is_plain(0) and "onerror" not in bare)
    for number, folder in enumerate(sorted(p for p in rig.images.iterdir() if p.is_dir())[:3]):
        target = rig.root / "long" / (chr(97 + number) * 255)
        target.mkdir(parents=True)
        for index, image in enumerate(sorted(folder.iterdir())[:12]):
            shutil.copy(image, target / f"{index:0>251}.jpg")
    end = rig.train("l", "--epochs", "1", data=Path("long")).finish(rig.patience)
    yield Trial("names of 255 bytes: train", str(end), end.is_plain(0))
    end = rig.run("pack", "long", "l", "--quiet")
    yield Trial("names of 255 bytes: pack", str(end), end.is_plain(0))


def read_odd_images(rig: Rig) -> Iterator[Trial]:
    """19: thousands of frames, gigabytes behind the pixels, other formats under an image's name."""
    from PIL import Image

    base, odd = rig.base(), rig.root / "odd"
    odd.mkdir()
    good = Image.new("RGB", (SIDE, SIDE), "red")
    good.save(odd / "a-good.png")
    frames = [Image.new("RGB", (SIDE, SIDE), (n % 256, n // 256, 7)) for n in range(3000)]
    good.save(
        odd / "b-frames.webp",
        save_all=True,
        append_images=frames,
        duration=1,
        method=0,
        lossless=True,
    )
    (odd / "c-comments.jpg").write_bytes(repeat_segment(b"\xff\xfe", b"A" * 65000, 100))
    (odd / "f-mpf.jpg").write_bytes(
        repeat_segment(b"\xff\xe2", b"MPF\0II*\0\x08\0\0\0" + b"\xff" * 65000, 6)
    )
    (odd / "g.png").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (odd / "h.png").write_bytes(b"%PDF-1.7\n1 0 obj\n")
    packer = zlib.compressobj(9)
    tail = b"".join(packer.compress(b"\0" * 2**20) for _ in range(500)) + packer.flush()
    (odd / "i-idat.png").write_bytes(make_png(after=tail))
    frame = b"".join(
        make_chunk(b"fcTL", struct.pack(">IIIIIHHBB", n, 64, 64, 0, 0, 1, 1, 0, 0))
        for n in range(100_000)
    )
    (odd / "j-apng.png").write_bytes(
        make_png(make_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)) + frame)
    )
    Image.new("RGB", (10_000, 9_999)).save(odd / "k-large.png", compress_level=1)
    loop = struct.pack("<HHHIII", 1, 0x100, 3, 1, 8, 8)
    (odd / "l-loop.tif").write_bytes(b"II*\0\x08\0\0\0" + loop)
    end = rig.run("predict", odd, "--model", base, "--topk", "1", "--format", "jsonl", "--quiet")
    rows = [json.loads(line) for line in end.out.splitlines()]
    fine = {Path(r["input"]).name for r in rows if r["error"] is None}
    held = (
        end.is_plain(3)
        and len(rows) == len(list(odd.iterdir()))
        and {"a-good.png", "k-large.png"} <= fine
    )
    yield Trial(f"{len(rows)} odd images: predict", f"{end}; read: {' '.join(sorted(fine))}", held)
    with (rig.root / "list").open("w", errors="surrogateescape") as file:
        file.write("odd/a-good.png\n" + "x" * 50_000_000 + "\nodd/a-good.png\n")
        file.write("\x1b[31mnone\udcffyyyy\n" * 5000)
    end = rig.run("predict", "-", "--model", base, "--topk", "1", "--format", "jsonl", "--batch-size", "64", "--quiet",
                  redirect="< list")  # fmt: skip
    rows = end.out.splitlines()
    whole = sum('"error": null' in row for row in rows)
    yield Trial("a line of 50 MB and 5,000 bad ones on stdin", f"exit {end.code}, {len(rows)} rows, {whole} read",
                end.is_plain(3) and len(rows) == 5003 and whole == 2)  # fmt: skip


CASES: dict[str, Case] = {
    "13-names": name_things_in_markup,
    "16-data-goes": lose_the_data,
    "19-odd-images": read_odd_images,
    "20-slow-images": decode_slow_images,
    "21-slow-server": wait_for_slow_servers,
    "23-hiccup": read_while_a_mount_hiccups,
}
