"""An exported ONNX file as a classifier, run by onnxruntime: no torch is imported for its answers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deitctl.cores import count_cores
from deitctl.data.eval_transform import Pixels
from deitctl.errors import ConfigError, ModelError
from deitctl.inference.predict import Scores
from deitctl.models.model_config import HEADS, ModelConfig, from_timm_config

SUFFIX = ".onnx"
MAX_BYTES = 2**31
"""Bytes of a file: protobuf's own limit."""
INPUT, LOGITS, PROBABILITIES = "pixels", "logits", "probabilities"
SEEN = "seen"  # an output that only files have which resize: what their network looks at
BARE_LAYOUT = '"layout": "NCHW float32"'
EXPORT = "deitctl export MODEL --to onnx"
ROUNDING = 1e-3
SILENT = 4  # onnxruntime's severity of what ends the process; the rest arrives as exceptions


@dataclass(frozen=True)
class OnnxClassifier:
    """A session of onnxruntime on the CPU; normalization, head rule, temperature and softmax are in the file."""

    session: Any
    model_config: ModelConfig
    path: Path
    takes_whole: bool = False
    """Whether the resize is in the file, too."""

    def scores(self, pixels: Pixels) -> Scores:
        """Classify images, uint8 [B,3,S,S], or [B,3,H,W] where it takes them whole: probabilities [B,K].

        Raises:
            ModelError: the file's network cannot be computed, or answers with something else.
        """
        scores = self._answer(PROBABILITIES, pixels)
        if (scores < -ROUNDING).any() or (
            scores > 1 + ROUNDING
        ).any():  # what is no number becomes a record's error
            raise ModelError(
                f"{self.path} answers with {scores.min():.3g} to {scores.max():.3g}, which are no probabilities."
            )
        return scores

    def logits(self, pixels: Pixels) -> Scores:
        """Answer images, uint8 [B,3,S,S]: logits [B,K], the heads joined, before the temperature.

        Raises:
            ModelError: as `scores`.
        """
        return self._answer(LOGITS, pixels)

    def _answer(self, output: str, pixels: Pixels) -> Scores:
        try:
            values: Scores = self.session.run([output], {INPUT: pixels.transpose(0, 2, 3, 1)})[0]
        except (
            Exception
        ) as error:  # onnxruntime has a class for each of its codes, and no base of them
            raise ModelError(
                f"{self.path} cannot be run: {_said(error)[:200]}.", f"Export it again: {EXPORT}."
            ) from error
        if values.shape != (len(pixels), self.model_config.num_classes):
            raise ModelError(
                f"{self.path} answers with shape {values.shape} to {len(pixels)} images."
            )
        return values


def load_onnx_classifier(
    ref: str,
    *,
    weights: str,
    head: str,
    img_size: int,
    device: str,
    precision: str,
    whole: bool = False,
) -> OnnxClassifier:
    """Load an ONNX file that `deitctl export` wrote.

    Args:
        ref: the file.
        weights: must be empty: they are in the file.
        head: `auto`, or the rule that the file was exported with.
        img_size: 0, or the size of the file's input in pixels.
        device: `auto` or `cpu`.
        precision: `auto` or `fp32`.
        whole: whether a file may be one that takes whole images and resizes them.

    Raises:
        ModelError: no such file, damaged, not one of ours, or of another rule or size; or onnxruntime is missing.
        ConfigError: a device or precision that the file is not run with.
    """
    if device not in ("auto", "cpu") or precision not in ("auto", "fp32"):
        raise ConfigError(
            "An ONNX file answers on the CPU, in the precision that it was exported in."
        )
    if weights:
        raise ModelError(f"{ref} holds its own weights.", "Leave --weights out.")
    path = Path(os.path.expanduser(ref))
    session = _open(path)
    model_config, takes_whole = _card(session, path), _takes_whole(session)
    if takes_whole and not whole:
        raise ModelError(
            f"{path} resizes images itself, and here they are resized before.",
            f"Use a file without --any-size: {EXPORT}.",
        )
    if head not in ("auto", model_config.head):
        hint = (
            f"Export it so: {EXPORT} --head {head}."
            if head in HEADS
            else f"There are: auto, {', '.join(HEADS)}."
        )
        raise ModelError(
            f"{path} answers with its head rule {model_config.head}, not {head}.", hint
        )
    if img_size not in (0, model_config.preprocessing.img_size):
        raise ModelError(
            f"{path} takes images of {model_config.preprocessing.img_size} pixels, not {img_size}."
        )
    return OnnxClassifier(session, model_config, path, takes_whole)


def _takes_whole(session: Any) -> bool:
    """Say whether a file is one of `export --any-size`."""
    return any(output.name == SEEN for output in session.get_outputs())


def _open(path: Path) -> Any:
    """Start a session, with as many threads as this process may use cores."""
    if not path.is_file():
        raise ModelError(f"There is no ONNX file {str(path)!r}.")
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(
            f"{path} is larger than an ONNX file can be: {path.stat().st_size:,} bytes."
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            "An ONNX file needs onnxruntime.", "pip install 'deitctl[onnx]'"
        ) from error
    onnxruntime.set_default_logger_severity(SILENT)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = _threads()
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # waiting threads leave decoding the cores
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as in `scores`
        raise ModelError(
            f"{path} is not a readable ONNX file: {_said(error)[:200]}.",
            f"Export it again: {EXPORT}.",
        ) from error


def _threads() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    cores = count_cores()
    return min(int(asked), cores) if asked.isdecimal() and int(asked) else cores


def _card(session: Any, path: Path) -> ModelConfig:
    """Read what the file says of itself, with the checks that a model folder's config.json gets."""
    inputs = {i.name: (i.type, i.shape[1:]) for i in session.get_inputs()}
    outputs = {o.name: o.shape[1:] for o in session.get_outputs() if o.type == "tensor(float)"}
    said = session.get_modelmeta().custom_metadata_map
    kind, shape = inputs.get(INPUT, ("", []))
    if (
        _takes_whole(session)
        and len(shape) == 3
        and not any(isinstance(side, int) for side in shape[:2])
    ):
        shape = next(o.shape[1:] for o in session.get_outputs() if o.name == SEEN)
    fits = (
        len(inputs) == 1
        and kind == "tensor(uint8)"
        and len(shape) == 3
        and shape[0] == shape[1]
        and shape[2] == 3
    )
    classes = outputs.get(PROBABILITIES, [])
    if BARE_LAYOUT in said.get("preprocessing", ""):
        raise ModelError(
            f"{path} is a bare network: it leaves normalization and softmax to its user.",
            "Export it again without --no-preprocess.",
        )
    answers = len(classes) == 1 and isinstance(classes[0], int) and outputs.get(LOGITS) == classes
    if not fits or not answers or "preprocessing" not in said:
        raise ModelError(
            f"{path} is not an export of deitctl: it needs {INPUT} [B,S,S,3] in uint8, {LOGITS} and {PROBABILITIES} [B,K] "
            "in float and their metadata.",
            f"Export the model it is from: {EXPORT}.",
        )
    if (head := said.get("head", "")) not in HEADS:
        raise ModelError(
            f"{path}'s metadata says that heads are joined by {head[:40]!r}.",
            f"Export it again: {EXPORT}.",
        )
    model_config = from_timm_config(_config(said, classes[0], str(path)), f"{path}'s metadata")
    if model_config.preprocessing.img_size != shape[0]:
        raise ModelError(
            f"{path} takes {shape[0]} pixels a side, its metadata says {model_config.preprocessing.img_size}."
        )
    return model_config


def _config(said: Mapping[str, str], num_classes: int, where: str) -> dict[str, Any]:
    """Return the metadata of `exporters.network.describe` in the layout of a config.json."""
    try:
        pre = json.loads(said["preprocessing"])
        return {
            "architecture": said["architecture"],
            "num_classes": num_classes,
            "label_names": json.loads(said.get("class_names", "null")),
            "label_descriptions": json.loads(said.get("descriptions", "null")),
            "pretrained_cfg": {
                **{k: pre[k] for k in ("crop_pct", "crop_mode", "interpolation")},
                **{k: pre["normalization"][k] for k in ("mean", "std")},
                "input_size": [3, pre["img_size"], pre["img_size"]],
            },
            "deitctl": {
                "head": said["head"],
                "temperatures": {said["head"]: float(said["temperature"])},
            },
        }
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{where} has metadata that cannot be read.", f"Export it again: {EXPORT}."
        ) from error


def _said(error: Exception) -> str:
    """Return what onnxruntime says, without its codes and the path, which is said already."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (first.partition(" failed:")[2] or first.rpartition(" : ")[2]).rstrip(".")
