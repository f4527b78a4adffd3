"""deitctl check"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

import deitctl
from deitctl.cli import options as o
from deitctl.cli.console import choose_format, print_json, print_line, print_next, print_table
from deitctl.cli.progress import make_reporter
from deitctl.config import MACHINE
from deitctl.records import to_object

if TYPE_CHECKING:
    from deitctl.checks.check import CheckResult
    from deitctl.checks.issues import Issue
    from deitctl.checks.labels import LabelCounts

BUILT_IN = "digits"
MAX_EXAMPLES = 3
"""Examples of an issue."""
MAX_CLASSES = 10
"""Classes, and pairs of them, of a split of several labels an image."""


def check(
    data: o.DataArg = "",
    ground_truth: Annotated[
        str,
        o.option(
            "--ground-truth",
            help="Labels of a val without class folders: ImageNet's devkit, LOC_val_solution.csv, or file,label rows.",
            default="",
        ),
    ] = "",
    fix_list: Annotated[
        str,
        o.option(
            "--fix-list", help="Write what to delete, move and rename to this CSV file.", default=""
        ),
    ] = "",
    write_manifest: Annotated[
        str,
        o.option(
            "--write-manifest",
            help="Write a path,label,split table to this CSV file, to train on as DATA.",
            default="",
        ),
    ] = "",
    image_folder: o.ImageFolderOpt = "",
    task: o.TaskOpt = "auto",
    value_range: o.ValueRangeOpt = "auto",
    in_chans: Annotated[
        int,
        o.option(
            "--in-chans", help="Bands of the images, where not 1 or 3.", default="", min=0, max=256
        ),
    ] = 0,
    cache_dir: o.CacheDirOpt = "",
    cache_size: o.CacheSizeOpt = "",
    workers: Annotated[
        int,
        o.option("--workers", help="Decoding processes; -1: one a core.", panel=MACHINE, min=-1),
    ] = -1,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Find what is broken, duplicated, mislabeled or leaks in a data set. Changes nothing in it.

    Exits with 3 if one of the issues is an error.

    Example: deitctl check photos/ --fix-list fixes.csv
    """
    shape, reporter = choose_format(output_format, o.FORMATS), make_reporter(quiet)
    if not data:
        reporter.note("No data named: using the built-in 'digits'.")
    result = deitctl.check(
        data,
        ground_truth=ground_truth,
        fix_list=fix_list,
        write_manifest=write_manifest,
        image_folder=image_folder,
        task=task,
        value_range=value_range,
        in_chans=in_chans,
        cache_dir=cache_dir,
        cache_size=cache_size,
        workers=workers,
        reporter=reporter,
    )
    print_json(to_object(result)) if shape == "json" else _print(result)
    if result.num_errors and not fix_list:
        print_next(["check", data or BUILT_IN, "--fix-list", "fixes.csv"], shape=shape, quiet=quiet)
    elif not result.num_errors:
        print_next(["train", write_manifest or data or BUILT_IN], shape=shape, quiet=quiet)
    raise typer.Exit(3 if result.num_errors else 0)


def _print(result: CheckResult) -> None:
    count = result.num_errors
    title = f"{count} error{'s' * (count != 1)} found" if count else "no errors found"
    if not result.issues:
        title = "no issues found"
    print_table(
        f"{result.data}: {title}",
        ("split", "images", "classes"),
        [(name, str(s.num_images), str(s.num_classes)) for name, s in result.splits.items()],
    )
    for name, size in result.splits.items():
        if size.labels is not None:
            _print_labels(name, size.labels)
    for issue in result.issues:
        _print_issue(issue, result.data)


def _print_labels(split: str, labels: LabelCounts) -> None:
    """Print how many labels images have, of which classes, and which stand together."""
    print_line(
        f"{split}: {labels.per_image:.2f} labels an image, {labels.num_several:,} images with "
        f"several, {labels.num_unlabeled:,} with none"
    )
    by_count = sorted(labels.images_per_class.items(), key=lambda item: -item[1])
    first, rest = by_count[:MAX_CLASSES], by_count[MAX_CLASSES:]
    texts = [f"{name} {count:,}" for name, count in first]
    more = f" ... {rest[-1][0]} {rest[-1][1]:,} ({len(rest):,} more)" if rest else ""
    print_line("images: " + ", ".join(texts) + more, indent="  ")
    pairs = [f"{' + '.join(p.classes)} {p.num_images:,}" for p in labels.pairs[:MAX_CLASSES]]
    if pairs:
        print_line("together: " + ", ".join(pairs), indent="  ")


def _print_issue(issue: Issue, data: str) -> None:
    """Print an issue as a paragraph, because the columns of a table would break paths."""
    from deitctl.checks.issues import escape

    print_line(f"{issue.severity}: {issue.code} ({issue.count:,})")
    print_line(f"{issue.message} {issue.fix}", indent="  ")
    examples = [escape(e.replace(f"{data}/", "")) for e in issue.examples[:MAX_EXAMPLES]]
    for line in [*examples, "..."] if issue.count > len(examples) else examples:
        print_line(line, indent="    ")
