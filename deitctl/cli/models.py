"""deitctl models"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from deitctl.cli import completion
from deitctl.cli import options as o
from deitctl.cli.console import choose_format, print_json, print_line, print_next, print_table
from deitctl.records import to_object
from deitctl.sizes import ImageSize


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A model of the DeiT family."""

    alias: str
    """Name in deitctl."""
    timm_name: str
    """Name in timm."""
    img_size_px: ImageSize
    """Side of the input."""
    embed_dim: int
    """Width of the tokens."""
    depth: int
    """Blocks."""
    num_params: int
    """Parameters, the thousand classes included."""
    distilled: bool
    """Whether it has a distillation token."""
    imagenet_top1: float
    """Top-1 accuracy on ImageNet's validation images at `img_size_px`, percent."""
    imagenet_top1_source: str
    """Who measured it."""
    url: str
    """Where the authors published the weights."""
    weights: str | None
    """File of the weights on this machine; null: they are downloaded when they are first used."""


@dataclass(frozen=True, kw_only=True)
class ModelList:
    """The models whose name has a text in it."""

    models: list[PublishedModel]
    """In the order of the papers."""


def models(
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="TEXT",
            help="List the models with this in their name.",
            autocompletion=completion.complete_model,
        ),
    ] = "",
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """List the DeiT family: names, input sizes, parameters, accuracy, whether the weights are here.

    Example: deitctl models distilled
    """
    shape = choose_format(output_format, o.FORMATS)
    models = _list_models(pattern)
    if shape == "json":
        print_json(to_object(ModelList(models=models)))
        return
    rows = [
        (
            model.alias,
            "here" if model.weights else "to download",
            str(model.img_size_px),
            f"{model.num_params / 1e6:.1f}",
            f"{model.imagenet_top1:.1f}",
        )
        for model in models
    ]
    columns = ("name", "weights", "pixels", "params, M", "top-1, %")
    print_table("models (any timm classifier works by its name too)", columns, rows, 2)
    print_line("Top-1 on ImageNet, as timm measures it at that input size.")
    print_line("timm's names, URLs and sources: deitctl models --format json")
    if models:
        print_next(["predict", "IMAGE", "--model", models[0].alias], shape=shape, quiet=quiet)


def _list_models(pattern: str) -> list[PublishedModel]:
    from deitctl.models.catalog import ARCHITECTURES, OFFICIAL_URL, TOP1_SOURCE
    from deitctl.models.weights import find_local_weights

    return [
        PublishedModel(
            alias=arch.alias,
            timm_name=arch.full_name,
            img_size_px=arch.img_size,
            embed_dim=arch.embed_dim,
            depth=arch.depth,
            num_params=arch.num_params,
            distilled=arch.distilled,
            imagenet_top1=arch.top1,
            imagenet_top1_source=TOP1_SOURCE,
            url=OFFICIAL_URL + arch.url,
            weights=str(find_local_weights(arch) or "") or None,
        )
        for arch in ARCHITECTURES
        if pattern in arch.alias or pattern in arch.name
    ]
