"""ONNX files that take images of any size: `eval_transform` as operations before the network.

onnxruntime's Resize with antialiasing is a port of Pillow's. It comes closest with pixels as they
are in memory, uint8 [B,H,W,3]: in fixed point, and rounded between the two passes as Pillow does.
Its coordinates are floats where Pillow has doubles, so a value at the edge between two levels may
become the other one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitctl.data.band_image import describe_channels
from deitctl.data.eval_transform import INTERPOLATION, Pixels, eval_transform
from deitctl.errors import ExportError
from deitctl.exporters.golden import GOLDEN, enlarge, make_golden_tile
from deitctl.exporters.onnx import read_properties
from deitctl.models.model_config import Preprocessing
from deitctl.paths import write_bytes
from deitctl.sizes import format_size, short_side

INSIDE = "inside the file"
"""Where the metadata of a dynamic-size file say that images are resized."""
# Pillow's cubic coefficient is -0.5. ONNX's default of -0.75 moved logits of DeiT-tiny by 0.44.
KERNELS = {"bicubic": 'mode = "cubic", cubic_coeff_a = -0.5', "bilinear": 'mode = "linear"'}
"""The interpolations that ONNX has with antialiasing, as Pillow has them."""

# Integer division, as timm and torchvision round the long side down.
SHORT_SIDE = """
    lengths = Shape <start = 1, end = 3> (pixels)
    short = ReduceMin (lengths)
    products = Mul (lengths, target)
    sizes = Div (products, short)
"""
SQUASH = """
    sizes = Concat <axis = 0> (target, target)
"""
# antialias: without it pixels were up to 69 of 255 off, logits 0.92. exclude_outside renormalizes
# the weights at the border, as Pillow does. On uint8, because a resize in floats that is rounded
# once at the end differed in 17 % of the values, by up to 12.
RESIZE = """
    resized = Resize <%(kernel)s, antialias = 1, exclude_outside = 1, axes = [1, 2]> (pixels, , , sizes)
    spare = Sub (sizes, size)
"""
# Round is to even. Rounding halves down instead crops one pixel beside: 180 of 255 off, logits 0.6.
CROP = """
    over = Max (spare, zero)
    margins = Cast <to = 1> (over)
    halves = Mul (margins, half)
    evened = Round (halves)
    begin = Cast <to = 7> (evened)
    end = Add (begin, size)
    %(cropped)s = Slice (resized, begin, end, axes)
"""
# For a crop_pct above 1: the resized image is smaller than the input and gets a black border.
PAD = """
    missing = Neg (spare)
    lacking = Max (missing, zero)
    before = Div (lacking, two)
    after = Sub (lacking, before)
    pads = Concat <axis = 0> (before, after)
    seen = Pad (cropped, pads, , axes)
"""
FRONT = """
front (uint8[batch,height,width,3] pixels) => (uint8[batch,%(size)d,%(size)d,3] seen)
<int64[1] target = {%(target)d}, int64[1] size = {%(size)d}, int64[1] zero = {0}, int64[1] two = {2},
 float half = {0.5}, int64[2] axes = {1, 2}>
{%(steps)s}
"""
"""In ONNX's notation. Round is to even, as in `get_crop_offset`; 1 is float and 7 is int64."""


def require_resizable(pre: Preprocessing) -> None:
    """Raise `ExportError` if ONNX cannot resize as the model's preprocessing does."""
    require_square_rgb(pre, "--dynamic-size", "Leave it out: the file then takes resized images.")
    if _interpolation(pre) not in KERNELS:
        raise ExportError(
            f"ONNX resizes as Pillow does with {' and '.join(KERNELS)}, "
            f"not with {pre.interpolation}.",
            "Leave --dynamic-size out: the file then takes images that have been resized.",
        )


def require_square_rgb(pre: Preprocessing, what: str, hint: str) -> int:
    """Return the side of a model's input; raise `ExportError` if it is not square, or not of RGB."""
    if not isinstance(pre.img_size, int) or pre.in_chans != 3:
        kind = describe_channels(pre.in_chans)
        raise ExportError(
            f"{what} is for square inputs of RGB, and this model takes {kind} images of "
            f"{format_size(pre.img_size)} pixels.",
            hint,
        )
    return pre.img_size


def make_golden_view(pre: Preprocessing) -> Pixels:
    """Return the golden image of S x S pixels after resize and crop, uint8 [1,S,S,3]."""
    # Resized and cropped as any image is, so its logits differ from those of the file of one size
    # where crop_pct is not 1.
    (image,) = enlarge(make_golden_tile(), pre.img_size)
    return eval_transform(Image.fromarray(image), pre).transpose(1, 2, 0)[None]


def make_dynamic(
    source: Path, pre: Preprocessing, golden: NDArray[np.float32], target: Path
) -> None:
    """Write an ONNX file of one size, quantized or not, so that it takes whole images.

    `pixels` becomes uint8 [batch,height,width,3]; `seen`, uint8 [batch,S,S,3], is the input of the
    network inside, as an output of its own.

    Args:
        source: what `export_onnx` or `quantize_onnx` wrote.
        pre: the model's preprocessing.
        golden: the model's logits for `make_golden_view`, [K].
        target: the new file.
    """
    import onnx
    from onnx import compose, helper

    model, front = onnx.load(source), onnx.parser.parse_graph(build_front(pre))
    # torch's exporter names values by operation too (`mul`, `sub`): without a prefix names could
    # collide.
    front = compose.add_prefix_graph(front, "resize/", rename_inputs=False, rename_outputs=False)
    used = {name for node in front.node for name in node.input}
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["seen" if name == "pixels" else name for name in node.input]
    # ONNX requires nodes in topological order: what computes `seen` comes before what reads it.
    nodes = [*front.node, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    # PAD's constants are left out where nothing is padded: onnxruntime warns of unused ones
    graph.initializer.extend(tensor for tensor in front.initializer if tensor.name in used)
    graph.input[0].CopyFrom(front.input[0])
    graph.output.extend(front.output)
    helper.set_model_props(model, _change_metadata(read_properties(model), pre, golden))
    onnx.checker.check_model(model)
    write_bytes(target, model.SerializeToString())


def build_front(pre: Preprocessing) -> str:
    """Return the operations from `pixels` to `seen`, as a graph in ONNX's notation."""
    side, target = short_side(pre.img_size), short_side(pre.resize_to)
    pads = target < side
    steps = (SQUASH if pre.crop_mode == "squash" else SHORT_SIDE) + RESIZE + CROP + PAD * pads
    values = {"kernel": KERNELS[_interpolation(pre)], "cropped": "cropped" if pads else "seen"}
    return FRONT % {"size": side, "target": target, "steps": steps % values}


def has_dynamic_size(metadata: Mapping[str, str]) -> bool:
    """Return whether a file with these metadata resizes images itself."""
    return INSIDE in metadata.get("preprocessing", "")


def _interpolation(pre: Preprocessing) -> str:
    # unknown ones are bicubic, as in `eval_transform`
    return pre.interpolation if pre.interpolation in INTERPOLATION else "bicubic"


def _change_metadata(
    metadata: dict[str, str], pre: Preprocessing, golden: NDArray[np.float32]
) -> dict[str, str]:
    """Return the metadata of a file of one size as those of the dynamic-size file made of it."""
    preprocessing = json.loads(metadata["preprocessing"]) | {
        "resize": INSIDE,
        "layout": "NHWC uint8, any height and width",
    }
    sample = json.loads(metadata[GOLDEN])
    sample |= {
        "pixels": f"{sample['pixels']}; S = {pre.img_size}, which the file resizes and crops",
        "logits": [float(f"{x:.6g}") for x in golden],
    }
    return {**metadata, "preprocessing": json.dumps(preprocessing), GOLDEN: json.dumps(sample)}
