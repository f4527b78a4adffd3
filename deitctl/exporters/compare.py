"""Run an export in a fresh process, and measure how far its outputs are from the model's.

Shapes:
    N images, S pixels along a side, K classes, C outputs: logits, probabilities where the format has
    them, labels of a multi-label model where it has those
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deitctl.data.eval_transform import Pixels
from deitctl.errors import ExportError
from deitctl.exporters.golden import Golden
from deitctl.exporters.verification_images import Outputs
from deitctl.models.model_config import ModelConfig
from deitctl.models.tasks import choose_labels
from deitctl.records import hidden

RUNNER = Path(__file__).with_name("runner.py")
CLEAR = 6.0
"""RMS differences between the two best logits of a clear image. Of DeiT-tiny's images 85 % are.
Those whose top-1 class int8 changed were up to 1.3 apart, 3.4 with other ways to quantize. A model
of digits that int8 of all operations had damaged failed by this alone: 12 apart, the RMS 0.07 of
the spread."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How far an export's outputs are from its model's."""

    num_verified: int = 0
    """Images compared; 0 where the format's runtime is for another system."""
    data: str | None = None
    """Where the images are from; null where none was compared."""
    split: str | None = None
    """Which images of it: train, val, test or all. Of data that has none, `val` is what the model's
    run held out."""
    num_train_images: int | None = None
    """Images among them that the model was trained on; null if that is not known."""
    max_abs_diff: float | None = None
    """Largest difference of a logit or a probability."""
    top1_agreement: float | None = None
    """Percent of the images with the same top-1 class; null for a multi-label model."""
    labels_agreement: float | None = None
    """Of a multi-label model, percent of the images with the same labels."""
    relative_diff: float | None = None
    """Of a quantized export: the RMS difference of its logits relative to their spread."""
    top1: float | None = None
    """Accuracy of the export in percent; null where the model does not have the images' labels, and for
    a multi-label model."""
    model_top1: float | None = None
    """Accuracy of the model on the same images in percent."""
    differing: tuple[str, ...] = ()
    """Images with another top-1 class, whose two best logits are as close as the outputs differ; of a
    multi-label model with other labels, whose probability is as close to its threshold."""
    preds: tuple[int, ...] = hidden(default=())
    """The export's top-1 class of each image."""
    remark: str = hidden(default="")
    """What else was measured, in a sentence."""


def run_export(name: str, path: Path, inputs: Path) -> Outputs:
    """Run an export of the format `name` in a fresh process on images, see runner.py.

    Returns:
        Its outputs [C,N,K]. What else the runner writes lies beside `inputs`.

    Raises:
        ExportError: it does not run.
    """
    output = inputs.with_name("out.npy")
    # -P: else the modules beside the runner would shadow the packages onnx, openvino and so on
    # A fresh process, so that nothing this one has imported or patched can make an export work that
    # fails elsewhere.
    command = [sys.executable, "-P", str(RUNNER), name, str(path.resolve()), str(inputs)]
    process = subprocess.run(
        [*command, str(output)], capture_output=True, text=True, errors="replace", check=False
    )
    if process.returncode:
        # A runtime that crashes leaves nothing on stderr. Of a traceback the last line is the
        # reason.
        lines = (process.stderr.strip() or _describe_exit(process.returncode)).splitlines()
        raise ExportError(f"The export does not run in a fresh process: {lines[-1][:300]}")
    result: Outputs = np.load(output)
    return result


def _describe_exit(code: int) -> str:
    if code == -getattr(signal, "SIGBUS", 0):  # of a runtime that maps the export's files
        return "a file of it was changed while in use"
    return f"exit code {code}"


def run_on_pixels(name: str, path: Path, pixels: Pixels) -> Outputs:
    """Return an export's outputs [C,N,K] for images [N,S,S,3], run in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="deitctl-verify-") as folder:
        np.save(Path(folder) / "in.npy", pixels)
        return run_export(name, path, Path(folder) / "in.npy")


def run_checked(name: str, path: Path, pixels: Pixels, golden: Golden | None) -> Outputs:
    """Return an export's outputs [C,N,K] for images [N,S,S,3], after its golden sample's check."""
    if golden is None:
        return run_on_pixels(name, path, pixels)
    # One process for both: starting a runtime takes seconds. The golden sample comes first, and so
    # is run as a batch of one.
    outputs = run_on_pixels(name, path, np.concatenate([golden.pixels, pixels]))
    golden.check(outputs[0, 0])
    return outputs[:, 1:]


def list_cutoffs(model_config: ModelConfig) -> Outputs | None:
    """Return the logits and the probabilities, [2,K], from which a multi-label model predicts a class.

    None of a model of one class an image.
    """
    if not model_config.is_multilabel:
        return None
    thresholds = np.array(model_config.list_thresholds(model_config.head))
    with np.errstate(divide="ignore"):  # infinite for thresholds of 0 and 1
        logits = np.log(thresholds) - np.log1p(-thresholds)
    return np.stack([model_config.temperature(model_config.head) * logits, thresholds]).astype(
        np.float32
    )


def choose_classes(outputs: Outputs, cutoffs: Outputs | None) -> NDArray[np.bool_]:
    """Return which classes outputs [C,N,K] predict, [N,K]: the top-1 class, or several labels.

    Args:
        outputs: of an export or of the model.
        cutoffs: from `list_cutoffs`.
    """
    if cutoffs is None:
        classes: NDArray[np.bool_] = np.eye(outputs.shape[2], dtype=bool)[outputs[0].argmax(axis=1)]
        return classes
    if len(outputs) == 3:
        labels: NDArray[np.bool_] = outputs[2] > 0.5
        return labels
    kind = len(outputs) - 1  # logits where there are no probabilities
    return choose_labels(outputs[kind], cutoffs[kind])


def find_clear_errors(
    outputs: Outputs, expected: Outputs, cutoffs: Outputs | None, limit: float, *, kind: int
) -> NDArray[np.bool_]:
    """Return the images, [N], of which an export predicts others of the classes that are clear.

    Args:
        outputs: of the export, [C,N,K].
        expected: of the model.
        cutoffs: from `list_cutoffs`.
        limit: a class is clear whose output is further than this from where it is no longer predicted,
            or is: the second best logit, or the cutoff.
        kind: which output that is: 0 for logits, 1 for probabilities.
    """
    differs = choose_classes(outputs, cutoffs) != choose_classes(expected[: len(outputs)], cutoffs)
    if cutoffs is None:
        best_two = np.sort(expected[0], axis=1)[:, -2:]
        distance = best_two[:, -1:] - best_two[:, :1]
    else:
        distance = np.abs(expected[kind] - cutoffs[kind])
    clear: NDArray[np.bool_] = (differs & (distance > limit)).any(axis=1)
    return clear


def measure(
    outputs: Outputs, expected: Outputs, names: Sequence[str], cutoffs: Outputs | None = None
) -> Verification:
    """Return how far an export's outputs [C,N,K] are from the model's.

    Args:
        outputs: of the export.
        expected: of the model, [2,N,K].
        names: of the images.
        cutoffs: of a multi-label model, see `list_cutoffs`.

    Raises:
        ExportError: their shapes differ.
    """
    if outputs.shape[1:] != expected.shape[1:]:
        raise ExportError(
            f"The export's outputs have shape {outputs.shape[1:]}, "
            f"the model's {expected.shape[1:]}."
        )
    num_shared = min(len(outputs), len(expected))
    ours, theirs = (choose_classes(each, cutoffs) for each in (outputs, expected[:num_shared]))
    differs: NDArray[np.bool_] = (ours != theirs).any(axis=1)
    agreement = 100 * float(1 - differs.mean())
    return Verification(
        num_verified=len(names),
        max_abs_diff=float(np.abs(outputs[:num_shared] - expected[:num_shared]).max()),
        top1_agreement=agreement if cutoffs is None else None,
        labels_agreement=None if cutoffs is None else agreement,
        differing=tuple(name for name, other in zip(names, differs, strict=True) if other),
        preds=tuple(map(int, outputs[0].argmax(axis=1))),
    )


def describe_agreement(verification: Verification) -> str:
    """Return a clause on how many images an export predicts as the model does."""
    if verification.labels_agreement is not None:
        return f"labels agree on {verification.labels_agreement:.1f} %"
    return f"top-1 agrees on {verification.top1_agreement:.1f} %"


def compare(
    outputs: Outputs,
    expected: Outputs,
    names: Sequence[str],
    tolerance: float,
    cutoffs: Outputs | None = None,
) -> Verification:
    """Compare the outputs of an fp32 export, [C,N,K], with the model's; see `measure`.

    Raises:
        ExportError: they differ by more than `tolerance`, or in the top-1 class of an image whose
            two best logits are further apart than that difference; or in a label whose probability is
            further from its threshold.
    """
    verification = measure(outputs, expected, names, cutoffs)
    difference = verification.max_abs_diff
    assert difference is not None
    # Two logits closer than the difference may be exchanged by it: a tie that says nothing of the
    # export.
    wrong = find_clear_errors(outputs, expected, cutoffs, difference, kind=min(1, len(outputs) - 1))
    if not difference <= tolerance or wrong.any():  # written so that NaN fails
        example = f" (not on {verification.differing[0]})" if verification.differing else ""
        raise ExportError(
            f"The export disagrees with the model on {len(names)} images: outputs differ by up to "
            f"{difference:.3g} where {tolerance:g} is allowed, "
            f"{describe_agreement(verification)}{example}."
        )
    return verification


def compare_quantized(
    outputs: Outputs,
    expected: Outputs,
    names: Sequence[str],
    tolerance: float,
    cutoffs: Outputs | None = None,
) -> Verification:
    """Compare the outputs of a quantized export, [C,N,K], with the model's.

    No absolute tolerance fits: int8 moves DeiT-tiny's logits by 0.07 on average and 0.7 at most,
    those of a model of digits by 0.004. So the RMS difference is bounded relative to the
    spread of the model's logits, the RMS around the mean of each image (of a multi-label model, of
    all). The top-1 class may change where the two best logits are close, not where they are clearly
    apart; so may a label near its threshold. What this cannot see,
    such as a mean that is a little wrong, was excluded before: the same network in fp32 has passed
    `compare`.

    Raises:
        ExportError: the relative difference is beyond `tolerance`, or a clear image has another
            top-1 class or other labels.
    """
    verification, logits = measure(outputs, expected, names, cutoffs), expected[0]
    rms = _rms(outputs[0] - logits)
    # Around each image's mean, which a softmax does not depend on, and a sigmoid does.
    mean = logits.mean(axis=1, keepdims=True) if cutoffs is None else logits.mean()
    relative = rms / (_rms(logits - mean) or 1.0)  # a single class has no spread
    errors = find_clear_errors(outputs, expected, cutoffs, CLEAR * rms, kind=0)
    wrong = [name for name, bad in zip(names, errors, strict=True) if bad]
    if not relative <= tolerance or wrong:  # written so that NaN fails
        example = f", and {wrong[0]} is a clear image" if wrong else ""
        raise ExportError(
            f"The quantized export disagrees with the model on {len(names)} images: logits "
            f"differ by {relative:.3g} of their spread where {tolerance:g} is allowed, "
            f"{describe_agreement(verification)}{example}."
        )
    return replace(verification, relative_diff=relative)


def _rms(values: Outputs) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
