"""OpenVINO: a folder with the network as XML, its weights beside it, that Intel's runtime compiles for CPU, GPU or NPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from deitctl.data.eval_transform import Pixels
from deitctl.errors import ExportError
from deitctl.exporters.golden import GOLDEN
from deitctl.exporters.network import ExportedClassifier, quietly, trace
from deitctl.exporters.quantize import PRECISIONS
from deitctl.models.model_config import ModelConfig
from deitctl.paths import write_bytes

GRAPH, WEIGHTS = "model.xml", "model.bin"
FILES = (GRAPH, WEIGHTS)
SECTION = "deitctl"
"""Where the metadata is in the graph's `rt_info`."""
USAGE = """\
import json, numpy, openvino
from PIL import Image

folder = "PATH"
core = openvino.Core()
model = core.read_model(f"{folder}/model.xml")
said = lambda key: json.loads(model.get_rt_info(["deitctl", key]).value)
size = said("preprocessing")["img_size"]
network = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # left out: bf16 on CPUs that have it
image = Image.open("image.jpg").convert("RGB").resize((size, size))  # better: as under Preprocessing
probabilities = network(numpy.asarray(image)[None])["probabilities"][0]
print(said("class_names")[probabilities.argmax()], probabilities.max())
"""


def export_openvino(
    network: ExportedClassifier, model_config: ModelConfig, metadata: Mapping[str, str], path: Path
) -> None:
    """Write a network for `openvino.Core().read_model("PATH/model.xml")`, weights in fp32.

    Args:
        network: what to write.
        model_config: its config.
        metadata: what `model.get_rt_info(["deitctl", KEY])` gives back.
        path: the folder.

    Raises:
        ExportError: the network has an operation that OpenVINO lacks.
    """
    import openvino

    program = trace(network)
    try:
        with quietly():
            model = openvino.convert_model(program)
    except Exception as error:  # the converter wraps what its hundred translations raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ExportError(
            f"The model cannot be written for OpenVINO: {first}", "Use --to onnx or --to torch."
        ) from error
    for port, name in zip(
        [*model.inputs, *model.outputs], [network.takes, *network.gives], strict=True
    ):
        port.get_tensor().set_names({name})  # the converter has numbers
    model.reshape(
        [-1, *network.example().shape[1:]]
    )  # the converter forgets all sizes where one is free
    _save(model, metadata, path, half=False)


def quantize_openvino(source: Path, precision: str, target: Path, _: Pixels | None = None) -> None:
    """Write a folder anew with weights in fp16, which the runtime widens when it loads them.

    Args:
        source: what `export_openvino` wrote.
        precision: `fp16`.
        target: the new folder.
    """
    import openvino

    metadata = {**read_metadata(source), "quantize": precision}
    if GOLDEN in metadata:
        sample = json.loads(metadata[GOLDEN]) | {"tolerance": PRECISIONS[precision].tolerance}
        metadata[GOLDEN] = json.dumps(sample)
    _save(openvino.Core().read_model(source / GRAPH), metadata, target, half=True)


def _save(model: Any, metadata: Mapping[str, str], path: Path, *, half: bool) -> None:
    import openvino

    model.set_rt_info(dict(metadata), [SECTION])
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="deitctl-openvino-") as folder, quietly():
        openvino.save_model(model, Path(folder) / GRAPH, compress_to_fp16=half)
        for name in (WEIGHTS, GRAPH):  # a graph without its weights is never there
            write_bytes(path / name, (Path(folder) / name).read_bytes())


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a folder, read without OpenVINO; nothing of a graph that somebody else wrote.

    Raises:
        ExportError: no such folder, or a graph that cannot be read.
    """
    try:
        found = ElementTree.parse(path / GRAPH).find(f"rt_info/{SECTION}")
    except (OSError, ElementTree.ParseError) as error:
        raise ExportError(f"{path} has no readable {GRAPH}: {error}") from error
    return {} if found is None else {entry.tag: entry.get("value", "") for entry in found}
