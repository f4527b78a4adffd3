"""Attack what stands around a run, and print one line a trial: what was done | what happened | held or NOT HELD.

    python benchmarks/faults.py --images FLOWERS                      (all; as root also full disks and /dev/shm)
    python benchmarks/faults.py --images FLOWERS --only 05-run-folder 14-links

FLOWERS is a folder of class folders, some fifty images each, among them daisy and rose. Each trial runs the command
line as a user would, on a deit_tiny of 32 pixels; a command that has not ended after --patience seconds hangs. Exits
with 1 if a trial did not hold. Last figures: docs/results/reliability.md.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import faults_checkpoints
import faults_folders
import faults_images
import faults_neighbors
import faults_processes
import faults_strange
import faults_surroundings
from fault_rig import Case, Rig, Trial

CASES: dict[str, Case] = dict(
    sorted(
        {
            **faults_neighbors.CASES,
            **faults_processes.CASES,
            **faults_strange.CASES,
            **faults_checkpoints.CASES,
            **faults_folders.CASES,
            **faults_images.CASES,
            **faults_surroundings.CASES,
        }.items()
    )
)


def run_case(rig: Rig, name: str) -> Iterator[Trial]:
    """Yield the trials of a case; a mistake in the case itself is a trial that did not hold."""
    rig.enter(name)
    try:
        yield from CASES[name](rig)
    except Exception as error:
        traceback.print_exc()
        yield Trial("the case itself", f"{type(error).__name__}: {error}", False)
    shutil.rmtree(rig.root, ignore_errors=True)


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--scratch", type=Path, help="folder to work in; default: a temporary one")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--patience", type=float, default=60, help="seconds until a command hangs")
    arguments = parser.parse_args()
    scratch = arguments.scratch or Path(tempfile.mkdtemp(prefix="deitctl-faults-"))
    rig = Rig(scratch.resolve(), arguments.images, arguments.patience)
    held = total = 0
    for name in arguments.only:
        for trial in run_case(rig, name):
            total, held = total + 1, held + trial.held
            verdict = "held" if trial.held else "NOT HELD"
            happened = " ".join(trial.happened.split())
            print(f"{name} | {trial.what} | {happened} | {verdict}", flush=True)
    print(f"{held} of {total} trials held.")
    if arguments.scratch is None:
        shutil.rmtree(scratch, ignore_errors=True)
    sys.exit(held != total)


if __name__ == "__main__":
    main()
