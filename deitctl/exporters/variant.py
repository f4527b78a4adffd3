"""Which variant of a format an export is, and whether the format has it."""

from __future__ import annotations

from dataclasses import replace

from deitctl.data.band_image import has_bands
from deitctl.errors import ExportError, ModelError, did_you_mean
from deitctl.exporters.dynamic_size import require_resizable
from deitctl.exporters.formats import FORMATS, Format
from deitctl.exporters.quantize import PRECISIONS
from deitctl.models.model_config import HEADS, Preprocessing

BAND_FORMATS = ("onnx", "torch")
"""Whose own code for readers does not open images of gray or RGB."""


def choose_variant(
    to: str, quantize: str, preprocess: bool, dynamic_size: bool, runtime: str, head: str
) -> Format:
    """Return a format whose suffix names what is not the default.

    Raises:
        ExportError: there is no such format or precision, or the format lacks a variant.
        ModelError: there is no such head rule.
    """
    if to not in FORMATS:
        raise ExportError(
            f"There is no format {to!r}.",
            f"{did_you_mean(to, FORMATS)} There are: {', '.join(FORMATS)}.".strip(),
        )
    kind = FORMATS[to]
    if quantize and quantize not in PRECISIONS:
        raise ExportError(
            f"There is no precision {quantize!r}.",
            f"{did_you_mean(quantize, PRECISIONS)} There are: {', '.join(PRECISIONS)}.".strip(),
        )
    if quantize and quantize not in kind.precisions:
        formats = [f"--to {name}" for name, f in FORMATS.items() if quantize in f.precisions]
        raise ExportError(
            f"{to} is not quantized to {quantize}: "
            f"--quantize {quantize} is for {' or '.join(formats)}."
        )
    if not preprocess and not kind.has_variants:
        raise ExportError(f"{to} has no bare variant: --no-preprocess is for --to onnx.")
    if dynamic_size and not kind.has_variants:
        raise ExportError(f"{to} takes images of one size: --dynamic-size is for --to onnx.")
    if dynamic_size and not preprocess:
        raise ExportError(
            "--dynamic-size puts more preprocessing into the file, --no-preprocess none.",
            "Leave one out.",
        )
    if runtime and kind.provide_runtime is None:
        raise ExportError(f"{to} holds no runtime: --runtime is for --to web.")
    if head not in ("auto", *HEADS):
        raise ModelError(
            f"There is no head rule {head!r}.", f"There are: auto, {', '.join(HEADS)}."
        )
    parts = (
        head if head != "auto" and not kind.head else "",
        "" if preprocess else "bare",
        "dynamic" if dynamic_size else "",
        quantize,
    )
    return replace(kind, suffix="".join(f"-{part}" for part in parts if part) + kind.suffix)


def require_accepts(kind: Format, pre: Preprocessing, *, dynamic_size: bool) -> None:
    """Raise `ExportError` unless the format can take the model's images."""
    if has_bands(pre.in_chans) and kind.name not in BAND_FORMATS:
        raise ExportError(
            f"--to {kind.name} is for images of gray or RGB, and this model takes {pre.in_chans} bands.",
            "Use --to onnx.",
        )
    if dynamic_size:
        require_resizable(pre)
