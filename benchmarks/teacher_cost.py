"""The cost of a teacher before and after its targets are cached: one run, epoch by epoch, then a second student.

    python benchmarks/teacher_cost.py DATA [--teacher regnety_160] [--student deit_small] [--views 2] [--epochs 5]

The teacher's weights are random: only its size matters here. Prints images per second of every epoch, and the saving
expected from the measured speeds of the two networks. Last figures: docs/results/distillation.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

import deitctl
from deitctl.device import choose_device
from deitctl.distillation.teacher import Teacher
from deitctl.models import timm_models
from deitctl.models.checkpoint_io import save_model
from deitctl.models.introspect import describe_layers


def save_random_teacher(name: str, folder: Path) -> Path:
    """Write a timm folder of an untrained classifier of ImageNet's classes."""
    model = timm_models.create_model(name, num_classes=1000)
    save_model(
        folder,
        model.state_dict(),
        timm_models.read_model_config(model, name, 1000),
        describe_layers(model),
    )
    return folder


def measure_speed(folder: Path, batch_size: int) -> float:
    """Measure images per second of a teacher alone, in the forward pass of a training."""
    device = choose_device("auto", "auto")
    model, model_config = timm_models.load_folder(folder)
    teacher = Teacher(
        device.to_device(model), model_config, tuple(range(1000)), model_config.preprocessing
    )
    size = model_config.preprocessing.img_size
    pixels = torch.zeros(batch_size, 3, size, size, dtype=torch.uint8)
    with device.autocast():
        teacher.forward_views(pixels)
        start = time.monotonic()
        for _ in range(3):
            teacher.forward_views(pixels)
    return 3 * batch_size / (time.monotonic() - start)


def main() -> None:
    """Train twice and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--teacher", default="regnety_160")
    parser.add_argument("--student", default="deit_small")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        teacher = save_random_teacher(options.teacher, Path(folder) / options.teacher)
        alone = measure_speed(teacher, options.batch_size)
        print(f"teacher alone: {alone:.2f} images/s")
        batch_sizes, forward_views = [0], Teacher.forward_views

        def count_views(self: Teacher, pixels: torch.Tensor) -> torch.Tensor:
            batch_sizes.append(len(pixels))
            return forward_views(self, pixels)

        Teacher.forward_views = count_views  # type: ignore[method-assign]
        for turn in ("first student", "second student"):
            batch_sizes[:] = [0]
            start = time.monotonic()
            result = deitctl.distill(
                options.data,
                teacher=teacher,
                student=options.student,
                recipe="finetune",
                pretrained=False,
                views=options.views,
                teacher_input="unmixed",
                teacher_cache=f"{folder}/teacher_targets",
                allow_weak_teacher=True,
                finetune_teacher="none",
                epochs=options.epochs,
                batch_size=options.batch_size,
                output=f"{folder}/{turn[:5]}",
            )
            log = [
                json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()
            ]
            speeds = [r["images_per_second"] for r in log if r["kind"] == "epoch"]
            print(
                f"{turn}: "
                + ", ".join(f"epoch {n} {s:.2f}" for n, s in enumerate(speeds, 1))
                + " images/s; "
                f"the teacher labeled {sum(batch_sizes)} views; {time.monotonic() - start:.0f} s in total"
            )
            if turn.startswith("first"):
                paid, free = speeds[0], sum(speeds[options.views :]) / (len(speeds) - options.views)
                print(
                    f"after {options.views} epochs {free / paid:.2f} times as fast; "
                    f"arithmetic from the two speeds: {1 + free / alone:.2f} times"
                )


if __name__ == "__main__":
    main()
