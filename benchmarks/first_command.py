"""The README's first command, from the shell to the table: seconds, accuracy, and what goes to stderr.

    python benchmarks/first_command.py OUT [--rounds 3] [-- OPTIONS]

Round N is `deitctl distill --seed N` and OPTIONS, in a folder of its own below OUT with an empty cache, as for someone
who has just installed it: so each round trains the teacher too. Rounds that are there are not done again. Wall time
means something on quiet cores only; CPU time on busy ones too, with OMP_NUM_THREADS=1, as threads that wait spin.
Another recipe is compared by its options, for example `-- --epochs 30 --views 8`.
Last figures: docs/results/distillation.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path


def time_command(folder: Path, seed: int, options: list[str]) -> dict[str, float | int | str]:
    """Run the command in an empty folder; return its seconds, accuracies and warnings."""
    (folder / "home").mkdir(parents=True)
    env = {
        **os.environ,
        "HOME": str(folder / "home"),  # matplotlib's list of fonts is made anew, too
        "XDG_CACHE_HOME": str(folder / "home" / "cache"),
        "DEITCTL_CACHE": str(folder / "cache"),
    }
    command = [sys.executable, "-W", "default", "-m", "deitctl", "distill"]
    command += ["--seed", str(seed), "--format", "json", *options]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    (folder / "stderr.txt").write_text(done.stderr)
    if done.returncode:
        raise SystemExit(f"{folder}: exit code {done.returncode}\n{done.stderr}")
    result = json.loads(done.stdout)
    epochs = [json.loads(line) for line in (folder / result["run"] / "metrics.jsonl").open()]
    times = [record["seconds"] for record in epochs if record["kind"] == "epoch"]
    return {
        "seed": seed,
        "options": " ".join(options),
        "wall_s": round(seconds, 1),
        "cpu_s": round(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            1,
        ),
        "student_s": times[-1],
        "teacher_top1": result["teacher"]["top1"],
        "student_top1": result["best"]["top1"],
        "last_epoch_top1": result["final"]["top1"],
        "num_warnings": sum("warning" in line.lower() for line in done.stderr.splitlines()),
    }


def main() -> None:
    """Do the rounds that are missing; print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("options", nargs="*")
    arguments = parser.parse_args()
    rounds = []
    for seed in range(arguments.rounds):
        folder = arguments.out.resolve() / "-".join(["seed", str(seed), *arguments.options])
        record = folder / "round.json"
        if not record.exists():
            record.write_text(json.dumps(time_command(folder, seed, arguments.options)))
        rounds.append(json.loads(record.read_text()))
    names = [name for name in rounds[0] if name != "options"]
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for values in rounds:
        print(f"| {' | '.join(f'{values[name]:.6g}' for name in names)} |")
    means = (statistics.fmean(values[name] for values in rounds) for name in names[1:])
    print(f"| mean | {' | '.join(f'{mean:.4g}' for mean in means)} |")


if __name__ == "__main__":
    main()
