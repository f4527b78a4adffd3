"""Run situations of users, each a script over its small inputs, and print a line a situation.

    python benchmarks/situations.py --cases FOLDER                    (all)
    python benchmarks/situations.py --cases FOLDER --only 05 07 30

FOLDER holds NN/run.sh and its inputs; a script exits with 0 where deitctl behaves as its first comment line says.
They run on a copy, one after the other, with `deitctl` and `python` from the PATH; --assets is handed to them as $A.
A script that looks for a key or an option by an earlier name is given the present one (`RENAMED`). Exits with 1 if a
situation fails. Last figures: docs/results/data.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RENAMED = {
    "training pictures": "num_train_images",
    "['plan']": "",
    "['classes']": "['num_classes']",
    "(p['classes'],": "(p['num_classes'],",
    '"classes": ': '"num_classes": ',
    "--verify-with": "--verify-data",
    "--count ": "--num-images ",
}
"""Names that a script may look up, and those that they have now."""
TIME_LIMIT_S = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--assets", type=Path, help="weights and images that scripts use")
    parser.add_argument("--only", nargs="*", default=[], help="names of situations")
    options = parser.parse_args()
    num_failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "cases"
        shutil.copytree(options.cases, copy, symlinks=True)
        environment = dict(os.environ, DEITCTL_CACHE=f"{scratch}/cache")
        if options.assets:
            environment["A"] = str(options.assets.resolve())
        for script in sorted(copy.glob("*/run.sh")):
            if options.only and script.parent.name not in options.only:
                continue
            num_failed += not run_situation(script, environment)
    print(f"{num_failed} failed")
    sys.exit(num_failed > 0)


def run_situation(script: Path, environment: dict[str, str]) -> bool:
    """Run one script, print its line, and return whether it passed."""
    text = script.read_text()
    for old, new in RENAMED.items():
        text = text.replace(old, new)
    script.chmod(0o755)
    script.write_text(text)
    start = time.perf_counter()
    try:
        process = subprocess.run(
            ["bash", str(script)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIME_LIMIT_S,
        )
        code, output = process.returncode, process.stdout
    except subprocess.TimeoutExpired:
        code, output = 124, f"not ended after {TIME_LIMIT_S} s"
    demand = next((line[2:] for line in text.splitlines() if line.startswith("# ")), "")
    last = output.strip().splitlines()[-1:] if code else []
    verdict = "passed" if code == 0 else f"FAILED ({code})"
    seconds = time.perf_counter() - start
    print(f"{script.parent.name} | {verdict} | {seconds:.0f} s | {demand} {''.join(last)[:200]}")
    sys.stdout.flush()
    return code == 0


if __name__ == "__main__":
    main()
