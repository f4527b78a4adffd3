"""Kill trainings at random steps, resume them, and compare their final files with those of unbroken runs.

    python benchmarks/resume_matrix.py --output /tmp/matrix [--only NAME] [--kills 2] [--seed 0]

Every row trains the built-in digits, or what it names, once without a break, and once killed with SIGKILL
after steps drawn by the seed; rows of several processes run under torchrun, where one process is killed.
Prints a line a row, and exits with 1 if a file differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

COMMON = ["--model", "deit_tiny", "--img-size", "16", "--epochs", "3", "--workers", "0"]
COMMON += ["--precision", "fp32", "--device", "cpu", "--save-every", "4", "--batch-size", "64"]
COMMON += ["--set", "optim.warmup_epochs=0.5"]  # so that the schedule matters
SHAPE = ["--set", "model.depth=4", "--set", "model.embed_dim=64", "--set", "model.num_heads=2"]
THAW = ["--freeze-blocks", "2", "--thaw-epoch", "2"]
FILES = ("model.safetensors", "checkpoint/model.safetensors", "checkpoint/optimizer.safetensors")


@dataclass(frozen=True)
class Row:
    """A training of the matrix."""

    name: str
    options: tuple[str, ...]
    processes: int = 1
    data: str = "digits"
    compared: tuple[str, ...] = FILES


ROWS = [
    Row("adamw, cosine", ()),
    Row("lamb, wsd", ("--opt", "lamb", "--sched", "wsd")),
    Row("lamb, wsd, thaw", ("--opt", "lamb", "--sched", "wsd", *THAW)),
    Row("muon, one cycle, thaw", ("--opt", "muon", "--sched", "onecycle", *THAW)),
    Row("nadamuon, linear", ("--opt", "nadamuon", "--sched", "linear")),
    Row(
        "sgd, constant, agc",
        ("--opt", "sgd", "--sched", "constant", "--set", "optim.clip_mode=agc"),
    ),
    Row("lion, checkpointed", ("--opt", "lion", "--grad-checkpointing")),
    Row("patience", ("--opt", "sgd", "--lr", "1e-12", "--patience", "1")),
    Row("balanced", ("--set", "sampling=balanced", "--opt", "lamb")),
    Row("class weights", ("--set", "class_weights=inverse")),
    Row("tensorboard", ("--log", "tensorboard,csv", "--sched", "wsd")),
    Row("2 processes, lamb, thaw", ("--opt", "lamb", "--sched", "wsd", *THAW), processes=2),
    Row("2 processes, muon", ("--opt", "muon", "--sched", "wsd"), processes=2),
    Row("2 processes, patience", ("--opt", "sgd", "--lr", "1e-12", "--patience", "1"), processes=2),
    Row("2 processes, balanced", ("--set", "sampling=balanced", *THAW), processes=2),
]


def write_multilabel(folder: Path) -> Path:
    """Write digits pasted side by side, with both labels, and a table of them; return the table."""
    from PIL import Image

    from deitctl.data.readers.digits import load_digits

    train, _ = load_digits()
    folder.mkdir(parents=True, exist_ok=True)
    lines, draws = ["path,label"], random.Random(0)
    names = train.class_names
    for number in range(400):
        pair = [draws.randrange(len(train.labels)) for _ in range(2)]
        both = Image.new("RGB", (32, 16))
        for side, index in enumerate(pair):
            both.paste(train.read(index).convert("RGB").resize((16, 16)), (16 * side, 0))
        both.save(folder / f"{number}.png")
        labels = "|".join(sorted({names[int(train.labels[index])] for index in pair}))
        lines.append(f"{number}.png,{labels}")
    table = folder / "labels.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def start(row: Row, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start a command of deitctl in the row's number of processes, in a session of its own."""
    command = [sys.executable, "-m"]
    if row.processes > 1:
        command += [
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={row.processes}",
            "-m",
        ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "deitctl", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a command; raise if it failed."""
    _, err = process.communicate(timeout=1800)
    if process.returncode:
        raise RuntimeError(err.decode()[-2000:])


def read_step(run: Path) -> int:
    """Return the step of a run's checkpoint, -1 before there is one."""
    try:
        return int(json.loads((run / "checkpoint" / "state.json").read_text())["step"])
    except (OSError, ValueError, KeyError):
        return -1


def list_children(pid: int) -> list[int]:
    """Return the processes that a process has started, and theirs."""
    try:
        direct = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [p for child in direct for p in (*list_children(child), child)]


def kill_after(process: subprocess.Popen[bytes], run: Path, step: int) -> int:
    """Kill a command and its processes once its checkpoint is of a step or later; return that step."""
    while process.poll() is None and read_step(run) < step:
        time.sleep(0.02)
    for pid in (
        *list_children(process.pid),
        process.pid,
    ):  # torchrun's are in sessions of their own
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    return read_step(run)


def hash_files(run: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Return the beginning of the SHA-256 of each file of a run."""
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest()[:16] for name in names}


def compare_row(row: Row, folder: Path, kills: int, draws: random.Random) -> bool:
    """Train a row without a break and with kills; print and return whether they end alike."""
    slug = "".join(c if c.isalnum() else "-" for c in row.name)
    whole, broken = folder / f"{slug}-whole", folder / f"{slug}-killed"
    options = ["train", row.data, *COMMON, *SHAPE, *row.options]
    finish(start(row, [*options, "--output", str(whole)]))
    last, killed_at = read_step(whole), list[int]()
    process = start(row, [*options, "--output", str(broken)])
    for step in sorted(draws.sample(range(4, max(5, last - 4)), kills)):
        killed_at.append(kill_after(process, broken, step))
        process = start(row, ["train", "--resume", str(broken)])
    finish(process)
    expected, got = hash_files(whole, row.compared), hash_files(broken, row.compared)
    same = expected == got and _read_result(whole) == _read_result(broken)
    print(
        f"{'equal' if same else 'DIFFERS':8} {row.name:26} {last:4} steps, killed at {killed_at}, "
        f"weights {got['model.safetensors']}",
        flush=True,
    )
    return same


def _read_result(run: Path) -> tuple[object, ...]:
    result = json.loads((run / "result.json").read_text())
    return result["epochs"], result["stopped"], result["best"]["epoch"], result["best"]["score"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    table = write_multilabel(arguments.output / "pairs")
    rows = [*ROWS]
    rows += [
        Row("several labels, wsd", ("--sched", "wsd", "--no-pretrained"), data=str(table)),
        Row("2 processes, several labels", ("--opt", "lamb", "--no-pretrained"), 2, str(table)),
    ]
    draws = random.Random(arguments.seed)
    alike = [
        compare_row(row, arguments.output, arguments.kills, draws)
        for row in rows
        if arguments.only in row.name
    ]
    print(f"{sum(alike)} of {len(alike)} rows end as if they had not been killed")
    return 0 if all(alike) else 1


if __name__ == "__main__":
    sys.exit(main())
