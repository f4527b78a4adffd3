"""deitctl bench"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deitctl.cli import options as o

if TYPE_CHECKING:
    from deitctl.profiling.bench_result import BenchResult, Stage

PARTS = {
    "teacher": "teacher",
    "forward": "forward pass",
    "backward": "backward pass",
    "optimizer": "optimizer",
    "average": "average of the weights",
    "loop": "the loop around them",
    "waiting": "waiting for images",
    "slowed": "slowed down by the loader",
}


def bench(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]",
            help="As for train; left out: images like ImageNet's.",
            show_default=False,
        ),
    ] = None,
    model: o.ModelOpt = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", help=f"Distill from it. {o.MODEL_HELP}", show_default="none"),
    ] = None,
    recipe: o.RecipeOpt = None,
    batch_size: o.BatchSizeOrAutoOpt = None,
    img_size: o.ImgSizeOpt = None,
    workers: o.WorkersOpt = None,
    device: o.DeviceOpt = "auto",
    precision: o.PrecisionOpt = "auto",
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds", help="Of each stage, about; the whole takes 15 to 30 times that."
        ),
    ] = 2.0,
    changes: o.SetOpt = None,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Measure how fast a training will be here, where its time goes, and what to do about it.

    Example: deitctl bench photos/ --model deit_small
    """
    from deitctl.cli.console import choose_format, print_json
    from deitctl.cli.progress import make_reporter
    from deitctl.cli.run_training import FORMATS
    from deitctl.profiling.bench import bench as run
    from deitctl.training.configure import Request

    shape = choose_format(output_format, FORMATS, "json")
    choose = batch_size == o.CHOOSE
    given = o.training_settings(
        None, None if choose else batch_size, None, img_size, None, workers, device, precision
    )
    request = Request(
        data=data or "", model=model or "", recipe=recipe or "", given=given, changes=changes or ()
    )
    result = run(
        request,
        teacher=teacher or "",
        choose_batch=choose,
        seconds=seconds,
        reporter=make_reporter(quiet),
    )
    if shape == "json":
        print_json(result.to_dict())
    else:
        _print(result)


def _print(result: BenchResult) -> None:
    from deitctl.cli.console import print_line, print_table

    job, expected = result.job, result.expected
    taught = f" from {job['teacher']}" if job["teacher"] else ""
    size = f"batches of {job['measured_batch_size']}"
    if job["measured_batch_size"] < job["batch_size"]:
        size += f" (the recipe's {job['batch_size']} would take too long; --seconds)"
    print_table(
        f"{job['model']}{taught} on {job['data']}: {job['recipe']}, {job['img_size']} pixels, {size}, "
        f"{job['precision']}, {job['device']}, {job['threads']} of {job['cores']} cores",
        ("stage", "per second", "±", "first s", "MiB", "ceiling"),
        [_row(stage) for stage in result.stages.values()],
    )
    ceilings = result.ceilings
    products = ", ".join(
        f"{name} {value / 1e9:,.3g} GFLOP/s" for name, value in ceilings.flops.items()
    )
    if ceilings.all_cores is not None:
        products += f", {job['precision']} with {ceilings.cores} threads {ceilings.all_cores / 1e9:,.3g} GFLOP/s"
    print_line(f"ceilings: matrix product {products}; memory copy {ceilings.copy / 1e9:.3g} GB/s")
    if result.parts:
        whole = sum(result.parts.values())
        rows = [
            (PARTS[name], f"{1e3 * s:.3g}", percent(s / whole)) for name, s in result.parts.items()
        ]
        print_table("where the time goes", ("part", "ms an image", "share"), rows)
    if expected:
        print_line(f"expected: {expected['images_per_second']:.3g} images/s; {_times(result)}")
    for advice in result.advice:
        print_line(f"- {advice.text}")
    if not result.advice:
        left_out = (
            ""
            if "double_step" in result.stages
            else " (Twice the batch was not: it takes too long; --seconds.)"
        )
        print_line(f"Nothing that was measured asks to be changed.{left_out}")


def _row(stage: Stage) -> tuple[str, ...]:
    from deitctl.profiling.clock import stable

    timing = stage.timing
    if timing is None:
        return stage.title, stage.problem, "", "", "", ""
    spread = "" if timing.spread == float("inf") else stable(timing.spread, float("inf"))
    return (
        stage.title,
        stable(timing.rate, timing.spread),
        spread,
        f"{timing.first:.2g}",
        "" if stage.memory is None else f"{stage.memory / 2**20:,.0f}",
        "" if stage.share is None else f"{percent(stage.share)} of {stage.ceiling}",
    )


def _times(result: BenchResult) -> str:
    expected, epochs = result.expected, result.job["epochs"]
    said = f"an epoch of {result.job['train_images']:,} images and its validation {duration(expected['epoch_seconds'])}"
    if "later_epoch_seconds" in expected:
        said += f", {duration(expected['later_epoch_seconds'])} from epoch {expected['epochs_with_teacher'] + 1:.0f} on"
    return f"{said}, the recipe's {epochs} epochs {duration(expected['recipe_seconds'])}"


def percent(share: float) -> str:
    """Say a share in percent, in two digits where it is small."""
    return f"{100 * share:.2g} %" if abs(share) < 0.1 else f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    """Say a time in two digits and the unit that suits it."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return (
                f"{seconds / size:,.2g} {unit}"
                if seconds < 100 * size
                else f"{seconds / size:,.0f} {unit}"
            )
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds:.0f} s"
