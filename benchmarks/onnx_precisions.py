"""Measure what quantizing an ONNX file costs and gains, and which layers are better left in fp32.

    python benchmarks/onnx_precisions.py MODEL DATA [DATA...] --calibration-data DATA [--weights FILE]
        [--num-images 200] [--rounds 9]

The model is exported once in fp32; every other file is made from that one. `deitctl export --quantize` writes those
that are called fp16 and int8. The others are alternatives: arithmetic in fp16, one scale per matrix, the patch
embedding in int8, heads or layers in fp32, and static quantization (QDQ), calibrated on `--calibration-data`. Each
file runs on all images, sixteen at a time. Accuracy is among all classes of the model; agreement is with fp32; `off`
is the RMS difference of the logits relative to their spread, as in `exporters/compare.py`; `company` is that
difference between an image alone and among fifteen others; `gap` is the largest distance, in RMS differences, of the
two best logits of an image whose top-1 class changed. Speed is the time of fp32 divided by that of the file: the median
over rounds in which all files take turns, for 1 and for 16 images.

Last figures (2 shared cores with AVX-512 VNNI, one thread, onnxruntime 1.32): 200 images of ten ImageNet classes with
DeiT-tiny's published weights, and 355 of `digits` with a distilled DeiT-tiny of 32 pixels.

                                MB     x1   x16 | top-1  agree     off  company   gap | digits: x16  top-1     off
    fp32                     23.02   1.00  1.00 |  77.5  100.0  0.0000   0.0000   0.0 |       1.00   96.3  0.0000
    fp16                     11.65   0.98  1.00 |  77.5  100.0  0.0007   0.0000   0.0 |       1.03   96.3  0.0001
    fp16 arithmetic          11.59   0.90  0.96 |  77.5  100.0  0.0014   0.0004   0.0 |       0.94   96.3  0.0002
    int8                      6.66   1.87  1.84 |  77.0   99.0  0.0798   0.0970   1.3 |       2.01   96.3  0.0036
    int8, a scale a matrix    6.55   1.94  1.85 |  77.5  100.0  0.0973   0.0941   0.0 |       2.13   96.3  0.0044
    int8, patches too         6.22   1.66  1.70 |  77.0   99.5  0.0906   0.0985   1.2 |       1.91   96.3  0.0040
    int8, heads kept          7.23   1.88  1.84 |  77.0   99.0  0.0791   0.0961   1.4 |       2.07   96.3  0.0031
    int8, first block kept    7.98   1.77  1.76 |  77.5   99.0  0.0667   0.0716   3.0 |       2.00   96.3  0.0026
    int8, qkv kept           10.60   1.53  1.49 |  77.5  100.0  0.0765   0.0870   0.0 |       1.62   96.3  0.0028
    int8, fc2 kept           11.95   1.51  1.47 |  77.0   99.0  0.0574   0.0780   1.9 |       1.59   96.3  0.0035
    QDQ, linear layers        6.68   1.66  1.70 |  77.0   98.5  0.1241   0.0000   0.9 |       1.75   96.3  0.0065
    QDQ, attention too        6.71   1.38  1.51 |  77.5   98.0  0.1588   0.0000   3.4 |       1.60   96.3  0.0074
    QDQ, everything           6.19   1.35  1.70 |  75.0   91.5  0.3469   0.0000   3.4 |       1.78   96.1  0.0669

(Those of int8 and QDQ had weights of 8 bits then; since, 7. On an AMD EPYC with AVX2 and without VNNI, 60 of the 200
images: `off` is 0.118 with 8 bits, 0.090 with 7; QDQ of linear layers with 8 bits 0.143.)

On 24 photographs of 24 classes every file has 91.7 and agrees with fp32 on all.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from deitctl.data.classes import find_class, match_classes
from deitctl.data.dataset import ImageDataset
from deitctl.events import SilentReporter
from deitctl.exporters.metadata import collect_metadata
from deitctl.exporters.network import ExportedClassifier, silence_warnings
from deitctl.exporters.onnx import export_onnx
from deitctl.exporters.quantize import quantize_onnx
from deitctl.exporters.verification_images import Images, open_images, read_images
from deitctl.models.factory import load_model
from deitctl.models.model_config import ModelConfig

LINEAR = ["MatMul", "Gemm"]


def layers(path: Path) -> dict[str, str]:
    """Return the linear layers by the name of their node: what is added to their product is called as they are."""
    graph = onnx.load(path, load_external_data=False).graph
    weights = {w.name for w in graph.initializer}
    found = {
        n.name: n.input[1] for n in graph.node if n.op_type == "Gemm" and n.input[1] in weights
    }
    takers = {i: n for n in graph.node if n.op_type == "Add" for i in n.input}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            found[node.name] = next(i for i in takers[node.output[0]].input if i in weights)
    return found


class Reader(CalibrationDataReader):
    """Images, eight at a time."""

    def __init__(self, pixels: Any) -> None:
        self.batches: Iterator[Any] = iter(np.array_split(pixels, max(1, len(pixels) // 8)))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"pixels": batch}


def variants(plain: Path, calibration: Any) -> dict[str, Callable[[Path], Any]]:
    """Return every way to write the network of `plain` anew, by name."""
    named = layers(plain)

    def dynamic(
        target: Path,
        *,
        kept: str = "",
        ops: list[str] = LINEAR,
        channels: bool = True,
        reduce_range: bool = True,
    ) -> None:
        # heads are Gemm nodes, which onnxruntime splits, the product under a new name
        left = [
            name
            for node, layer in named.items()
            if kept and kept in layer
            for name in (node, f"{node}_MatMul")
        ]
        quantize_dynamic(
            plain,
            target,
            op_types_to_quantize=ops,
            per_channel=channels,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=left,
            reduce_range=reduce_range,
        )

    def static(target: Path, **which: Any) -> None:
        quantize_static(
            plain,
            target,
            Reader(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            reduce_range=True,
            **which,
        )

    def half_arithmetic(target: Path) -> None:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(onnx.load(plain), keep_io_types=True), target)

    return {
        "fp16": lambda t: quantize_onnx(plain, "fp16", t),
        "fp16 arithmetic": half_arithmetic,
        "int8": lambda t: quantize_onnx(plain, "int8", t),
        "int8, weights of 8 bits": lambda t: dynamic(t, reduce_range=False),
        "int8, a scale a matrix": lambda t: dynamic(t, channels=False),
        "int8, patches too": lambda t: dynamic(t, ops=[*LINEAR, "Conv"]),
        "int8, heads kept": lambda t: dynamic(t, kept="head"),
        "int8, first block kept": lambda t: dynamic(t, kept="blocks.0."),
        "int8, qkv kept": lambda t: dynamic(t, kept="qkv"),
        "int8, fc2 kept": lambda t: dynamic(t, kept="fc2"),
        "QDQ, linear layers": lambda t: static(t, nodes_to_quantize=list(named)),
        "QDQ, attention too": lambda t: static(t, op_types_to_quantize=LINEAR),
        "QDQ, everything": static,
    }


def truth(model_config: ModelConfig, dataset: ImageDataset, sample: Images) -> Any:
    """Return the classes of the images: of their folders, or of their names where these begin with a WordNet id."""
    match = match_classes(model_config, dataset.class_names)
    if match is None:
        return np.array(
            [find_class(model_config, Path(name).name.partition("_")[0]) for name in sample.names]
        )
    labels = {dataset.name(i): match.rows[label] for i, label in enumerate(dataset.labels)}
    return np.array([labels[name] for name in sample.names])


def open_session(path: Path) -> Any:
    """Start a session with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def answer(session: Any, pixels: Any, size: int = 16) -> Any:
    """Return the logits of images, [N,K]."""
    batches = np.array_split(pixels, range(size, len(pixels), size))
    return np.concatenate([session.run(["logits"], {"pixels": batch})[0] for batch in batches])


def off(given: Any, wanted: Any) -> float:
    """Return the RMS difference relative to the spread."""
    return float(rms(given - wanted) / rms(wanted - wanted.mean(axis=1, keepdims=True)))


def rms(values: Any) -> float:
    """Return the root of the mean of the squares."""
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


def speeds(sessions: dict[str, Any], pixels: Any, rounds: int) -> dict[str, float]:
    """Return how many times as fast as the first each session is, all taking turns."""
    took: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(["logits"], {"pixels": pixels})
            took[name].append(time.perf_counter() - start)
    return {
        n: statistics.median(a / b for a, b in zip(took["fp32"], t, strict=True))
        for n, t in took.items()
    }


def main() -> None:
    """Write all files, let all answer, print a row a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--calibration-data", required=True, help="Images of no DATA.")
    parser.add_argument("--weights", default="")
    parser.add_argument("--num-images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    quiet = SilentReporter()
    loaded = load_model(options.model, weights=options.weights, reporter=quiet)
    model_config, head = loaded.model_config, loaded.model_config.head or "cls"
    calibration = read_images(
        open_images("", options.calibration_data, quiet).dataset, model_config.preprocessing, 64
    ).pixels
    with tempfile.TemporaryDirectory() as folder:
        files = {"fp32": Path(folder) / "fp32.onnx"}
        network = ExportedClassifier(loaded.model, model_config, head)
        export_onnx(
            network, model_config, collect_metadata(network, model_config, "onnx"), files["fp32"]
        )
        for number, (name, write) in enumerate(variants(files["fp32"], calibration).items()):
            files[name] = Path(folder) / f"{number}.onnx"
            with silence_warnings():
                write(files[name])
        sessions = {name: open_session(path) for name, path in files.items()}
        print(f"{'':24}{'MB':>6}  {'x1':>5} {'x16':>5}")
        one, many = (
            speeds(sessions, calibration[:n], options.rounds * k) for n, k in ((1, 3), (16, 1))
        )
        for name, path in files.items():
            print(
                f"{name:24}{path.stat().st_size / 1e6:6.2f}  {one[name]:5.2f} {many[name]:5.2f}",
                flush=True,
            )
        for data in options.data:
            dataset = open_images("", data, quiet).dataset
            sample = read_images(dataset, model_config.preprocessing, options.num_images)
            compare(sessions, sample, truth(model_config, dataset, sample), data)


def compare(sessions: dict[str, Any], sample: Images, classes: Any, data: str) -> None:
    """Print a row a file."""
    print(
        f"\n{len(classes)} images of {Path(data).name:12}{'top-1':>8} {'agree':>6} {'off':>7} {'company':>8} {'gap':>5}"
    )
    wanted = answer(sessions["fp32"], sample.pixels)
    best_two = np.sort(wanted, axis=1)[:, -2:]
    for name, session in sessions.items():
        given = answer(session, sample.pixels)
        same = given.argmax(axis=1) == wanted.argmax(axis=1)
        gap = ((best_two[:, 1] - best_two[:, 0])[~same] / (rms(given - wanted) or 1)).max(initial=0)
        company = off(answer(session, sample.pixels[:16], 1), given[:16])
        right = 100 * (given.argmax(axis=1) == classes).mean()
        print(
            f"{name:27} {right:8.1f} {100 * same.mean():6.1f} {off(given, wanted):7.4f} {company:8.4f} {gap:5.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
