"""Time to accuracy: what `deitctl train` needs until its validation top-1 reaches a target; adds rows to the records.

    python benchmarks/records.py --flowers DIR --imagenette DIR --weights deit_tiny.safetensors
        [--tasks digits imagenette flowers] [--seeds 0] [--threads 1] [--records docs/results/records.jsonl]
    python benchmarks/records.py --table                # writes the table again, and trains nothing

Each task is a process of its own with an empty cache, which ends at the first epoch that reaches the target. Seconds
are those since the process began, its imports included. A machine is slow, or busy: each row has also the speed of
matrix products in the same process, before and after the training, and the CPU seconds times it: the matrix products
that would have taken as long. It is that number, and images seen, that rows of several machines are compared by.
Rows are added to RECORDS, and the table between the marks of records.md beside it is written from all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "docs" / "results" / "records.jsonl"
MARKS = ("<!-- table: benchmarks/records.py -->", "<!-- end -->")
TASKS: dict[str, tuple[float, dict[str, Any]]] = {
    "digits": (97.0, {"data": "digits", "pretrained": False, "epochs": 20}),
    "imagenette": (35.0, {"pretrained": False, "img_size": 64, "epochs": 30}),
    "flowers": (65.0, {"img_size": 224, "epochs": 3}),
}
"""Target top-1 in percent, and what is trained until it is reached, always deit_tiny."""
NEEDED: dict[str, tuple[str, ...]] = {
    "digits": (),
    "imagenette": ("imagenette",),
    "flowers": ("flowers", "weights"),
}
"""Options with the paths that each task needs."""
MATRIX, REFERENCE_S = 512, 1.0
"""Side of the reference's fp32 matrices, and CPU seconds for which they are multiplied."""
COLUMNS = {
    "task": "task",
    "target_top1": "target, %",
    "top1": "reached, %",
    "epoch": "epoch",
    "images_seen": "images seen",
    "wall_s": "wall s",
    "cpu_s": "CPU s",
    "matmul_gflops": "matmul GFLOP/s",
    "matmul_gflop": "CPU s x GFLOP/s",
    "seed": "seed",
    "machine": "machine",
    "version": "version",
    "date": "date",
}


class StopsAtTarget:
    """Ends a run at the first epoch that reaches a top-1, and keeps when that was."""

    def __init__(self, target: float, start: float, cpu_start: float) -> None:
        self.target, self.start, self.cpu_start = target, start, cpu_start
        self.reached: dict[str, Any] = {}

    def on_epoch_end(self, metrics: dict[str, Any]) -> bool:
        """Keep the epoch's accuracy and the seconds so far."""
        self.reached = {
            "epoch": metrics["epoch"],
            "images_seen": metrics["images_seen"],
            "top1": round(metrics["top1"], 2),
            "wall_s": round(time.time() - self.start, 1),
            "cpu_s": round(time.process_time() - self.cpu_start, 1),
        }
        return metrics["top1"] >= self.target


def measure_matmul() -> float:
    """Return the GFLOP per CPU second of fp32 matrix products."""
    import torch

    a, b = torch.rand(MATRIX, MATRIX), torch.rand(MATRIX, MATRIX)
    a @ b  # the first one also plans
    start, count = time.process_time(), 0
    while (seconds := time.process_time() - start) < REFERENCE_S:
        a @ b
        count += 1
    return count * 2 * MATRIX**3 / seconds / 1e9


def train_task(task: str, options: dict[str, Any], start: float) -> dict[str, Any]:
    """Train until the target is reached, in this process; return its row, without the machine's part."""
    import deitctl

    target, settings = TASKS[task]
    cpu_before, wall_before = time.process_time(), time.time()
    before = measure_matmul()
    cpu_spent, wall_spent = time.process_time() - cpu_before, time.time() - wall_before
    stop = StopsAtTarget(target, start + wall_spent, cpu_spent)
    result = deitctl.train(
        **(settings | options), model="deit_tiny", workers=0, device="cpu", callbacks=[stop]
    )
    speed = (before + measure_matmul()) / 2
    session = json.loads((result.run / "sessions.jsonl").read_text().splitlines()[0])
    return {
        "task": task,
        "target_top1": target,
        "is_reached": stop.reached["top1"] >= target,
        **stop.reached,
        "matmul_gflops": round(speed, 1),
        "matmul_gflop": round(stop.reached["cpu_s"] * speed),
        "precision": session["precision"],
        "threads": session["num_threads"],
        "torch": session["torch"],
        "timm": session["timm"],
        "cpu": session["device_name"],
    }


def run_task(task: str, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train a task in a process of its own; return its row."""
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"seed": seed, "output": f"{folder}/run"}
        if task == "imagenette":
            options["data"] = str(args.imagenette)
        if task == "flowers":
            options |= {"data": str(args.flowers), "weights": str(args.weights)}
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(args.threads),
            "DEITCTL_CACHE": f"{folder}/cache",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, __file__, "--train", task, json.dumps(options), str(time.time())]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    row = json.loads(done.stdout)
    cores = len(os.sched_getaffinity(0))
    now = datetime.now(UTC).isoformat(timespec="minutes")
    return {"date": now, "commit": commit, "python": platform.python_version(), "seed": seed,
            "cores": cores, "load": round(os.getloadavg()[1], 1), **row}  # fmt: skip


def write_table(records: Path) -> None:
    """Write the table of all rows between the marks of the page beside them."""
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    order = list(TASKS)
    rows.sort(key=lambda row: (order.index(row["task"]), row["date"]))
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cores = f"{row['threads']} of {row['cores']} cores"
        cells = row | {
            "machine": f"{row['cpu']}, {cores}, {row['precision']}, torch {row['torch']}",
            "version": row["commit"],
            "date": row["date"][:10],
        }
        if not row["is_reached"]:
            cells["top1"] = f"{row['top1']} (not reached)"
        lines.append("| " + " | ".join(str(cells[name]) for name in COLUMNS) + " |")
    page = records.with_suffix(".md")
    begin, end = map(re.escape, MARKS)
    text = "\n".join([MARKS[0], *lines, MARKS[1]])
    page.write_text(re.sub(f"{begin}.*{end}", lambda _: text, page.read_text(), flags=re.S))


def main() -> None:
    """Train the tasks, add their rows, and write the table."""
    if sys.argv[1:2] == ["--train"]:
        task, options, start = sys.argv[2:]
        print(json.dumps(train_task(task, json.loads(options), float(start))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flowers", type=Path)
    parser.add_argument("--imagenette", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, help="default: all whose data are named"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    missing = {task: [f"--{n}" for n in NEEDED[task] if not getattr(args, n)] for task in TASKS}
    tasks = args.tasks or [task for task in TASKS if not missing[task]]
    for task in [] if args.table else tasks:
        if missing[task]:
            parser.error(f"the task {task} needs {' and '.join(missing[task])}")
        for name in NEEDED[task]:
            if not getattr(args, name).exists():
                parser.error(f"--{name}: there is no {getattr(args, name)}")
    for seed in [] if args.table else args.seeds:
        for task in tasks:
            row = run_task(task, args, seed)
            print(json.dumps(row), file=sys.stderr, flush=True)
            with args.records.open("a") as file:
                file.write(json.dumps(row) + "\n")
    write_table(args.records)


if __name__ == "__main__":
    main()
