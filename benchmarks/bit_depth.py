"""How many photographs does `deitctl predict` name right when they are stored in 8 to 14 bits of 16?

    python benchmarks/bit_depth.py PHOTOS --weights deit_tiny_patch16_224.fb_in1k.safetensors [--package FOLDER]

PHOTOS is a folder of images whose names begin with the WordNet id of what they show. Each is written as gray of 8 bits,
and as gray and color of 8, 10, 12 and 14 bits in PNG and TIFF of 16 bits; all files of a kind are predicted by one
command. Prints the right answers. FOLDER is a checkout of another version, whose answers are counted. Last figures:
docs/results/data.md.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import deitctl

DEPTHS = (8, 10, 12, 14)
MODEL = "deit_tiny"
Values = NDArray[np.uint16]


def encode_png(values: Values, sbit: int = 0) -> bytes:
    """Return a PNG of 16 bits, of values [H,W] or [H,W,3], which states `sbit` significant bits."""
    height, width = values.shape[:2]
    rows = values.astype(">u2").reshape(height, -1)
    channels = rows.shape[1] // width
    header = struct.pack(">IIBBBBB", width, height, 16, 0 if channels == 1 else 2, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows), 1)
    chunks = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    if sbit:
        chunks.insert(1, (b"sBIT", bytes([sbit] * channels)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def encode_tiff(values: Values) -> bytes:
    """Return an uncompressed TIFF of 16 bits, of values [H,W] or [H,W,3]."""
    height, width = values.shape[:2]
    channels = values.size // (height * width)
    data = values.astype("<u2").tobytes()
    entries = [
        (256, width),
        (257, height),
        (258, 16),
        (259, 1),
        (262, 1 if channels == 1 else 2),
        (273, 8),
        (277, channels),
        (278, height),
        (279, len(data)),
    ]
    start = 8 + len(data)
    table = b""
    for tag, value in entries:
        if tag == 258 and channels > 1:
            table += struct.pack("<HHII", tag, 3, channels, start + 6 + 12 * len(entries))
        else:
            table += struct.pack("<HHII", tag, 4, 1, value)
    bits = struct.pack("<3H", 16, 16, 16)
    return (
        b"II*\0"
        + struct.pack("<I", start)
        + data
        + struct.pack("<H", len(entries))
        + table
        + bytes(4)
        + bits
    )


def list_kinds() -> Iterator[tuple[str, str, Callable[[Image.Image], bytes]]]:
    """Yield the name of each kind of file, its extension, and what makes one of a photo."""

    def widen(image: Image.Image, depth: int) -> Values:
        values = np.asarray(image).astype(np.float64) / 255 * (2**depth - 1)
        rounded: Values = np.rint(values).astype(np.uint16)
        return rounded

    for mode, name in (("L", "gray"), ("RGB", "color")):
        for depth in DEPTHS:

            def as_png(image: Image.Image, mode: str = mode, depth: int = depth) -> bytes:
                return encode_png(widen(image.convert(mode), depth))

            def as_tiff(image: Image.Image, mode: str = mode, depth: int = depth) -> bytes:
                return encode_tiff(widen(image.convert(mode), depth))

            yield f"{name}, {depth} bits in PNG", ".png", as_png
            yield f"{name}, {depth} bits in TIFF", ".tif", as_tiff
    yield (
        "gray, 12 bits in PNG, with sBIT",
        ".png",
        lambda image: encode_png(widen(image.convert("L"), 12), 12),
    )


def predict(files: list[str], weights: str, package: str) -> list[int]:
    """Return the class of each file, -1 of one with an error, by the command of a package."""
    command = [sys.executable, "-m", "deitctl", "predict", *files]
    command += ["--model", MODEL, "--weights", weights, "--topk", "1", "--format", "jsonl"]
    environment = os.environ | {"PYTHONPATH": package} if package else os.environ
    lines = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
    records = map(json.loads, lines.splitlines())
    return [r["predictions"][0]["index"] if r["predictions"] else -1 for r in records]


def main() -> None:
    """Print a line for each kind of file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--package", default="")
    options = parser.parse_args()
    photos = sorted(options.photos.iterdir())
    classes = deitctl.load(MODEL, weights=options.weights).model_config.class_names or ()
    right = [classes.index(photo.name[:9]) for photo in photos]

    def count(files: list[str]) -> str:
        answers = predict(files, options.weights, options.package)
        return f"{sum(a == b for a, b in zip(answers, right, strict=True))} of {len(right)}"

    print(f"{'as they are':36} {count([str(photo) for photo in photos])}")
    with tempfile.TemporaryDirectory() as folder:
        for name, suffix, encode in list_kinds():
            files = []
            for photo in photos:
                file = Path(folder) / f"{photo.stem}{suffix}"
                file.write_bytes(encode(Image.open(photo)))
                files.append(str(file))
            print(f"{name:36} {count(files)}", flush=True)
        for photo, file in zip(photos, files, strict=True):
            Image.open(photo).convert("L").save(file)
        print(f"{'gray, 8 bits in PNG of 8':36} {count(files)}")


if __name__ == "__main__":
    main()
