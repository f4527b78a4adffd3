"""deitctl runs"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import deitctl
from deitctl.cli import completion
from deitctl.cli import options as o
from deitctl.cli.console import choose_format, count_units, print_json, print_line, print_table
from deitctl.cli.progress import make_reporter
from deitctl.records import to_object
from deitctl.settings import spell_name, spell_value

if TYPE_CHECKING:
    from deitctl.sweeps.run_info import RunInfo
    from deitctl.sweeps.run_list import RunComparison, RunGroup, RunList

NAMES = {"top1": "top-1", "map": "mAP", "loss": "minus loss"}
SHARED = ("data", "model", "teacher")
"""Columns that are left out where all runs have the same."""
DISPENSABLE = ("changed, UTC", "time")
"""Columns that are left out, one after another, where the terminal is too narrow for all."""


def runs(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="[FOLDER|RUN RUN...]",
            help="Folders whose runs are listed, or runs to compare. Default: runs.",
            show_default=False,
            autocompletion=completion.complete_run,
        ),
    ] = ["runs"],  # noqa: B006  (Typer copies it)
    compare: Annotated[
        bool,
        o.option(
            "--compare", help="Compare runs; without it, several that are named are compared too."
        ),
    ] = False,
    group: Annotated[
        bool, o.option("--group", help="Group runs that differ in seed or fold alone.")
    ] = False,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """List runs, with what they reached; or compare some, setting by setting.

    Example: deitctl runs --group
    """
    shape = choose_format(output_format, o.FORMATS)
    if compare or (len(runs) > 1 and not group and all(map(o.is_run, runs))):
        comparison = deitctl.compare_runs(runs)
        print_json(to_object(comparison)) if shape == "json" else _print_comparison(comparison)
        return
    listing = deitctl.list_runs(runs, group=group, reporter=make_reporter(quiet))
    print_json(to_object(listing)) if shape == "json" else _print_list(listing)


def _print_list(listing: RunList) -> None:
    common = _find_common_folder([info.run for info in listing.runs])
    if not listing.runs:
        print_line(f"There are no runs in {', '.join(map(str, listing.folders))}.")
    elif listing.groups is not None:
        folds = " or fold" if any(info.fold for info in listing.runs) else ""
        title = f"{count_units(len(listing.groups), 'group')} of runs that differ in the seed{folds} alone"
        _print_rows(title, [_make_group_row(group, common) for group in listing.groups])
    else:
        title = f"{count_units(len(listing.runs), 'run')} in {common or '.'}"
        _print_rows(title, [_make_row(info, common) for info in listing.runs])
    for damaged in listing.damaged:
        print_line(f"{damaged.run} is damaged: {damaged.error}")


def _print_rows(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows by column: what is the same for all in the title, so that the rest fits, and no empty column."""
    shared = [name for name in SHARED if all(row[name] == rows[0][name] for row in rows)]
    names = [n for n in rows[0] if n not in shared and any(row[n] for row in rows)]
    for name in DISPENSABLE:
        width = sum(max(len(row[n]) for row in [{n: n}, *rows]) + 3 for n in names) + 1
        if name in names and width > shutil.get_terminal_size().columns:
            names.remove(name)
    in_title = ", ".join(f"{name} {rows[0][name]}" for name in shared if rows[0][name])
    print_table(
        title + (f": {in_title}" if in_title else ""),
        names,
        [[row[name] for name in names] for row in rows],
        names.index("score") if "score" in names else len(names),
    )


def _make_row(info: RunInfo, common: str) -> dict[str, str]:
    epochs = str(info.epochs)
    return {
        "run": _name(info.run, common),
        "status": info.status,
        "data": Path(info.data).name,
        "model": Path(info.model).name,
        "teacher": _describe_teacher(info.teacher, info.mode),
        "score": "" if info.score is None else f"{_describe_metric(info.metric)} {info.score:.2f}",
        "seed": str(info.seed),
        "fold": str(info.fold or ""),
        "epochs": epochs
        if info.epochs_done == info.epochs and info.result is not None
        else f"{info.epochs_done}/{epochs}" + (f" ({info.stopped})" if info.stopped else ""),
        "time": "" if info.seconds is None else _format_seconds(info.seconds),
        "changed, UTC": info.modified[:16].replace("T", " "),
    }


def _make_group_row(group: RunGroup, common: str) -> dict[str, str]:
    score = group.score
    return {
        "first run": _name(group.runs[0], common),
        "data": Path(group.data).name,
        "model": Path(group.model).name,
        "teacher": _describe_teacher(group.teacher, group.mode),
        "score": "" if score is None else f"{_describe_metric(group.metric)} {score}",
        "n": str(score.n if score is not None else 0),
        "seeds": ",".join(map(str, group.seeds)),
        "folds": ",".join(map(str, group.folds)),
        "copies": str(group.num_copies or ""),
        "unfinished": str(group.num_unfinished or ""),
    }


def _print_comparison(comparison: RunComparison) -> None:
    common = _find_common_folder([info.run for info in comparison.runs])
    names = [_name(info.run, common) for info in comparison.runs]
    print_table(
        "settings that differ",
        ("setting", *names),
        [
            (spell_name(row.name), *(_format_setting(row.name, value) for value in row.values))
            for row in comparison.settings
        ],
    )
    print_table(
        "results",
        ("metric", *names),
        [
            ("status", *(info.status for info in comparison.runs)),
            *((row.name, *map(_format, row.values)) for row in comparison.metrics),
        ],
    )


def _find_common_folder(paths: list[Path]) -> str:
    """Return the folder that all runs are below, which their names need not repeat."""
    if not paths:
        return ""
    try:
        return os.path.commonpath([path.parent for path in paths])
    except ValueError:  # absolute and relative ones
        return ""


def _name(run: Path, common: str) -> str:
    return os.path.relpath(run, common) if common else str(run)


def _describe_teacher(teacher: str | None, mode: str | None) -> str:
    from deitctl.training.several_teachers import JOINED, split_teachers

    if teacher is None:
        return ""
    return f"{JOINED.join(Path(name).name for name in split_teachers(teacher))}, {mode}"


def _describe_metric(metric: str | None) -> str:
    return NAMES.get(metric or "", metric or "")


def _format(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _format_setting(name: str, value: Any) -> str:
    return "" if value is None else spell_value(name, value)


def _format_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"
