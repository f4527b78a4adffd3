"""What `hostile_inputs.py` runs: images, models, data sets and configurations that are damaged, odd or hostile."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deitctl.config import TrainConfig
from deitctl.events import SilentReporter
from deitctl.models.build import build_model
from deitctl.models.checkpoint_io import save_model
from deitctl.models.introspect import describe_layers, pin_img_size
from deitctl.recipes import DIGITS
from deitctl.settings import write_toml

KINDS = {
    "jpg": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "bmp": "BMP",
    "gif": "GIF",
    "tif": "TIFF",
    "ppm": "PPM",
    "jp2": "JPEG2000",
    "avif": "AVIF",
}
ODD_NAMES = (
    "new\nline",
    "\x1b[2J\x1b]0;x\x07",
    "=1+1",
    "@cmd",
    "\u202egnp",
    "\udcff\udcfe",
    "[red]x[/red]",
    "'; rm -rf ~",
    'a,b"c',
    " ",
    "\r",
    "x" * 200,
)
CLASSES = ("ant", "bee", "cow")
TINY = [
    "--model",
    "deit_tiny",
    "--img-size",
    "32",
    "--epochs",
    "1",
    "--batch-size",
    "8",
    "--workers",
    "0",
    "--no-pretrained",
    "--device",
    "cpu",
]


@dataclass
class Case:
    """A command and what came of it."""

    group: str
    what: str
    arguments: list[str]
    code: int = -1
    out: str = ""
    err: str = ""
    peak: int = 0
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)


def drawn(rng: np.random.Generator, kind: str = "PNG", size: tuple[int, int] = (24, 18)) -> bytes:
    """An image of a few colored squares."""
    pixels = np.kron(rng.integers(0, 255, (3, 4, 3), dtype=np.uint8), np.ones((6, 6, 1), np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, kind)
    return buffer.getvalue()


def damaged(rng: np.random.Generator, data: bytes) -> bytes:
    """Cut, flip, overwrite, repeat, insert or swap some bytes."""
    whole, at = bytearray(data), int(rng.integers(0, len(data)))
    length = int(rng.integers(1, 64))
    match int(rng.integers(0, 7)):
        case 0:
            return bytes(whole[:at])
        case 1:
            for place in rng.integers(0, len(whole), 1 + int(rng.integers(0, 20))):
                whole[place] ^= 1 << int(rng.integers(0, 8))
        case 2:
            whole[at : at + length] = b"\xff" * length
        case 3:
            whole[at:at] = whole[at : at + length] * 20
        case 4:
            whole[at:at] = rng.bytes(length)
        case 5:
            early = int(rng.integers(0, min(64, len(whole))))
            whole[early : early + 4] = rng.bytes(4)
        case _:
            whole[:at] = whole[:at][::-1]
    return bytes(whole)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(width: int, height: int, body: int = 10**6) -> bytes:
    """A PNG whose header promises more than there is, or more than is wanted."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(b"\0" * body, 9))
        + chunk(b"IEND", b"")
    )


def images(root: Path, count: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Write `count` inputs, every eighth good; return all names in order, and the good ones."""
    root.mkdir()
    names: list[str] = []
    good: list[str] = []
    special = list(_special(root, rng))[: count // 2]
    for number in range(count - len(special)):
        ending = list(KINDS)[number % len(KINDS)]
        odd = f"-{ODD_NAMES[number // 8 % len(ODD_NAMES)]}" if number % 8 == 0 else ""
        wrong = list(KINDS)[int(rng.integers(0, len(KINDS)))] if number % 5 == 0 else ending
        path = root / f"{number:03d}{odd.replace('/', '')}.{wrong}"
        data = drawn(rng, KINDS[ending])
        path.write_bytes(data if number % 8 == 0 else damaged(rng, data))
        names.append(str(path))
        good += [str(path)] if number % 8 == 0 else []
    order = rng.permutation(len(names) + len(special))
    return [(names + special)[i] for i in order], good


def _special(root: Path, rng: np.random.Generator) -> Iterator[str]:
    """Yield the names of what is no damaged image: bombs, pipes, devices, links, addresses, nothing."""
    files = {
        "bomb.png": bomb(60_000, 60_000),
        "long.png": bomb(1, 99_999_999),
        "wide.png": bomb(65_000, 1_500),
        "large.png": bomb(6_000, 6_000, 6_000 * 24_001),
        "cut.png": bomb(9_999, 9_999),
        "empty.png": b"",
        "text.jpg": b"hello" * 99,
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "svg.png": b"<svg/>",
        "zero.bmp": b"\0" * 999,
        "ribbon.png": drawn(rng, "PNG", (2, 20_000)),
        "pixel.gif": drawn(rng, "GIF", (1, 1)),
    }
    for name, data in files.items():
        (root / name).write_bytes(data)
        yield str(root / name)
    os.mkfifo(root / "pipe.png")
    (root / "folder.png").mkdir()
    (root / "deep.png").mkdir()
    (root / "deep.png" / "up.png").symlink_to(root / "deep.png")
    for name, to in (
        ("zero.png", "/dev/zero"),
        ("loop.png", "loop.png"),
        ("memory.png", "/proc/self/mem"),
        ("gone.png", "nowhere"),
    ):
        (root / name).symlink_to(to)
    with (root / "huge.png").open("wb") as file:
        file.truncate(2**40)
    for name in (
        "pipe.png",
        "folder.png",
        "deep.png",
        "zero.png",
        "loop.png",
        "memory.png",
        "gone.png",
        "huge.png",
    ):
        yield str(root / name)
    yield from (
        "http://127.0.0.1:1/x.png",
        "http://[::1",
        "https://",
        "http://a b/",
        "x" * 5000,
        str(root / "empty.png" / "below"),
    )


def make_model(folder: Path) -> Path:
    """Write a sound DeiT-tiny of 32 pixels and three classes, with noise for weights."""
    torch.manual_seed(0)
    built = build_model(
        "deit_tiny",
        class_names=CLASSES,
        img_size=32,
        drop_path_rate=0.0,
        pretrained=False,
        weights="",
        distilled=None,
        reporter=SilentReporter(),
    )
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_model(
        folder,
        built.model.state_dict(),
        pin_img_size(built.model, built.model_config),
        describe_layers(built.model),
    )
    return folder


def models(
    root: Path, sound: Path, image: str, count: int, rng: np.random.Generator
) -> Iterator[Case]:
    """Yield predictions by models whose config or weights are damaged or absurd."""
    config = (sound / "config.json").read_bytes()
    weights = (sound / "model.safetensors").read_bytes()
    model_config = json.loads(config)
    absurd: list[dict[str, object]] = [
        {"num_classes": 10**9},
        {"num_classes": None},
        {"label_names": "abc"},
        {"label_names": [1, 2, 3]},
        {"architecture": "local-dir:/etc"},
        {"architecture": ["x"]},
        {"model_args": {"depth": 10**9}},
        {"pretrained_cfg": {"input_size": [3, 10**6, 10**6]}},
        {"pretrained_cfg": {"std": [0, 0, 0]}},
        {"label_descriptions": 7},
        {"label_names": ["\x1b[2J", "=1+1", "\u202ex"]},
    ]
    for number in range(count):
        folder = root / f"model-{number}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_bytes(config)
        (folder / "model.safetensors").symlink_to(sound / "model.safetensors")
        match number % 3:
            case 0:
                text = json.dumps({**model_config, **absurd[number // 3 % len(absurd)]}).encode()
                (folder / "config.json").write_bytes(text)
            case 1:
                (folder / "config.json").write_bytes(damaged(rng, config))
            case _:
                (folder / "model.safetensors").unlink()
                start = bytearray(weights)
                start[: 8 + 4000] = damaged(rng, bytes(start[: 8 + 4000]))
                (folder / "model.safetensors").write_bytes(
                    bytes(start if number % 2 else start[: int(rng.integers(0, 9000))])
                )
        yield Case(
            "model",
            folder.name,
            ["predict", image, "--model", str(folder), "--format", "jsonl", "--device", "cpu"],
        )


def data_sets(root: Path, sound: Path, count: int, rng: np.random.Generator) -> Iterator[Case]:
    """Yield evaluations and trainings on folders, tars and tables that are damaged."""
    verbs = ["eval", "train", "check"]
    for number in range(count):
        folder = root / f"data-{number}"
        for name in CLASSES:
            (folder / name).mkdir(parents=True)
            for image in range(4):
                data = drawn(rng)
                (folder / name / f"{image}.png").write_bytes(
                    data if image < 3 else damaged(rng, data)
                )
        path = folder
        if number % 3 == 1:
            path = root / f"data-{number}.tar"
            with tarfile.open(path, "w") as archive:
                archive.add(folder, ".")
            if number % 2:
                head = bytearray(path.read_bytes())
                head[:4096] = damaged(rng, bytes(head[:4096]))[:4096]
                path.write_bytes(bytes(head))
        elif number % 3 == 2:
            rows = [f"{c}/{n}.png,{c}" for c in CLASSES for n in range(4)] + [
                "../../etc/passwd,ant",
                "=1+1.png,bee",
                "\x1b[2J.png,cow",
            ]
            path = folder / "table.csv"
            path.write_bytes(b"path,label\n" + "\n".join(rows).encode())
            if number % 2:
                path.write_bytes(damaged(rng, path.read_bytes()))
        else:
            os.mkfifo(folder / "ant" / "pipe.png")
            (folder / "bee" / "up").symlink_to(folder)
            (folder / "loop").symlink_to(folder / "loop")
        verb = verbs[number // 3 % len(verbs)]
        more = {"eval": ["--model", str(sound), "--workers", "0", "--device", "cpu"], "check": []}
        run = [*TINY, "--recipe", "small", "--output", str(root / f"run-{number}")]
        yield Case("data", f"{verb} {path.name}", [verb, str(path), *more.get(verb, run)])


def configurations(root: Path, count: int, rng: np.random.Generator) -> Iterator[Case]:
    """Yield dry runs of damaged run.toml files."""
    sound = write_toml(TrainConfig(model="deit_tiny", data="digits", recipe=DIGITS)).encode()
    whole: list[Callable[[], bytes]] = [
        lambda: damaged(rng, sound),
        lambda: b"a = " + b"[" * 9999,
        lambda: sound.replace(b"lr = ", b"lr = inf # "),
        lambda: sound.replace(b"epochs = ", b"epochs = 9999999999999999999"),
        lambda: b".".join([b"a"] * 9999) + b" = 1",
        lambda: sound.replace(b'"deit_tiny"', b'["deit_tiny"]'),
        lambda: sound.replace(b'"deit_tiny"', b'"\\u001b[2J"'),
    ]
    root.mkdir()
    for number in range(count):
        path = root / f"run-{number}.toml"
        path.write_bytes(whole[number % len(whole)]())
        yield Case(
            "config", path.name, ["train", "--config", str(path), "--dry-run", "--device", "cpu"]
        )
