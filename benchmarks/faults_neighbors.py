"""Cases of faults.py: devices among the images, folders that change in use, the other process of a job."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from fault_rig import SMALL, STUDENT, Case, Rig, Trial, count_steps, has_logged, is_alive
from faults_surroundings import build_shim

TRAIN = ("--epochs", "1", "--workers", "0", "--quiet")


READ_ONLY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
static int on(void) {
  const char *f = getenv("READ_ONLY_FLAG"); int k = errno, x = f && access(f, F_OK) == 0; errno = k; return x;
}
#define OPEN(name) int name(const char *p, int f, ...) { \
  va_list a; va_start(a, f); mode_t m = va_arg(a, mode_t); va_end(a); \
  static int (*r)(const char *, int, ...); if (!r) r = dlsym(RTLD_NEXT, #name); \
  if ((f & O_ACCMODE) != O_RDONLY && on()) { errno = EROFS; return -1; } return r(p, f, m); }
OPEN(open) OPEN(open64)
int mkdir(const char *p, mode_t m) { static int (*r)(const char *, mode_t); if (!r) r = dlsym(RTLD_NEXT, "mkdir");
  if (on()) { errno = EROFS; return -1; } return r(p, m); }
int rename(const char *a, const char *b) {
  static int (*r)(const char *, const char *); if (!r) r = dlsym(RTLD_NEXT, "rename");
  if (on()) { errno = EROFS; return -1; } return r(a, b); }
"""


def put_devices_into_folders(rig: Rig) -> Iterator[Trial]:
    """Fifos, sockets, devices and endless files among the images and in a run's folder."""
    data = rig.copy_images()
    os.mkfifo(data / "rose" / "fifo.jpg")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.relpath(data / "rose" / "socket.jpg"))
    (data / "rose" / "zero.jpg").symlink_to("/dev/zero")
    (data / "rose" / "tty.jpg").symlink_to("/dev/tty")
    with (data / "rose" / "sparse.jpg").open("wb") as file:
        file.truncate(100 << 30)
    base = rig.base()
    commands: dict[str, tuple[str | Path, ...]] = {
        "check": ("--workers", "0"),
        "train": (*SMALL, "--epochs", "1", "--workers", "2", "--output", "r"),
        "eval": ("--model", base, "--workers", "2"),
        "cache-teacher": (
            "--teacher",
            base,
            *STUDENT,
            "--finetune-teacher",
            "none",
            "--views",
            "1",
            "--workers",
            "2",
        ),
        "pack": ("x",),
        "predict": ("--model", base),
    }
    for command, options in commands.items():
        end = rig.run(command, data, *options, "--quiet")
        yield Trial(
            f"fifo, socket, devices, 100 GB among the images: {command}",
            str(end),
            end.is_plain(0, 3),
        )
    listener.close()

    def replace(name: str, make: Callable[[Path], object]) -> Path:
        run = rig.copy(rig.half())
        path = run / name
        path.unlink(missing_ok=True)
        make(path)
        return run

    def make_sparse(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(20 << 30)

    names = ("run.toml", "metrics.jsonl", "lock", "result.json", "launch_id", "split.csv", "checkpoint/state.json",
             "checkpoint/model.safetensors")  # fmt: skip
    for kind, make in {"a fifo": os.mkfifo, "20 GB of zeros": make_sparse}.items():
        for name in names:
            end = rig.run(
                "train", "--resume", replace(name, make), "--quiet", limit="ulimit -v 12000000;"
            )
            held = end.is_plain(0, 1) and len(end.lines) <= 4 and "not enough memory" not in end.err
            yield Trial(f"{name} is {kind}: resume", str(end), held)
    run = rig.copy(base)
    with (run / "metrics.jsonl").open("ab") as file:
        file.truncate(20 << 30)
    end = rig.run(
        "eval",
        rig.images,
        "--model",
        run,
        "--report",
        "r.html",
        "--workers",
        "0",
        limit="ulimit -v 12000000;",
    )
    yield Trial(
        "a log that ends in 20 GB of zeros: eval --report",
        str(end),
        end.is_plain(0, 1) and "memory" not in end.err,
    )


def change_what_is_in_use(rig: Rig) -> Iterator[Trial]:
    """Folders that are replaced, grow, or become read-only in mid-run."""
    process = rig.train("r", "--epochs", "10", "--save-every", "8")
    process.wait_until((rig.root / "r" / "checkpoint" / "state.json").exists)
    (rig.root / "r").rename(rig.root / "mine")
    (rig.root / "r").mkdir()
    (rig.root / "r" / "notes.txt").write_text("another branch")
    end = process.finish(rig.patience)
    false = "is whole" in end.err and count_steps(rig.root / "r") < 0
    yield Trial("run folder replaced by another (git checkout)", f"{end}; a false promise: {false}",
                end.is_plain(0, 1) and not false)  # fmt: skip
    rig.enter("grows")
    data = rig.copy_images()
    process = rig.train("r", "--epochs", "6", "--workers", "2", "--save-every", "9", data=data)
    process.wait_until(has_logged(rig.root / "r"))
    for image in sorted((data / "rose").iterdir())[:20]:
        shutil.copy(image, data / "tulip" / f"new-{image.name}")
    process.wait_until(lambda: count_steps(rig.root / "r") > 9)
    process.signal(signal.SIGTERM)
    end = process.finish(rig.patience)
    again = rig.resume("r")
    yield Trial(
        "data that grows in mid-run, then resume", f"{end.code}, then {again}", again.is_plain(0, 1)
    )
    rig.enter("read-only")
    flag = rig.root / "is-read-only"
    shim = {"LD_PRELOAD": str(build_shim(rig, READ_ONLY)), "READ_ONLY_FLAG": str(flag)}
    process = rig.start(
        *(
            "train",
            rig.images,
            *SMALL,
            "--epochs",
            "20",
            "--workers",
            "0",
            "--quiet",
            "--save-every",
            "8",
            "--output",
            "r",
        ),
        env=shim,
    )
    process.wait_until((rig.root / "r" / "checkpoint" / "state.json").exists)
    flag.touch()
    end = process.finish(rig.patience)
    yield Trial(
        "a disk that becomes read-only in mid-run",
        str(end),
        end.is_plain(1) and "is whole" in end.err,
    )
    if os.geteuid():
        return
    cache = rig.root / "cache"
    cache.mkdir()
    only = 'mount --bind cache cache && mount -o remount,bind,ro cache && exec "$@"'
    teacher = ("--teacher", rig.base(), *STUDENT, "--finetune-teacher", "none", "--views", "1")
    for options in (
        ("predict", rig.images / "rose", "--model", rig.base(), "--quiet"),
        ("train", rig.images, *SMALL, *TRAIN, "--output", "r"),
        ("cache-teacher", rig.images, *teacher),
    ):
        end = rig.run(*options, prefix=("unshare", "-m", "bash", "-c", only, "bash"))
        yield Trial(
            f"a read-only cache: {options[0]}",
            str(end),
            end.is_plain(*((0, 1) if options[0] == "cache-teacher" else (0,))),
        )


def share_a_job(rig: Rig) -> Iterator[Trial]:
    """Two processes of torchrun, one of which loses a loader or is killed."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    train = (
        "train",
        rig.long_table(),
        *SMALL,
        "--workers",
        "2",
        "--quiet",
        "--save-every",
        "1h",
        "--output",
        "r",
    )
    for what in ("a loader killed", "a process killed", "SIGTERM to torchrun"):
        rig.enter("job")
        process = rig.start(*train, launcher=launcher)
        process.wait_until(has_logged(rig.root / "r"), 120)
        workers = [p for p in list_children(process.pid) if list_children(p)]
        if what == "a loader killed":
            loaders = [p for p in list_children(workers[-1]) if not list_children(p)]
            os.kill(loaders[0], signal.SIGKILL)
        elif what == "a process killed":
            os.kill(workers[-1], signal.SIGKILL)
        else:
            process.signal(signal.SIGTERM)
        end = process.finish(rig.patience * 2)
        step = count_steps(rig.root / "r")
        left = [pid for pid in workers if is_alive(pid)]
        ours = [line for line in end.lines if line.startswith(("error", "[process", "interrupted"))]
        yield Trial(
            f"two processes, {what}", f"exit {end.code} after {end.seconds:.0f} s, checkpoint of step {step}, "
            f"left {len(left)}; {' / '.join(ours)[:300]}",
            end.code is not None and not left and bool(ours) and (step > 0 or what == "a process killed"),
        )  # fmt: skip


def list_children(pid: int) -> list[int]:
    """Return the processes that a process started."""
    done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(number) for number in done.stdout.split()]


CASES: dict[str, Case] = {
    "devices": put_devices_into_folders,
    "in-use": change_what_is_in_use,
    "two-processes": share_a_job,
}
