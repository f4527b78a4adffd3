"""Ten minutes on one GPU: bit-equal resume, images a second live and cached, beside timm's parts.

    python benchmarks/gpu.py [--rehearse] [--only WORD...] [--seconds 570] [--output FOLDER]

Runs from the tree, without the network; images and teacher are made up. Parts (gpu_parts.py) run in a process that is
replaced when one fails or takes too long, so that no part loses another; what the time does not suffice for is left
out. Writes gpu.json and gpu.md after every part. `--rehearse` is the same in small on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
START_LIMIT = 60.0
"""Seconds that a worker may take to start, or from part to part."""
Record = dict[str, Any]
Records = dict[str, Record]


def list_parts(rehearse: bool) -> dict[str, float]:
    """Return all parts, the most important first, with the most seconds that each may take."""
    parts = {"machine": 60.0, "material": 90.0, "resume": 120.0, "stages": 60.0}
    for student in ("deit_tiny",) if rehearse else ("deit_small", "deit_base", "deit_tiny"):
        for mode in ("eager", "compiled", "cuda graphs"):
            kinds = ("live", "cached") if mode == "cuda graphs" else ("live", "cached", "timm")
            parts |= {f"{student}, {mode}, {kind}": 100.0 for kind in kinds}
    return parts


def work(names: list[str], rehearse: bool, folder: Path, log: Path) -> None:
    """Run parts, and append a line to `log` when each begins and ends; stop after one that fails."""
    sys.path.insert(0, str(ROOT))
    from gpu_parts import Setting, run_part

    setting, limits = Setting(folder, rehearse), list_parts(rehearse)
    for name in names:
        _append(log, {"begin": name, "limit": limits[name]})
        start = time.monotonic()
        try:
            record = {"figures": run_part(name, setting)}
        except Exception as error:  # any failure is a figure here
            lines = traceback.format_exc().splitlines()
            record = {"error": f"{type(error).__name__}: {error}", "traceback": lines[-12:]}
        _append(log, {"end": name, "seconds": time.monotonic() - start, **record})
        if "error" in record:
            return  # a GPU may be unusable after an error, so the next part gets a process of its own


def _append(log: Path, record: dict[str, Any]) -> None:
    with log.open("a") as file:
        file.write(json.dumps(record) + "\n")


def supervise(command: list[str], log: Path, deadline: float) -> Records:
    """Run a worker until it ends, or a part or all of them take too long; return what its parts left."""
    log.write_text("")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        command, start_new_session=True, env={**os.environ, "PYTHONPATH": path}
    )
    begun, last, reason = time.monotonic(), Record(), ""
    while process.poll() is None and not reason:
        time.sleep(0.1)
        latest = (read_log(log) or [{}])[-1]
        if latest != last:
            last, begun = latest, time.monotonic()
        if time.monotonic() > deadline:
            reason = "no time was left for the rest of it"
        elif time.monotonic() > begun + last.get("limit", START_LIMIT):
            reason = f"took longer than {last.get('limit', START_LIMIT):g} s"
    if reason:
        os.killpg(process.pid, signal.SIGKILL)
    returncode = process.wait()
    records = Records()
    for line in read_log(log):
        if "begin" in line:
            error = reason or f"its process ended with status {returncode}"
            records[line["begin"]] = {"error": error}
        else:
            records[line.pop("end")] = line
    return records


def read_log(log: Path) -> list[Record]:
    """Return the lines that a worker has written to their end."""
    lines = log.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def measure(names: list[str], command: list[str], seconds: float, output: Path) -> Records:
    """Run all parts within a time, and write what there is after each process."""
    deadline, records = time.monotonic() + seconds, Records()
    with tempfile.TemporaryDirectory() as folder:
        while (rest := [name for name in names if name not in records]) and (
            time.monotonic() < deadline
        ):
            log = Path(folder) / "log.jsonl"
            ended = supervise([*command, "--work", str(log), *rest], log, deadline)
            records |= ended or {rest[0]: {"error": "its process did not start"}}
            write_results(records, rest, output)
    for name in names:
        records.setdefault(name, {"error": "no time was left"})
    write_results(records, [], output)
    return records


def write_results(records: Records, rest: list[str], output: Path) -> None:
    """Write all records as JSON and as a table."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "gpu.json").write_text(json.dumps(records, indent=1) + "\n")
    (output / "gpu.md").write_text(describe(records) + "\n")


def describe(records: Records) -> str:
    """Return a table of images a second, and a line for each other part and each failure."""
    lines, cells = [], dict[tuple[str, str], dict[str, str]]()
    for name, record in records.items():
        figures = record.get("figures", {})
        if "error" in record:
            lines.append(f"- {name}: failed, {record['error']}")
        if name.count(", ") == 2:
            student, mode, kind = name.split(", ")
            speed = figures.get("images_per_second")
            cells.setdefault((student, mode), {})[kind] = "-" if speed is None else f"{speed:,.0f}"
        elif figures:
            lines.append(f"- {name}: {json.dumps(figures)}")
    table = ["| images/s | | live | cached | timm, live |", "|---|---|---|---|---|"]
    for (student, mode), row in cells.items():
        columns = (row.get(kind, "") for kind in ("live", "cached", "timm"))
        table.append(f"| {student} | {mode} | " + " | ".join(columns) + " |")
    return "\n".join([*table, "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="in small, on the CPU")
    parser.add_argument("--only", nargs="+", default=[], help="parts whose names contain a word")
    parser.add_argument("--seconds", type=float, default=570, help="for all parts together")
    parser.add_argument("--output", type=Path, default=Path("gpu-results"))
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rehearse:  # compiling for a CPU takes longer than all the rest of a rehearsal
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    if arguments.work:
        log, *names = arguments.work
        work(names, arguments.rehearse, arguments.folder, Path(log))
        return
    names = list(list_parts(arguments.rehearse))
    if arguments.only:
        needed = ("machine", "material", *arguments.only)
        names = [name for name in names if any(word in name for word in needed)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--folder", folder]
        command += ["--rehearse"] if arguments.rehearse else []
        records = measure(names, command, arguments.seconds, arguments.output)
    print(describe(records))


if __name__ == "__main__":
    main()
