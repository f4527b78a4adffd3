"""Distillation by a teacher that was fitted on other images than its student's.

    python benchmarks/teacher_of_other_images.py --output out --seeds 3

The student learns from a tenth of the digits, as in `deitctl sweep --preset deit-in-small`, its teacher from
the other nine tenths of the training images, so that its decisions are no echo of the student's labels.
Figures: docs/results/distillation.md.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import deitctl
from deitctl.data.dataset import ImageDataset
from deitctl.data.training_data import Source, open_for_training
from deitctl.events import SilentReporter
from deitctl.sweeps.presets import IN_SMALL, SOFT

TEACHER, TEACHER_EPOCHS = "resnet10t", 6
WAYS: dict[str, dict[str, Any]] = {
    "soft": {**SOFT, "distill.dist_token": False},
    "hard": {"distill.mode": "hard", "distill.dist_token": False},
    "token-soft": SOFT,
    "token-hard": {"distill.mode": "hard"},
}


def open_digits(fraction: float) -> tuple[ImageDataset, ImageDataset]:
    """Return training and validation images."""
    return open_for_training(Source("digits", fraction=fraction), reporter=SilentReporter())


def write_others(folder: Path) -> None:
    """Write the training images that the student does not learn from, and the validation images."""
    every, val = open_digits(1.0)
    used, _ = open_digits(IN_SMALL["fraction"])
    names = {used.name(index) for index in range(len(used.labels))}
    for part, images in (("train", every), ("val", val)):
        for index, label in enumerate(images.labels.tolist()):
            if part == "val" or images.name(index) not in names:
                target = folder / part / images.class_names[label] / f"{index}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                images.read(index).save(target)


def train_teacher(output: Path) -> Path:
    """Return the run folder of the teacher."""
    run = output / "teacher"
    if not (run / "result.json").is_file():
        write_others(output / "others")
        deitctl.train(
            output / "others",
            model=TEACHER,
            pretrained=False,
            recipe="digits-convnet",
            epochs=TEACHER_EPOCHS,
            img_size=IN_SMALL["distill.teacher_img_size"],
            output=run,
        )
    return run


def train_student(run: Path, teacher: Path, way: dict[str, Any], seed: int) -> tuple[float, float]:
    """Return the top-1 accuracy of the best and of the last epoch, percent."""
    settings = {k: v for k, v in IN_SMALL.items() if k not in ("data", "model")}
    settings |= {**way, "distill.teacher": str(teacher), "distill.finetune_teacher": "none"}
    if not (run / "result.json").is_file():
        deitctl.distill("digits", student="deit_tiny", seed=seed, output=run, overrides=settings)
    info = deitctl.list_runs([run]).runs[0]
    return info.score, info.last_score


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    teacher = train_teacher(options.output)
    print("| distillation | best epoch | last epoch |\n|---|---|---|")
    for name, way in WAYS.items():
        scores = [
            train_student(options.output / f"{name}-{seed}", teacher, way, seed)
            for seed in range(options.seeds)
        ]
        best, last = zip(*scores, strict=True)
        cells = (f"{statistics.mean(x):.2f} ± {statistics.stdev(x):.2f}" for x in (best, last))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
