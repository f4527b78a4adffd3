"""Kill trainings at random moments, resume them, and compare the end with a run that was never stopped.

    python benchmarks/kill_and_resume.py --runs 30 --signal KILL
    python benchmarks/kill_and_resume.py --runs 12 --signal TERM

Each run is stopped once or twice and resumed by `deitctl train --resume`. The moment is up to 1.5 s after a step, drawn
from all of the run's, was seen to be saved; the second is after a later step. Four settings in turn: a live or a cached
teacher, 0 or 2 loader processes, 1 or 2 processes (torchrun), fp32 or bf16. "Bit-equal" means: the saved weights, the
whole state (weights, average, moments, counters) and metrics.jsonl but for its times are the same bytes. Last figures:
docs/results/reliability.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = 66
TIMES = ("seconds", "images_per_second")
COMMON = (
    "--epochs",
    "3",
    "--batch-size",
    "64",
    "--img-size",
    "16",
    "--save-every",
    "4",
    "--format",
    "json",
    "--quiet",
    "--set",
    "augment.rand_augment=rand-m9-mstd0.5-inc1",
    "--set",
    "augment.mixup=0.8",
    "--set",
    "augment.cutmix=1.0",
    "--set",
    "drop_path_rate=0.1",
    "--set",
    "augment.repeated_aug=2",
    "--set",
    "augment.random_erase_prob=0.25",
)
CACHED = ("--views", "2")
LIVE = ("--teacher-cache", "off", "--views", "0")


class Setting:
    """One way to train: its command without an output folder."""

    def __init__(
        self, teacher: Path, *, cached: bool, workers: int, processes: int, precision: str
    ) -> None:
        self.cached, self.workers, self.processes, self.precision = (
            cached,
            workers,
            processes,
            precision,
        )
        self.options = [
            "distill",
            "digits",
            "--teacher",
            str(teacher),
            "--student",
            "deit_tiny",
            *COMMON,
            *(CACHED if cached else LIVE),
            "--workers",
            str(workers),
            "--precision",
            precision,
        ]

    def __str__(self) -> str:
        teacher = "cached" if self.cached else "live"
        return f"{teacher} teacher, {self.workers} workers, {self.processes} process(es), {self.precision}"

    def command(self, *options: str) -> list[str]:
        """Return the command line of the program with `options`."""
        if self.processes == 1:
            return [sys.executable, "-m", "deitctl", *options]
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(self.processes),
        ]
        return [*launcher, "-m", "deitctl", *options]


def start(command: list[str], cache: Path) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own, with its own teacher's cache."""
    environment = {**os.environ, "DEITCTL_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def content(run: Path) -> dict[str, object]:
    """Return everything of a run that must be the same."""
    files = sorted([*run.glob("*.safetensors"), *(run / "checkpoint").glob("*.safetensors")])
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    state = json.loads((run / "checkpoint" / "state.json").read_text())
    return {
        **{str(f.relative_to(run)): f.read_bytes() for f in files},
        "log": [{k: v for k, v in record.items() if k not in TIMES} for record in log],
        "state": {k: v for k, v in state.items() if k not in ("seconds", "log_bytes")},
    }


def begin(setting: Setting, run: Path, cache: Path) -> subprocess.Popen[bytes]:
    """Start a run, or resume it if there is one."""
    resume = ["train", "--resume", str(run), "--quiet", "--format", "json"]
    options = resume if (run / "run.toml").exists() else [*setting.options, "--output", str(run)]
    return start(setting.command(*options), cache)


def finish(setting: Setting, run: Path, cache: Path) -> int:
    """Resume a run until it is finished; return 0, or an exit code that is no success."""
    process = begin(setting, run, cache)
    _, talk = process.communicate(timeout=900)
    if process.returncode:
        print(talk.decode()[-2000:])
    return process.returncode


def family(pid: int) -> list[int]:
    """Return a process and all that it started, who would outlive it: torchrun's have sessions of their own."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(
                int(stat.parent.name)
            )
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def step_of(run: Path) -> int:
    """Return the step of the state that is saved, 0 for none."""
    try:
        return int(json.loads((run / "checkpoint" / "state.json").read_text())["step"])
    except (OSError, ValueError):
        return 0


def stop_at(
    setting: Setting, run: Path, cache: Path, step: int, delay: float, how: signal.Signals
) -> int | None:
    """Start or resume a run and send it a signal some seconds after a step was saved; None if it ended before."""
    process = begin(setting, run, cache)
    while process.poll() is None and (step_of(run) < step or not (run / "run.toml").exists()):
        time.sleep(0.02)
    try:
        process.wait(timeout=delay)
        return None
    except subprocess.TimeoutExpired:
        for pid in [process.pid] if how is not signal.SIGKILL else family(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
    process.communicate(timeout=120)
    return process.returncode


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    how, draw = signal.Signals[f"SIG{arguments.signal}"], random.Random(arguments.seed)
    root = Path(tempfile.mkdtemp(prefix="deitctl-kill-"))
    teacher = root / "teacher"
    train = [
        sys.executable,
        "-m",
        "deitctl",
        "train",
        "digits",
        "--model",
        "regnety_002",
        "--img-size",
        "32",
        "--epochs",
        "3",
    ]
    assert start([*train, "--output", str(teacher), "--quiet"], root).wait(timeout=900) == 0
    settings = [
        Setting(teacher, cached=True, workers=0, processes=1, precision="fp32"),
        Setting(teacher, cached=False, workers=2, processes=1, precision="bf16"),
        Setting(teacher, cached=True, workers=2, processes=2, precision="bf16"),
        Setting(teacher, cached=False, workers=0, processes=2, precision="fp32"),
    ]
    references: list[tuple[dict[str, object], float]] = []
    for number, setting in enumerate(settings):
        begun = time.monotonic()
        assert finish(setting, root / f"whole-{number}", root / f"cache-whole-{number}") == 0
        references.append((content(root / f"whole-{number}"), time.monotonic() - begun))
        print(f"{setting}: {references[-1][1]:.0f} s", flush=True)
    equal, stopped = 0, 0
    for number in range(arguments.runs):
        which = number % len(settings)
        setting, (expected, _) = settings[which], references[which]
        run, cache = root / f"run-{number}", root / f"cache-{number}"
        steps = sorted(draw.randrange(0, STEPS - 2) for _ in range(1 + number // len(settings) % 2))
        codes = [stop_at(setting, run, cache, step, draw.uniform(0, 1.5), how) for step in steps]
        at = step_of(run)
        assert finish(setting, run, cache) == 0
        found = content(run)
        different = [name for name in expected if found.get(name) != expected[name]]
        equal += not different
        stopped += sum(code is not None for code in codes)
        when = f"{arguments.signal} after steps {steps} (exit {codes})"
        print(
            f"{number + 1}: {setting}; {when}, state of step {at}: {different or 'equal'}",
            flush=True,
        )
        shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(cache, ignore_errors=True)
    print(
        f"{equal} of {arguments.runs} ended bit-equal; {stopped} stops by SIG{arguments.signal} met a running program."
    )
    shutil.rmtree(root)
    sys.exit(equal != arguments.runs)


if __name__ == "__main__":
    main()
