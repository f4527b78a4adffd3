"""deitctl sweep"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deitctl import api
from deitctl.cli import completion
from deitctl.cli import options as o
from deitctl.cli.console import (
    choose_format,
    count_units,
    print_json,
    print_line,
    print_next,
    print_table,
    rerun_on_interruption,
)
from deitctl.cli.progress import make_reporter
from deitctl.config import MODEL_HELP, TEACHER_DEFAULT
from deitctl.records import to_object
from deitctl.settings import parse_overrides

if TYPE_CHECKING:
    from deitctl.sweeps.result import SweepResult, TrialResult
    from deitctl.sweeps.spread import Spread

HEADS = {"cls": "class head", "dist": "distill head", "avg-logits": "both"}
SOME_FAILED = 3
"""Exit code where some runs failed, and others are finished."""
PERCENT = ("top1", "balanced", "f1", "map")
"""Metrics in percent."""
NAMES = {"top1": "top-1", "map": "mAP", "loss": "minus loss"}


def _check_vary(values: list[str] | None) -> list[str] | None:
    """Check the texts of --vary, before anything is opened."""
    from deitctl.sweeps.variation import parse_variations

    for text in values or ():
        with o.blame_command_line():
            parse_variations([text])
    return values


@o.take_options(
    api.distill, leave_out=("student", "resume", "more_epochs", "config"), own_first=True
)
def sweep(
    arguments: dict[str, Any],
    vary: Annotated[
        list[str] | None,
        o.option(
            "--vary",
            help="A setting and its values, optim.lr=1e-4,3e-4, or range, optim.lr=1e-5..1e-3:log; may be repeated.",
            default="",
            complete=completion.complete_vary,
            callback=_check_vary,
            metavar="KEY=VALUES",
        ),
    ] = None,
    seeds: Annotated[
        int,
        o.option("--seeds", help="Runs of each combination, or of each fold, by seed.", min=1),
    ] = 1,
    preset: Annotated[
        str,
        o.option(
            "--preset",
            help="deit-table3: kinds of distillation; deit-table2: teachers; deit-in-small: both, on few digits; "
            "beyond-in-small: features, two teachers, unlabeled images, likewise.",
            default="",
            choices=completion.PRESETS,
        ),
    ] = "",
    random: Annotated[
        int,
        o.option(
            "--random",
            help="Draw this many combinations.",
            default="0, all combinations",
            min=0,
            metavar="N",
        ),
    ] = 0,
    optuna: Annotated[
        int,
        o.option(
            "--optuna",
            help="Combinations that Optuna suggests by the results so far.",
            default="0, none",
            min=0,
            metavar="N",
        ),
    ] = 0,
    jobs: Annotated[int, o.option("--jobs", help="Runs at once.", min=1)] = 1,
    slurm: Annotated[
        str,
        o.option(
            "--slurm",
            help="Write an sbatch file, with an array task a run to train, and train nothing.",
            default="",
            metavar="FILE",
        ),
    ] = "",
    collect: Annotated[
        bool,
        o.option("--collect", help="Print the table of what is trained, and train nothing."),
    ] = False,
    model: Annotated[
        str | None,
        o.option(
            "--model",
            "--student",
            help=MODEL_HELP,
            default="deit_small, or deit_tiny on digits without --teacher",
            complete=completion.complete_model,
        ),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        o.option(
            "--teacher",
            help=f"{MODEL_HELP} Several are compared.",
            default=TEACHER_DEFAULT,
            complete=completion.complete_teacher,
        ),
    ] = None,
    output: Annotated[
        str | None, o.option("--output", help="Folder of the runs.", default="runs/sweep-DATA")
    ] = None,
    changes: o.SetOpt = None,
    dry_run: o.DryRunOpt = False,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Train with every combination of settings, several seeds or folds, and print the table of them.

    Example: deitctl sweep photos/ --model deit_tiny --vary optim.lr=1e-4,3e-4 --seeds 3
    """
    shape = choose_format(output_format, o.FORMATS)
    words = [word for word in sys.argv[1:] if word not in ("--collect", "--dry-run")]
    with rerun_on_interruption("Finished runs are kept, and others go on from their checkpoints."):
        result = api.sweep(
            **(arguments | parse_overrides(changes or ())),
            vary=vary or (),
            seeds=seeds,
            preset=preset,
            random=random,
            optuna=optuna,
            jobs=jobs,
            slurm=slurm,
            collect=collect,
            model=model,
            teacher=teacher,
            output=output,
            dry_run=dry_run,
            command=shlex.join(["deitctl", *_leave_out_slurm(words)]),
            reporter=make_reporter(quiet),
        )
    if shape == "json":
        print_json(to_object(result))
    elif dry_run or slurm:
        _print_runs(result)
        _explain_runs(result, str(arguments.get("finetune_teacher", "")))
        if result.start_command is not None:
            waiting = result.num_runs - result.num_finished
            print_line(f"Start {count_units(waiting, 'run')}: {result.start_command}")
    else:
        _print_trials(result)
    if dry_run:
        print_next(words, shape=shape, quiet=quiet)
    elif result.best is not None and not slurm:
        best = next(t for t in result.trials if t.name == result.best)
        run = str(result.output / best.runs[0])
        print_next(["export", run, "--to", "onnx"], shape=shape, quiet=quiet)
    if result.num_failed and not dry_run:
        raise typer.Exit(SOME_FAILED if result.num_finished else 1)


def _leave_out_slurm(words: Sequence[str]) -> list[str]:
    """Return a command line without `--slurm FILE`."""
    rest: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word == "--slurm":
            next(remaining, None)
        elif not word.startswith("--slurm="):
            rest.append(word)
    return rest


def _print_runs(result: SweepResult) -> None:
    runs, trials = count_units(result.num_runs, "run"), count_units(len(result.trials), "trial")
    print_table(
        f"{runs} of {trials} in {result.output}",
        ("run", "seed", *(["fold"] if result.num_folds else []), "status"),
        [
            (run.run.name, str(run.seed), *([str(run.fold)] if run.fold else []), run.status)
            for run in result.runs
        ],
    )


def _explain_runs(result: SweepResult, finetune_teacher: str) -> None:
    """Say how long runs are, what is trained besides, and what a preset's comparison needs."""
    from deitctl.sweeps.presets import PRESETS

    epochs = count_units(result.epochs, "epoch")
    shortest = f" (the shortest {result.min_epochs:,})" * (result.min_epochs < result.epochs)
    waiting = count_units(result.num_runs - result.num_finished, "run")
    print_line(f"To train: {waiting} of {epochs}{shortest}.")
    preset = PRESETS.get(result.preset or "")
    settings = preset.settings if preset else {}
    chosen = finetune_teacher or settings.get("distill.finetune_teacher")
    if chosen in ("scratch", "full") and any(
        t.teacher or t.values.get("distill.teacher") for t in result.trials
    ):
        print_line("Before the first of its runs, each teacher is trained on the data, once.")
    if preset is not None and not result.num_folds and result.num_seeds < 3:
        print_line(
            "Differences between trials get an interval with three seeds or more: --seeds 3."
        )


def _print_trials(result: SweepResult) -> None:
    repeats = count_units(result.num_seeds, "seed")
    if result.num_folds:
        repeats = count_units(result.num_folds, "fold") + f", {repeats}" * (result.num_seeds > 1)
    images = "images, each held out once" if result.num_folds else "validation images"
    unit = ", %" if result.metric in PERCENT else ""
    from_epochs = f"{result.min_epochs:,} to " if result.min_epochs < result.epochs else ""
    print_table(
        f"{result.model} on {result.data}: {NAMES.get(result.metric, result.metric)}{unit} ({repeats}, "
        f"{from_epochs}{count_units(result.epochs, 'epoch')}, {result.num_images} {images})",
        (
            *map(_shorten, result.varied),
            "mean ± std",
            "n",
            "last epoch",
            "difference ± se",
            "95 % interval",
        ),
        [_make_row(trial, result) for trial in result.trials],
        max(1, len(result.varied)),
    )
    if any(len(trial.heads) > 1 for trial in result.trials):
        _print_heads(result)
    for name, top1 in {t.teacher: t.teacher_top1 for t in result.trials if t.teacher}.items():
        print_line(f"teacher {name}" + (f": top-1 {top1} %" if top1 is not None else ""))
    if len(result.trials) > 1:
        _explain_differences(result)
    for run in result.runs:
        if run.status == "failed":  # a warning has the reason
            log = result.output / "logs" / f"{run.run.name}.log"
            print_line(f"{run.run.name} failed: its messages are in {log}")
        elif run.status != "finished":
            print_line(f"{run.run.name} is {run.status}")
    if result.best is not None:
        tied = f", tied with {', '.join(result.tied)}" if result.tied else ""
        print_line(f"best: {result.best}{tied}")
    print_line(f"runs, sweep.toml and sweep.json: {result.output}")


def _explain_differences(result: SweepResult) -> None:
    paired = [trial.difference for trial in result.trials if trial.difference is not None]
    if not paired:
        return
    pairing = "fold by fold" if result.num_folds else "seed by seed"
    print_line(f"Differences are from the first trial, {result.trials[0].name}, {pairing}.")
    if any(difference.n < 3 for difference in paired):
        repeats = "folds" if result.num_folds else "seeds"
        print_line(f"An interval needs three {repeats} or more: --{repeats} 3.")
    elif any(difference.interval is None for difference in paired):
        print_line("Differences that are all alike have no interval: their spread is not known.")


def _make_row(trial: TrialResult, result: SweepResult) -> list[str]:
    from deitctl.sweeps.variation import format_value

    values = [format_value(trial.values[n]) if n in trial.values else "" for n in result.varied]
    difference, paired, interval = trial.difference, "", ""
    if difference is not None:
        error = difference.standard_error
        paired = f"{difference.mean:+.2f}" + ("" if error is None else f" ± {error:.2f}")
        interval = difference.interval.format("+.2f") if difference.interval else ""
    n = "0" if trial.score is None else str(trial.score.n)
    last = "" if trial.last_epoch is None else f"{trial.last_epoch.mean:.2f}"
    return [
        *values,
        _cell(trial.score) or _describe_status(trial, result),
        n,
        last,
        paired,
        interval,
    ]


def _describe_status(trial: TrialResult, result: SweepResult) -> str:
    """Return what has become of the runs of a trial that has no score."""
    statuses = dict.fromkeys(run.status for run in result.runs if run.trial == trial.name)
    return ", ".join("no score" if status == "finished" else status for status in statuses)


def _print_heads(result: SweepResult) -> None:
    """Print the columns of the paper's Tables 3 and 4."""
    print_table(
        "accuracy of each head rule, %",
        ("trial", *HEADS.values(), "seconds"),
        [
            (t.name, *(_cell(t.heads.get(head)) for head in HEADS), f"{t.seconds.mean:.0f}")
            for t in result.trials
            if t.seconds is not None
        ],
    )
    print_table(
        "agreement with the teacher, and of the two heads, %",
        ("trial", *HEADS.values(), "the heads"),
        [
            (
                t.name,
                *(_cell(t.teacher_agreement.get(head)) for head in HEADS),
                _cell(t.head_agreement),
            )
            for t in result.trials
            if t.teacher_agreement
        ],
    )


def _cell(value: Spread | None) -> str:
    return "" if value is None else str(value)


def _shorten(name: str) -> str:
    return name.rpartition(".")[2]
