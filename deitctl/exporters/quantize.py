"""Smaller ONNX files: weights in 16 bits, or matrix products in 8 bits. docs/export.md has what each costs and gains.

fp16 stores weights in half precision and computes in fp32: runtimes widen them once, when they load the file. On a CPU
that is as fast as fp32; computing in fp16 is slower there and no closer.

int8 rounds the weights of linear layers per output channel, and what enters them while it runs (dynamic): nothing
has to be calibrated. int8-static rounds by the ranges that some images had: slower and further off, but an answer
does not depend on the others of its batch. The patch embedding stays in fp32, because it is slower and worse in int8;
so do the products of attention, norms, softmax and GELU, which hold no weights. Heads are rounded: keeping them
changes next to nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deitctl.data.eval_transform import Pixels
from deitctl.errors import ExportError
from deitctl.exporters.golden import GOLDEN
from deitctl.exporters.network import quietly
from deitctl.paths import write_bytes

LARGE = 4096
"""Numbers in a tensor from which fp16 is worth it: below are norms, biases, and the mean and deviation of colors."""
LEAST_GAIN = 0.75
"""Of the bytes that int8 may leave: where more is left, the network has hardly a linear layer."""


FEED = 8
"""Images at a time that calibration looks at; it keeps the range of every layer's input."""


@dataclass(frozen=True)
class Precision:
    """One way to round a network."""

    round: Callable[[Path, Pixels | None], Any]
    """Read an fp32 file and return the rounded network, an onnx.ModelProto; images are those to calibrate with."""
    tolerance: float
    """The largest difference that passes, relative to the spread of the logits; see `verify`."""
    calibrated: bool = False
    """Whether it needs images."""


def quantize_onnx(
    source: Path, precision: str, target: Path, calibration: Pixels | None = None
) -> None:
    """Write an fp32 ONNX file in another precision.

    Args:
        source: what `export_onnx` wrote.
        precision: a name of `PRECISIONS`.
        target: the new file.
        calibration: images as the network sees them, uint8 [N,S,S,3], for a precision that is calibrated.

    Raises:
        ExportError: the network would hardly become smaller, or has something that cannot be rounded.
    """
    from onnx.helper import set_model_props

    kind = PRECISIONS[precision]
    try:
        with quietly():
            model = kind.round(source, calibration)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # onnxruntime's quantizer raises what its hundred rules raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ExportError(
            f"The network cannot be rounded to {precision}: {first}", "Leave --quantize out."
        ) from error
    said = {entry.key: entry.value for entry in model.metadata_props}
    said.pop("onnx.infer", None)  # onnxruntime's note to itself
    said[GOLDEN] = json.dumps(json.loads(said[GOLDEN]) | {"tolerance": kind.tolerance})
    set_model_props(model, {**said, "quantize": precision})
    data = model.SerializeToString()
    before = source.stat().st_size
    if len(data) > LEAST_GAIN * before:
        raise ExportError(
            f"{precision} would leave {100 * len(data) / before:.0f} % of the bytes: it rounds linear layers, "
            "and this network has few.",
            "Use --quantize fp16.",
        )
    write_bytes(target, data)


def _half(source: Path, _: Pixels | None = None) -> Any:
    """Store large weights in fp16, each followed by a Cast to fp32."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(source)
    casts = []
    for tensor in model.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.dtype == np.float32 and weights.size >= LARGE:
            name = tensor.name
            with np.errstate(over="ignore"):  # becomes infinite, which the proof finds
                tensor.CopyFrom(numpy_helper.from_array(weights.astype(np.float16), f"{name}.fp16"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _int8(source: Path, _: Pixels | None = None) -> Any:
    """Compute linear layers in 8 bits, weights signed and by channel, activations unsigned and by batch."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="deitctl-int8-") as folder:
        rounded = Path(folder) / "model.onnx"
        quantize_dynamic(
            source,
            rounded,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(rounded)


def _int8_static(source: Path, calibration: Pixels | None) -> Any:
    """Compute linear layers in 8 bits, weights signed and by channel, activations by the range that images gave them."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    assert calibration is not None
    graph = onnx.load(source).graph
    weights = {w.name for w in graph.initializer}
    linear = [
        n.name for n in graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in weights
    ]
    with tempfile.TemporaryDirectory(prefix="deitctl-int8-") as folder:
        rounded = Path(folder) / "model.onnx"
        quantize_static(
            source,
            rounded,
            _Feed(source, calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            nodes_to_quantize=linear,
        )
        return onnx.load(rounded)


class _Feed:
    """Gives onnxruntime's calibration the images, a few at a time, as the network takes them."""

    def __init__(self, model: Path, pixels: Pixels) -> None:
        import onnx

        said = onnx.load(model, load_external_data=False)
        self.name, kind = said.graph.input[0].name, said.graph.input[0].type.tensor_type.elem_type
        if kind == onnx.TensorProto.FLOAT:
            colors = json.loads({e.key: e.value for e in said.metadata_props}["preprocessing"])[
                "normalization"
            ]
            mean, std = (np.array(colors[key], dtype=np.float32) for key in ("mean", "std"))
            taken: Any = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
        else:
            taken = pixels
        self.batches = iter(np.array_split(taken, -(-len(taken) // FEED)))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else {self.name: batch}


PRECISIONS = {
    # 0.0012 of the spread measured on DeiT-tiny
    "fp16": Precision(_half, tolerance=0.01),
    # 0.08 measured on DeiT-tiny, 0.004 on a model of digits; 0.35 where all operations are int8, which costs accuracy
    "int8": Precision(_int8, tolerance=0.15),
    # 0.124 and 0.0065 measured
    "int8-static": Precision(_int8_static, tolerance=0.2, calibrated=True),
}
