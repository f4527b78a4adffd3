"""Measure the size, the difference from the model, and the speed of each format of `deitctl export`.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/export_formats.py MODEL DATA [--weights FILE] [--img-size S]
        [--calibration-data DATA] [--num-images 200] [--rounds 9] [--formats NAME...]

Every format whose packages are installed is written and verified on the images as `export` does it. Then all of them
and PyTorch eager run in this process by the loaders of runner.py, with one number of threads, and take turns. Speed is
the median time of eager divided by that of the format, for one image and for sixteen, in CPU time, which other load
lengthens least. Differences are those of the verification: the largest of a logit or a probability, and for quantized
files, in brackets, the RMS difference of the logits relative to their spread. `openvino, own precision` is the fp32
folder without the hint that the loader sets. The results are in docs/results/export.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deitctl.errors import ExportError
from deitctl.events import SilentReporter
from deitctl.exporters import runner
from deitctl.exporters.compare import (
    Verification,
    compare,
    compare_quantized,
    measure,
    run_on_pixels,
)
from deitctl.exporters.destination import count_bytes
from deitctl.exporters.formats import FORMATS, Format
from deitctl.exporters.metadata import collect_metadata
from deitctl.exporters.network import ExportedClassifier, silence_warnings
from deitctl.exporters.quantize import PRECISIONS
from deitctl.exporters.verification_images import (
    Images,
    compute_reference,
    open_images,
    read_images,
)
from deitctl.models.factory import LoadedModel, load_model
from deitctl.models.heads import choose_head

Answer = Callable[[Any], Any]
RUNTIMES = ("torch", "onnxruntime", "openvino", "timm", "transformers", "coremltools", "executorch")
SIZES = (1, 16)


@dataclass(frozen=True)
class Row:
    """A written format and its verification, if it can run here."""

    kind: Format
    path: Path
    verification: Verification | None = None


def export_all(
    loaded: LoadedModel, sample: Images, calibration: Any, folder: Path, formats: list[str]
) -> dict[str, Row]:
    """Write and verify every installed format, by name; one that is not, or fails, is a line."""
    rows: dict[str, Row] = {}
    for name in formats:
        try:
            rows |= export_one(name, loaded, sample, calibration, folder)
        except ExportError as error:
            print(f"{name}: {error}", flush=True)
    return rows


def export_one(
    name: str, loaded: LoadedModel, sample: Images, calibration: Any, folder: Path
) -> dict[str, Row]:
    """Write a format in all its precisions."""
    kind, model_config = FORMATS[name], loaded.model_config
    kind.require()
    head = choose_head(kind.head or "auto", model_config.head, loaded.model)
    path = folder / f"model{kind.suffix}"
    network = ExportedClassifier(loaded.model, model_config, head)
    if kind.provide_runtime is not None:
        kind.provide_runtime("", SilentReporter())
    kind.write(network, model_config, collect_metadata(network, model_config, name), path)
    if not kind.runs_here:
        return {name: Row(kind, path)}
    expected = compute_reference(loaded.model, model_config, head, sample.pixels)
    outputs = run_on_pixels(name, path, sample.pixels)
    verification = compare(outputs, expected, sample.names, kind.tolerance)
    rows = {f"{name} fp32" if kind.precisions else name: Row(kind, path, verification)}
    if kind.model_file:  # a page's network is ONNX's, and quantized like it
        return rows
    for precision in kind.precisions:
        assert kind.quantize is not None
        if PRECISIONS[precision].calibrated and calibration is None:
            continue
        other, tolerance = folder / f"{precision}{kind.suffix}", PRECISIONS[precision].tolerance
        kind.quantize(path, precision, other, calibration)
        outputs = run_on_pixels(name, other, sample.pixels)
        verification = compare_quantized(outputs, expected, sample.names, tolerance)
        rows[f"{name} {precision}"] = Row(kind, other, verification)
    return rows


def eager(loaded: LoadedModel) -> Answer:
    """Return the model as PyTorch runs it."""
    network = ExportedClassifier(
        loaded.model,
        loaded.model_config,
        choose_head("auto", loaded.model_config.head, loaded.model),
    )

    @torch.inference_mode()
    def answer(pixels: Any) -> Any:
        return torch.stack(network(torch.from_numpy(pixels))).numpy()

    return answer


def openers(rows: dict[str, Row]) -> dict[str, Answer]:
    """Open everything that can be run here."""
    # onnxruntime else takes a thread a core of the machine, and lets them wait busily
    threads = {"threads": torch.get_num_threads()}
    answers = {}
    for title, row in rows.items():
        if row.verification is not None:
            with silence_warnings():
                options = threads if row.kind.name in ("onnx", "web") else {}
                answers[title] = runner.LOADERS[row.kind.name](str(row.path), **options)
                if title == "openvino fp32":
                    answers["openvino, own precision"] = runner.load_openvino(str(row.path), {})
    return answers


def seconds(answers: dict[str, Answer], batch: Any, rounds: int) -> dict[str, float]:
    """Return the median seconds of each for a batch, all taking turns."""
    took: dict[str, list[float]] = {title: [] for title in answers}
    for _ in range(rounds + 1):
        for title, answer in answers.items():
            start = time.process_time()
            answer(batch)
            took[title].append(time.process_time() - start)
    # the first answers allocate
    return {title: statistics.median(times[1:]) for title, times in took.items()}


def measure_unverified(answer: Answer, loaded: LoadedModel, sample: Images) -> Verification:
    """Return how far outputs that were not verified are from the model's."""
    head = choose_head("auto", loaded.model_config.head, loaded.model)
    expected = compute_reference(loaded.model, loaded.model_config, head, sample.pixels)
    batches = np.array_split(sample.pixels, range(16, len(sample.pixels), 16))
    return measure(
        np.concatenate([answer(batch) for batch in batches], axis=1), expected, sample.names
    )


def main() -> None:
    """Write, run and time; print a row a format, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--weights", default="")
    parser.add_argument(
        "--calibration-data", default="", help="Images of no DATA, for int8-static."
    )
    parser.add_argument("--img-size", type=int, default=0)
    parser.add_argument("--num-images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    options = parser.parse_args()
    quiet = SilentReporter()
    loaded = load_model(
        options.model, weights=options.weights, img_size=options.img_size, reporter=quiet
    )
    dataset, pre = (
        open_images(options.model, options.data, quiet).dataset,
        loaded.model_config.preprocessing,
    )
    sample = read_images(dataset, pre, options.num_images)
    calibration = (
        read_images(open_images("", options.calibration_data, quiet).dataset, pre, 128).pixels
        if options.calibration_data
        else None
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = export_all(loaded, sample, calibration, Path(folder), options.formats)
        answers = {"PyTorch eager": eager(loaded), **openers(rows)}
        speed = {
            n: seconds(answers, sample.pixels[:n], options.rounds * (3 if n == 1 else 1))
            for n in SIZES
        }
        sizes = {title: f"{count_bytes(row.path):,}" for title, row in rows.items()}
        for title in answers.keys() & {"openvino, own precision"}:
            rows[title] = Row(
                FORMATS["openvino"],
                Path(folder),
                measure_unverified(answers[title], loaded, sample),
            )
    print_table(rows, sizes, speed)


def print_table(
    rows: dict[str, Row], sizes: dict[str, str], speed: dict[int, dict[str, float]]
) -> None:
    """Print versions and rows."""
    installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    print(", ".join(f"{name} {installed[name]}" for name in RUNTIMES if name in installed))
    base = {n: times["PyTorch eager"] for n, times in speed.items()}
    print(f"PyTorch eager: {', '.join(f'{1000 * t:.1f} ms for {n}' for n, t in base.items())}\n")
    print(
        "| | bytes | largest difference | same first class | speed, 1 image | speed, 16 |\n|---|---|---|---|---|---|"
    )
    for title, row in rows.items():
        off, same = "not verified here", ""
        if (verification := row.verification) is not None:
            num = verification.num_verified
            off = f"{verification.max_abs_diff:.1e}"
            if verification.relative_diff:
                off += f" ({verification.relative_diff:.1g})"
            same = f"{round(verification.top1_agreement * num / 100)} of {num}"
        fast = " | ".join(
            f"{base[n] / speed[n][title]:.2f}" if title in speed[n] else "" for n in SIZES
        )
        print(f"| {title} | {sizes.get(title, '')} | {off} | {same} | {fast} |")


if __name__ == "__main__":
    main()
