"""deitctl models"""

from __future__ import annotations

from typing import Annotated

import typer

from deitctl.cli import options as o


def models(
    pattern: Annotated[
        str, typer.Argument(metavar="[TEXT]", help="Show those whose name has this in it.")
    ] = "",
    output_format: o.FormatOpt = None,
) -> None:
    """List the DeiT family: names, input sizes, published accuracy, where the weights are.

    Example: deitctl models distilled
    """
    from deitctl.cli.console import choose_format, print_json, print_table
    from deitctl.cli.run_training import FORMATS
    from deitctl.models.catalog import ARCHITECTURES, OFFICIAL_URL
    from deitctl.models.weights import find_local_weights

    shape = choose_format(output_format, FORMATS, "json")
    records = [
        {
            "alias": a.alias,
            "timm": f"{a.name}.{a.tag}",
            "img_size": a.img_size,
            "width": a.embed_dim,
            "depth": a.depth,
            "distilled": a.distilled,
            "imagenet_top1": a.top1,
            "url": OFFICIAL_URL + a.url,
            "weights": str(find_local_weights(a) or "") or None,
        }
        for a in ARCHITECTURES
        if pattern in a.alias or pattern in a.name
    ]
    if shape == "json":
        print_json(records)
        return
    rows = [
        (
            str(r["alias"]),
            str(r["timm"]),
            "here" if r["weights"] else "to download",
            str(r["img_size"]),
            str(r["width"]),
            str(r["depth"]),
            "" if r["imagenet_top1"] is None else f"{r['imagenet_top1']:.1f}",
        )
        for r in records
    ]
    columns = ("alias", "timm name", "weights", "input", "width", "depth", "ImageNet top-1, %")
    print_table("models (any timm classifier works by its name too)", columns, rows, 3)
