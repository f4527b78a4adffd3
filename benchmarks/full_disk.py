"""Fill a file system of 30 MB during a training, then make room and resume: what is lost?

    sudo python benchmarks/full_disk.py        (Linux; mounts an ext4 image by loopback)

Prints the exit code, what was said, which state is left, and whether the resumed run ends as one that was never
stopped. Last figures: docs/results/reliability.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MEGABYTE = 2**20
TRAIN = (
    "train",
    "digits",
    "--model",
    "test_vit",
    "--img-size",
    "160",
    "--epochs",
    "2",
    "--batch-size",
    "64",
    "--workers",
    "0",
    "--save-every",
    "5",
    "--quiet",
    "--precision",
    "fp32",
    "--format",
    "json",
    "--recipe",
    "digits",
    "--no-pretrained",
)


def deitctl(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "deitctl", *options], capture_output=True, text=True, env=environment
    )


def main() -> None:
    """Mount, train, fill, make room, resume, compare."""
    with tempfile.TemporaryDirectory() as folder:
        root, disk = Path(folder), Path(folder) / "disk"
        disk.mkdir()
        subprocess.run(["truncate", "-s", "30M", f"{root}/image"], check=True)
        subprocess.run(["mkfs.ext4", "-q", f"{root}/image"], check=True)
        subprocess.run(["mount", "-o", "loop", f"{root}/image", str(disk)], check=True)
        try:
            whole = deitctl(*TRAIN, "--output", str(root / "whole"))
            assert whole.returncode == 0, whole.stderr
            size = sum(f.stat().st_size for f in (root / "whole" / "checkpoint").iterdir())
            print(f"a state takes {size / MEGABYTE:.1f} MB")
            room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            # room for the model, one state, no second
            (disk / "ballast").write_bytes(b"x" * (room - int(1.8 * size)))
            full = deitctl(*TRAIN, "--output", str(disk / "run"))
            print(f"exit {full.returncode}: {full.stderr.strip()}")
            step = json.loads((disk / "run" / "checkpoint" / "state.json").read_text())["step"]
            left = sorted(p.name for p in (disk / "run").iterdir())
            print(f"the state that is left: of step {step}; in the run's folder: {', '.join(left)}")
            (disk / "ballast").unlink()
            again = deitctl("train", "--resume", str(disk / "run"), "--quiet", "--format", "json")
            print(f"room made, resumed: exit {again.returncode} {again.stderr.strip()}")
            files = (
                "model.safetensors",
                "checkpoint/model.safetensors",
                "checkpoint/optimizer.safetensors",
                "checkpoint/ema.safetensors",
            )
            same = [
                (disk / "run" / f).read_bytes() == (root / "whole" / f).read_bytes() for f in files
            ]
            print(f"equal to the unbroken run: {dict(zip(files, same, strict=True))}")
            sys.exit(full.returncode != 1 or not all(same))
        finally:
            subprocess.run(["umount", str(disk)], check=True)


if __name__ == "__main__":
    main()
