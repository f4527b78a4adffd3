"""Damaged, odd and hostile inputs through predict, eval, train and check.

    python benchmarks/hostile_inputs.py --count 300

Everything is made here, from a seed. Each case runs in a forked process of its own, all images of predict in one.
The rules: exit code 0, 1, 2 or 3; no traceback; one line for each failure; a stated peak of memory; every row of
predict belongs to its own input, and the good images among the bad have exactly the scores that they have alone.
It exits with 1 if a rule is broken.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from hostile_cases import Case, configurations, data_sets, images, make_model, models

from deitctl.cli import app

PEAK = 2048
"""MiB of a process, of which Python with torch takes five hundred."""
SECONDS = 120


def execute(case: Case, scratch: Path) -> Case:
    """Run a case in a fork of this process, which has imported everything; a case that takes too long is killed."""
    begun = time.monotonic()
    out, err = scratch / "out", scratch / "err"
    child = os.fork()
    if child == 0:
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(n, "wb", closefd=False), "utf-8") for n in (1, 2)
        )
        code = 1
        try:
            sys.argv = ["deitctl", *case.arguments]
            app.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 70
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - begun > SECONDS:
            os.kill(child, 9)
        time.sleep(0.01)
    case.code, case.peak = os.waitstatus_to_exitcode(status), usage.ru_maxrss // 1024
    case.seconds = time.monotonic() - begun
    case.out, case.err = (
        p.read_text(encoding="utf-8", errors="surrogateescape") for p in (out, err)
    )
    return judge(case)


def judge(case: Case) -> Case:
    """Hold a case against the rules that all have."""
    lines = case.err.splitlines()
    errors = sum(line.startswith("error:") for line in lines)
    rules = {
        f"exit code {case.code}": case.code in (0, 1, 2, 3),
        "a traceback": "Traceback" not in case.err,
        f"{errors} error lines": case.code != 1 or errors == 1,
        f"the last line is {lines[-1][:60] if lines else 'none'!r}": case.code != 1
        or (bool(lines) and lines[-1].startswith("error:")),
        f"{case.peak} MiB": case.peak < PEAK,
        "a control character": not any(
            ord(c) < 32 or 127 <= ord(c) < 160 for c in "".join(case.err.split("\n"))
        ),
    }
    case.broken += [what for what, fine in rules.items() if not fine]
    return case


def judge_rows(case: Case, names: list[str], alone: dict[str, object]) -> Case:
    """Hold predict's rows against their inputs, and the scores of good images against those they have alone."""
    rows = [json.loads(line) for line in case.out.splitlines()]
    if [row["input"] for row in rows] != names:
        case.broken.append("rows are not those of the inputs, in order")
    for row in rows:
        if row["input"] in alone and row["predictions"] != alone[row["input"]]:
            case.broken.append(f"another score than alone: {row['input']!r}")
        if (row["error"] is None) != bool(row["predictions"]) or len(
            (row["error"] or "x").splitlines()
        ) != 1:
            case.broken.append(f"neither a prediction nor one line: {row['input']!r}")
    failed = sum(row["error"] is not None for row in rows)
    if case.code != (3 if failed else 0):
        case.broken.append(f"exit code {case.code} with {failed} unreadable")
    case.what += f", {failed} unreadable"
    return case


def run_all(root: Path, count: int, seed: int) -> list[Case]:
    """Make `count` inputs and run them; three quarters are images."""
    rng = np.random.default_rng(seed)
    sound = make_model(root / "sound")
    third = max(1, count // 12)
    names, good = images(root / "images", count - 3 * third, rng)
    common = ["--model", str(sound), "--format", "jsonl", "--batch-size", "1", "--device", "cpu"]
    alone_case = execute(
        Case("predict", f"{len(good)} good images alone", ["predict", *common, "--", *good]), root
    )
    alone = {
        row["input"]: row["predictions"] for row in map(json.loads, alone_case.out.splitlines())
    }
    assert len(alone) == len(good)
    assert all(alone.values())
    among = execute(
        Case("predict", f"{len(names)} images", ["predict", *common, "--", *names]), root
    )
    judge_rows(among, _expanded(names), alone)
    done = [alone_case, among]
    for cases in (
        models(root / "models", sound, good[0], third, rng),
        data_sets(root / "data", sound, third, rng),
        configurations(root / "configs", third, rng),
    ):
        done += [execute(case, root) for case in cases]
    return done


def _expanded(names: list[str]) -> list[str]:
    """What predict makes of folders: the images in them, or the folder itself."""
    found: list[str] = []
    for name in names:
        inside = (
            sorted(
                os.path.join(name, f)
                for f in os.listdir(name)
                if not os.path.isdir(os.path.join(name, f))
            )
            if os.path.isdir(name)
            else []
        )
        found += inside or [name]
    return found


def report(done: list[Case]) -> bool:
    """Print a table by group and what broke a rule; return whether nothing did.

    `lines` is the most that one case of the group wrote to stderr.
    """
    print(
        f"{'group':8} {'processes':>9} {'exit codes':24} {'lines':>5} {'peak MiB':>8} {'slowest s':>9} {'broken':>6}"
    )
    for group in dict.fromkeys(case.group for case in done):
        cases = [case for case in done if case.group == group]
        lines = max(len(c.err.splitlines()) for c in cases)
        codes = " ".join(
            f"{code}:{sum(c.code == code for c in cases)}"
            for code in sorted({c.code for c in cases})
        )
        print(
            f"{group:8} {len(cases):9} {codes:24} {lines:5} {max(c.peak for c in cases):8} "
            f"{max(c.seconds for c in cases):9.1f} {sum(bool(c.broken) for c in cases):6}"
        )
    for case in done:
        if case.group == "predict":
            print(f"predict: {case.what}")
        for what in case.broken:
            print(f"BROKEN {case.group} {case.what}: {what!a}; {case.err[-300:]!a}")
    return not any(case.broken for case in done)


def main() -> None:
    """Parse, run, print; exit with 1 if a rule is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="Leave the inputs in this new folder.")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a fork has no threads but its own
    os.environ["HF_HUB_OFFLINE"] = "1"
    root = options.keep or Path(tempfile.mkdtemp())
    root.mkdir(exist_ok=True)
    try:
        fine = report(run_all(root, options.count, options.seed))
    finally:
        if not options.keep:
            shutil.rmtree(root)
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
