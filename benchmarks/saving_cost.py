"""What saving the state costs: trainings that save as often as the clock allows, paired with ones that do not.

    python benchmarks/saving_cost.py --pairs 4

`--save-every 1s` asks for far more than anybody needs; by its rule, a save by the clock takes at most a hundredth of
the time. Interleaved; prints the ratio of the times of the epochs' training parts, from metrics.jsonl. Last figures:
docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TRAIN = (
    "train", "digits", "--model", "deit_tiny", "--img-size", "64", "--epochs", "2", "--batch-size", "64", "--workers", "0",
    "--quiet", "--format", "json",
)  # fmt: skip


def seconds_of(run: Path, every: str) -> tuple[float, int]:
    """Train; return the seconds of its training parts and how often a state was saved."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", COUNTING, *TRAIN, "--output", str(run), "--save-every", every]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    images = [e["images_seen"] for e in epochs if e["kind"] == "epoch"]
    per_epoch = images[0]
    speeds = [e["images_per_second"] for e in epochs if e["kind"] == "epoch"]
    return sum(per_epoch / speed for speed in speeds), int(done.stderr.split()[-1])


COUNTING = """
import sys
from deitctl.training.saver import Saver
from deitctl.cli.app import app
saves, save = [], Saver.save
Saver.save = lambda self, state, **options: (saves.append(1), save(self, state, **options))[1]
sys.argv[0] = "deitctl"
try:
    app(args=sys.argv[1:])
except SystemExit:
    pass
print(len(saves), file=sys.stderr)
"""


def main() -> None:
    """Run the pairs and print the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=4)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(parser.parse_args().pairs):
            order = ("1h", "1s") if number % 2 else ("1s", "1h")
            found = {every: seconds_of(Path(folder) / f"{number}-{every}", every) for every in order}
            ratios.append(found["1s"][0] / found["1h"][0])
            print(f"1h: {found['1h'][0]:.1f} s, {found['1h'][1]} saves; 1s: {found['1s'][0]:.1f} s, {found['1s'][1]} saves; "
                  f"ratio {ratios[-1]:.4f}", flush=True)  # fmt: skip
    print(f"median ratio {statistics.median(ratios):.4f}")


if __name__ == "__main__":
    main()
