"""What both sides are given: folders of images, and a teacher with random weights in timm's own layout."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

# of the photos, a little below ImageNet's 500 x 375 and as it is saved
SHORT_SIDE, QUALITY = (400, 92)


def subset(source: Path, folder: Path, counts: Mapping[str, int], name: str = "") -> Path:
    """Link the first images of every class of `source`'s splits.

    Args:
        source: a folder with splits of class folders.
        folder: where the links go.
        counts: images of each split, over all classes; 0 for all there are.
        name: what classes are called, with a number behind; empty: as in `source`.
    """
    for split, count in counts.items():
        classes = sorted(p for p in (source / split).iterdir() if p.is_dir())
        each = count // len(classes) or None
        for number, images in enumerate(classes):
            target = folder / split / (f"{name}{number}" if name else images.name)
            target.mkdir(parents=True, exist_ok=True)
            for image in sorted(images.iterdir())[:each]:
                if not (target / image.name).is_symlink():
                    (target / image.name).symlink_to(image.resolve())
    return folder


def photos(source: Path, folder: Path, count: int) -> Path:
    """Write `count` images made from the photos of `source`, whose names begin with a WordNet id, into class folders.

    Each is a random crop of three quarters of the sides or more, flipped or not, its short side 400 pixels.
    """
    from PIL import Image, ImageOps

    originals = sorted(p for p in source.iterdir() if p.name.startswith("n") and "_" in p.name)
    draw = random.Random(0)
    for number in range(count):
        original = originals[number % len(originals)]
        share, x, y, flip = (
            0.75 + draw.random() / 4,
            draw.random(),
            draw.random(),
            draw.random() < 0.5,
        )
        path = folder / original.name.partition("_")[0] / f"{number:05}.JPEG"
        if path.exists():
            continue
        image = Image.open(original).convert("RGB")
        width, height = (round(side * share) for side in image.size)
        left, top = round((image.width - width) * x), round((image.height - height) * y)
        scale = SHORT_SIDE / min(width, height)
        image = image.resize(
            (round(width * scale), round(height * scale)),
            Image.Resampling.LANCZOS,
            (left, top, left + width, top + height),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        (ImageOps.mirror(image) if flip else image).save(part, "JPEG", quality=QUALITY)
        os.replace(part, path)
    return folder


def random_teacher(architecture: str, classes: list[str], folder: Path) -> Path:
    """Save a classifier with random weights as a folder that `local-dir:` of timm and `--teacher` of deitctl read."""
    if not (folder / "config.json").exists():
        import timm
        import torch

        torch.manual_seed(0)
        model = timm.create_model(architecture, num_classes=len(classes))
        timm.models.save_for_hf(model, str(folder), model_config={"label_names": classes})
    return folder


def digits(folder: Path) -> Path:
    """Write the digits that deitctl comes with, 1,442 for training and 355 for validation, as PNGs in class folders."""
    from deitctl.data.training_data import open_for_training
    from deitctl.events import SilentReporter

    if not folder.exists():
        draft = folder.with_name(f"{folder.name}.part")
        parts = zip(
            ("train", "val"),
            open_for_training("digits", seed=0, reporter=SilentReporter()),
            strict=True,
        )
        for split, source in parts:
            for index, label in enumerate(source.labels):
                path = draft / split / source.class_names[label] / f"{index:04}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                source.read(index).save(path)
        os.replace(draft, folder)
    return folder


def taught_teacher(architecture: str, data: Path, img_size: int, epochs: int, folder: Path) -> Path:
    """Have deitctl train a teacher; its run is a folder that timm's `local-dir:` reads too."""
    if not (folder / "result.json").exists():
        shutil.rmtree(folder, ignore_errors=True)  # of a training that was broken off
        command = (
            *(
                sys.executable,
                "-m",
                "deitctl",
                "train",
                data,
                "--model",
                architecture,
                "--recipe",
                "digits-convnet",
            ),
            *(
                "--img-size",
                img_size,
                "--epochs",
                epochs,
                "--no-pretrained",
                "--output",
                folder,
                "--format",
                "json",
            ),
        )
        subprocess.run([*map(str, command)], check=True, stdout=sys.stderr)
    return folder


def class_names(data: Path) -> list[str]:
    """Name the classes of a folder with `train`."""
    return sorted(p.name for p in (data / "train").iterdir() if p.is_dir())
