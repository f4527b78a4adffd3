"""Digits of which the rarest class has a fiftieth of the images: plain training against each remedy.

    python benchmarks/rare_classes.py --output out --seeds 3

The validation images are equally many of each digit. Balanced accuracy is the mean of the classes' recalls;
top-1 weights each recall by the share of its class among the training images, as if new images came in the
proportions of the training ones. Figures: docs/results/tasks.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

REMEDIES: dict[str, list[str]] = {
    "plain": [],
    "class_weights = inverse": ["recipe.class_weights=inverse"],
    "class_weights = effective": ["recipe.class_weights=effective"],
    "sampling = balanced": ["recipe.sampling=balanced"],
    "logit_adjustment = 1": ["recipe.logit_adjustment=1"],
}
MOST, LEAST, VALIDATION = 120, 120 / 50, 55


def write_digits(folder: Path) -> dict[str, int]:
    """Write the digits as PNG; return the number of training images of each class, which fall geometrically."""
    digits = load_digits()
    counts = {}
    for number in range(10):
        images = digits.images[digits.target == number]
        counts[str(number)] = round(MOST * (LEAST / MOST) ** (number / 9))
        parts = {"val": images[:VALIDATION], "train": images[VALIDATION:][: counts[str(number)]]}
        for part, chosen in parts.items():
            target = folder / part / str(number)
            target.mkdir(parents=True, exist_ok=True)
            for at, pixels in enumerate(chosen):
                Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(target / f"{at}.png")
    return counts


def score(data: Path, run: Path, changes: list[str], seed: int, epochs: int) -> dict[str, float]:
    """Train, evaluate, and return recall by class."""
    train = ["deitctl", "train", str(data), "--recipe", "digits", "--model", "deit_tiny"]
    train += ["--epochs", str(epochs), "--seed", str(seed), "--output", str(run), "--quiet"]
    train += [word for change in changes for word in ("--set", change)]
    if not (run / "result.json").exists():
        subprocess.run(train, check=True, stdout=subprocess.DEVNULL)
    command = ["deitctl", "eval", str(data), "--model", str(run), "--format", "json", "--quiet"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    evaluation = json.loads(out)
    return {name: entry["recall"] for name, entry in evaluation["per_class"].items()}


def main() -> None:
    """Print a table of means and standard deviations over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    data = options.output / "data"
    counts = write_digits(data)
    print("training images by class:", counts)
    total = sum(counts.values())
    print(f"{'':28} top-1          balanced       recall of the three rarest")
    for name, changes in REMEDIES.items():
        rows = []
        for seed in range(options.seeds):
            run = options.output / f"{name.replace(' ', '')}-{seed}"
            recalls = score(data, run, changes, seed, options.epochs)
            rare = statistics.fmean(recalls[str(number)] for number in (7, 8, 9))
            top1 = sum(recalls[key] * counts[key] for key in counts) / total
            rows.append((top1, statistics.fmean(recalls.values()), rare))
        cells = [
            f"{statistics.fmean(v):5.1f} ± {statistics.stdev(v):4.1f}"
            for v in zip(*rows, strict=True)
        ]
        print(f"{name:28} {'   '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
