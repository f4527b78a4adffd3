"""Smaller ONNX files: weights in 16 bits, or matrix products in 8 bits.

fp16 stores weights in half precision and computes in fp32: runtimes widen them once, when they load
the file. On a CPU that is as fast as fp32; computing in fp16 is slower there and no closer.

int8 quantizes the weights of linear layers per output channel, and their inputs while it runs
(dynamic): no calibration. int8-static quantizes by ranges from calibration images: slower and
further off, but an output does not depend on the other images of its batch. The patch embedding
stays in fp32, because it is slower and worse in int8; so do the products of attention, norms,
softmax and GELU, which have no weights. Heads are quantized: keeping them changes next to nothing.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deitctl.data.eval_transform import Pixels
from deitctl.errors import ExportError
from deitctl.exporters.golden import set_golden_tolerance
from deitctl.exporters.network import wrap_conversion_errors
from deitctl.exporters.onnx import read_properties
from deitctl.exporters.runner import load_onnx, open_onnx, prepare_input
from deitctl.paths import write_bytes

LARGE = 4096
"""Values of a matrix from which fp16 is worth it."""
MAX_RATIO = 0.75
"""Of the bytes that int8 may leave: where more is left, the network has hardly a linear layer."""
REDUCE_RANGE = True
"""Whether int8 weights have 7 bits, so that an export that is right here is right elsewhere: a CPU with AVX2 but no
VNNI adds two products of 8 bits in 16, which cuts the largest. DeiT-tiny was 0.118 of the spread off there, not 0.080;
with 7 bits 0.090, at the same size and speed."""
CALIBRATION_BATCH = 8
"""Images in a batch of calibration, which keeps the range of every layer's input in memory."""
TIMING_ROUNDS, TIMING_SECONDS = 15, 4.0
"""Rounds of timing, and seconds after which they end, from the fifth on."""


@dataclass(frozen=True)
class Precision:
    """One way to quantize a network."""

    quantize: Callable[[Path, Pixels | None], Any]
    """Returns an fp32 file's network quantized, an onnx.ModelProto, by calibration images."""
    tolerance: float
    """The largest `relative_diff` that passes, see `compare_quantized`."""
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
        calibration: images, uint8 [N,S,S,3], for a precision that is calibrated.

    Raises:
        ExportError: the network would hardly become smaller, or cannot be quantized.
    """
    from onnx.helper import set_model_props

    settings = PRECISIONS[precision]
    with wrap_conversion_errors(
        f"The network cannot be quantized to {precision}",
        "Leave --quantize out.",
        keep=(OSError, MemoryError),
    ):
        model = settings.quantize(source, calibration)
    metadata = read_properties(model)
    metadata.pop("onnx.infer", None)  # onnxruntime's mark that it inferred shapes
    metadata = set_golden_tolerance(metadata, settings.tolerance)
    set_model_props(model, {**metadata, "quantize": precision})
    data = model.SerializeToString()
    before = source.stat().st_size
    if len(data) > MAX_RATIO * before:
        raise ExportError(
            f"{precision} would leave {100 * len(data) / before:.0f} % of the bytes: "
            "it quantizes linear layers, and this network has few.",
            "Use --quantize fp16.",
        )
    write_bytes(target, data)


def _quantize_fp16(source: Path, _: Pixels | None = None) -> Any:
    """Store large weights in fp16, each followed by a Cast to fp32."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(source)
    casts = []
    for tensor in model.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        # Norms and biases stay in fp32: of DeiT-tiny they are less than a hundredth of the bytes. So
        # do thresholds of many classes, of which small ones would be 0 in fp16.
        if weights.dtype == np.float32 and weights.size >= LARGE and weights.ndim > 1:
            name = tensor.name
            with np.errstate(over="ignore"):  # becomes infinite, which the verification finds
                tensor.CopyFrom(numpy_helper.from_array(weights.astype(np.float16), f"{name}.fp16"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    # Casts first, for ONNX's topological order. onnxruntime folds them into fp32 weights when it
    # loads the file. Arithmetic in fp16 was slower on a CPU (0.90, 0.96 of fp32) and twice as far
    # off.
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _quantize_int8(source: Path, _: Pixels | None = None) -> Any:
    """Quantize linear layers: weights by channel, activations by the range of each batch."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="deitctl-int8-") as folder:
        quantized = Path(folder) / "model.onnx"
        quantize_dynamic(
            source,
            quantized,
            # The patch embedding stays in fp32: quantized it is slower (1.70 instead of 1.84 times
            # fp32) and further off (0.091 instead of 0.080 of the spread). So do the products of
            # attention, which have no weights.
            op_types_to_quantize=["MatMul", "Gemm"],
            # One scale a matrix is no faster and further off (0.097).
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=REDUCE_RANGE,
        )
        return onnx.load(quantized)


def _quantize_int8_static(source: Path, calibration: Pixels | None) -> Any:
    """Quantize linear layers: weights by channel, activations by the range of calibration."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    assert calibration is not None
    graph = onnx.load(source).graph
    weights = {weight.name for weight in graph.initializer}
    # By name, because static quantization of all operations ruins a ViT: 0.35 of the spread, 91.5 %
    # of the top-1 classes; attention's products alone are slower and further off, too.
    linear = [
        node.name
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights
    ]
    with tempfile.TemporaryDirectory(prefix="deitctl-int8-") as folder:
        quantized = Path(folder) / "model.onnx"
        quantize_static(
            source,
            quantized,
            _CalibrationReader(source, calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            reduce_range=REDUCE_RANGE,
            nodes_to_quantize=linear,
        )
        return onnx.load(quantized)


class _CalibrationReader:
    """Gives onnxruntime's calibration the images in small batches, as the network takes them."""

    def __init__(self, model: Path, pixels: Pixels) -> None:
        self.name, images = prepare_input(open_onnx(str(model)), pixels)
        self.batches = iter(np.array_split(images, -(-len(images) // CALIBRATION_BATCH)))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else {self.name: batch}


PRECISIONS = {
    # 0.0012 of the spread measured on DeiT-tiny
    "fp16": Precision(_quantize_fp16, tolerance=0.01),
    # 0.08 measured on DeiT-tiny, 0.004 on digits; 0.35 with all operations in int8, less accurate
    "int8": Precision(_quantize_int8, tolerance=0.15),
    # 0.124 and 0.0065 measured
    "int8-static": Precision(_quantize_int8_static, tolerance=0.2, calibrated=True),
}


def measure_speedup(base: Path, other: Path, image: Pixels) -> float:
    """Return the speed of an ONNX file relative to another, for one image on this CPU.

    The two take turns, so that the machine's other load meets both; the median of the ratios of the
    rounds.

    Args:
        base: the file whose speed is 1.
        other: the file to measure.
        image: uint8 [1,S,S,3].
    """
    # torch's number of threads: the user may have limited it, and onnxruntime would take all cores.
    networks = [load_onnx(str(path), threads=torch.get_num_threads()) for path in (base, other)]
    for network in networks:  # the first run allocates
        network(image)
    ratios: list[float] = []
    start = time.perf_counter()
    while len(ratios) < TIMING_ROUNDS and (
        len(ratios) < 5 or time.perf_counter() - start < TIMING_SECONDS
    ):
        before = time.perf_counter()
        networks[0](image)
        between = time.perf_counter()
        networks[1](image)
        ratios.append((between - before) / (time.perf_counter() - between))
    return statistics.median(ratios)
