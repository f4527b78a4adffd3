"""deitctl pack"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deitctl.cli import options as o

if TYPE_CHECKING:
    from deitctl.packing.pack import PackCheck, PackResult


def pack(
    data: Annotated[str, typer.Argument(metavar="DATA", help=o.DATA_HELP)],
    out: Annotated[
        str,
        typer.Argument(metavar="OUT", help="The file, NAME.pack; another pack there is replaced."),
    ],
    max_size: Annotated[
        int | None,
        typer.Option(
            "--max-size",
            min=1,
            help="Make images smaller, as JPEG, whose short side has more pixels.",
            show_default="bytes as they are",
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Keep pixels: nothing to decode, several times the bytes.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: compare OUT with DATA, every image.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=0, help="Processes that decode.", show_default="one a core, 0 to copy"
        ),
    ] = None,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Put a data set into one file, which every command reads as DATA without a cost for each file.

    Exits with 3 if some images could not be read: they keep their place, and the bytes that they have.

    Example: deitctl pack imagenet/ imagenet.pack --max-size 256
    """
    from deitctl.cli.console import choose_format, left_out_code, print_json
    from deitctl.cli.progress import make_reporter
    from deitctl.cli.run_training import FORMATS
    from deitctl.errors import ConfigError, DataError

    shape = choose_format(output_format, FORMATS, "json")
    if check and (max_size or raw or workers is not None):
        raise ConfigError("--check writes nothing.", "Leave --max-size, --raw and --workers out.")
    reporter = make_reporter(quiet)
    from deitctl.packing import pack as workflow

    if check:
        found = workflow.check_pack(data, out, reporter=reporter)
        print_json(found.to_dict()) if shape == "json" else _print_check(found)
        if found.different:
            raise DataError(
                f"{out} is not what {data} is: {found.different} difference(s), the first: {found.examples[0]}",
                "Pack it again.",
            )
        return
    done = workflow.pack(
        data,
        out,
        max_size=max_size or 0,
        raw=raw,
        workers=-1 if workers is None else workers,
        reporter=reporter,
    )
    for why in done.unreadable:
        reporter.warn(f"kept as it is: {why}")
    print_json(done.to_dict()) if shape == "json" else _print(done)
    raise typer.Exit(left_out_code(len(done.unreadable)))


def _print(done: PackResult) -> None:
    from deitctl.cli.console import print_line, print_table

    rows = [(name, str(part["images"]), str(part["classes"])) for name, part in done.parts.items()]
    print_table(f"packed {done.data} into {done.path}", ("part", "images", "classes"), rows)
    bad = f" ({len(done.unreadable)} unreadable)" if done.unreadable else ""
    print_line(
        f"{done.copied:,} copied{bad}, {done.encoded:,} encoded anew; {done.bytes_before:,} bytes before, "
        f"{done.bytes_after:,} after; {done.seconds:.1f} s"
    )


def _print_check(found: PackCheck) -> None:
    from deitctl.cli.console import print_line

    for example in found.examples:
        print_line(example)
    print_line(
        f"{found.num_images:,} images compared, {found.different:,} difference(s); {found.seconds:.1f} s"
    )
