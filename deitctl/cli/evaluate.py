"""deitctl eval"""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

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
    print_table,
)
from deitctl.cli.progress import make_reporter
from deitctl.config import MODEL_HELP
from deitctl.records import to_object

if TYPE_CHECKING:
    from deitctl.evaluation.result import EvalResult, EvalResults


def evaluate(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA|RUN",
            help=f"{o.DATA_HELP} A run folder stands for its held-out images. "
            "Default: those of the model's run, else the built-in 'digits'.",
            show_default=False,
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
    batch_size: Annotated[int, o.option("--batch-size", help="Images at a time.", min=1)] = 64,
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
        workers=workers,
        device=device,
        precision=precision,
        predictions=predictions,
        report=report,
        figures=figures,
        real_labels=real_labels,
        save_temperature=save_temperature,
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
        _print_metrics(results)
        _print_comparisons(results)
        for result in results.evaluations:
            _print_classes(result, several=len(results.evaluations) > 1)
    for name, reason in first.read_errors:
        reporter.warn(f"left out {name}: {reason}")
    best = max(results.evaluations, key=lambda result: result.top1).model
    if not best.lower().endswith(".onnx"):
        options = o.spell_model("", weights, classes)
        print_next(["export", best, *options, "--to", "onnx"], shape=shape, quiet=quiet)
    if save_temperature and first.calibration is None:
        exit_code = 1  # the evaluation is done, but no temperature could be stored
    raise typer.Exit(exit_code)


def _print_metrics(results: EvalResults) -> None:
    first = results.evaluations[0]
    columns = [dict(_list_metrics(result)) for result in results.evaluations]
    names = list(dict.fromkeys(name for column in columns for name in column))
    # Of the model with most training images among them: what holds for it is no more than true.
    most = max(results.evaluations, key=lambda result: result.num_train_images or 0)
    title = most.describe_images()
    if len(columns) == 1:
        print_table(f"{first.name} on {title}", ("", "value"), [(n, columns[0][n]) for n in names])
    else:
        print_table(
            title,
            ("", *(r.name for r in results.evaluations)),
            [(n, *(c.get(n, "") for c in columns)) for n in names],
        )


def _list_metrics(result: EvalResult) -> list[tuple[str, str]]:
    rows = [
        ("top-1, %", f"{result.top1:.2f}"),
        ("  95 % interval", result.top1_interval.format(".2f")),
        *([] if result.top5 is None else [("top-5, %", f"{result.top5:.2f}")]),
        ("loss", f"{result.loss:.4f}"),
        ("expected calibration error", f"{result.ece:.4f}"),
    ]
    if result.temperature != 1:
        rows.append(("  with the model's temperature", f"{result.temperature:.3f}"))
    if fitted := result.calibration:
        rows += [
            ("  fitted temperature", f"{fitted.temperature:.3f}"),
            ("  error with it", f"{fitted.ece:.4f}"),
        ]
    if result.top1_among_classes is not None:
        name = f"top-1 among the data's {result.num_classes} classes, %"
        rows.append((name, f"{result.top1_among_classes:.2f}"))
    if real := result.real_labels:
        rows.append((f"ReaL top-1 of {real.num_images} images, %", f"{real.top1:.2f}"))
        if real.top5 is not None:
            rows.append((f"ReaL top-5 of {real.num_images} images, %", f"{real.top5:.2f}"))
    if result.heads is not None:
        rows += [(f"top-1 of head {name}, %", f"{top1:.2f}") for name, top1 in result.heads.items()]
        rows.append(("head agreement, %", f"{result.head_agreement:.2f}"))
    rows.append(("images/s", f"{result.images_per_second:.1f}"))
    return rows


def _print_comparisons(results: EvalResults) -> None:
    if not results.comparisons:
        return
    first = results.comparisons[0]
    among = " among the data's classes" if first.among_classes else ""
    print_table(
        f"{first.a} minus another model on the same images, points of top-1{among}",
        ("other", "points", "95 % interval", f"only {first.a} correct", "only other correct", "p"),
        [
            (
                c.b,
                f"{c.top1_difference:+.2f}",
                c.interval.format("+.2f"),
                str(c.only_a_correct),
                str(c.only_b_correct),
                f"{c.p_value:.2g}",
            )
            for c in results.comparisons
        ],
    )


def _print_classes(result: EvalResult, *, several: bool) -> None:
    assert result.subject is not None
    lowest = sorted(result.per_class.values(), key=lambda score: score.recall)[:10]
    model = f" ({result.name})" if several else ""
    print_table(
        f"lowest-recall classes{model}",
        ("class", "images", "recall, %", "precision, %"),
        [
            (
                result.subject.class_titles[score.label],
                str(score.num_images),
                f"{score.recall:.1f}",
                f"{score.precision:.1f}",
            )
            for score in lowest
        ],
    )
