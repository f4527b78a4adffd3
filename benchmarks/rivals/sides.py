"""How each program is called, and where it says how fast and how right it was.

Images per second are of the steady state on both sides, by each program's own clock. Of training: epochs after the
first, ours whole; of train.py without each one's first step, which waits for new loaders and would weigh much in epochs
this short. Of an evaluation: the whole loop over the images, loaders' start included. Of a prediction: from the first
batch's answers to the last's, by the clock of this benchmark, so images that loaders have ready by then count for the
side that has them.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.rivals.measure import Finished

Figures = dict[str, Any]
Reader = Callable[[Finished, Path], Figures]


@dataclass(frozen=True)
class Contestant:
    """A program with its flags; `{run}` in the command is a fresh folder of its own."""

    name: str
    command: tuple[str, ...]
    read: Reader
    ours: bool = False


def deitctl(name: str, words: Sequence[object], read: Reader) -> Contestant:
    """Call deitctl as it is installed beside this Python."""
    return Contestant(name, (sys.executable, "-m", "deitctl", *map(str, words)), read, ours=True)


def script(name: str, path: Path, words: Sequence[object], read: Reader) -> Contestant:
    """Call a script of a rival with this Python, so with the same torch."""
    return Contestant(name, (sys.executable, str(path), *map(str, words)), read)


TIMM_STEP = re.compile(r"Train: (\d+) \[ *(\d+)/\d+ .*Time: ([\d.]+)s,")
TIMM_TEST = re.compile(r"Test( \(EMA\))?: \[ *(\d+)/(\d+)\].*Acc@1: +[\d.]+ \( *([\d.]+)\)")
OUR_EPOCH = re.compile(r"epoch (\d+)/\d+: loss .*top-1 ([\d.]+) %")


def read_timm_training(batch: int) -> Reader:
    """Read train.py's log of every step: seconds of the steps, and accuracies, the better of the two weights."""

    def read(done: Finished, _: Path) -> Figures:
        steps: list[float] = []
        curve: list[tuple[float, float]] = []
        for seconds, text in done.err + done.out:
            if found := TIMM_STEP.match(text):
                if int(found[1]) > 0 and int(found[2]) > 0:
                    steps.append(float(found[3]))
            elif (found := TIMM_TEST.match(text)) and found[2] == found[3]:
                top1 = float(found[4])
                # the average of the weights, right after the weights themselves
                if found[1] and curve:
                    top1 = max(top1, curve.pop()[1])
                curve.append((round(seconds, 2), top1))
        return {
            "images_per_second": batch / statistics.mean(steps) if steps else None,
            **_accuracy(curve),
        }

    return read


def read_our_training(done: Finished, folder: Path) -> Figures:
    """Read metrics.jsonl of the run, and when the line of each epoch was said."""
    epochs = [
        r
        for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        if r["kind"] == "epoch"
    ]
    said = {int(m[1]): seconds for seconds, text in done.err if (m := OUR_EPOCH.match(text))}
    curve = [(round(said[r["epoch"]], 2), r["top1"]) for r in epochs if r["epoch"] in said]
    steady = [1 / r["images_per_second"] for r in epochs[1:]]
    return {
        "images_per_second": 1 / statistics.mean(steady) if steady else None,
        **_accuracy(curve),
    }


def speed_alone(contestant: Contestant) -> Contestant:
    """Leave out an accuracy that is of too few images to mean anything."""

    def read(done: Finished, folder: Path) -> Figures:
        return {
            k: v for k, v in contestant.read(done, folder).items() if k not in ("top1", "curve")
        }

    return replace(contestant, read=read)


def _accuracy(curve: list[tuple[float, float]]) -> Figures:
    return {"curve": curve, "top1": max((top1 for _, top1 in curve), default=None)}


VALIDATED = re.compile(r"Test: \[ *(\d+)/(\d+)\]\s+Time: [\d.]+s \(([\d.]+)s,")


def read_validate(num_images: int) -> Reader:
    """Read validate.py's log, written at every batch, and its result."""

    def read(done: Finished, _: Path) -> Figures:
        batches = [m for _, text in done.err if (m := VALIDATED.match(text))]
        result = json.loads("\n".join(text for _, text in done.out).partition("--result")[2])
        mean, number = float(batches[-1][3]), int(batches[-1][2])
        assert int(batches[-1][1]) == number - 1, "validate.py did not log its last batch"
        return {"images_per_second": num_images / (mean * number), "top1": result["top1"]}

    return read


def read_eval(done: Finished, _: Path) -> Figures:
    """Read what `deitctl eval --format json` prints."""
    result = json.loads("\n".join(text for _, text in done.out))
    return {"images_per_second": result["images_per_second"], "top1": result["top1"]}


INFERRED = re.compile(r"Predict: \[(\d+)/(\d+)\]")


def read_inference(num_images: int, batch: int) -> Reader:
    """Read when inference.py ended its first and last batch, and the first class of each image from its table."""

    def read(done: Finished, folder: Path) -> Figures:
        times = [seconds for seconds, text in done.err if INFERRED.match(text)]
        with (folder / "answers.csv").open() as file:
            rows = list(csv.DictReader(file))
        answers = {
            Path(row["filename"]).name: int(re.findall(r"\d+", row["index"])[0]) for row in rows
        }
        return {
            "images_per_second": _rate(num_images, batch, times[0], times[-1]),
            "answers": answers,
        }

    return read


def read_predict(num_images: int, batch: int) -> Reader:
    """Read when `deitctl predict --format jsonl` gave its first answer and its last, and what they were."""

    def read(done: Finished, _: Path) -> Figures:
        records = [json.loads(text) for _, text in done.out]
        answers = {Path(r["input"]).name: r["predictions"][0]["index"] for r in records}
        return {
            "images_per_second": _rate(num_images, batch, done.out[0][0], done.out[-1][0]),
            "answers": answers,
        }

    return read


def _rate(num_images: int, batch: int, first: float, last: float) -> float | None:
    """Images after the first batch by the seconds after it."""
    return (num_images - batch) / (last - first) if num_images > batch and last > first else None
