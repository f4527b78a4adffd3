"""deitctl predict"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import deitctl
from deitctl.cli import completion
from deitctl.cli import options as o
from deitctl.cli.console import (
    KEPT,
    choose_format,
    escape_control,
    json_text,
    pause_gc,
    print_next,
    print_records,
)
from deitctl.cli.progress import make_reporter
from deitctl.config import MODEL_HELP
from deitctl.errors import Interrupted, Signalled, UsageError
from deitctl.events import SilentReporter
from deitctl.home import expand_home
from deitctl.records import to_object

if TYPE_CHECKING:
    from deitctl.events import Reporter, Task
    from deitctl.inference.classifier import Classifier, Prediction
    from deitctl.inference.folder_scan import FolderScan

NUM_CLASSES = 5
"""Likeliest classes of each image, unless `--topk` says another number."""
FORMATS = ("table", "json", "jsonl", "csv")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How a cell begins that a spreadsheet takes for a formula."""


def predict(
    images: o.ImagesArg,
    model: Annotated[
        str,
        o.option(
            "--model",
            help=f"{MODEL_HELP} Or an exported ONNX file.",
            default="",
            complete=completion.complete_model,
        ),
    ] = "",
    weights: o.WeightsOpt = "",
    classes: o.ClassesOpt = "",
    topk: Annotated[
        int | None,
        o.option(
            "--topk",
            "-k",
            help="Likeliest classes of each image.",
            default="5; of a multi-label model those above their threshold",
            min=1,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        o.option(
            "--threshold",
            help="Probability from which a multi-label model predicts a class.",
            default="the model's own for each, else 0.5",
            min=0,
            max=1,
        ),
    ] = None,
    task: o.ModelTaskOpt = "auto",
    head: o.HeadOpt = "auto",
    batch_size: Annotated[
        int | None,
        o.option("--batch-size", help="Images at a time.", default="16, from stdin 1", min=1),
    ] = None,
    img_size: o.ImgSizeOpt = 0,
    value_range: o.ValueRangeOpt = "auto",
    show_image: Annotated[
        bool | None,
        o.option(
            "--show-image/--no-show-image",
            help="Show images in the terminal, as the model sees them.",
            default="for one file or address",
            panel=o.OUTPUT,
        ),
    ] = None,
    device: o.DeviceOpt = "auto",
    precision: o.PrecisionOpt = "auto",
    output_format: Annotated[
        str | None,
        o.option(
            "--format",
            help="table, json, jsonl or csv.",
            default="table on a terminal, else jsonl",
            panel=o.OUTPUT,
            choices=FORMATS,
        ),
    ] = None,
    output: Annotated[
        str,
        o.option(
            "--output",
            help="Write the records to this new .jsonl file.",
            default="stdout",
            panel=o.OUTPUT,
            metavar="OUT.JSONL",
        ),
    ] = "",
    resume: Annotated[
        str,
        o.option(
            "--resume",
            help="Add to this .jsonl file the records that it lacks; a missing file is begun.",
            default="",
            panel=o.OUTPUT,
            metavar="OUT.JSONL",
        ),
    ] = "",
    quiet: o.QuietOpt = False,
) -> None:
    """Classify images.

    Example: deitctl predict cat.jpg --topk 5
    """
    to_file = resume or output
    shape = "jsonl" if to_file else choose_format(output_format, FORMATS, "jsonl")
    if resume and output:
        raise UsageError(f"--resume {resume} writes to that file.", "Leave --output out.")
    if to_file and output_format not in (None, "jsonl"):
        raise UsageError(f"{to_file} is JSON Lines.", f"Leave --format {output_format} out.")
    if show_image and shape != "table":
        raise UsageError(f"--show-image goes with a table, not with {shape}.")
    reporter = make_reporter(quiet)
    keep_pixels = shape == "table" and _can_show_images(show_image, images, reporter)
    from deitctl.inference.inputs import STDIN, expand, suggest_inputs

    for suggestion in suggest_inputs(images):
        reporter.warn(suggestion)
    batch_size = batch_size or (1 if "-" in images and not to_file else 16)

    def load() -> Classifier:
        with pause_gc():
            return deitctl.load(
                model,
                weights=weights,
                classes=classes,
                task=task,
                threshold=threshold,
                head=head,
                img_size=img_size,
                device=device,
                precision=precision,
                value_range=value_range,
                reporter=reporter,
            )

    if to_file:
        with _resume_on_interruption():
            num_failed = _predict_to_file(
                expand_home(to_file),
                images,
                load,
                resume=bool(resume),
                topk=topk or NUM_CLASSES,
                batch_size=batch_size,
                precision=precision,
                reporter=reporter,
            )
        raise typer.Exit(3 if num_failed else 0)
    classifier = load()
    scan = classifier.scan_folders()
    named = [name for name in images if name != STDIN]
    num_named = classifier.settle_range(expand(named, scan=classifier.scan_folders()))
    predictions = classifier.stream(
        expand(images, sys.stdin, scan),
        topk=topk or NUM_CLASSES,
        batch_size=batch_size,
        keep_pixels=keep_pixels,
    )
    printer = _choose_printer(shape, classifier.model_config.is_multilabel, topk)
    with _track(_count(images, num_named), reporter) as progress:
        num_failed = printer(progress.follow(predictions))
    _warn_of_unread(scan, num_failed, progress.count, reporter)
    if (
        explain := _list_explain(progress.example, classifier, model, weights, classes)
    ) is not None:
        print_next(explain, shape=shape, quiet=quiet)
    if num_failed:
        raise typer.Exit(3)


def _choose_printer(
    shape: str, is_multilabel: bool, topk: int | None
) -> Callable[[Iterable[Prediction]], int]:
    """Return what prints predictions as they come, and returns how many are failures."""
    # Of several labels those above their threshold are what is predicted; the likeliest are for who asks.
    only_labels = is_multilabel and topk is None
    if shape == "table":
        return partial(_print_table, only_labels=only_labels)
    if shape == "csv":
        return partial(_print_csv, is_multilabel=is_multilabel, only_labels=only_labels)
    return _print_json if shape == "json" else print_records


@dataclass
class _Progress:
    """Counts what goes by."""

    task: Task
    example: str | None = None
    """The first input that was classified."""
    count: int = 0

    def follow(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        for prediction in predictions:
            if self.example is None and prediction.error is None:
                self.example = prediction.input
            yield prediction
            self.count += 1
            self.task.advance()


@contextmanager
def _track(total: int | None, reporter: Reporter, num_written: int = 0) -> Iterator[_Progress]:
    """Show the progress of a block and, at its end, the speed; of a single image neither."""
    start = time.perf_counter()
    reporter = SilentReporter() if total == 1 else reporter
    with reporter.task("predicting", total) as task:
        task.skip(num_written)
        progress = _Progress(task)
        yield progress
    seconds = time.perf_counter() - start
    if progress.count > 1:
        speed = progress.count / max(seconds, 1e-9)
        reporter.note(f"{progress.count:,} images in {seconds:.1f} s, {speed:.1f} images/s.")


def _count(images: list[str], num_named: int) -> int | None:
    """Return how many inputs there are, None if only the end of stdin tells.

    Args:
        images: as they are named.
        num_named: of them and in their folders, but those of stdin.
    """
    if "-" not in images:
        return num_named
    return 1 if sys.stdin.isatty() else None  # typed by hand: no bar between the lines


def _predict_to_file(
    path: Path,
    images: list[str],
    load: Callable[[], Classifier],
    *,
    resume: bool,
    topk: int,
    batch_size: int,
    precision: str,
    reporter: Reporter,
) -> int:
    """Write the records that a file lacks, and return how many of all of its records are failures."""
    from deitctl.inference.inputs import expand
    from deitctl.inference.prediction_file import open_prediction_file

    with open_prediction_file(path, resume=resume) as records:
        classifier = load()  # which says what its images in folders are
        scan = classifier.scan_folders()
        names = [str(image) for image in expand(images, sys.stdin, scan)]
        records.require_inputs(names, reporter)
        classifier.settle_range(names)
        records.require_model(classifier, topk=topk, precision=precision, reporter=reporter)
        num_written, num_failed = records.counts.total(), records.num_errors
        if num_written:
            errors = (
                f", {num_failed:,} of them errors, which are not tried again" if num_failed else ""
            )
            reporter.note(f"{path} has {num_written:,} records{errors}.")
        records.start()
        predictions = records.predict_remaining(names, classifier, topk=topk, batch_size=batch_size)
        with _track(len(names), reporter, num_written) as progress:
            for prediction in progress.follow(predictions):
                num_failed += prediction.error is not None
                records.append(json_text(to_object(prediction)) + "\n")
    _warn_of_unread(scan, num_failed, len(names), reporter)
    return num_failed


def _warn_of_unread(scan: FolderScan, num_failed: int, count: int, reporter: Reporter) -> None:
    """Say in a line what was passed over in folders, and of several inputs how many could not be read."""
    failed = ""
    if num_failed and count > 1:
        failed = (
            f"{num_failed:,} of {count:,} inputs could not be classified; their records say why."
        )
    if passed_over := scan.describe():
        reporter.warn(f"{passed_over} {failed}".strip())
    elif failed:  # no warning: the exit code and the records say it too
        reporter.note(failed)


@contextmanager
def _resume_on_interruption() -> Iterator[None]:
    """Let an interruption say the command that continues: the same, with --resume for --output."""
    try:
        yield
    except (Interrupted, Signalled) as stop:
        arguments = ["--resume" + a[8:] if a.startswith("--output") else a for a in sys.argv[1:]]
        raise Interrupted(stop.signum, shlex.join(["deitctl", *arguments]), KEPT) from stop


def _list_explain(
    image: str | None, classifier: Classifier, model: str, weights: str, classes: str
) -> list[str] | None:
    """Return the command that explains a prediction, None for a model that cannot be explained."""
    from deitctl.inference.onnx_classifier import SUFFIX
    from deitctl.models.catalog import find

    name = classifier.model_config.architecture
    if image is None or model.lower().endswith(SUFFIX) or find(name) is None:
        return None
    return ["explain", image, *o.spell_model(model, weights, classes)]


def _can_show_images(show_image: bool | None, images: list[str], reporter: Reporter) -> bool:
    """Return whether the table has images: as requested, else for a single one, and where the terminal has colors."""
    from deitctl.cli.prediction_table import can_show, make_stdout_console
    from deitctl.inference.inputs import STDIN, is_folder

    is_single = len(images) == 1 and images[0] != STDIN and not is_folder(images[0])
    if not (is_single if show_image is None else show_image):
        return False
    has_colors = can_show(make_stdout_console())
    if show_image and not has_colors:
        reporter.warn("Images need a terminal with 256 colors or more, which this is not.")
    return has_colors


def _print_json(predictions: Iterable[Prediction]) -> int:
    num_failed, separator = 0, "[\n"
    for prediction in predictions:
        num_failed += prediction.error is not None
        sys.stdout.write(separator + json_text(to_object(prediction)))
        sys.stdout.flush()
        separator = ",\n"
    sys.stdout.write("[]\n" if separator == "[\n" else "\n]\n")
    return num_failed


def _print_csv(
    predictions: Iterable[Prediction], *, is_multilabel: bool = False, only_labels: bool = False
) -> int:
    from deitctl.cli.prediction_table import list_printed
    from deitctl.inference.classifier import ScoredLabel

    num_failed = 0
    # exact in a file; a terminal would obey control characters
    clean = escape_control if sys.stdout.isatty() else str
    threshold = ",threshold" if is_multilabel else ""
    sys.stdout.write(f"input,rank,index,label,score{threshold},error\n")
    for prediction in predictions:
        num_failed += prediction.error is not None
        name = quote_cell(clean(prediction.input))
        classes = list_printed(prediction, only_labels)
        for rank, scored in enumerate(classes, start=1):
            threshold = f",{scored.threshold:.6f}" if isinstance(scored, ScoredLabel) else ""
            sys.stdout.write(
                f"{name},{rank},{scored.index},{quote_cell(clean(scored.label))},"
                f"{scored.score:.6f}{threshold},\n"
            )
        if not classes:  # an error, or an image with none of the classes
            cells = ",,,,," if is_multilabel else ",,,,"
            sys.stdout.write(f"{name}{cells},{quote_cell(clean(prediction.error or ''))}\n")
        sys.stdout.flush()
    return num_failed


def quote_cell(text: str) -> str:
    """Return a text for a table that a spreadsheet may open: an apostrophe keeps it from being taken for a formula.

    Numbers of our own are written as they are; a class or file called `-5` becomes `'-5`. Every end of a line is
    quoted: Python's own writer leaves carriage returns bare, and a reader then finds another row.
    """
    text = f"'{text}" if text.startswith(FORMULA) else text
    quoted = text.replace('"', '""')
    return f'"{quoted}"' if any(c in text for c in ',"\r\n') else text


def _print_table(predictions: Iterable[Prediction], *, only_labels: bool = False) -> int:
    from deitctl.cli.prediction_table import make_stdout_console, print_prediction

    num_failed, console = 0, make_stdout_console()
    for prediction in predictions:
        num_failed += prediction.error is not None
        with console.capture() as capture:
            print_prediction(prediction, console, only_labels=only_labels)
        sys.stdout.write(capture.get())  # not by the console, which would write over a bar
        sys.stdout.flush()
    return num_failed
