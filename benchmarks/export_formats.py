"""What does each format of `deitctl export` weigh, how far is it from the model, and how fast is it?

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/export_formats.py MODEL DATA [--weights FILE] [--img-size S]
        [--count 200] [--rounds 9] [--formats NAME...]

Every format whose packages are installed is written by `export` itself, so it has passed its proof on the pictures. Then
all of them, and PyTorch eager, answer in this one process by the `load` of their programs, and take turns. Speed is the
median of eager's seconds over the median of the format's, for one picture and for sixteen. On one core (`taskset`, which
every runtime heeds) these are seconds of the CPU, which others on the machine lengthen least. Differences are those of
the proof: the largest of a logit or a probability, and for rounded files, in brackets, the RMS difference of the logits
relative to their spread. `openvino, own precision` is the fp32 folder without the hint that the program sets. The figures
are in docs/export.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import runpy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deitctl.checkpoint import save_model
from deitctl.errors import ExportError
from deitctl.events import SilentReporter
from deitctl.exporters import FORMATS
from deitctl.exporters.network import ExportedClassifier, quietly
from deitctl.exporters.verify import Pictures, measure, pictures, reference
from deitctl.models.build import LoadedModel, load_model
from deitctl.models.heads import choose_head
from deitctl.models.layers import layer_names, shipping_card
from deitctl.workflows.export import ExportResult, _source, export

Answer = Callable[[Any], Any]
RUNTIMES = ("torch", "onnxruntime", "openvino", "timm", "transformers", "coremltools", "executorch")
SIZES = (1, 16)


def export_all(folder: Path, data: str, count: int, formats: list[str]) -> dict[str, ExportResult]:
    """Write all that is installed, by name; what is not, or does not pass, is a line."""
    results = {}
    for name in formats:
        kind = FORMATS[name]
        for precision in ("", *kind.precisions):
            title = f"{name} {precision or 'fp32'}" if kind.precisions else name
            try:
                results[title] = export(str(folder), to=name, quantize=precision, verify_with=data, count=count)
            except ExportError as error:
                print(f"{title}: {error}", flush=True)
    return results


def eager(loaded: LoadedModel) -> Answer:
    """Return the model as PyTorch runs it."""
    network = ExportedClassifier(loaded.model, loaded.card, choose_head("auto", loaded.card.head, loaded.model))

    @torch.inference_mode()
    def answer(pixels: Any) -> Any:
        return torch.stack(network(torch.from_numpy(pixels))).numpy()

    return answer


def openers(results: dict[str, ExportResult]) -> dict[str, Answer]:
    """Open everything that can be run here."""
    answers = {}
    for title, result in results.items():
        kind = FORMATS[result.format]
        if kind.runs_here:
            with quietly():
                load = runpy.run_path(str(kind.program_file))["load"]
                answers[title] = load(str(result.path))
                if title == "openvino fp32":
                    answers["openvino, own precision"] = load(str(result.path), {})
    return answers


def seconds(answers: dict[str, Answer], batch: Any, rounds: int) -> dict[str, float]:
    """Return the median seconds of each for a batch, all taking turns."""
    took: dict[str, list[float]] = {title: [] for title in answers}
    for _ in range(rounds + 1):
        for title, answer in answers.items():
            start = time.process_time()
            answer(batch)
            took[title].append(time.process_time() - start)
    return {title: statistics.median(times[1:]) for title, times in took.items()}  # the first answers allocate


def own_precision(answer: Answer, loaded: LoadedModel, sample: Pictures) -> tuple[float, float]:
    """Say how far answers that no proof has seen are from the model's: largest difference, top-1 agreement."""
    head = choose_head("auto", loaded.card.head, loaded.model)
    wanted = reference(loaded.model, loaded.card, head, sample.pixels)
    batches = np.array_split(sample.pixels, range(16, len(sample.pixels), 16))
    found = measure(np.concatenate([answer(batch) for batch in batches], axis=1), wanted, sample.names)
    return found.max_abs_diff, found.top1_agreement


def main() -> None:
    """Write, run and time; print a row a format, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--weights", default="")
    parser.add_argument("--img-size", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    options = parser.parse_args()
    quiet = SilentReporter()
    loaded = load_model(options.model, weights=options.weights, img_size=options.img_size, reporter=quiet)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        card = shipping_card(loaded.model, loaded.card)
        save_model(folder, loaded.model.state_dict(), card, layer_names(loaded.model))
        results = export_all(folder, options.data, options.count, options.formats)
        answers = {"PyTorch eager": eager(loaded), **openers(results)}
        sample = pictures(_source("", options.data, quiet), loaded.card.preprocessing, options.count)
        speed = {n: seconds(answers, sample.pixels[:n], options.rounds * (3 if n == 1 else 1)) for n in SIZES}
        other = {t: own_precision(answers[t], loaded, sample) for t in answers if t == "openvino, own precision"}
    print_table(results, other, speed, len(sample.names))


def print_table(
    results: dict[str, ExportResult], other: dict[str, tuple[float, float]], speed: dict[int, dict[str, float]], count: int
) -> None:  # fmt: skip
    """Print versions and rows."""
    installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    print(", ".join(f"{name} {installed[name]}" for name in RUNTIMES if name in installed))
    base = {n: times["PyTorch eager"] for n, times in speed.items()}
    print(f"eager: {', '.join(f'{1000 * t:.1f} ms for {n}' for n, t in base.items())}; {count} pictures\n")
    print(
        "| | bytes | largest difference | same first class | speed, 1 picture | speed, 16 |\n|---|---|---|---|---|---|"
    )
    for title in dict.fromkeys((*results, *other)):
        times = [f"{base[n] / speed[n][title]:.2f}" if title in speed[n] else "" for n in SIZES]
        if title in other:
            size, (difference, agreement), relative = "", other[title], None
        else:
            result = results[title]
            size, relative = f"{result.bytes:,}", result.relative_diff
            difference, agreement = result.max_abs_diff, result.top1_agreement
        off = (
            "not proved here"
            if difference is None
            else f"{difference:.1e}" + (f" ({relative:.2g})" if relative else "")
        )
        same = "" if agreement is None else f"{round(agreement * count / 100)}"
        print(f"| {title} | {size} | {off} | {same} | {times[0]} | {times[1]} |")


if __name__ == "__main__":
    main()
