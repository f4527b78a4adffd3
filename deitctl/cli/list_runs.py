"""deitctl runs"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import deitctl
from deitctl.cli import completion
from deitctl.cli import options as o
from deitctl.cli.console import choose_format, print_json, print_line, print_table
from deitctl.cli.progress import make_reporter
from deitctl.records import to_object

if TYPE_CHECKING:
    from deitctl.sweeps.run_info import RunInfo
    from deitctl.sweeps.run_list import RunComparison, RunGroup, RunList

NAMES = {"top1": "top-1", "map": "mAP", "loss": "minus loss"}
SHARED = ("data", "model", "teacher")
"""Columns that are left out where all runs have the same."""
WIDE = 100
"""Columns of a terminal from which on times are shown."""


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
        bool, o.option("--group", help="Group runs that differ in the seed alone.")
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
    if listing.groups is not None:
        print_table(
            f"{len(listing.groups)} groups of runs that differ in the seed alone",
            ("first run", "data", "model", "teacher", "score", "n", "seeds"),
            [_make_group_row(group, common) for group in listing.groups],
            4,
        )
    else:
        columns = [_make_row(info, common) for info in listing.runs]
        # what is the same for all is in the title, so that the rest fits
        shared = [
            f"{name} {columns[0][name]}"
            for name in SHARED
            if columns and all(row[name] == columns[0][name] for row in columns)
        ]
        left_out = {text.partition(" ")[0] for text in shared}
        if shutil.get_terminal_size().columns < WIDE:
            left_out |= {"time", "changed, UTC"}
        names = [name for name in (columns[0] if columns else ()) if name not in left_out]
        title = ", ".join(text for text in shared if not text.endswith(" "))
        print_table(
            f"{len(columns)} runs in {common or '.'}" + (f": {title}" if title else ""),
            names,
            [[row[name] for name in names] for row in columns],
            names.index("score") if names else 1,
        )
    for damaged in listing.damaged:
        print_line(f"{damaged.run} is damaged: {damaged.error}")


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
        "epochs": epochs if info.status == "finished" else f"{info.epochs_done}/{epochs}",
        "time": "" if info.seconds is None else _format_seconds(info.seconds),
        "changed, UTC": info.modified[:16].replace("T", " "),
    }


def _make_group_row(group: RunGroup, common: str) -> list[str]:
    score = group.score
    return [
        _name(group.runs[0], common),
        Path(group.data).name,
        Path(group.model).name,
        _describe_teacher(group.teacher, group.mode),
        "" if score is None else f"{_describe_metric(group.metric)} {score}",
        str(score.n if score is not None else 0),
        ",".join(map(str, group.seeds)),
    ]


def _print_comparison(comparison: RunComparison) -> None:
    common = _find_common_folder([info.run for info in comparison.runs])
    names = [_name(info.run, common) for info in comparison.runs]
    print_table(
        "settings that differ",
        ("setting", *names),
        [
            (row.name.removeprefix("recipe."), *map(_format, row.values))
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
    return "" if teacher is None else f"{Path(teacher).name}, {mode}"


def _describe_metric(metric: str | None) -> str:
    return NAMES.get(metric or "", metric or "")


def _format(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _format_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"
