"""deitctl beside timm's train.py, validate.py and inference.py, and facebookresearch/deit's main.py, on this machine.

    git clone https://github.com/huggingface/pytorch-image-models rivals/timm
    git clone https://github.com/facebookresearch/deit rivals/deit
    pip install pandas                                    # inference.py wants it
    python -m benchmarks.rivals OUT --timm rivals/timm --deit rivals/deit --images imagenette --photos PHOTOS
        --weights deit_tiny_patch16_224.fb_in1k.safetensors [--explore] [--quick] [--only JOB ...]
        [--threads N] [--rounds N] [--also="--set KEY=VALUE ..."] [--also-timm="--FLAG ..."]

From the repository's root. IMAGES has `train` and `val` with ten class folders, PHOTOS files whose names begin with a
WordNet id (`n01582220_magpie.JPEG`), WEIGHTS is DeiT-tiny in timm's layout. Both sides get the same images, weights,
batches, epochs and threads, run from the shell to the end, and take turns; ratios are of the same round. A rival comes
as it is, and with its best flags, which `--explore` finds and OUT/explored.json keeps. Rounds in OUT/JOB.json are not
held again. `--also` adds a contestant of ours with further flags to the jobs that train, `--also-timm` one of
train.py's to those of accuracy. Standard output is the Markdown of docs/results/speed.md, and OUT/results.json has it
all. `--smoke` shows in two minutes that everything runs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.rivals import answers, training
from benchmarks.rivals.deit_repository import try_main
from benchmarks.rivals.jobs import SIZES, Setup
from benchmarks.rivals.material import subset
from benchmarks.rivals.rounds import Runner, explore, hold, keep, say
from benchmarks.rivals.tables import markdown, summary

JOBS = {
    "distill": training.distill,
    "train": training.train,
    "eval": answers.evaluate,
    "predict": answers.predict,
    "finetune": training.finetune,
    "scratch": training.scratch,
    "learn": training.learn,
}
PACKAGES = ("deitctl", "torch", "torchvision", "timm", "pillow", "numpy")
MATTERS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_tile",
    "bf16",
    "sve",
)
BUSY = 0.5  # of load, before anything was started: somebody else is at work


def machine() -> dict[str, Any]:
    """Say what figures depend on."""
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    about = {key.strip(): value.strip() for key, _, value in lines}
    flags = set(about.get("flags", about.get("Features", "")).split())
    return {
        "cpu": about.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [f for f in MATTERS if f in flags],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def state_of(checkout: Path) -> str:
    """Name the commit of a checkout, and its version where it has one."""
    said = subprocess.run(
        ["git", "-C", checkout, "describe", "--always", "--tags", "--dirty"],
        capture_output=True,
        text=True,
    )
    version = checkout / "timm/version.py"
    number = version.read_text().split("'")[1] if version.exists() else ""
    return f"{number} {said.stdout.strip()}".strip()


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--timm", type=Path, required=True, help="Checkout of huggingface/pytorch-image-models."
    )
    parser.add_argument("--deit", type=Path, help="Checkout of facebookresearch/deit.")
    parser.add_argument(
        "--deit-python",
        default=sys.executable,
        help="Python for it, with the packages it asks for.",
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--only", choices=JOBS, action="append", help="May be repeated.")
    parser.add_argument("--explore", action="store_true", help="Find the rivals' best flags first.")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", dest="size", action="store_const", const="quick", default="full")
    sizes.add_argument("--smoke", dest="size", action="store_const", const="smoke")
    parser.add_argument("--rounds", type=int, help="Instead of the size's, of seeds too.")
    parser.add_argument(
        "--also", type=shlex.split, action="append", default=[], help="Flags of one more of ours."
    )
    parser.add_argument(
        "--also-timm", type=shlex.split, action="append", default=[], help="The same of train.py."
    )
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="Of torch, on both sides."
    )
    parser.add_argument(
        "--timeout", type=float, default=900, help="Seconds that one command may take."
    )
    return parser.parse_args()


def main() -> None:
    """Hold the rounds of the jobs; print their tables."""
    said = options()
    # so that what runs is ended too
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    out = said.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if (load := os.getloadavg()[0]) > BUSY:
        say(
            f"warning: the machine has a load of {load:.1f} before anything was started; figures will not be steady"
        )
    setup = Setup(
        out=out,
        timm=said.timm.resolve(),
        images=said.images.resolve(),
        photos=said.photos.resolve(),
        weights=said.weights.resolve(),
        size=SIZES[said.size],
        also=tuple(map(tuple, said.also)),
        also_timm=tuple(map(tuple, said.also_timm)),
    )
    checkouts = {"deitctl": state_of(Path(__file__).parents[2]), "timm": state_of(setup.timm)}
    conditions = {
        "size": said.size,
        "threads": said.threads,
        "checkouts": checkouts,
        "machine": machine(),
    }
    runner = Runner(out, said.threads, said.timeout)
    jobs = [JOBS[name](setup) for name in said.only or JOBS]
    if said.rounds:
        jobs = [replace(job, rounds=said.rounds) for job in jobs]
    found_file = out / "explored.json"
    explored = json.loads(found_file.read_text()) if found_file.exists() else {}
    if said.explore:
        for job in (j for j in jobs if not j.explored_by and j.name not in explored):
            explored[job.name] = explore(job, runner)
            keep(found_file, explored)
    results: dict[str, Any] = {**conditions, "explored": explored, "jobs": {}}
    print(f"{json.dumps(conditions)}\n")
    if said.deit:
        data = subset(setup.images, out / "data/20", {"train": 20, "val": 20})
        results["deit"] = {
            "checkout": state_of(said.deit),
            **try_main(said.deit.resolve(), said.deit_python, data, out / "run"),
        }
        print(f"facebookresearch/deit {json.dumps(results['deit'])}\n")
    for job in jobs:
        best = explored.get(job.explored_by or job.name, {}).get("flags", job.best)
        record = hold(job, best, conditions, runner)
        results["jobs"][job.name] = {**record, **summary(record)}
        keep(out / "results.json", results)
        print("\n".join(markdown(record)), flush=True)


if __name__ == "__main__":
    main()
