"""deitctl pack"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

import deitctl
from deitctl.cli import completion
from deitctl.cli import options as o
from deitctl.cli.console import (
    choose_format,
    exit_code_for_unreadable,
    print_json,
    print_line,
    print_next,
    print_table,
)
from deitctl.cli.progress import make_reporter
from deitctl.config import MACHINE
from deitctl.errors import DataError, UsageError
from deitctl.records import to_object

if TYPE_CHECKING:
    from deitctl.packing.pack import PackResult
    from deitctl.packing.verify import PackVerification

FORMATS = ("wds", "parquet")


def pack(
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help=o.DATA_HELP, autocompletion=completion.complete_data),
    ],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="Folder of shards to write; one that `pack` wrote is replaced."
        ),
    ],
    max_size: Annotated[
        int | None,
        o.option(
            "--max-size",
            help="Encode images anew, as JPEG, whose short side has more pixels.",
            default="files as they are",
            min=1,
        ),
    ] = None,
    raw: Annotated[
        bool,
        o.option(
            "--raw",
            help="Store pixels (PPM, not for timm): nothing to decode, several times the bytes.",
        ),
    ] = False,
    to: Annotated[
        str,
        o.option(
            "--to",
            help="wds: WebDataset tars with an index; parquet: the hub's form.",
            choices=FORMATS,
        ),
    ] = "wds",
    shard_size: Annotated[
        str | None,
        o.option(
            "--shard-size",
            help="Of a shard at most, with a unit: 500MB.",
            metavar="SIZE",
            default="1GB",
        ),
    ] = None,
    shuffle: Annotated[
        bool,
        o.option(
            "--shuffle", help="Write images in a random order, for readers that stream shards."
        ),
    ] = False,
    image_folder: o.ImageFolderOpt = "",
    task: o.TaskOpt = "auto",
    value_range: o.ValueRangeOpt = "auto",
    verify: Annotated[
        bool, o.option("--verify", help="Write nothing: compare OUT with DATA, image by image.")
    ] = False,
    cache_dir: o.CacheDirOpt = "",
    cache_size: o.CacheSizeOpt = "",
    workers: Annotated[
        int,
        o.option(
            "--workers",
            help="Decoding processes; -1: one a core, or none to copy files.",
            panel=MACHINE,
            min=-1,
        ),
    ] = -1,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Write a data set into shards: WebDataset tars, which every command, webdataset and timm read.

    Exits with 3 if some images could not be read: they are stored as they are.

    Example: deitctl pack imagenet/ imagenet-256 --max-size 256
    """
    shape, reporter = choose_format(output_format, o.FORMATS), make_reporter(quiet)
    follow_up = ["train", out]
    if verify:
        typed = {
            "--max-size": max_size,
            "--raw": raw,
            "--to": to != "wds",
            "--shard-size": shard_size,
            "--shuffle": shuffle,
            "--workers": workers != -1,
        }
        if named := [option for option, is_typed in typed.items() if is_typed]:
            raise UsageError("--verify writes nothing.", f"Leave {', '.join(named)} out.")
        verification = deitctl.verify_pack(
            data,
            out,
            image_folder=image_folder,
            cache_dir=cache_dir,
            cache_size=cache_size,
            reporter=reporter,
        )
        if shape == "json":
            print_json(to_object(verification))
        else:
            _print_verification(verification)
        if verification.num_different:
            raise DataError(
                f"{out} differs from {data} in {verification.num_different} place(s), the first: "
                f"{verification.examples[0]}",
                "Pack it again.",
            )
        print_next(follow_up, shape=shape, quiet=quiet)
        return
    result = deitctl.pack(
        data,
        out,
        max_size=max_size or 0,
        raw=raw,
        to=to,
        shard_size=shard_size or "1GB",
        shuffle=shuffle,
        image_folder=image_folder,
        task=task,
        value_range=value_range,
        cache_dir=cache_dir,
        cache_size=cache_size,
        workers=workers,
        reporter=reporter,
    )
    for reason in result.unreadable:
        reporter.warn(f"stored as it is: {reason}")
    print_json(to_object(result)) if shape == "json" else _print(result)
    print_next(follow_up, shape=shape, quiet=quiet)
    raise typer.Exit(exit_code_for_unreadable(len(result.unreadable)))


def _print(result: PackResult) -> None:
    print_table(
        f"packed {result.data} into {result.path}",
        ("split", "images", "classes"),
        [(name, str(s.num_images), str(s.num_classes)) for name, s in result.splits.items()],
    )
    unreadable = f" ({len(result.unreadable)} unreadable)" if result.unreadable else ""
    print_line(
        f"{result.num_copied:,} copied{unreadable}, {result.num_encoded:,} encoded anew; "
        f"{result.source_bytes:,} bytes before, {result.bytes:,} after in {result.num_shards:,} "
        f"shard(s); {result.seconds:.1f} s"
    )


def _print_verification(verification: PackVerification) -> None:
    for example in verification.examples:
        print_line(example)
    print_line(
        f"{verification.num_images:,} images compared, {verification.num_different:,} difference(s); "
        f"{verification.seconds:.1f} s"
    )
