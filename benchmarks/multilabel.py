"""Several labels an image from end to end: train, distill, evaluate against scikit-learn, predict, export.

    python benchmarks/multilabel.py imagenette/ --weights deit_tiny_patch16_224.fb_in1k.safetensors --output out

Images of two classes are made from a data set of one label: two photos side by side, and one in three alone, so
that the number of labels differs. Figures: docs/results/tasks.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

HALF = (128, 256)
"""Width and height of a photo of two."""


def paste(folder: Path, source: Path) -> None:
    """Write images of one and two photos, and the table train/val of their labels."""
    rows = []
    for part in ("train", "val"):
        photos = sorted(path for path in (source / part).rglob("*") if path.is_file())
        draw = np.random.default_rng(0)
        for at in range(len(photos)):
            chosen = [photos[n] for n in draw.permutation(len(photos))[: 1 if at % 3 == 0 else 2]]
            width = 256 // len(chosen)
            image = Image.new("RGB", (256, 256))
            for number, photo in enumerate(chosen):
                half = Image.open(photo).convert("RGB").resize((width, 256))
                image.paste(half, (number * width, 0))
            name = f"{part}/{at}.jpg"
            (folder / part).mkdir(parents=True, exist_ok=True)
            image.save(folder / name, quality=90)
            labels = sorted({photo.parent.name for photo in chosen})
            rows.append((name, "|".join(labels), part))
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "split"))
        table.writerows(rows)


def run(*words: str | Path) -> Any:
    """Run deitctl, and return its JSON."""
    command = ["deitctl", *map(str, words), "--format", "json"]
    print("+", " ".join(command), flush=True)
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    lines = [json.loads(line) for line in out.splitlines()]
    return lines[0] if len(lines) == 1 else lines


def compare_with_sklearn(evaluation: Any, lines: Sequence[Any]) -> dict[str, float]:
    """Return the largest differences between deitctl's figures and scikit-learn's of its predictions."""
    names = list(evaluation["per_class"])
    truth = np.array([[name in line["labels"] for name in names] for line in lines])
    probs = np.array([[line["probabilities"][name] for name in names] for line in lines])
    thresholds = np.array([evaluation["per_class"][name]["threshold"] for name in names])
    preds = probs >= thresholds
    ours = {key: evaluation[key] for key in ("map", "macro_f1", "micro_f1", "sample_f1")}
    theirs = {"map": 100 * average_precision_score(truth, probs, average="macro")}
    for kind in ("macro", "micro", "samples"):
        value = 100 * f1_score(truth, preds, average=kind, zero_division=0)
        theirs[f"{kind.removesuffix('s') if kind == 'samples' else kind}_f1"] = value
    return {key: abs(ours[key] - theirs[key]) for key in ours}


def main() -> None:
    """Run every command, and print what it gives."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    out, data = options.output, options.output / "labels.csv"
    if not data.exists():
        paste(out, options.images)
    common = ["--epochs", options.epochs, "--img-size", 128]
    start = ["--weights", options.weights, *common]
    for loss in ("bce", "asl"):
        result = run(
            "train",
            data,
            "--model",
            "deit_tiny",
            *start,
            "--set",
            f"recipe.loss={loss}",
            "--output",
            out / loss,
        )
        print(json.dumps({loss: result["best"]}))
    for mode in ("hard", "soft"):
        result = run(
            "distill",
            data,
            "--teacher",
            out / "bce",
            "--student",
            "deit_tiny",
            "--mode",
            mode,
            "--no-pretrained",
            *common,
            "--output",
            out / f"distilled-{mode}",
        )
        print(json.dumps({mode: result["best"], "teacher": result["teacher"]}))
    predictions = out / "predictions.jsonl"
    evaluation = run("eval", data, "--model", out / "bce", "--predictions", predictions)[
        "evaluations"
    ][0]
    lines = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    print(json.dumps(compare_with_sklearn(evaluation, lines)))
    image = next(iter(sorted((out / "val").glob("*.jpg"))))
    print(json.dumps(run("predict", image, "--model", out / "bce")))
    print(json.dumps(run("export", out / "bce", "--to", "onnx", "--output", out / "model.onnx")))
    print(json.dumps(run("predict", image, "--model", out / "model.onnx")))


if __name__ == "__main__":
    main()
