"""What does each format of `deitctl export` weigh, how far is it from the model, and how fast is it?

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/export_formats.py MODEL DATA [--weights FILE] [--img-size S]
        [--calibrate DATA] [--count 200] [--rounds 9] [--formats NAME...]

Every format whose packages are installed is written and proved on the images as `export` does it. Then all of them, and
PyTorch eager, answer in this one process by the `load` of their programs, with one number of threads, and take turns. Speed
is the median of eager's seconds over the median of the format's, for one image and for sixteen: seconds of the CPU,
which others on the machine lengthen least. Differences are those of the proof: the largest of a logit or a probability,
and for rounded files, in brackets, the RMS difference of the logits relative to their spread. `openvino, own precision`
is the fp32 folder without the hint that the program sets. The figures are in docs/export.md.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import runpy
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
from deitctl.exporters import FORMATS, Format
from deitctl.exporters.compare_outputs import (
    Images,
    Verification,
    images,
    measure,
    reference,
    verify,
)
from deitctl.exporters.destination import size
from deitctl.exporters.metadata import metadata_of
from deitctl.exporters.network import ExportedClassifier, quietly
from deitctl.exporters.quantize import PRECISIONS
from deitctl.exporters.verification import open_images
from deitctl.exporters.verify_rounded import verify_rounded
from deitctl.models.factory import LoadedModel, load_model
from deitctl.models.heads import choose_head

Answer = Callable[[Any], Any]
RUNTIMES = ("torch", "onnxruntime", "openvino", "timm", "transformers", "coremltools", "executorch")
SIZES = (1, 16)


@dataclass(frozen=True)
class Row:
    """A written format and its proof, if it can be had here."""

    kind: Format
    path: Path
    found: Verification | None = None
    relative: float | None = None


def export_all(
    loaded: LoadedModel, sample: Images, calibration: Any, folder: Path, formats: list[str]
) -> dict[str, Row]:
    """Write and prove all that is installed, by name; what is not, or does not pass, is a line."""
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
    if kind.provide is not None:
        kind.provide("", SilentReporter())
    kind.write(network, model_config, metadata_of(network, model_config, name), path)
    if not kind.runs_here:
        return {name: Row(kind, path)}
    wanted = reference(loaded.model, model_config, head, sample.pixels)
    found = verify(path, kind.program_file, wanted, sample, tolerance=kind.tolerance)
    rows = {f"{name} fp32" if kind.precisions else name: Row(kind, path, found)}
    for precision in (
        () if kind.model else kind.precisions
    ):  # a page's network is ONNX's, and rounded like it
        assert kind.quantize is not None
        if PRECISIONS[precision].calibrated and calibration is None:
            continue
        other, tolerance = folder / f"{precision}{kind.suffix}", PRECISIONS[precision].tolerance
        kind.quantize(path, precision, other, calibration)
        proof = verify_rounded(other, kind.program_file, wanted, sample, tolerance=tolerance)
        rows[f"{name} {precision}"] = Row(kind, other, *proof)
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


def as_many_threads_as_torch() -> None:
    """Give onnxruntime, which else takes one a core of the machine and lets them wait busily, what the others have."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    onnxruntime.InferenceSession = functools.partial(
        onnxruntime.InferenceSession, sess_options=options
    )


def openers(rows: dict[str, Row]) -> dict[str, Answer]:
    """Open everything that can be run here."""
    as_many_threads_as_torch()
    answers = {}
    for title, row in rows.items():
        if row.found is not None:
            with quietly():
                load = runpy.run_path(str(row.kind.program_file))["load"]
                answers[title] = load(str(row.path))
                if title == "openvino fp32":
                    answers["openvino, own precision"] = load(str(row.path), {})
    return answers


def seconds(answers: dict[str, Answer], batch: Any, rounds: int) -> dict[str, float]:
    """Return the median seconds of each for a batch, all taking turns."""
    took: dict[str, list[float]] = {title: [] for title in answers}
    for _ in range(rounds + 1):
        for title, answer in answers.items():
            start = time.process_time()
            answer(batch)
            took[title].append(time.process_time() - start)
    return {
        title: statistics.median(times[1:]) for title, times in took.items()
    }  # the first answers allocate


def unproved(answer: Answer, loaded: LoadedModel, sample: Images) -> Verification:
    """Say how far answers that no proof has seen are from the model's."""
    head = choose_head("auto", loaded.model_config.head, loaded.model)
    wanted = reference(loaded.model, loaded.model_config, head, sample.pixels)
    batches = np.array_split(sample.pixels, range(16, len(sample.pixels), 16))
    return measure(
        np.concatenate([answer(batch) for batch in batches], axis=1), wanted, sample.names
    )


def main() -> None:
    """Write, run and time; print a row a format, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--weights", default="")
    parser.add_argument("--calibrate", default="", help="Images of no DATA, for int8-static.")
    parser.add_argument("--img-size", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    options = parser.parse_args()
    quiet = SilentReporter()
    loaded = load_model(
        options.model, weights=options.weights, img_size=options.img_size, reporter=quiet
    )
    dataset, pre = open_images(options.model, options.data, quiet), loaded.model_config.preprocessing
    sample = images(dataset, pre, options.count)
    calibration = (
        images(open_images("", options.calibrate, quiet), pre, 128).pixels
        if options.calibrate
        else None
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = export_all(loaded, sample, calibration, Path(folder), options.formats)
        answers = {"PyTorch eager": eager(loaded), **openers(rows)}
        speed = {
            n: seconds(answers, sample.pixels[:n], options.rounds * (3 if n == 1 else 1))
            for n in SIZES
        }
        sizes = {title: f"{size(row.path):,}" for title, row in rows.items()}
        for title in answers.keys() & {"openvino, own precision"}:
            rows[title] = Row(
                FORMATS["openvino"], Path(folder), unproved(answers[title], loaded, sample)
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
        off, same = "not proved here", ""
        if row.found is not None:
            off = f"{row.found.max_abs_diff:.1e}" + (
                f" ({row.relative:.1g})" if row.relative else ""
            )
            same = f"{round(row.found.top1_agreement * row.found.num_images / 100)} of {row.found.num_images}"
        fast = " | ".join(
            f"{base[n] / speed[n][title]:.2f}" if title in speed[n] else "" for n in SIZES
        )
        print(f"| {title} | {sizes.get(title, '')} | {off} | {same} | {fast} |")


if __name__ == "__main__":
    main()
