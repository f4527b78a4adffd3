"""An exported ONNX file as a classifier backend, run by onnxruntime without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deitctl.config import MAX_CHANS
from deitctl.cores import count_cores
from deitctl.data.band_image import count_channels
from deitctl.data.class_file import Classes, apply_class_names
from deitctl.data.eval_transform import Pixels
from deitctl.errors import ConfigError, ModelError
from deitctl.events import Reporter, SilentReporter
from deitctl.models.model_config import HEADS, ModelConfig, from_timm_config
from deitctl.models.tasks import CLASSIFICATION
from deitctl.paths import suggest_path
from deitctl.sizes import ImageSize, format_size, height_width, make_size, parse_size

SUFFIX = ".onnx"
MAX_BYTES = 2**31
"""Size of a file: protobuf's limit."""
INPUT, LOGITS, PROBABILITIES = "pixels", "logits", "probabilities"
MODEL_INPUT = "seen"
"""Output of `export --dynamic-size` files only: the resized image."""
BARE_LAYOUT = '"layout": "NCHW float32"'
EXPORT = "deitctl export MODEL --to onnx"
ROUNDING = 1e-3  # of int8 and fp16 files beyond 0..1
EXTERNAL_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
FATAL = 4  # onnxruntime's log level; lesser errors are raised as exceptions anyway

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class OnnxClassifier:
    """An onnxruntime session; normalization, head rule, temperature and probabilities are inside."""

    session: Any
    model_config: ModelConfig
    path: Path
    resizes_images: bool = False
    """Whether the resize is in the file too."""

    def scores(self, pixels: Pixels) -> Scores:
        """Return probabilities [B,K] of images uint8 [B,3,S,S], or [1,3,H,W] if it resizes.

        Raises:
            ModelError: the network fails, or its outputs are no probabilities.
        """
        scores = self._run(PROBABILITIES, pixels)
        # NaN passes here: it is an error of its image, not of the file
        if (scores < -ROUNDING).any() or (scores > 1 + ROUNDING).any():
            raise ModelError(
                f"{self.path} returns {scores.min():.3g} to {scores.max():.3g}, no probabilities."
            )
        return scores

    def logits(self, pixels: Pixels) -> Scores:
        """Return logits [B,K] of images uint8 [B,3,S,S], heads fused, before the temperature.

        Raises:
            ModelError: the network fails, or returns another shape.
        """
        return self._run(LOGITS, pixels)

    def _run(self, output: str, pixels: Pixels) -> Scores:
        try:
            values: Scores = self.session.run([output], {INPUT: pixels.transpose(0, 2, 3, 1)})[0]
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise ModelError(
                f"{self.path} cannot be run: {_shorten(error)[:200]}.",
                f"Export it again: {EXPORT}.",
            ) from error
        if values.shape != (len(pixels), self.model_config.num_classes):
            raise ModelError(f"{self.path} returns shape {values.shape} for {len(pixels)} images.")
        return values


def load_onnx_classifier(
    ref: str,
    *,
    weights: str,
    head: str,
    img_size: ImageSize,
    device: str,
    precision: str,
    classes: Classes = "",
    task: str = "auto",
    threshold: float | None = None,
    reporter: Reporter | None = None,
    allow_resizing: bool = False,
) -> OnnxClassifier:
    """Load an ONNX file that `deitctl export` wrote.

    Args:
        ref: the file.
        weights: must be empty.
        head: `auto`, or the head rule that the file was exported with.
        img_size: 0, or the file's input size in pixels.
        device: `auto` or `cpu`.
        precision: `auto` or `fp32`.
        classes: names for its classes; empty for the file's.
        task: `auto`, or that of the file.
        threshold: of all classes of a file of several labels; None for the file's.
        reporter: gets a note of names that are replaced or missing.
        allow_resizing: accept a file that resizes images itself.

    Raises:
        ModelError: no such file, damaged, not an export, of another head rule, size or task; or
            onnxruntime is missing.
        ConfigError: another device or precision.
    """
    if device not in ("auto", "cpu") or precision not in ("auto", "fp32"):
        raise ConfigError("An ONNX file runs on the CPU, in the precision that it was exported in.")
    if weights:
        raise ModelError(f"{ref} holds its own weights.", "Leave --weights out.")
    path = Path(os.path.expanduser(ref))
    session = _open_session(path)
    model_config, resizes_images = _read_model_config(session, path), _has_resize(session)
    if resizes_images and not allow_resizing:
        raise ModelError(
            f"{path} resizes images itself, and here they are resized before.",
            f"Use a file without --dynamic-size: {EXPORT}.",
        )
    if head not in ("auto", model_config.head):
        raise ModelError(
            f"{path} was exported with head rule {model_config.head}, not {head}.",
            f"Export it again: {EXPORT} --head {head}."
            if head in HEADS
            else f"There are: auto, {', '.join(HEADS)}.",
        )
    if img_size not in (0, model_config.preprocessing.img_size):
        raise ModelError(
            f"{path} takes images of {format_size(model_config.preprocessing.img_size)} pixels, not "
            f"{format_size(img_size)}."
        )
    if task not in ("auto", model_config.task):
        raise ModelError(
            f"{path} was exported for {model_config.task}, not {task}.",
            f"Export it again: {EXPORT} --task {task}.",
        )
    model_config = apply_class_names(model_config, classes, str(path), reporter or SilentReporter())
    model_config = model_config.with_task(task, threshold)
    return OnnxClassifier(session, model_config, path, resizes_images)


def _has_resize(session: Any) -> bool:
    return any(output.name == MODEL_INPUT for output in session.get_outputs())


def _open_session(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"There is no ONNX file {str(path)!r}.", suggest_path(path))
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(
            f"{path} is larger than an ONNX file can be: {path.stat().st_size:,} bytes."
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            "An ONNX file needs onnxruntime.", "Install it: `pip install onnxruntime`."
        ) from error
    onnxruntime.set_default_logger_severity(FATAL)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL
    options.intra_op_num_threads = _choose_num_threads()
    # Spinning threads would take the cores from decoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Weights in other files would be mapped, and end the process when such a file is cut; ours are
    # in the file itself. Nothing lies below a file.
    options.add_session_config_entry(EXTERNAL_DATA_FOLDER, str(path.absolute() / "none"))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # no common base, as above
        if "xternal data" in str(error):
            raise ModelError(
                f"{path} has its weights in another file, and only those in itself are read.",
                f"Export it again: {EXPORT}.",
            ) from error
        raise ModelError(
            f"{path} is not a readable ONNX file: {_shorten(error)[:200]}.",
            f"Export it again: {EXPORT}.",
        ) from error


def _choose_num_threads() -> int:
    limit = os.environ.get("OMP_NUM_THREADS", "")  # onnxruntime ignores it, and the affinity too
    return min(int(limit), count_cores()) if limit.isdecimal() and int(limit) else count_cores()


def _read_model_config(session: Any, path: Path) -> ModelConfig:
    """Return the config in the file's metadata, checked against its inputs and outputs."""
    metadata = session.get_modelmeta().custom_metadata_map
    if BARE_LAYOUT in metadata.get("preprocessing", ""):
        raise ModelError(
            f"{path} is a bare network, without normalization and probabilities.",
            "Export it again without --no-preprocess.",
        )
    outputs = {o.name: o.shape[1:] for o in session.get_outputs() if o.type == "tensor(float)"}
    classes, input_shape = outputs.get(PROBABILITIES, []), _read_input_shape(session)
    is_classifier = len(classes) == 1 and isinstance(classes[0], int)
    if (
        not input_shape
        or not is_classifier
        or outputs.get(LOGITS) != classes
        or "preprocessing" not in metadata
    ):
        raise ModelError(
            f"{path} is not an export of deitctl: it needs {INPUT} [B,S,S,3] in uint8, "
            f"{LOGITS} and {PROBABILITIES} [B,K] in float and their metadata.",
            f"Export the model it is from: {EXPORT}.",
        )
    if (head := metadata.get("head", "")) not in HEADS:
        raise ModelError(
            f"{path}'s metadata has the unknown head rule {head[:40]!r}.",
            f"Export it again: {EXPORT}.",
        )
    config = _to_timm_config(metadata, classes[0], str(path))
    model_config = from_timm_config(config, f"{path}'s metadata")
    pre = model_config.preprocessing
    if [*pre.hw, pre.in_chans] != input_shape:
        size = format_size(make_size(*input_shape[:2]))
        raise ModelError(
            f"{path} takes {size} pixels of {input_shape[2]} channels, "
            f"its metadata says {format_size(pre.img_size)} of {pre.in_chans}."
        )
    return model_config


def _read_input_shape(session: Any) -> list[int]:
    """Return [H,W,C] of the network behind any resize; empty if the input is not an export's."""
    inputs = session.get_inputs()
    if [i.name for i in inputs] != [INPUT] or inputs[0].type != "tensor(uint8)":
        return []
    shape = inputs[0].shape[1:]
    has_free_sides = len(shape) == 3 and not any(isinstance(side, int) for side in shape[:2])
    if _has_resize(session) and has_free_sides:
        shape = next(o.shape[1:] for o in session.get_outputs() if o.name == MODEL_INPUT)
    is_image = len(shape) == 3 and all(isinstance(n, int) for n in shape)
    is_image = is_image and 1 <= shape[2] <= MAX_CHANS
    return list(shape) if is_image else []


def _to_timm_config(metadata: Mapping[str, str], num_classes: int, where: str) -> dict[str, Any]:
    """Return an export's metadata in the layout of a config.json."""
    try:
        pre = json.loads(metadata["preprocessing"])
        return {
            "architecture": metadata["architecture"],
            "num_classes": num_classes,
            "label_names": json.loads(metadata.get("class_names", "null")),
            "label_descriptions": json.loads(metadata.get("descriptions", "null")),
            "pretrained_cfg": {
                **{k: pre[k] for k in ("crop_pct", "crop_mode", "interpolation")},
                **{k: pre["normalization"][k] for k in ("mean", "std")},
                "input_size": [
                    count_channels(str(pre.get("channels"))),
                    *height_width(parse_size(pre["img_size"])),
                ],
            },
            "deitctl": {
                "head": metadata["head"],
                "temperatures": {metadata["head"]: float(metadata["temperature"])},
                "value_range": pre.get("value_range"),
                "task": metadata.get("task", CLASSIFICATION),
                "thresholds": {metadata["head"]: json.loads(metadata["thresholds"])}
                if "thresholds" in metadata
                else None,
            },
        }
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{where} has unreadable metadata.", f"Export it again: {EXPORT}."
        ) from error


def _shorten(error: Exception) -> str:
    """Return an onnxruntime message without its error code and the path."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (first.partition(" failed:")[2] or first.rpartition(" : ")[2]).rstrip(".")
