"""deitctl train"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deitctl import api
from deitctl.cli import options as o
from deitctl.cli.console import (
    choose_format,
    exit_code_for_unreadable,
    pause_gc,
    print_json,
    print_line,
    print_next,
    print_table,
    print_values,
)
from deitctl.cli.fold_tables import finish_folds, print_fold_sizes
from deitctl.cli.progress import make_reporter
from deitctl.config import RESUMING
from deitctl.errors import UsageError
from deitctl.records import to_object

if TYPE_CHECKING:
    from deitctl.training.folds import FoldsResult
    from deitctl.training.plan import TrainPlan
    from deitctl.training.replay import Replay
    from deitctl.training.result import TrainResult

MAX_ROWS = 12
MAX_NAMES = 5
"""Of classes, in a plan."""
HEAD_TITLES = {
    "cls": "class head",
    "dist": "distillation head",
    "avg-logits": "both heads (mean of logits)",
    "avg-probs": "both heads (mean of probabilities)",
}


@o.take_options(api.train)
def train(
    arguments: dict[str, Any],
    changes: o.SetOpt = None,
    replay: Annotated[
        Path | None,
        o.option(
            "--replay",
            help="Repeat the step of RUN/incidents/STEP and report its losses and gradients.",
            default="",
            panel=RESUMING,
            metavar="RECORD",
        ),
    ] = None,
    dry_run: o.DryRunOpt = False,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Train a classifier on your images.

    Example: deitctl train photos/ --model deit_tiny --epochs 10
    """
    if replay is None:
        run_training(
            api.train, arguments, changes, dry_run=dry_run, output_format=output_format, quiet=quiet
        )
        return
    shape = choose_format(output_format, o.FORMATS)
    machine = {k: arguments.pop(k) for k in ("device", "precision", "workers") if k in arguments}
    others = [*arguments, *(["set"] if changes else []), *(["dry-run"] if dry_run else [])]
    if others:
        raise UsageError(
            f"--replay repeats a step as its run took it: leave --{others[0].replace('_', '-')} out.",
            "--device, --precision and --workers may differ.",
        )
    result = api.replay(replay, **machine, reporter=make_reporter(quiet))
    print_json(to_object(result)) if shape == "json" else _print_replay(result)


def run_training(
    function: Callable[..., TrainResult | FoldsResult],
    arguments: Mapping[str, Any],
    changes: list[str] | None,
    *,
    dry_run: bool,
    output_format: str | None,
    quiet: bool,
) -> None:
    """Train by `api.train` or `api.distill`, or print the plan; exit with 3 if images had to be left out."""
    from deitctl.settings import parse_overrides

    with pause_gc():
        from deitctl.distributed import is_main_process
        from deitctl.launchers import suggest_torchrun

        shape, reporter = choose_format(output_format, o.FORMATS), make_reporter(quiet)
        arguments = {**arguments, **parse_overrides(changes or ()), "reporter": reporter}
        if dry_run:
            plan = api.plan(distilled=function is api.distill, **arguments)
            print_json(to_object(plan)) if shape == "json" else _print_plan(plan)
            command = [word for word in sys.argv[1:] if word != "--dry-run"]
            print_next(command, shape=shape, quiet=quiet)
            return
        from torch.cuda import device_count

        from deitctl.training.result import TrainResult

        device = str(arguments.get("device", "auto"))
        if idle := suggest_torchrun(sys.argv[1:], device, device_count()):
            reporter.note(idle)
        result = function(**arguments)
    if not isinstance(result, TrainResult):
        finish_folds(result, shape=shape, quiet=quiet)
        raise typer.Exit(exit_code_for_unreadable(len(result.unreadable)))
    if is_main_process():
        try:
            print_json(to_object(result)) if shape == "json" else _print_result(result)
        except BrokenPipeError:  # nobody reads it; the training is complete
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        reporter.note(describe_trend(result))
        print_next(["predict", "IMAGE", "--model", str(result.run)], shape=shape, quiet=quiet)
    raise typer.Exit(exit_code_for_unreadable(len(result.unreadable)))


def describe_trend(result: TrainResult) -> str:
    """Return whether a run was still improving at its end, and what to do, in a line."""
    import shlex

    from deitctl.training.selection import METRIC_TITLES

    trend, best = result.trend, result.best
    command = f"`deitctl train --resume {shlex.quote(str(result.run))} --more-epochs {{}}`"
    if trend.verdict == "unknown":
        return f"One epoch shows no trend: {command.format(1)} trains on."
    last = "the last epoch" if trend.num_epochs == 1 else f"the last {trend.num_epochs} epochs"
    assert trend.gain is not None
    gain = f"{METRIC_TITLES[trend.metric]} {trend.gain:+.1f} points (standard error {trend.standard_error:.1f})"
    loss = f"validation loss {trend.val_loss_change:+.0f} %"
    numbers = f"{gain}, {loss} in {last}"
    if trend.verdict == "improving":
        if trend.gain <= trend.standard_error:  # by the loss alone
            numbers = f"{loss} in {last}; {gain}, which says nothing yet"
        return f"Still improving: {numbers}. {command.format(result.epochs)} trains on."
    if trend.verdict == "worse":
        return (
            f"It was better before: {numbers}. The weights of epoch {best.epoch} are saved; more "
            "images or stronger augmentation would help, more epochs would not."
        )
    return (
        f"No clear gain any more: {numbers}. More images or a larger model would help more than "
        "more epochs."
    )


def _print_plan(plan: TrainPlan) -> None:
    from deitctl.records import to_json
    from deitctl.settings import flatten, to_dict

    values = to_json(plan)
    del values["config"], values["folds"]
    values["disks"] = ", ".join(
        f"{disk.folder}: {disk.needed_mib:,.0f} MiB of {disk.free_mib:,.0f} MiB free"
        for disk in plan.disks
    )
    teachers = [values["teacher"], *(values.pop("more_teachers", None) or ())]
    for number, teacher in enumerate(teachers, 1):
        if teacher is not None:
            if not teacher["effective_weight"] and teacher["mode"] == "features":
                del teacher["effective_weight"]
            values["teacher" if number == 1 else f"teacher {number}"] = teacher
    names = plan.class_names
    values["class_names"] = ", ".join(names[:MAX_NAMES]) + (
        f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    )
    print_values(f"plan: {plan.model} on {plan.data}", flatten(values))
    if plan.folds is not None:
        print_fold_sizes(plan.folds)
    print_table(
        "recipe",
        ("setting", "value"),
        [(name, str(value)) for name, value in flatten(to_dict(plan.config)).items()],
        2,
    )


def _print_result(result: TrainResult) -> None:
    from deitctl.training.selection import METRIC_TITLES

    print_scores = _print_labels_scores if result.thresholds is not None else _print_top1
    print_scores(result)
    run, best = result.run, result.best
    selected = "" if best.select in ("top1", "map") else f", by {METRIC_TITLES[best.select]}"
    print_values(
        "run",
        {
            "model": run,
            "curves": run / "figures" / "curves.png",
            "log": run / "metrics.jsonl",
            "best epoch": f"{best.epoch} of {result.epochs}, {best.weights} weights{selected}",
            "time": f"{result.seconds:.0f} s",
        },
    )


def _print_top1(result: TrainResult) -> None:
    """Print the top-1 of the teacher and of each head, with balanced accuracy and macro F1 where classes
    are uneven."""
    rows, evaluation, best = [], result.evaluation, result.best
    if result.teacher is not None:
        rows.append((f"teacher {result.teacher.name}", f"{result.teacher.top1:.2f}", ""))
    model = "model" if result.teacher is None else "student"
    intervals = getattr(evaluation, "head_intervals", None) or {}
    for head, top1 in (result.heads or {}).items():
        title = f"{model}, {HEAD_TITLES.get(head, head)}"
        rows.append((title, f"{top1:.2f}", intervals[head].format(".1f")))
    if not result.heads and best.top1_interval is not None:
        rows.append((model, f"{best.top1:.2f}", best.top1_interval.format(".1f")))
    title = f"top-1 on {evaluation.num_images} validation images, %"
    print_table(title, ("", "top-1", "95 % interval"), rows)
    if result.has_uneven_classes:
        print_values(
            "classes are uneven: each counts alike in",
            {
                "balanced accuracy": f"{best.balanced_accuracy:.2f} %",
                "macro F1": f"{best.macro_f1:.2f} %",
            },
        )


def _print_labels_scores(result: TrainResult) -> None:
    """Print the mAP of the teacher and of each head, and the F1 of the saved weights."""
    rows, best = [], result.best
    if result.teacher is not None and result.teacher.map is not None:
        rows.append((f"teacher {result.teacher.name}", f"{result.teacher.map:.2f}"))
    model = "model" if result.teacher is None else "student"
    by_head = result.heads or ({} if best.map is None else {"": best.map})
    for head, value in by_head.items():
        title = f"{model}, {HEAD_TITLES.get(head, head)}" if head else model
        rows.append((title, f"{value:.2f}"))
    print_table(f"mAP on {result.num_val_images} validation images, %", ("", "mAP"), rows)
    print_values(
        "F1 at thresholds fitted to other images (cross-fitted)",
        {
            "macro": f"{best.macro_f1:.2f} %",
            "micro": f"{best.micro_f1:.2f} %",
            "mean over images": f"{best.sample_f1:.2f} %",
        },
    )


def _print_replay(result: Replay) -> None:
    print_table(
        f"{result.kind} at step {result.step}, in {result.precision}",
        ("step", "loss", "gradient norm", "rate"),
        [
            (str(step["step"]), *(f"{step[key]:.4g}" for key in ("loss", "grad_norm", "lr")))
            for step in result.steps[-MAX_ROWS:]
        ],
    )
    print_table(
        "largest gradients of the step",
        ("parameter", "norm"),
        [(name, f"{norm:.4g}") for name, norm in list(result.grad_norms.items())[:MAX_ROWS]],
    )
    print_table(
        "its images, largest loss first",
        ("image", "loss"),
        [(image.image, f"{image.loss:.4g}") for image in result.images[:MAX_ROWS]],
    )
    print_line("The step diverged again." if result.reproduced else "The step did not diverge.")
