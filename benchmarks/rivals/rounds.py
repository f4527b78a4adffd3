"""Rounds in which contestants take turns, so that other load on the machine meets all of them; and what is stored."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rivals.jobs import Job
from benchmarks.rivals.measure import Finished, run, shown
from benchmarks.rivals.sides import Contestant, Figures


class Runner:
    """Runs contestants under equal conditions, each with a fresh folder and fresh caches."""

    def __init__(self, out: Path, threads: int, timeout: float) -> None:
        self.out, self.threads, self.timeout = out, threads, timeout

    def __call__(self, contestant: Contestant, log: str) -> Figures:
        """Run one to its end; return its figures, or what it said last where it failed."""
        folder = self.out / "run"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "cwd").mkdir(parents=True)
        env = {
            "OMP_NUM_THREADS": str(self.threads),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "DEITCTL_CACHE": str(folder / "cache"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        }
        command = [word.replace("{run}", str(folder / "run")) for word in contestant.command]
        say(f"{log}: {contestant.name}")
        done = run(command, env, folder / "cwd", self.timeout)
        self._log(log, command, done)
        figures: Figures = {
            "seconds": round(done.seconds, 2),
            "cpu": round(done.cpu, 2),
            "memory": round(done.memory),
        }
        try:
            if done.code:
                raise ValueError(done.last_words)
            figures |= contestant.read(done, folder / "run")
        except (ValueError, KeyError, IndexError, OSError, AssertionError) as error:
            late = f"ended after {self.timeout:.0f} s; " if done.code == -9 else ""
            figures["error"] = late + (str(error) or repr(error))
            say(f"  failed: {figures['error']}")
        shutil.rmtree(folder, ignore_errors=True)
        say(
            "  "
            + ", ".join(f"{k} {v:.4g}" for k, v in figures.items() if isinstance(v, int | float))
        )
        return figures

    def _log(self, name: str, command: Sequence[str], done: Finished) -> None:
        path = self.out / "logs" / f"{name.replace(' ', '-')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = sorted(done.out + done.err, key=lambda line: line[0])
        text = "".join(f"{seconds:8.2f}  {said[:300]}\n" for seconds, said in lines)
        path.write_text(f"{shown(command)}\n{text}")


def hold(
    job: Job, best: Sequence[str], conditions: dict[str, Any], runner: Runner
) -> dict[str, Any]:
    """Hold the rounds of a job that were not held yet under the same conditions; return and keep its record."""
    path = runner.out / f"{job.name}.json"
    commands = {c.name: shown(c.command) for c in job.contestants(0, best)}
    record: dict[str, Any] = {
        "job": job.name,
        "question": job.question,
        **conditions,
        "commands": commands,
        "rounds": [],
    }
    if path.exists():
        earlier = json.loads(path.read_text())
        if all(earlier.get(k) == v for k, v in record.items() if k != "rounds"):
            record["rounds"] = earlier["rounds"]
            say(f"{job.name}: {len(record['rounds'])} round(s) are there already")
    for number in range(len(record["rounds"]), job.rounds):
        load, runs = os.getloadavg()[0], {}
        for place, contestant in enumerate(job.contestants(number, best)):
            runs[contestant.name] = runner(contestant, f"{job.name} {number + 1} {place + 1}")
        record["rounds"].append({"load before": round(load, 2), "runs": _compared(runs)})
        keep(path, record)
    return record


def _compared(runs: dict[str, Figures]) -> dict[str, Figures]:
    """Count for each contestant the images whose first class is not the first contestant's."""
    answers = {
        name: figures.pop("answers") for name, figures in runs.items() if "answers" in figures
    }
    if answers:
        first = next(iter(answers.values()))
        for name, theirs in answers.items():
            runs[name]["other first class"] = sum(first.get(k) != v for k, v in theirs.items())
            runs[name]["images"] = len(theirs)
    return runs


def explore(job: Job, runner: Runner) -> dict[str, Any]:
    """Try a rival's flags one group after the other; keep what makes its steady state faster."""
    flags: tuple[str, ...] = ()
    tried: list[dict[str, Any]] = []

    def speed(some: tuple[str, ...]) -> float:
        figures = runner(job.rival(some, 0), f"explore {job.name} {len(tried) + 1}")
        tried.append(
            {
                "flags": list(some),
                **{k: v for k, v in figures.items() if k not in ("answers", "curve")},
            }
        )
        return figures.get("images_per_second") or 0.0

    fastest = speed(flags)
    for group in job.candidates:
        best = flags
        for candidate in group:
            if (found := speed((*flags, *candidate))) > fastest:
                best, fastest = (*flags, *candidate), found
        flags = best
    return {"flags": list(flags), "tried": tried}


def keep(path: Path, record: Any) -> None:
    """Write JSON whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1))
    os.replace(part, path)


def say(text: str) -> None:
    """Say how far it is."""
    print(text, file=sys.stderr, flush=True)
