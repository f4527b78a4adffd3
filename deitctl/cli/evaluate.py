"""deitctl eval"""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

import deitctl
from deitctl.cli import completion
from deitctl.cli import options as o
from deitctl.cli.console import (
    choose_format,
    exit_code_for_unreadable,
    pause_gc,
    print_json,
    print_next,
)
from deitctl.cli.eval_tables import choose_best, print_results
from deitctl.cli.progress import make_reporter
from deitctl.config import MODEL_HELP
from deitctl.records import to_object


def evaluate(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA|RUN",
            help=f"{o.DATA_HELP} A run folder stands for its held-out images. "
            "Default: those of the model's run, else the built-in 'digits'.",
            show_default=False,
            autocompletion=completion.complete_data,
        ),
    ] = "",
    model: Annotated[
        list[str] | None,
        o.option(
            "--model",
            help=f"{MODEL_HELP} Or an exported ONNX file. May be repeated, to compare models.",
            default="RUN, else deit_small_distilled",
            complete=completion.complete_model,
        ),
    ] = None,
    split: Annotated[
        str,
        o.option(
            "--split",
            help="train, val, test, all, or fold: what a run of --folds held out of data with its own val.",
            default="images that the model was not trained on",
            choices=("train", "val", "test", "all", "fold"),
        ),
    ] = "",
    weights: o.WeightsOpt = "",
    classes: o.ClassesOpt = "",
    head: o.HeadOpt = "auto",
    task: Annotated[
        str,
        o.option(
            "--task",
            help="classification (one label an image), multilabel (several), or auto: as the data and the models say.",
            choices=completion.TASKS,
        ),
    ] = "auto",
    protocol: Annotated[
        list[str] | None,
        o.option(
            "--protocol",
            help="Whose preprocessing: native (the model's own), deit, timm or hf. May be repeated, or a,b.",
            default="native",
            complete=completion.complete_values("native", "deit", "timm", "hf"),
        ),
    ] = None,
    real_labels: Annotated[
        str, o.option("--real-labels", help="real.json: ReaL labels of ImageNet's val.", default="")
    ] = "",
    save_temperature: Annotated[
        bool, o.option("--save-temperature", help="Store the fitted temperature with the model.")
    ] = False,
    save_thresholds: Annotated[
        bool,
        o.option(
            "--save-thresholds",
            help="Store the fitted thresholds of several labels an image with the model.",
        ),
    ] = False,
    batch_size: Annotated[
        int | None,
        o.option(
            "--batch-size",
            help="Images at a time.",
            default="64, on GPUs by their memory",
            min=1,
        ),
    ] = None,
    img_size: o.ImgSizeOpt = 0,
    image_folder: o.ImageFolderOpt = "",
    value_range: o.ValueRangeOpt = "auto",
    predictions: Annotated[
        str,
        o.option(
            "--predictions",
            help="Write the result of each image to this JSON Lines file.",
            default="",
            panel=o.OUTPUT,
        ),
    ] = "",
    report: Annotated[
        str,
        o.option(
            "--report",
            help="Write a report to this .html file, which opens offline.",
            default="",
            panel=o.OUTPUT,
        ),
    ] = "",
    figures: Annotated[
        str,
        o.option(
            "--figures",
            help="Write the report's figures as PNG to this folder.",
            default="",
            panel=o.OUTPUT,
        ),
    ] = "",
    on_bad_image: o.OnBadImageOpt = "skip",
    cache_dir: o.CacheDirOpt = "",
    cache_size: o.CacheSizeOpt = "",
    workers: o.WorkersOpt = -1,
    device: o.DeviceOpt = "auto",
    precision: o.PrecisionOpt = "auto",
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Evaluate models on labeled images; labels are matched by class name or WordNet id.

    Example: deitctl eval runs/deit_tiny-photos
    """
    shape, reporter = choose_format(output_format, o.FORMATS), make_reporter(quiet)
    with pause_gc():
        from deitctl.distributed import is_main_process

        evaluate_models = deitctl.evaluate_models
    results = evaluate_models(
        data,
        models=model or [""],
        split=split,
        protocols=[
            p.strip() for part in protocol or ["native"] for p in part.split(",") if p.strip()
        ],
        weights=weights,
        classes=classes,
        head=head,
        batch_size=batch_size,
        img_size=img_size,
        image_folder=image_folder,
        value_range=value_range,
        on_bad_image=on_bad_image,
        cache_dir=cache_dir,
        cache_size=cache_size,
        workers=workers,
        device=device,
        precision=precision,
        predictions=predictions,
        report=report,
        figures=figures,
        real_labels=real_labels,
        task=task,
        save_temperature=save_temperature,
        save_thresholds=save_thresholds,
        command=shlex.join(["deitctl", *sys.argv[1:]]),
        reporter=reporter,
    )
    first = results.evaluations[0]
    exit_code = exit_code_for_unreadable(len(first.unreadable))
    if not is_main_process():
        raise typer.Exit(exit_code)
    if shape == "json":
        # Two kinds of object, as there are two functions. One kind would cost one of the two its
        # shape: `.top1` of the one model at the top level, or equal places for several models.
        print_json(to_object(first if len(results.evaluations) == 1 else results))
    else:
        print_results(results)
    for name, reason in first.read_errors:
        reporter.warn(f"left out {name}: {reason}")
    best = choose_best(results)
    if not best.lower().endswith(".onnx"):
        options = o.spell_model("", weights, classes)
        print_next(["export", best, *options, "--to", "onnx"], shape=shape, quiet=quiet)
    if save_temperature and first.calibration is None:
        exit_code = 1  # the evaluation is done, but no temperature could be stored
    raise typer.Exit(exit_code)
