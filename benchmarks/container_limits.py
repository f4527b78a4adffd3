"""Rehearse a container's limits: under each, each command succeeds or ends in one line, without traceback or hang.

Needs root on Linux, for namespaces and cgroups, and no container engine:

    python benchmarks/container_limits.py IMAGES --work /tmp/limits
    python benchmarks/container_limits.py IMAGES --work /tmp/limits --only no-home,read-only --commands train,predict

IMAGES is a folder of class folders, some hundred images. Everything is written below --work.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

USER = 12345
"""Has no name and no home."""
ENTER = 'mount --make-rprivate / && cd "$WORK"'
AS_USER = f"setpriv --reuid {USER} --regid {USER} --clear-groups env -u HOME"
READ_ONLY = (
    'mount --bind "$OUT" "$OUT" && '
    "grep -vE ' (/proc|/sys|/dev)(/| )' /proc/mounts | cut -d' ' -f2 | grep -v \"$OUT\" | "
    'while read -r m; do mount -o remount,bind,ro "$m" 2>/dev/null; done; true'
)
SMALL_DISK = 'mount -t tmpfs -o size=40m,mode=1777 none "$OUT"'


@dataclass(frozen=True)
class Limit:
    """A limit of a container: shell commands in a mount namespace, before the command."""

    setup: str = "true"
    before: str = ""
    """In front of the command."""
    env: str = ""
    """Variables for `env`."""
    cgroup: tuple[str, str] = ("", "")
    """Controller and limit."""
    may_kill: bool = False
    """Whether the kernel may end the command, which can then say nothing."""
    must_work: bool = False
    """Whether success alone will do."""


LIMITS = {
    "shm-64m": Limit("mount -t tmpfs -o size=64m,mode=1777 none /dev/shm", must_work=True),
    "shm-none": Limit("mount -t tmpfs -o size=4k,mode=1777 none /dev/shm", must_work=True),
    "no-home": Limit(before=AS_USER, must_work=True),
    "home-root": Limit(before=AS_USER, env="HOME=/", must_work=True),
    "read-only": Limit(
        f'{READ_ONLY} && mount -t tmpfs -o mode=1777 none "$TEMP"',
        before=AS_USER,
        env='TMPDIR="$TEMP"',
        must_work=True,
    ),
    "read-only-no-tmp": Limit(READ_ONLY, before=AS_USER),
    "read-only-cache": Limit(
        'mount --bind "$CACHE" "$CACHE" && mount -o remount,bind,ro "$CACHE"', must_work=True
    ),
    "tmpdir-gone": Limit(env="TMPDIR=/does/not/exist", must_work=True),
    "tmpdir-locked": Limit(before=AS_USER, env="TMPDIR=/sys", must_work=True),
    "disk-40m": Limit(SMALL_DISK, env='DEITCTL_CACHE="$OUT/cache"'),
    "files-64": Limit("ulimit -n 64"),
    "files-24": Limit("ulimit -n 24"),
    "user-processes": Limit(before=f"prlimit --nproc=6 {AS_USER}"),
    "pids-cgroup": Limit(cgroup=("pids", "6")),
    "memory-2g": Limit(cgroup=("memory", str(2 * 2**30)), must_work=True),
    "memory-400m": Limit(cgroup=("memory", str(400 * 2**20)), may_kill=True),
}


@contextmanager
def make_cgroup(controller: str, limit: str) -> Iterator[Path | None]:
    """Yield the folder of a control group with a limit, None for no controller."""
    if not controller:
        yield None
        return
    root, file = Path("/sys/fs/cgroup"), {"memory": "memory.max", "pids": "pids.max"}[controller]
    if not (root / "cgroup.controllers").exists():  # version 1
        root, file = root / controller, file.replace("memory.max", "memory.limit_in_bytes")
    group = root / f"deitctl-limits-{os.getpid()}"
    group.mkdir()
    try:
        (group / file).write_text(limit)
        yield group
    finally:
        with suppress(OSError):
            for pid in (group / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        for _ in range(50):
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


def open_for_everyone(paths: list[Path]) -> str:
    """Return shell commands that let any user reach folders below one that is root's alone, in this namespace."""
    blocked: dict[Path, list[Path]] = {}
    for path in paths:
        closed = [p for p in reversed(path.parents) if not p.stat().st_mode & 0o001]
        if closed:
            blocked.setdefault(closed[0], []).append(path)
    lines = ["true"]
    for top, below in blocked.items():
        stage = [f'"$STAGE"/{number}' for number in range(len(below))]
        lines.append('mount -t tmpfs none "$STAGE"')
        for place, path in zip(stage, below, strict=True):
            lines.append(f"mkdir {place} && mount --bind {shlex.quote(str(path))} {place}")
        lines.append(f"mount -t tmpfs -o mode=755 none {shlex.quote(str(top))}")
        for place, path in zip(stage, below, strict=True):
            target = shlex.quote(str(path))
            lines.append(f"mkdir -p {target} && mount --bind {place} {target}")
    return " && ".join(lines)


def run_command(
    limit: Limit, words: list[str], work: Path, timeout: float
) -> tuple[int | None, float, str]:
    """Run a command of deitctl under a limit; return exit code (None: it hung), seconds, and what it said."""
    repo = Path(__file__).resolve().parents[1]
    roots = [Path(sys.prefix), Path(sys.base_prefix), repo]
    env = f"OMP_NUM_THREADS=1 NO_COLOR=1 HF_HUB_OFFLINE=1 PYTHONPATH={shlex.quote(str(repo))}"
    if limit.before != AS_USER:
        env += ' DEITCTL_CACHE="$CACHE"'
    program = shlex.join([sys.executable, "-m", "deitctl", *words])
    with make_cgroup(*limit.cgroup) as group:
        join = f"echo $$ > {group}/cgroup.procs" if group else "true"
        script = (
            f"{ENTER} && {open_for_everyone(roots)} && {limit.setup} && {join} && "
            f"exec {limit.before or 'env'} {env} {limit.env} {program}"
        )
        said = work / "said"
        with said.open("wb") as stderr:
            started = time.monotonic()
            process = subprocess.Popen(
                ["unshare", "--mount", "bash", "-c", script],
                env={
                    "PATH": os.environ["PATH"],
                    "WORK": str(work),
                    "OUT": str(work / "out"),
                    "CACHE": str(work / "cache"),
                    "STAGE": str(work / "stage"),
                    "TEMP": str(work / "temp"),
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(timeout)
            except subprocess.TimeoutExpired:
                code = None
            seconds = time.monotonic() - started
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return code, seconds, said.read_text(errors="replace")


def list_commands(images: Path, base: Path, out: Path) -> dict[str, list[str]]:
    """Return the commands by name; `base` is a run, `out` the folder that they write to."""
    small = ["--no-pretrained", "--img-size", "32", "--batch-size", "64", "--workers", "2"]
    taught = ["--teacher", str(base), "--allow-weak-teacher"]
    photos = [str(path) for path in sorted(images.glob("*/*"))[:8]]
    once = ["--epochs", "1"]
    return {
        "train": [
            "train",
            str(images),
            "--model",
            "deit_tiny",
            *small,
            *once,
            "--output",
            f"{out}/r",
        ],
        "distill": [
            "distill",
            str(images),
            "--student",
            "deit_tiny",
            *small,
            *once,
            *taught,
            "--output",
            f"{out}/d",
        ],
        "eval": [
            "eval",
            str(images),
            "--model",
            str(base),
            "--workers",
            "2",
            "--report",
            f"{out}/report.html",
        ],
        "predict": ["predict", *photos, "--model", str(base), "--output", f"{out}/rows.jsonl"],
        "export": [
            "export",
            str(base),
            "--to",
            "onnx",
            "--output",
            f"{out}/m.onnx",
            "--verify-data",
            str(images),
        ],
        "cache-teacher": [
            "cache-teacher",
            str(images),
            *taught,
            "--student",
            "deit_tiny",
            "--no-pretrained",
            "--set",
            "img_size=32",
            "--workers",
            "2",
            "--views",
            "1",
        ],
    }


def print_trial(
    name: str, command: str, code: int | None, seconds: float, said: str, limit: Limit
) -> bool:
    """Print a line for a command that ran under a limit; return whether it ended as it must."""
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("deitctl ")]
    tracebacks = said.count("Traceback") + said.count("Exception ignored")
    ends_well = code == 0 or (not limit.must_work and code in (1, 3) and bool(lines))
    held = (ends_well or (limit.may_kill and code in (137, -9))) and not tracebacks
    end = "hung" if code is None else f"exit {code}"
    last = lines[-1].strip()[:150] if lines else ""
    verdict = "" if held else "  NOT HELD"
    print(
        f"{name:18} {command:14} {end:8} {seconds:4.0f} s  tracebacks {tracebacks}{verdict}  {last}",
        flush=True,
    )
    return held


def kill_loader_for_memory(work: Path, words: list[str], timeout: float) -> bool:
    """Let the kernel end a loader of a training for want of memory: in a control group that is too small for it."""
    run = work / "out" / "long"
    with make_cgroup("memory", str(2**18)) as group, (work / "said").open("wb") as stderr:
        assert group is not None
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "deitctl", *words],
            env={**os.environ, "OMP_NUM_THREADS": "1", "DEITCTL_CACHE": str(work / "cache")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        log, moved = run / "metrics.jsonl", False
        while not moved and process.poll() is None and time.monotonic() < started + timeout:
            if log.exists() and log.stat().st_size and (loaders := children.read_text().split()):
                (group / "cgroup.procs").write_text(loaders[-1])
                moved = True
            time.sleep(0.05)
        try:
            code: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    said = (work / "said").read_text(errors="replace")
    seconds = time.monotonic() - started
    held = print_trial("memory of a loader", "train", code, seconds, said, Limit())
    is_saved = (run / "checkpoint" / "state.json").exists()
    print(f"{'':18} the state was {'saved' if is_saved else 'NOT saved'}")
    return held and code == 1 and is_saved


def main() -> int:
    """Run the chosen commands under the chosen limits; return 1 if one did not end as it must."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument(
        "--work", type=Path, required=True, help="a folder that is made, and may be deleted after"
    )
    parser.add_argument("--only", default=",".join([*LIMITS, "loader"]), help="limits, with commas")
    parser.add_argument("--commands", default="", help="commands, with commas; empty: all")
    parser.add_argument(
        "--timeout", type=float, default=180, help="seconds after which a command hangs"
    )
    options = parser.parse_args()
    images, work = options.images.resolve(), options.work.resolve()
    out, base = work / "out", work / "base"
    for folder in (work, work / "cache", work / "stage", work / "temp"):
        folder.mkdir(parents=True, exist_ok=True)
    commands = list_commands(images, base, out)
    chosen = [name for name in options.commands.split(",") if name] or list(commands)
    if not (base / "result.json").exists():
        prepare = [str(base) if word == f"{out}/r" else word for word in commands["train"]]
        code, _, said = run_command(Limit(), prepare, work, 600)
        assert code == 0, said
    held = []
    for name in options.only.split(","):
        for command in chosen if name != "loader" else ():
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            out.chmod(0o1777)
            code, seconds, said = run_command(
                LIMITS[name], commands[command], work, options.timeout
            )
            held.append(print_trial(name, command, code, seconds, said, LIMITS[name]))
        if name == "loader":
            shutil.rmtree(out, ignore_errors=True)
            words = [f"{out}/long" if word == f"{out}/r" else word for word in commands["train"]]
            held.append(
                kill_loader_for_memory(
                    work, [*words, "--epochs", "200", "--save-every", "1h"], options.timeout
                )
            )
    print(f"{sum(held)} of {len(held)} ended in success or one line, without a traceback")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
