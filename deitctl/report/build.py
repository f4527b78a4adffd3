"""Builds a report from evaluation results and writes it.

Adds example images, attention maps and the curves of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deitctl import __version__
from deitctl.data.batch_transforms import normalize
from deitctl.data.eval_transform import eval_transform
from deitctl.data.range_survey import scale_for
from deitctl.device import Device
from deitctl.errors import ConfigError
from deitctl.evaluation.bootstrap import PairedComparison
from deitctl.evaluation.multilabel_result import MultilabelResult, Result
from deitctl.evaluation.result import EvalResult
from deitctl.evaluation.results import EvalResults
from deitctl.evaluation.subject import EvalSubject
from deitctl.events import Reporter, track
from deitctl.explanation.attention_maps import TOKENS, compute_token_maps
from deitctl.explanation.overlay import draw_heatmap
from deitctl.home import expand_home
from deitctl.models.heads import fuse_heads
from deitctl.models.sources import is_model_folder
from deitctl.models.vit import HeadLogits, VisionTransformer
from deitctl.paths import require_writable, write_bytes
from deitctl.report.contents import HEAD_TITLES, Contents, Curves, Example, Facts, ModelSection
from deitctl.report.figures import draw_figures
from deitctl.report.html import write_page
from deitctl.report.labels_build import build_labels_contents
from deitctl.report.labels_page import render_labels_page
from deitctl.report.thumbnails import encode_jpeg, encode_thumbnail
from deitctl.training.run_dir import Run

MAX_EXAMPLES = 24
"""Images of a gallery; several models share them."""
BATCH_SIZE = 8
# the best deletion and insertion curves of the three, see docs/results/explain.md
MAP_METHOD = "gradient"


def require_report_paths(report: str, figures: str, predictions: str = "") -> None:
    """Raise `DeitctlError` unless the page and the figures can be written.

    For a call before the evaluation.
    """
    if report:
        if Path(report).suffix.lower() not in (".html", ".htm"):
            raise ConfigError(
                f"--report writes an HTML page, and {report} has another suffix.",
                "Name it FILE.html.",
            )
        if predictions and Path(report).resolve() == Path(predictions).resolve():
            raise ConfigError(f"--report and --predictions are both {report}.", "Name two files.")
        require_writable(expand_home(report), "--report")
    if figures:
        require_writable(expand_home(figures), "--figures", folder=True)


def write_report(
    results: EvalResults, reporter: Reporter, *, report: str = "", figures: str = "", command: str
) -> None:
    """Write an evaluation as one HTML page, as PNG figures, or both.

    Args:
        results: the evaluation; the images of the galleries are read and predicted once more.
        reporter: shows progress.
        report: HTML file to write, replaced if it exists.
        figures: folder for the PNG files.
        command: command line that makes the report again.

    Raises:
        DeitctlError: a file cannot be written.
    """
    if not report and not figures:
        return
    if isinstance(results.evaluations[0], MultilabelResult):
        _write_labels_report(results, reporter, report, figures, command)
        return
    contents = build_contents(results, command, reporter)
    if report:
        write_page(contents, expand_home(report))
        reporter.note(f"Report written to {report}")
    if figures:
        paths = draw_figures(contents, expand_home(figures))
        reporter.note(f"{len(paths)} figures written to {figures}")


def _write_labels_report(
    results: EvalResults, reporter: Reporter, report: str, figures: str, command: str
) -> None:
    """Write the page of several labels an image, which has no figures as PNG."""
    if report:
        contents = build_labels_contents(
            results,
            created=_tell_time(),
            command=command,
            facts=_list_data_facts(results),
            facts_of={result.name: _list_facts(result) for result in results.evaluations},
            curves=_read_curves({result.model for result in results.evaluations}),
            reporter=reporter,
        )
        page = render_labels_page(contents)
        write_bytes(expand_home(report), page.encode("utf-8", "replace"))
        reporter.note(f"Report written to {report}")
    if figures:
        reporter.warn(
            "--figures are drawn of one label an image: of several, --report FILE.html draws classes, "
            "thresholds and images."
        )


def _tell_time() -> str:
    # With the UTC offset: a page is read on other machines.
    return datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")


def _list_data_facts(results: EvalResults) -> Facts:
    first = results.evaluations[0]
    return [
        ("data", results.data),
        ("split", first.split),
        ("images", f"{first.num_images:,}"),
        ("classes", f"{first.num_classes:,}"),
        ("device", f"{results.device.torch_device}, {results.device.precision}"),
        ("speed", f"{first.images_per_second:.1f} images/s"),
    ]


def build_contents(results: EvalResults, command: str, reporter: Reporter) -> Contents:
    """Gather what a report of one label an image shows."""
    evaluations = [r for r in results.evaluations if isinstance(r, EvalResult)]
    first, several = evaluations[0], len(evaluations) > 1
    # Shared, so that the page of several models is no larger than that of one.
    limit = max(6, MAX_EXAMPLES // len(evaluations))
    return Contents(
        title=f"{len(results.evaluations)} evaluations on {results.data}"
        if several
        else f"{first.name} on {results.data}",
        created=_tell_time(),
        version=__version__,
        command=command,
        facts=_list_data_facts(results),
        sections=[
            ModelSection(
                result=result,
                facts=_list_facts(result),
                # Read and predicted again: an evaluation keeps some sixty bytes an image, no
                # pixels.
                galleries=_build_galleries(result, results.device, limit, reporter),
            )
            for result in evaluations
        ],
        comparisons=[c for c in results.comparisons if isinstance(c, PairedComparison)],
        curves=_read_curves({result.model for result in results.evaluations}),
    )


def _list_facts(result: Result) -> Facts:
    assert result.subject is not None
    preprocessing = result.subject.eval_model.preprocessing
    facts = [
        ("model", result.model),
        ("architecture", result.subject.model_config.architecture),
        ("head rule", result.head),
        (
            "preprocessing",
            f"{result.protocol}: {preprocessing.resize_to} px {preprocessing.crop_mode}, "
            f"crop {preprocessing.img_size} px, {preprocessing.interpolation}",
        ),
    ]
    if result.num_train_images is not None:
        facts.append(("training images", f"{result.num_train_images:,} of {result.num_images:,}"))
    if result.temperature != 1:
        facts.append(("temperature", f"{result.temperature:.3f}, the model's own"))
    if isinstance(result, EvalResult) and (real := result.real_labels):
        top5 = "" if real.top5 is None else f", top-5 {real.top5:.2f} %"
        accuracy = f"top-1 {real.top1:.2f} %{top5}, of {real.num_images:,} images"
        facts.append(("ReaL labels", accuracy))
    return facts


def _build_galleries(
    result: EvalResult, device: Device, limit: int, reporter: Reporter
) -> dict[str, list[Example]]:
    """Choose the images of each gallery and build their examples, each once."""
    correct, confidences = result.correct.numpy(), result.confidences.numpy()
    rows = {
        "mistakes": select_mistakes(correct, confidences, limit),
        "unsure": select_unsure(correct, confidences, limit),
        "disagreements": []
        if result.heads_differ is None
        else select_mistakes(~result.heads_differ.numpy(), confidences, limit),
    }
    # An image can be in two galleries, and each is decoded, predicted and explained once.
    unique = sorted({row for gallery in rows.values() for row in gallery})
    examples = dict(zip(unique, _build_examples(result, unique, device, reporter), strict=True))
    return {name: [examples[row] for row in gallery] for name, gallery in rows.items()}


def select_mistakes(
    correct: NDArray[np.bool_], confidences: NDArray[np.floating], limit: int
) -> list[int]:
    """Return the rows of at most `limit` wrong predictions, the most confident first.

    Args:
        correct: whether each prediction is right, [N].
        confidences: probability of each prediction, [N].
        limit: how many at most.
    """
    # Stable: of equal confidences the order of the data, so that a report is reproducible.
    order = np.argsort(-confidences, kind="stable")
    return [int(n) for n in order[~correct[order]][:limit]]


def select_unsure(
    correct: NDArray[np.bool_], confidences: NDArray[np.floating], limit: int
) -> list[int]:
    """Return the rows of at most `limit` right predictions, the least confident first.

    Arguments as above.
    """
    return select_mistakes(~correct, -confidences, limit)


def _build_examples(
    result: EvalResult, rows: Sequence[int], device: Device, reporter: Reporter
) -> list[Example]:
    """Read images again, a batch at a time, and predict them with attention maps."""
    subject = result.subject
    assert subject is not None
    examples: list[Example] = []
    starts = range(0, len(rows), BATCH_SIZE)
    for start in track(starts, reporter, f"gallery images ({result.name})", len(starts), "batches"):
        batch = rows[start : start + BATCH_SIZE]
        preprocessing = subject.eval_model.preprocessing
        dataset = scale_for(subject.dataset, preprocessing.value_range)
        pixels = np.stack(
            [
                eval_transform(dataset.read(index), preprocessing)
                for index in result.indices[list(batch)].tolist()
            ]
        )
        on_device = device.to_device(torch.from_numpy(pixels))
        with device.computing(), torch.no_grad(), device.autocast():
            cls, dist = subject.eval_model.forward(on_device)
        # fp32: a softmax of bf16 logits has two digits.
        heads = HeadLogits(cls.float().cpu(), None if dist is None else dist.float().cpu())
        fused = heads.cls if heads.dist is None else fuse_heads(heads, result.head)
        maps = _draw_maps(subject, pixels, on_device)
        for n, row in enumerate(batch):
            by_head = {"cls": heads.cls, "dist": heads.dist} if heads.dist is not None else {}
            # Guesses are those of the evaluation's own preprocessing and temperature, not of
            # `predict`.
            examples.append(
                Example(
                    index=row,
                    guesses=_list_guesses(subject, fused[n], result.head),
                    thumbnail=encode_thumbnail(pixels[n]),
                    maps=maps[n],
                    heads={
                        HEAD_TITLES[rule]: _list_guesses(subject, logits[n], rule)[0]
                        for rule, logits in by_head.items()
                    },
                )
            )
    return examples


def _list_guesses(subject: EvalSubject, logits: Tensor, head: str) -> list[tuple[str, float]]:
    temperature = subject.model_config.temperature(head)
    top = (logits / temperature).softmax(0).topk(min(5, len(logits)))
    return [
        (subject.get_title(index), score)
        for index, score in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def _draw_maps(
    subject: EvalSubject, pixels: NDArray[np.uint8], on_device: Tensor
) -> list[dict[str, bytes]]:
    """Return each image under the attention map of each token; none for a model that is no DeiT."""
    model = subject.eval_model.model
    if not isinstance(model, VisionTransformer):
        return [{} for _ in pixels]
    maps = compute_token_maps(
        model, normalize(on_device, subject.eval_model.preprocessing), method=MAP_METHOD
    )
    tokens = {TOKENS[name]: values for name, values in maps._asdict().items() if values is not None}
    return [
        {
            name: encode_jpeg(draw_heatmap(image, values[n].cpu().numpy()))
            for name, values in tokens.items()
        }
        for n, image in enumerate(pixels)
    ]


def _read_curves(models: set[str]) -> Curves | None:
    """Return the log of the run, if the only model is a run folder."""
    if len(models) != 1 or not is_model_folder(model := next(iter(models))):
        return None
    run = Run(expand_home(model), writes=False)
    epochs = list(run.records("epoch"))
    if not epochs:
        return None
    return Curves(
        run=run.root.name,
        steps=list(run.records("step")),
        epochs=epochs,
        teacher_top1=run.teacher_top1(),
    )
