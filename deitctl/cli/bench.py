"""deitctl bench"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from deitctl import api
from deitctl.cli import completion
from deitctl.cli import options as o
from deitctl.cli.console import choose_format, print_json, print_line, print_next, print_table
from deitctl.cli.progress import make_reporter
from deitctl.config import MODEL_HELP
from deitctl.records import to_object
from deitctl.settings import parse_overrides

if TYPE_CHECKING:
    from deitctl.profiling.bench_result import BenchResult, Expected, Stage

STEP_PARTS = {
    "teacher": "teacher",
    "forward": "forward pass",
    "backward": "backward pass",
    "optimizer": "optimizer",
    "ema_update": "EMA update",
    "overhead": "rest of the step",
    "data_wait": "waiting for data",
    "loader_contention": "contention with the loader",
}


@o.take_options(api.bench)
def bench(
    arguments: dict[str, Any],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="As for train. Default: synthetic images of ImageNet's size.",
            show_default=False,
        ),
    ] = "",
    teacher: Annotated[
        str | None,
        o.option(
            "--teacher",
            help=f"Distill from it. {MODEL_HELP}",
            default="none",
            complete=completion.complete_teacher,
        ),
    ] = None,
    seconds: Annotated[
        float,
        o.option("--seconds", help="Duration of a stage, about; all take 15 to 30 times that."),
    ] = 2.0,
    changes: o.SetOpt = None,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Measure how fast a training is on this machine, where its time goes, and what to change.

    Example: deitctl bench photos/ --model deit_small
    """
    shape = choose_format(output_format, o.FORMATS)
    result = api.bench(
        data,
        **(arguments | parse_overrides(changes or ())),
        teacher=teacher,
        seconds=seconds,
        reporter=make_reporter(quiet),
    )
    print_json(to_object(result)) if shape == "json" else _print(result)
    words = {k: v for k, v in arguments.items() if k != "model"} | {"data": data or "DATA"}
    named = {"student" if teacher else "model": arguments.get("model"), "teacher": teacher}
    words |= {k: v for k, v in named.items() if v}
    sets = [word for change in changes or () for word in ("--set", change)]
    command = "distill" if teacher else "train"
    print_next([command, *o.spell_options(words), *sets], shape=shape, quiet=quiet)


def _print(result: BenchResult) -> None:
    setup, peak = result.setup, result.peak
    model = setup.model if setup.teacher is None else f"{setup.model} from {setup.teacher}"
    batch = f"batches of {setup.measured_batch_size}"
    if setup.measured_batch_size < setup.batch_size:
        batch += f" (those of {setup.batch_size} take too long; --seconds)"
    print_table(
        f"{model} on {setup.data or 'synthetic images'}: {setup.recipe}, {setup.img_size_px} pixels, {batch}, "
        f"{setup.precision}, {setup.device}, {peak.num_threads} of {peak.num_cores} cores",
        ("stage", "images/s", "IQR", "MiB", "of the peak"),
        [_row(stage) for stage in result.stages],
    )
    products = ", ".join(
        f"{name} {format_number(rate / 1e9, 3)} GFLOP/s"
        for name, rate in peak.flops_per_second.items()
    )
    copy = f"{peak.copy_bytes_per_second / 1e9:.3g} GB/s"
    print_line(f"peak: matrix product {products}; memory copy {copy}")
    if result.step_time_s:
        total = sum(result.step_time_s.values())
        rows = [
            (STEP_PARTS[name], f"{1e3 * seconds:.3g}", format_share(seconds / total))
            for name, seconds in result.step_time_s.items()
        ]
        print_table("where the time goes", ("part", "ms an image", "share"), rows)
    if result.expected:
        speed = f"{result.expected.images_per_second:.3g} images/s"
        print_line(f"expected: {speed}; {_format_times(result, result.expected)}")
    for hint in result.hints:
        print_line(f"- {hint.message} Change: {hint.change}.")
    if not result.hints:
        print_line("No bottleneck found.")


def _row(stage: Stage) -> tuple[str, ...]:
    title = stage.name.replace("_", " ")
    if stage.images_per_second is None:
        return title, stage.error or "", "", "", ""
    iqr = stage.images_per_second_iqr
    return (
        title,
        format_number(stage.images_per_second, 3),
        "" if iqr is None else format_number(iqr, 2),
        "" if stage.memory_mib is None else f"{stage.memory_mib:,.0f}",
        "" if stage.peak_share is None else f"{format_share(stage.peak_share)} of {stage.peak}",
    )


def _format_times(result: BenchResult, expected: Expected) -> str:
    setup = result.setup
    epoch = f"an epoch of {setup.num_train_images:,} images and its validation {format_duration(expected.epoch_s)}"
    if expected.later_epoch_s is not None and expected.teacher_epochs is not None:
        later = format_duration(expected.later_epoch_s)
        epoch += f", {later} from epoch {expected.teacher_epochs + 1} on"
    return f"{epoch}, {setup.epochs} epochs {format_duration(expected.run_s)}"


def format_number(value: float, digits: int) -> str:
    """Return a number with so many significant digits, without an exponent."""
    return f"{float(f'{value:.{digits}g}'):,.12g}"


def format_share(share: float) -> str:
    """Return a share in percent, in two digits where it is small."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def format_duration(seconds: float) -> str:
    """Return a time in two digits and the unit that suits it."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            number = f"{seconds / size:,.2g}" if seconds < 100 * size else f"{seconds / size:,.0f}"
            return f"{number} {unit}"
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds:.0f} s"
