"""End trainings in several ways at random moments, resume them, and compare with a run that was never stopped.

    python benchmarks/kill_and_resume.py --runs 30
    python benchmarks/kill_and_resume.py --runs 30 --ways HUP STDERR LOADER STOPPED
    python benchmarks/kill_and_resume.py --runs 30 --ways RANK KILL --processes 2

Ways: KILL (SIGKILL to all processes), RANK (SIGKILL to one process of several, drawn), TERM, INT, HUP (to the main
one), STDERR (the reader of its messages goes away), LOADER (SIGKILL to one loader process), STOPPED (loaders get
SIGSTOP, as of a dead mount, then SIGTERM).
The moment is up to a second after a step, drawn from all of the run's, was seen to be done. By KILL or RANK a run is
ended once or twice, with a checkpoint every 4 steps; otherwise once, with one every hour: what is left was saved in
the end. Settings in turn: a live or a cached teacher, 0 or 2 loader processes, 1 or 2 processes (torchrun), fp32 or
bf16; `--processes` leaves those of one number.

"Equal" means: the saved weights, the whole checkpoint (weights, average, moments, counters) and metrics.jsonl but for
its times are the same bytes. "Lost" is how many steps were done again. Last figures: docs/results/reliability.md.
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
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fault_rig import count_steps, list_family, list_loaders, restore_signals

PROGRAM = Path(__file__).with_name("counted_steps.py")
KILLS = ("KILL", "RANK")
WAYS = (*KILLS, "TERM", "INT", "HUP", "STDERR", "LOADER", "STOPPED")
PER_EPOCH, EPOCHS = 22, 3
STEPS = PER_EPOCH * EPOCHS
TIMES = ("seconds", "images_per_second")
MACHINE = ("seconds", "log_bytes", "crc32", "config")
"""Of state.json: times, what depends on them, and how often it was saved."""
RANDOM = (
    "augment.rand_augment=rand-m9-mstd0.5-inc1",
    "augment.mixup=0.8",
    "augment.cutmix=1.0",
    "drop_path_rate=0.1",
    "augment.repeated_aug=2",
    "augment.random_erase_prob=0.25",
)
PATIENCE_S = 300


@dataclass(frozen=True)
class Setting:
    """One way to train."""

    teacher: Path
    cached: bool
    workers: int
    processes: int
    precision: str

    def __str__(self) -> str:
        teacher = "cached" if self.cached else "live"
        return f"{teacher} teacher, {self.workers} loaders, {self.processes} process(es), {self.precision}"

    def options(self, run: Path, way: str) -> list[str]:
        """Return the command that starts a run, or resumes it if there is one."""
        quiet = [] if way == "STDERR" else ["--quiet"]
        if (run / "run.toml").exists():
            return ["train", "--resume", str(run), "--format", "json", *quiet]
        teacher = ("--views", "2") if self.cached else ("--teacher-cache", "off", "--views", "0")
        return [
            *("distill", "digits", "--teacher", str(self.teacher), "--student", "deit_tiny"),
            *("--epochs", str(EPOCHS), "--batch-size", "64", "--img-size", "16", *teacher),
            *(word for setting in RANDOM for word in ("--set", setting)),
            *("--workers", str(self.workers), "--precision", self.precision),
            *("--save-every", "4" if way in KILLS else "1h", "--output", str(run)),
            *("--format", "json", *quiet),
        ]

    def command(self, options: list[str]) -> list[str]:
        """Return the command line of the program, in one process or by torchrun."""
        launcher = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(self.processes),
        ]
        return [sys.executable, *(launcher if self.processes > 1 else []), str(PROGRAM), *options]


@dataclass
class Trial:
    """A run, its cache, and the count of its steps."""

    setting: Setting
    folder: Path
    way: str = "KILL"

    @property
    def run(self) -> Path:
        """Return the run's folder."""
        return self.folder / "run"

    def count(self) -> int:
        """Return the steps that were done, those that were done twice twice."""
        counted = self.folder / "steps"
        return counted.stat().st_size if counted.exists() else 0

    def start(self) -> subprocess.Popen[bytes]:
        """Start or resume the run, in a process group of its own."""
        self.folder.mkdir(exist_ok=True)
        environment = os.environ | {
            "DEITCTL_CACHE": str(self.folder / "cache"),
            "COUNTED_STEPS": str(self.folder / "steps"),
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.Popen(
            self.setting.command(self.setting.options(self.run, self.way)),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=restore_signals,
        )

    def finish(self) -> None:
        """Resume the run to its end."""
        process = self.start()
        _, messages = process.communicate(timeout=PATIENCE_S * 3)
        assert process.returncode == 0, messages.decode()[-2000:]

    def stop_at(self, step: int, draw: random.Random) -> int | None:
        """Start or resume, and end it up to a second after a step; return the exit code, None if it had ended."""
        process, begun = self.start(), self.count()
        while process.poll() is None and self.count() < max(step, begun):
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=draw.uniform(0, 1))
            return None
        stopped = end_process(process, self.way, draw)
        try:
            process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            print("HUNG", flush=True)
            end_process(process, "KILL", draw)
            process.wait()
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                print(f"loader {pid} outlived its parent", flush=True)
        return process.returncode


def end_process(process: subprocess.Popen[bytes], way: str, draw: random.Random) -> list[int]:
    """End a run in one of the ways; return loaders that must be gone when it is."""
    if way == "KILL":
        send(signal.SIGKILL, *list_family(process.pid))
    elif way == "RANK":
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        # torchrun starts nothing but the processes of the run
        send(signal.SIGKILL, int(draw.choice(children)))
    elif way == "STDERR":
        assert process.stderr is not None
        process.stderr.close()
    elif way in ("LOADER", "STOPPED"):
        loaders = list_loaders(process.pid)
        send(signal.SIGKILL, *loaders[:1]) if way == "LOADER" else send(signal.SIGSTOP, *loaders)
        if way == "STOPPED":
            time.sleep(1)
            send(signal.SIGTERM, process.pid)
            return loaders
    else:
        send(signal.Signals[f"SIG{way}"], process.pid)
    return []


def send(number: signal.Signals, *pids: int) -> None:
    """Send a signal to processes, some of which may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def read_content(run: Path) -> dict[str, object]:
    """Return everything of a run that must be the same."""
    files = sorted([*run.glob("*.safetensors"), *(run / "checkpoint").glob("*.safetensors")])
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    state = json.loads((run / "checkpoint" / "state.json").read_text())
    return {
        **{str(f.relative_to(run)): f.read_bytes() for f in files},
        "log": [{k: v for k, v in record.items() if k not in TIMES} for record in log],
        "state": {k: v for k, v in state.items() if k not in MACHINE},
    }


def choose_trials(
    settings: list[Setting], ways: list[str], count: int
) -> Iterator[tuple[str, int]]:
    """Yield a way and the number of a setting that it is possible in, each pair in turn."""
    turns: dict[str, int] = defaultdict(int)
    for number in range(count):
        way = ways[number % len(ways)]
        fits = [
            n
            for n, setting in enumerate(settings)
            if (setting.workers or way not in ("LOADER", "STOPPED"))
            and (setting.processes == 1 or way not in ("STDERR", "STOPPED"))
            and (setting.processes > 1 or way != "RANK")
        ]
        yield way, fits[turns[way] % len(fits)]
        turns[way] += 1


def make_teacher(root: Path) -> Path:
    """Train a small convnet on digits."""
    options = (
        "train",
        "digits",
        "--model",
        "regnety_002",
        "--img-size",
        "32",
        "--epochs",
        "3",
        "--quiet",
    )
    command = [sys.executable, "-m", "deitctl", *options, "--output", str(root / "teacher")]
    environment = os.environ | {"DEITCTL_CACHE": str(root), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True, timeout=900)
    return root / "teacher"


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["KILL"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, choices=(1, 2), help="only runs of so many")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    root = Path(tempfile.mkdtemp(prefix="deitctl-kill-"))
    teacher = make_teacher(root)
    settings = [
        Setting(teacher, cached=True, workers=0, processes=1, precision="fp32"),
        Setting(teacher, cached=False, workers=2, processes=1, precision="bf16"),
        Setting(teacher, cached=True, workers=2, processes=2, precision="bf16"),
        Setting(teacher, cached=False, workers=0, processes=2, precision="fp32"),
    ]
    settings = [s for s in settings if arguments.processes in (None, s.processes)]
    references: dict[int, tuple[dict[str, object], int]] = {}
    results: dict[str, list[tuple[bool, bool, int]]] = defaultdict(list)
    for number, (way, which) in enumerate(choose_trials(settings, arguments.ways, arguments.runs)):
        setting = settings[which]
        if which not in references:
            whole = Trial(setting, root / f"whole-{which}")
            whole.finish()
            references[which] = read_content(whole.run), whole.count()
        expected, undisturbed = references[which]
        trial = Trial(setting, root / f"trial-{number}", way)
        stops = 1 + (number // 4 % 2 if way in KILLS else 0)
        steps = sorted(draw.randrange(1, STEPS - 4) for _ in range(stops))
        codes = [trial.stop_at(step, draw) for step in steps]
        saved = count_steps(trial.run)
        trial.finish()
        found = read_content(trial.run)
        different = [name for name in expected if found.get(name) != expected[name]]
        lost = trial.count() - undisturbed
        results[way].append((not different, any(code is not None for code in codes), lost))
        print(
            f"{number + 1}: {setting}; {way} after steps {steps} (exit {codes}), checkpoint of step {saved}: "
            f"{', '.join(different) or 'equal'}, {lost} steps lost",
            flush=True,
        )
        shutil.rmtree(trial.folder, ignore_errors=True)
    for way, trials in results.items():
        losses = sorted(lost for _, _, lost in trials)
        print(
            f"{way}: {sum(equal for equal, _, _ in trials)} of {len(trials)} equal, "
            f"{sum(met for _, met, _ in trials)} met a running program; "
            f"steps lost: {sum(losses) / len(losses):.1f} on average, at most {losses[-1]}"
        )
    shutil.rmtree(root)
    sys.exit(not all(equal for trials in results.values() for equal, _, _ in trials))


if __name__ == "__main__":
    main()
