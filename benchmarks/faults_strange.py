"""Cases of faults.py: commands at the same moment, clocks, signals, limits, environments, odd paths."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from fault_rig import SMALL, Case, Rig, Trial, count_steps, has_logged
from faults_processes import command_with_loaders
from faults_surroundings import build_shim

TRAIN = ("--epochs", "1", "--workers", "0", "--quiet")
JUMPS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
static long n;
int clock_gettime(clockid_t c, struct timespec *t) {
  static int (*r)(clockid_t, struct timespec *); if (!r) r = dlsym(RTLD_NEXT, "clock_gettime");
  int x = r(c, t);
  if (c == CLOCK_MONOTONIC) t->tv_sec += 3600 * (__sync_fetch_and_add(&n, 1) / 300);
  return x;
}
"""


def start_twice(rig: Rig) -> Iterator[Trial]:
    """Two commands at the same moment that write the same thing."""
    train = ("train", rig.images, *SMALL, *TRAIN, "--output", "r", "--resume", "auto")
    commands: dict[str, tuple[tuple[str | Path, ...], tuple[int, ...]]] = {
        "train --resume auto": (train, (0, 1)),
        "train --output": (train[:-2], (0, 1)),
        "pack": (("pack", rig.images, "x", "--quiet"), (0, 1)),
        "export": (("export", rig.base(), "--to", "timm", "--output", "t", "--quiet"), (0, 1)),
        "eval --report": (
            ("eval", rig.images, "--model", rig.base(), "--workers", "0", "--report", "r.html"),
            (0,),
        ),
        "predict --resume": (
            ("predict", rig.images, "--model", rig.base(), "--resume", "p.jsonl", "--quiet"),
            (0, 1),
        ),
    }
    for what, (options, codes) in commands.items():
        rig.enter("twice-at-once")
        both = [rig.start(*options), rig.start(*options)]
        ends = [process.finish(rig.patience) for process in both]
        held = all(end.is_plain(*codes) for end in ends) and any(end.code == 0 for end in ends)
        if what == "train --resume auto" and held:
            held = rig.run(*options).is_plain(0)
        if what == "pack" and held:
            held = rig.run("pack", rig.images, "x", "--verify", "--quiet").is_plain(0)
        if what.startswith("predict"):
            rows = [json.loads(line) for line in (rig.root / "p.jsonl").read_text().splitlines()]
            held = held and len({row["input"] for row in rows}) == len(rows) == 350
        last = max(ends, key=lambda end: end.code or 0)
        yield Trial(f"two at once: {what}", f"{[end.code for end in ends]}; {last}", held)


def pause_a_run(rig: Rig) -> Iterator[Trial]:
    """A run that is stopped and continued, as by a laptop's lid, and a clock that leaps an hour at a time."""
    process = rig.train("r", "--workers", "2", "--epochs", "4")
    process.wait_until(has_logged(rig.root / "r"))
    for pid in (process.pid, *process.loaders()):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(5)
    for pid in (process.pid, *process.loaders()):
        os.kill(pid, signal.SIGCONT)
    end = process.finish(rig.patience)
    yield Trial(
        "SIGSTOP to a run and its loaders, SIGCONT after 5 s",
        str(end),
        end.is_plain(0) and not end.err,
    )
    shim = {"LD_PRELOAD": str(build_shim(rig, JUMPS))}
    end = rig.run(
        "train", rig.images, *SMALL, *TRAIN[:2], "--workers", "2", "--output", "j", env=shim
    )
    yield Trial("a monotonic clock that leaps an hour: train", str(end), end.is_plain(0))


def signal_a_loader(rig: Rig) -> Iterator[Trial]:
    """Signals to one loader that no kernel's memory killer sends."""
    for name in ("SIGSEGV", "SIGPIPE", "SIGTERM", "SIGHUP"):
        rig.enter("signal-a-loader")
        process = rig.start(*command_with_loaders(rig, "train"))
        process.wait_until(has_logged(rig.root / "r"))
        loaders = process.catch_loaders()
        os.kill(loaders[0], getattr(signal, name))
        time.sleep(3)
        if name != "SIGSEGV":  # a loader goes on, and the parent decides
            process.signal(signal.SIGTERM)
        end = process.finish(rig.patience)
        step = count_steps(rig.root / "r")
        yield Trial(
            f"{name} to a loader",
            f"{end}; checkpoint of step {step}",
            end.is_plain(1, 130, 143) and step > 0,
        )


def limit_resources(rig: Rig) -> Iterator[Trial]:
    """Processor seconds, address space and inodes that run out."""
    long = (
        "train",
        rig.long_table(40),
        *SMALL,
        "--workers",
        "0",
        "--quiet",
        "--save-every",
        "1h",
        "--output",
    )
    end = rig.run(*long, "cpu", limit="ulimit -S -t 12;")
    step = count_steps(rig.root / "cpu")
    yield Trial(
        "12 processor seconds (SIGXCPU): train", f"{end}; checkpoint of step {step}", step > 0
    )
    for gigabytes in (2, 3):
        end = rig.run(*long, f"as{gigabytes}", "--epochs", "1", "--batch-size", "512", "--img-size", "128",
                      limit=f"ulimit -v {gigabytes * 1_000_000};")  # fmt: skip
        yield Trial(
            f"{gigabytes} GB of address space: train",
            str(end),
            end.is_plain() and len(end.lines) < 6,
        )
    if os.geteuid() == 0:
        (rig.root / "disk").mkdir()
        mount = 'mount -t tmpfs -o nr_inodes=8 tmpfs disk && exec "$@"'
        end = rig.run(
            "train",
            rig.images,
            *SMALL,
            *TRAIN,
            "--output",
            "disk/r",
            prefix=("unshare", "-m", "bash", "-c", mount, "bash"),
        )
        yield Trial("eight inodes: train", str(end), end.is_plain(1) and len(end.lines) < 4)


def change_the_environment(rig: Rig) -> Iterator[Trial]:
    """Variables with garbage, other locales, and interpreters with other switches."""
    predict = ("predict", rig.images / "rose", "--model", rig.base(), "--quiet")
    train = ("train", rig.images, *SMALL, *TRAIN, "--output", "r")
    variables: list[tuple[tuple[str | Path, ...], dict[str, str]]] = [
        (predict, {"DEITCTL_MAX_PIXELS": "many"}),
        (predict, {"DEITCTL_MAX_PIXELS": "-1"}),
        (predict, {"OMP_NUM_THREADS": "four"}),
        (predict, {"COLUMNS": "wide", "LINES": "-3", "TERM": "no-such-terminal"}),
        (predict, {"DEITCTL_CACHE": "", "HOME": ""}),
        (predict, {"DEITCTL_CACHE": "/proc/none"}),
        (train, {"DEITCTL_CACHE": "/proc/none"}),
        (train, {"RANK": "x", "WORLD_SIZE": "y", "LOCAL_RANK": "z"}),
        (
            train,
            {
                "RANK": "5",
                "WORLD_SIZE": "2",
                "LOCAL_RANK": "0",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": "x",
            },
        ),
        (train, {"SLURM_PROCID": "x", "SLURM_NTASKS": "y"}),
        (train, {"DEITCTL_WEIGHTS": "/dev/zero"}),
        (train, {"PYTHONWARNINGS": "error"}),
        (train, {"PYTHONOPTIMIZE": "2"}),
        (train, {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}),
        (train, {"TZ": "Nowhere/None", "LC_ALL": "xx_YY.bad"}),
    ]
    for options, values in variables:
        shutil.rmtree(rig.root / "r", ignore_errors=True)
        end = rig.run(*options, env=values)
        short = len(end.lines) <= 4
        text = " ".join(f"{k}={v}" for k, v in values.items())
        yield Trial(f"{text}: {options[0]}", str(end), end.is_plain(0, 1, 2) and short)
    names = ["caf" + unicodedata.normalize(form, "é") for form in ("NFC", "NFD")] + [
        "Rose",
        "rose",
        "日本\n語",
    ]
    folders = sorted(p for p in rig.images.iterdir() if p.is_dir())
    for name, folder in zip(names, folders, strict=False):
        shutil.copytree(folder, rig.root / "odd" / name)
    for command in ("train", "check", "pack", "predict"):
        extra: dict[str, tuple[str | Path, ...]] = {
            "train": (*SMALL, *TRAIN, "--output", "u"), "check": ("--workers", "0"), "pack": ("packed",),
            "predict": ("--model", "u", "--format", "csv"),
        }  # fmt: skip
        end = rig.run(
            command, "odd", *extra[command], env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
        )
        yield Trial(
            f"twins é/é, Rose/rose, a line end, in ASCII: {command}", str(end), end.is_plain(0, 3)
        )


def name_odd_paths(rig: Rig) -> Iterator[Trial]:
    """Outputs, inputs and configurations at places that are none."""
    train = ("train", rig.images, *SMALL, *TRAIN)
    (rig.root / "file").write_text("mine")
    os.mkfifo(rig.root / "fifo")
    for output in (
        "/proc",
        "/dev/null",
        "/proc/self/fd",
        "file",
        "x" * 300,
        "y/" * 2500,
        "fifo",
        "/dev/full/x",
        "a\nb",
        "-",
    ):
        end = rig.run(*train, "--output", output)
        yield Trial(
            f"--output {output[:20]!r}", str(end), end.is_plain(0, 1, 2) and len(end.lines) <= 3
        )
    for config in ("/dev/zero", "fifo", "/proc/self/mem", "/dev/stdin"):
        end = rig.run("train", "--config", config, "--output", "c")
        yield Trial(f"--config {config}", str(end), end.is_plain(1, 2) and len(end.lines) <= 3)
    for path in (
        "/proc/self/environ",
        "/proc/self/fd/0",
        "/dev/stdin",
        "/dev/zero",
        "fifo",
        "/proc/self/mem",
    ):
        end = rig.run("predict", path, "--model", rig.base(), "--quiet")
        yield Trial(f"predict {path}", str(end), end.is_plain(1, 3))
    end = rig.run("predict", rig.images / "rose", "--model", rig.base(), "--output", "fifo")
    yield Trial("predict --output fifo", str(end), end.is_plain(1, 2))
    (rig.root / "gone").mkdir()
    gone = ("bash", "-c", 'cd gone && rmdir ../gone && exec "$@"', "bash")
    for options in (
        (*train, "--output", "r"),
        ("predict", rig.images / "rose", "--model", rig.base(), "--quiet"),
    ):
        (rig.root / "gone").mkdir(exist_ok=True)
        end = rig.run(*options, prefix=gone)
        yield Trial(f"a current folder that is deleted: {options[0]}", str(end), end.is_plain(0, 1))


CASES: dict[str, Case] = {
    "environment": change_the_environment,
    "loader-signals": signal_a_loader,
    "odd-paths": name_odd_paths,
    "pause": pause_a_run,
    "resources": limit_resources,
    "twice-at-once": start_twice,
}
