"""Two checkouts in turns: is the new one as fast as the old one?

    git worktree add ../old COMMIT
    python benchmarks/commits.py ../old . --image cat.jpg --rounds 5

Whole commands, wall clock and CPU time of all their processes (user + system), as the ratio new / old of each round;
printed are the median and the range. CPU time is the steadier of the two on a busy machine.
Last figures: docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = ["train", "digits", "--model", "deit_tiny", "--img-size", "64", "--seed", "1", "--quiet"]
JOBS = {
    "--help": ["--help"],
    "predict, one image": ["predict", "IMAGE", "--model", "MODEL", "--quiet"],
    "eval, digits": ["eval", "digits", "--model", "MODEL", "--quiet"],
    "train, 2 epochs": [*TRAIN, "--epochs", "2", "--output", "OUTPUT"],
}


def run(tree: Path, arguments: list[str], cache: Path) -> tuple[float, float]:
    """Run a command of a checkout; return its wall and CPU seconds."""
    environment = os.environ | {"PYTHONPATH": str(tree.resolve()), "DEITCTL_CACHE": str(cache)}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "deitctl", *arguments],
        env=environment,
        cwd=cache,
        check=False,
        capture_output=True,
        text=True,
    )
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{tree}: {' '.join(arguments)}\n{done.stderr[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a row a job."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("new / old             wall: median (range)      CPU: median (range)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(options.old, [*TRAIN, "--epochs", "1", "--output", str(folder / "model")], folder)
        for job, arguments in JOBS.items():
            ratios: list[tuple[float, float]] = []
            for number in range(options.rounds + 1):
                measured = {}
                # in turns, and the first of a pair is the second of the next
                for side in ("old", "new") if number % 2 else ("new", "old"):
                    values = {
                        "IMAGE": str(options.image.resolve()),
                        "MODEL": str(folder / "model"),
                        "OUTPUT": str(folder / f"{side}-{job}-{number}"),
                    }
                    command = [values.get(a, a) for a in arguments]
                    measured[side] = run(getattr(options, side), command, folder)
                if number:  # the first round warms the page cache
                    (old_wall, old_cpu), (new_wall, new_cpu) = measured["old"], measured["new"]
                    ratios.append((new_wall / old_wall, new_cpu / old_cpu))
            columns = [
                f"{statistics.median(r):.3f} ({min(r):.3f} to {max(r):.3f})"
                for r in zip(*ratios, strict=True)
            ]
            print(f"{job:20s}  {columns[0]:24s}  {columns[1]}", flush=True)


if __name__ == "__main__":
    main()
