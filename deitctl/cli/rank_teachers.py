"""deitctl rank-teachers"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from deitctl import api
from deitctl.cli import completion
from deitctl.cli import options as o
from deitctl.cli.console import choose_format, print_json, print_line, print_next, print_table
from deitctl.cli.progress import make_reporter
from deitctl.records import to_object
from deitctl.settings import parse_overrides
from deitctl.sizes import format_size

if TYPE_CHECKING:
    from deitctl.distillation.rank import RankedTeacher, TeacherRanking

SOME_FAILED = 3
"""Exit code where some teachers failed."""
MIB = 2**20


@o.take_options(api.rank_teachers)
def rank_teachers(
    arguments: dict[str, Any],
    teachers: Annotated[
        list[str],
        typer.Argument(
            metavar="TEACHER...",
            help="Models, or NAME=FILE of an architecture and its weights.",
            autocompletion=completion.complete_teacher,
        ),
    ],
    views: Annotated[int, o.option("--views", help="Views of each sampled image.", min=1)] = 2,
    num_images: Annotated[
        int, o.option("--num-images", help="Training images to sample, at most.", min=1)
    ] = 256,
    changes: o.SetOpt = None,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Compare teachers before one is chosen: accuracy, agreement on training views, and cost.

    Example: deitctl rank-teachers photos/ regnety_160 convnext_tiny runs/my-teacher
    """
    shape = choose_format(output_format, o.FORMATS)
    ranking = api.rank_teachers(
        **(arguments | parse_overrides(changes or ())),
        teachers=teachers,
        views=views,
        num_images=num_images,
        reporter=make_reporter(quiet),
    )
    if shape == "json":
        print_json(to_object(ranking))
    else:
        _print_ranking(ranking)
        best = ranking.teachers[0]
        if best.error is None:
            name, _, weights = best.teacher.partition("=")
            chosen = ["--teacher", name, *(["--teacher-weights", weights] if weights else [])]
            print_next(["distill", str(arguments["data"]), *chosen], shape=shape, quiet=quiet)
    failed = [teacher for teacher in ranking.teachers if teacher.error is not None]
    if failed:
        raise typer.Exit(SOME_FAILED if len(failed) < len(ranking.teachers) else 1)


def _print_ranking(ranking: TeacherRanking) -> None:
    names = _shorten_names([teacher.teacher for teacher in ranking.teachers])
    rows = [(names[teacher.teacher], teacher) for teacher in ranking.teachers]
    judged = [(name, teacher) for name, teacher in rows if teacher.gives == "labels"]
    usable = [(name, teacher) for name, teacher in rows if teacher.error is None]
    if judged:
        _print_decisions(judged, ranking)
    if len(judged) > 1:
        _print_agreement(judged)
    if scored := [(name, t) for name, t in usable if t.gives == "features"]:
        _print_features(scored, ranking)
    if usable:
        _print_costs(usable, ranking)
    for name, teacher in rows:
        if teacher.error is not None:
            print_line(f"{name} failed: {teacher.error}")
        elif teacher.gives == "features":
            print_line(
                f"{name} {teacher.lacks}. So it gives features only; `deitctl distill --finetune-teacher head` makes "
                "it give labels."
            )
        elif teacher.is_weak:
            print_line(f"{name} is at or near chance, and would be refused.")
        elif teacher.is_echo:
            print_line(f"{name} is an echo: its hard labels repeat the true labels.")
    if judged:
        print_line(
            "A teacher says something new where it is accurate on validation images and yet decides otherwise than "
            "the label on training views; one whose decision is always the label says nothing by hard labels. "
            "Teachers that decide alike add little to each other."
        )
        print_line(
            f"Order: {'echoes after others, each ' if 'hard' in ranking.mode else ''}by accuracy. It does not "
            "foretell the student's: deitctl sweep --preset deit-table2 trains one with each."
        )


def _shorten_names(teachers: list[str]) -> dict[str, str]:
    """Return what to call each teacher: the last part of a path, where that is no other's."""
    short = {name: name.partition("=")[0].rstrip("/").rpartition("/")[2] for name in teachers}
    counts = list(short.values())
    return {name: text if counts.count(text) == 1 else name for name, text in short.items()}


def _print_decisions(rows: list[tuple[str, RankedTeacher]], ranking: TeacherRanking) -> None:
    is_multilabel = rows[0][1].top1 is None
    scores = ("mAP, %",) if is_multilabel else ("top-1, %", "balanced, %")
    print_table(
        f"teachers of {ranking.data}: {ranking.num_val_images} validation images, {ranking.num_views} views of "
        f"{ranking.num_images} training images (recipe {ranking.recipe})",
        ("teacher", *scores, "is the label, %", "views differ, %", "entropy, nats"),
        [
            (
                name,
                *map(
                    _format,
                    (teacher.map,) if is_multilabel else (teacher.top1, teacher.balanced_accuracy),
                ),
                _format(teacher.label_agreement),
                _format(teacher.view_disagreement),
                _format(teacher.mean_entropy, 2),
            )
            for name, teacher in rows
        ],
    )


def _print_features(rows: list[tuple[str, RankedTeacher]], ranking: TeacherRanking) -> None:
    metric = "mAP" if ranking.is_multilabel else "balanced"
    print_table(
        f"teachers with features only: a classifier fitted to {ranking.num_views} views of {ranking.num_images} "
        f"training images, on {ranking.num_val_images} validation images",
        ("teacher", f"{metric}, %", "features"),
        [(name, _format(t.head_score), str(t.num_features or "")) for name, t in rows],
    )


def _print_agreement(rows: list[tuple[str, RankedTeacher]]) -> None:
    print_table(
        "views on which two teachers decide alike, %",
        ("teacher", *(str(n) for n in range(1, len(rows) + 1))),
        [
            (
                f"{n} {name}",
                *(_format((teacher.teacher_agreement or {}).get(t.teacher)) for _, t in rows),
            )
            for n, (name, teacher) in enumerate(rows, 1)
        ],
    )


def _print_costs(rows: list[tuple[str, RankedTeacher]], ranking: TeacherRanking) -> None:
    print_table(
        f"what asking costs ({ranking.device}; a cache of {ranking.num_cached_views} views)",
        (
            "teacher",
            "cached",
            "pixels",
            "params, M",
            "GFLOPs",
            "ms/image",
            "MiB",
        ),
        [
            (
                name,
                _name_cached(teacher, ranking.mode),
                format_size(teacher.img_size_px or 0),
                _format((teacher.num_params or 0) / 1e6),
                _format(teacher.gflops, 2),
                _format(teacher.ms_per_image),
                _format((teacher.cache_bytes or 0) / MIB, 2),
            )
            for name, teacher in rows
        ],
        2,
    )


def _name_cached(teacher: RankedTeacher, mode: str) -> str:
    """Return what a cache of a teacher holds: of one without the data's classes features, whatever the mode."""
    if teacher.gives == "features" or mode == "features":
        return "features"
    return mode if mode.startswith("features") else f"{mode} labels"


def _format(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"
