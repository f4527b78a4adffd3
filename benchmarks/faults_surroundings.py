"""Cases of faults.py: disks that are full or fail, permissions, clocks, many classes, and containers."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from fault_rig import SMALL, STUDENT, Case, Rig, Trial

EIO = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <unistd.h>
#include <sys/types.h>
static int hit(int fd, const char *var) {
  const char *m = getenv(var); if (!m) return 0;
  int keep = errno; char p[64], b[4096]; snprintf(p, 64, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(p, b, 4095); errno = keep; if (n < 0) return 0; b[n] = 0; return strstr(b, m) != NULL;
}
#define WRAP(ret, name, args, call, var) ret name args { static ret (*real) args; \
  if (!real) real = dlsym(RTLD_NEXT, #name); if (hit(fd, var)) { errno = EIO; return -1; } return real call; }
WRAP(ssize_t, write, (int fd, const void *b, size_t n), (fd, b, n), "EIO_WRITE")
WRAP(ssize_t, read, (int fd, void *b, size_t n), (fd, b, n), "EIO_READ")
WRAP(ssize_t, pread64, (int fd, void *b, size_t n, off64_t o), (fd, b, n, o), "EIO_READ")
WRAP(int, fsync, (int fd), (fd), "EIO_FSYNC")
"""
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
static int n;
int clock_gettime(clockid_t c, struct timespec *t) {
  static int (*r)(clockid_t, struct timespec *); if (!r) r = dlsym(RTLD_NEXT, "clock_gettime");
  int x = r(c, t);
  if (c == CLOCK_REALTIME && __sync_fetch_and_add(&n, 1) % 2) t->tv_sec -= 3600L * 24 * 365 * 60; return x;
}
"""


def build_shim(rig: Rig, source: str) -> Path:
    """Compile a library to preload."""
    (rig.root / "shim.c").write_text(source)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", "shim.so", "shim.c", "-ldl"], cwd=rig.root, check=True
    )
    return rig.root / "shim.so"


def fail_reads_and_writes(rig: Rig) -> Iterator[Trial]:
    """15: a disk that answers EIO to reads and writes of one file."""
    shim, base = build_shim(rig, EIO), rig.base()
    small = (
        "--model",
        "deit_tiny",
        "--no-pretrained",
        "--img-size",
        "32",
        "--batch-size",
        "32",
        "--epochs",
        "1",
        "--quiet",
    )
    train = ("train", rig.images, *small, "--save-every", "4", "--workers")
    rig.run("pack", rig.images, "packed", "--quiet")
    run = rig.copy(rig.half())
    trials: list[tuple[str, str, str, tuple[str | Path, ...]]] = [
        ("read of one class, 2 loaders", "EIO_READ", "/rose/", (*train, "2", "--output", "a")),
        ("read of the checkpoint", "EIO_READ", "checkpoint/model.safetensors", ("train", "--resume", run, "--quiet")),
        ("write of the checkpoint", "EIO_WRITE", "checkpoint.", (*train, "0", "--output", "b")),
        ("fsync of the checkpoint", "EIO_FSYNC", "checkpoint.", (*train, "0", "--output", "c")),
        ("write of the log", "EIO_WRITE", "metrics.jsonl", (*train, "0", "--output", "d")),
        ("write of the lock", "EIO_WRITE", "/lock", (*train, "0", "--output", "f")),
        ("read of a shard", "EIO_READ", "packed/", ("train", "packed", *small, "--workers", "2", "--output", "g")),
        ("read of weights: predict", "EIO_READ", "base/model.safetensors",
         ("predict", rig.images / "rose", "--model", base, "--quiet")),
        ("read of config.json: predict", "EIO_READ", "base/config.json",
         ("predict", rig.images / "rose", "--model", base, "--quiet")),
    ]  # fmt: skip
    for what, variable, name, options in trials:
        end = rig.run(*options, env={"LD_PRELOAD": str(shim), variable: name})
        short = len(end.lines) <= (4 if "class" not in what else 60)
        yield Trial(
            f"EIO at {what}", str(end), end.is_plain() and short and "damaged" not in end.err
        )


def fill_a_small_disk(rig: Rig) -> Iterator[Trial]:
    """10: every command that writes, on a disk of 64 kB (a tmpfs of its own; needs root)."""
    if os.geteuid():
        return
    base, disk = rig.base(), rig.root / "disk"
    disk.mkdir()
    image = next(iter(sorted((rig.images / "rose").iterdir())))
    teacher = ("--teacher", base, *STUDENT, "--finetune-teacher", "none")
    images = (rig.images, "--workers", "0", "--quiet")
    evaluate = ("eval", *images, "--model", base)
    show = 'mount -t tmpfs -o size=64k tmpfs disk && { [ -z "$OLD" ] || echo old > "$OLD"; }; "$@"; code=$?; ' \
        'ls -A disk > .left; [ -z "$OLD" ] || head -c 4 "$OLD" > .old; exit $code'  # fmt: skip
    trials: list[tuple[str, str, tuple[str | Path, ...]]] = [
        ("eval --report", "disk/r.html", (*evaluate, "--report", "disk/r.html")),
        ("eval --predictions", "", (*evaluate, "--predictions", "disk/p.jsonl", "--figures", "disk/f")),
        ("pack", "", ("pack", rig.images, "disk/x", "--quiet")),
        ("pack --raw", "", ("pack", rig.images, "disk/x", "--raw", "--workers", "2", "--quiet")),
        ("check --write-manifest", "", ("check", *images, "--write-manifest", "disk/t.csv")),
        *((f"export --to {to}", "", ("export", base, "--to", to, "--output", f"disk/m{end}", "--quiet"))
          for to, end in (("onnx", ".onnx"), ("torch", ".pt2"), ("timm", ""), ("transformers", ""), ("openvino", ""))),
        ("explain", "", ("explain", image, "--model", base, "--output", "disk/e", "--quiet")),
        ("cache-teacher", "", ("cache-teacher", *images, *teacher, "--views", "400", "--teacher-cache", "disk/c")),
        ("predict --output", "", ("predict", rig.images, rig.images, "--model", base, "--output", "disk/p.jsonl")),
        ("train", "", ("train", *images, *SMALL, "--epochs", "1", "--output", "disk/r")),
    ]  # fmt: skip
    for what, old, options in trials:
        end = rig.start(
            *options, env={"OLD": old}, prefix=("unshare", "-m", "bash", "-c", show, "bash")
        ).finish(rig.patience * 3)
        left = (rig.root / ".left").read_text().split() if (rig.root / ".left").exists() else []
        kept = not old or (rig.root / ".old").read_text() == "old\n"
        half = [n for n in left if n == "x" or n.endswith((".onnx", ".pt2", ".csv"))]
        held = end.is_plain(0, 1, 3) and kept and (end.code == 0 or not half)
        yield Trial(f"a disk of 64 kB: {what}", f"{end}; left: {' '.join(left)[:80]}", held)
    for command in ("predict", "eval", "models", "--version"):
        options = {
            "predict": (rig.images / "rose", "--model", base),
            "eval": (rig.images, "--model", base, "--workers", "0"),
        }
        end = rig.run(command, *options.get(command, ()), redirect=">/dev/full")
        yield Trial(f"{command} >/dev/full", str(end), end.is_plain(1) and len(end.lines) >= 1)


def mask_permissions(rig: Rig) -> Iterator[Trial]:
    """26: under umask 077 nothing may be readable by others."""
    base = rig.base()
    commands: tuple[tuple[str | Path, ...], ...] = (
        ("train", rig.images, "--model", "deit_tiny", "--no-pretrained", "--img-size", "32", "--epochs", "1",
         "--workers", "0", "--save-every", "4", "--output", "r"),
        ("cache-teacher", rig.images, "--teacher", base, *STUDENT, "--finetune-teacher", "none", "--views", "1",
         "--workers", "0"),
        ("pack", rig.images, "packed"),
        ("eval", rig.images, "--model", base, "--workers", "0", "--report", "r.html", "--figures", "f"),
        ("export", base, "--to", "timm", "--output", "t"),
        ("check", rig.images, "--write-manifest", "t.csv", "--workers", "0"),
        ("predict", rig.images / "rose", "--model", base, "--output", "p.jsonl"),
        ("explain", next((rig.images / "rose").iterdir()), "--model", base, "--output", "e"),
    )  # fmt: skip
    ends = [rig.run(*options, "--quiet", limit="umask 077;") for options in commands]
    found = [
        p for p in rig.root.rglob("*")
        if not p.name.startswith((".out", ".err")) and not p.is_symlink() and stat.S_IMODE(p.stat().st_mode) & 0o044
    ]  # fmt: skip
    names = " ".join(str(p.relative_to(rig.root)) for p in found[:5])
    codes = [end.code for end in ends]
    yield Trial(f"umask 077: {len(ends)} commands", f"exit {codes}; readable by others: {len(found)} {names}",
                not found and all(end.is_plain() for end in ends))  # fmt: skip


def turn_the_clock(rig: Rig) -> Iterator[Trial]:
    """27: a clock that jumps 60 years at every look, and 10,000 classes."""
    shim = {"LD_PRELOAD": str(build_shim(rig, CLOCK))}
    train = ("train", rig.images, "--model", "deit_tiny", "--no-pretrained", "--img-size", "32", "--epochs", "2",
             "--workers", "0", "--save-every", "2s", "--output", "c", "--quiet")  # fmt: skip
    for what, options in {
        "train --save-every 2s": train,
        "eval --report": (
            "eval",
            rig.images,
            "--model",
            "c",
            "--workers",
            "0",
            "--report",
            "c.html",
            "--quiet",
        ),
        "export": ("export", "c", "--to", "timm", "--output", "t", "--quiet"),
    }.items():
        end = rig.run(*options, env=shim)
        yield Trial(f"a clock that jumps: {what}", str(end), end.is_plain(0))
    images = sorted(rig.images.glob("*/*"))
    rows = [
        f"{images[n % len(images)]},class {n % 10_000:05} {'x' * 200},{'train' if n < 10_000 else 'val'}"
        for n in range(10_500)
    ]
    (rig.root / "many.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    end = rig.start("train", "many.csv", "--model", "deit_tiny", "--no-pretrained", "--img-size", "16",
                    "--batch-size", "256",
                    "--epochs", "1", "--workers", "2", "--output", "m", "--quiet").finish(rig.patience * 4)  # fmt: skip
    yield Trial("10,000 classes: train", str(end), end.is_plain(0))
    end = rig.start(
        "eval", "many.csv", "--model", "m", "--workers", "0", "--report", "m.html", "--quiet"
    ).finish(rig.patience * 2)
    yield Trial("10,000 classes: eval --report", str(end), end.is_plain(0))


CASES: dict[str, Case] = {
    "10-small-disk": fill_a_small_disk,
    "15-eio": fail_reads_and_writes,
    "26-permissions": mask_permissions,
    "27-clock-and-classes": turn_the_clock,
}
