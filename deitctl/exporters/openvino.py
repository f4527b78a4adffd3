"""OpenVINO: a folder with the network as XML and its weights, for Intel's CPU, GPU and NPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from deitctl.data.eval_transform import Pixels
from deitctl.errors import ExportError
from deitctl.exporters.golden import set_golden_tolerance
from deitctl.exporters.network import (
    ExportedClassifier,
    silence_warnings,
    trace,
    wrap_conversion_errors,
)
from deitctl.exporters.quantize import LARGE, PRECISIONS
from deitctl.models.model_config import ModelConfig
from deitctl.paths import write_bytes

GRAPH, WEIGHTS = "model.xml", "model.bin"
FILES = (GRAPH, WEIGHTS)
SECTION = "deitctl"
"""Where the metadata are in the graph's `rt_info`."""
_LOAD = """\
import json, numpy, openvino
from PIL import Image

folder = "PATH"
core = openvino.Core()
model = core.read_model(f"{folder}/model.xml")
metadata = lambda key: json.loads(model.get_rt_info(["deitctl", key]).value)
preprocessing = metadata("preprocessing")
size = numpy.broadcast_to(preprocessing["img_size"], 2)  # height, width
# without the hint a CPU that has bf16 computes in it
network = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
# better: resized and cropped as under Preprocessing
image = Image.open("image.jpg").convert(preprocessing["channels"]).resize(size[::-1])
outputs = network(numpy.asarray(image).reshape(1, *size, -1))
probabilities = outputs["probabilities"][0]
"""
USAGE = f"""\
{_LOAD}print(metadata("class_names")[probabilities.argmax()], probabilities.max())
"""
MULTILABEL_USAGE = f"""\
{_LOAD}for index in outputs["labels"][0].nonzero()[0]:
    print(metadata("class_names")[index], probabilities[index])
"""


def export_openvino(
    network: ExportedClassifier, model_config: ModelConfig, metadata: Mapping[str, str], path: Path
) -> None:
    """Write a network for `openvino.Core().read_model("PATH/model.xml")`, weights in fp32.

    `model.get_rt_info(["deitctl", KEY])` returns the metadata.

    Raises:
        ExportError: the network has an operation that OpenVINO lacks.
    """
    import openvino

    program = trace(network)
    with wrap_conversion_errors(
        "The model cannot be written for OpenVINO", "Use --to onnx or --to torch."
    ):
        model = openvino.convert_model(program)
    ports = [*model.inputs, *model.outputs]
    names = [network.input_name, *network.output_names]
    for port, name in zip(ports, names, strict=True):
        port.get_tensor().set_names({name})  # the converter has numbers
    # the converter forgets all sizes where one is free
    model.reshape([-1, *network.make_example().shape[1:]])
    _save(model, metadata, path)


def quantize_openvino(source: Path, precision: str, target: Path, _: Pixels | None = None) -> None:
    """Write a folder anew with weights in fp16, which the runtime widens when it loads them."""
    import openvino

    metadata = set_golden_tolerance(
        {**read_metadata(source), "quantize": precision}, PRECISIONS[precision].tolerance
    )
    model = openvino.Core().read_model(source / GRAPH)
    with wrap_conversion_errors("The network cannot be quantized to fp16", "Leave --quantize out."):
        halve_matrices(model)
    _save(model, metadata, target)


def halve_matrices(model: Any) -> None:
    """Store large weights in fp16, each followed by a Convert to fp32; as `quantize.py` does of ONNX."""
    from openvino import opset13

    # Not by `save_model`, which rounds thresholds too: small ones to 0, which every image reaches.
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type().to_string() != "f32":
            continue
        weights = node.data
        if weights.size >= LARGE and weights.squeeze().ndim > 1:
            readers = node.output(0).get_target_inputs()
            with np.errstate(over="ignore"):  # becomes infinite, which the verification finds
                half = opset13.constant(weights.astype(np.float16))
            widened = opset13.convert(half, "f32")
            for reader in readers:
                reader.replace_source_output(widened.output(0))


def _save(model: Any, metadata: Mapping[str, str], path: Path) -> None:
    import openvino

    model.set_rt_info(dict(metadata), [SECTION])
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="deitctl-openvino-") as folder, silence_warnings():
        openvino.save_model(model, Path(folder) / GRAPH, compress_to_fp16=False)
        for name in (WEIGHTS, GRAPH):  # a graph without its weights never exists
            write_bytes(path / name, (Path(folder) / name).read_bytes())


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a folder, read without OpenVINO; none of another program's graph.

    Raises:
        ExportError: no such folder, or a graph that cannot be read.
    """
    try:
        # ElementTree opens no external entities, and expat (2.4.1 and later) limits their
        # expansion.
        section = ElementTree.parse(path / GRAPH).find(f"rt_info/{SECTION}")
    except (OSError, ElementTree.ParseError) as error:
        raise ExportError(f"{path} has no readable {GRAPH}: {error}") from error
    return {} if section is None else {entry.tag: entry.get("value", "") for entry in section}
