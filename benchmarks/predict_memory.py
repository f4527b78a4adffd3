"""Does `deitctl predict` hold more, the more it has answered? Its memory over 100,000 paths, from a list and a folder.

    python benchmarks/predict_memory.py [--paths 100000] [--batch-size 16]

A DeiT-tiny at 32 pixels with random weights answers: by torch to a list of paths on stdin, to one folder with that many
hard links (removed afterwards), and, exported, by onnxruntime to the list. The list is of 2,000 images again and again.
While records come out, the resident memory of the process is read (Linux: /proc/PID/status, VmRSS) after every
hundredth of them; the table has it at some of these, and how fast it went. Last figures: docs/results/predict.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

DISTINCT = 2000
SHOWN = (1, 5, 10, 25, 50, 75, 100)
"""Percent of the records."""


def make_images(folder: Path) -> list[Path]:
    """Write small images, all different."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    draw = np.random.default_rng(0)
    paths = [folder / f"image_{n:05d}.png" for n in range(DISTINCT)]
    for path in paths:
        Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
    return paths


def make_model(folder: Path) -> None:
    """Save a DeiT-tiny for ten classes at 32 pixels."""
    from deitctl.events import SilentReporter
    from deitctl.models.build import build_model
    from deitctl.models.checkpoint_io import save_model
    from deitctl.models.introspect import describe_layers, pin_img_size

    built = build_model(
        "deit_tiny",
        class_names=[f"class_{n}" for n in range(10)],
        img_size=32,
        drop_path_rate=0.0,
        pretrained=False,
        weights="",
        distilled=None,
        reporter=SilentReporter(),
    )
    save_model(
        folder,
        built.model.state_dict(),
        pin_img_size(built.model, built.model_config),
        describe_layers(built.model),
    )


def rss(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def watch(name: str, arguments: list[str], lines: Iterable[str], count: int) -> None:
    """Run predict, feed it, and print its memory as the records come."""
    command = [sys.executable, "-m", "deitctl", "predict", "--format", "jsonl", *arguments]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None

    def feed() -> None:
        assert child.stdin is not None
        with child.stdin:
            child.stdin.writelines(f"{line}\n" for line in lines)

    threading.Thread(target=feed, daemon=True).start()
    seen, held, start = 0, {}, time.perf_counter()
    for seen, record in enumerate(child.stdout, start=1):
        assert '"error": null' in record, record
        if seen == 1:
            start = time.perf_counter()
        if seen % (count // 100) == 0:
            held[100 * seen // count] = (
                rss(child.pid) if seen < count else held[100 * seen // count - 1]
            )
    assert child.wait() == 0
    assert seen == count, seen
    after_warming = [held[p] for p in held if p >= 10]
    print(
        f"{name:22}"
        + "".join(f"{held[p]:8.1f}" for p in SHOWN)
        + f"{max(after_warming) - min(after_warming):10.1f}"
        f"{count / (time.perf_counter() - start):10.0f}"
    )


def main() -> None:
    """Make everything in a temporary folder, run the three, remove it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paths", type=int, default=100_000)
    parser.add_argument("--batch-size", default="16")
    options = parser.parse_args()
    count = options.paths // 100 * 100
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        images = make_images(root / "images")
        make_model(root / "model")
        export = [
            "export",
            str(root / "model"),
            "--to",
            "onnx",
            "--output",
            str(root / "model.onnx"),
            "--quiet",
        ]
        subprocess.run(
            [sys.executable, "-m", "deitctl", *export], check=True, stdout=subprocess.DEVNULL
        )
        (root / "links").mkdir()
        for n in range(count):
            os.link(images[n % DISTINCT], root / "links" / f"photograph_{n:07d}.png")
        names = [str(images[n % DISTINCT]) for n in range(count)]
        print(
            f"{count} paths; MiB after ... % of the records, largest difference from 10 % on, records a second"
        )
        print(" " * 22 + "".join(f"{p:7} %" for p in SHOWN) + "      +-  records/s")
        size = ["--batch-size", options.batch_size]
        watch("list, torch", ["-", "--model", str(root / "model"), *size], names, count)
        watch(
            "folder, torch", [str(root / "links"), "--model", str(root / "model"), *size], (), count
        )
        watch("list, onnxruntime", ["-", "--model", str(root / "model.onnx"), *size], names, count)


if __name__ == "__main__":
    main()
