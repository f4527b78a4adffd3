"""What training costs an accelerator, without one: waits, slow copies, operators, graphs, and the host's time.

    python benchmarks/engine_report.py [--tree FOLDER] [--steps 20] [--images 1024] [--json]

Programs of tests/pretend run whole steps on a pretended accelerator, each in a process of its own. `--tree` is another
checkout of this repository with its own tests/pretend. Last figures: docs/results/engine.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

COLUMNS = ("wait", "unpinned copy", "device mismatch", "float64", "operators")
Report = dict[str, Any]


def run(tree: Path, program: str, *arguments: str) -> Any:
    """Return what a program of the harness prints as JSON, run with a tree's own package."""
    result = subprocess.run(
        [sys.executable, str(tree / "tests" / "pretend" / program), *arguments],
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(result.stdout)


def measure(tree: Path, runs: list[str], host_time: list[str]) -> Report:
    """Return all that the harness measures of a tree; arguments of two of its programs."""
    return {
        "per_step": run(tree, "runs.py", *runs),
        "host_time": run(tree, "host_time.py", *host_time),
        "compiled_run": run(tree, "graphs.py"),
    }


def describe(report: Report) -> str:
    """Return a report as tables of Markdown."""
    lines = [
        "| a step, or a batch of an evaluation | waits | unpinned copies | mismatches | float64 | operators |",
        "|---|---|---|---|---|---|",
    ]
    for kind, row in report["per_step"].items():
        lines.append(f"| {kind} | " + " | ".join(f"{row[name]:.4g}" for name in COLUMNS) + " |")
    lines += [
        "",
        "| host, a step without its networks | Python and NumPy, ms | operators | with their launches, ms |",
        "|---|---|---|---|",
    ]
    for kind, row in report["host_time"].items():
        lines.append(
            f"| {kind} | {row['host_ms']:.1f} | {row['operators']:.0f} | {row['total_ms']:.1f} |"
        )
    compiled = report["compiled_run"]
    lines += ["", f"Compiled run: {compiled['graphs']} graphs, {compiled['breaks']} breaks.", ""]
    for kind, row in report["per_step"].items():
        for what, operation, line, count in row["lines"]:
            lines.append(f"- {kind}: {count:.3g} x {what}, {operation}, {line}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--steps", type=int, help="watched steps of each kind")
    parser.add_argument("--images", type=int, default=1024, help="of a step whose host is timed")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args()
    runs = [] if arguments.steps is None else ["--steps", str(arguments.steps)]
    report = measure(arguments.tree.resolve(), runs, ["--images", str(arguments.images)])
    print(json.dumps(report, indent=1) if arguments.json else describe(report))


if __name__ == "__main__":
    main()
