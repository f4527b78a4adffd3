"""Verify an export in a fresh process: its golden sample, then real images against its model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deitctl.arithmetic import set_arithmetic
from deitctl.config import MAX_SIZE
from deitctl.data.band_image import count_channels
from deitctl.data.class_file import Classes, apply_class_names
from deitctl.data.classes import match_classes
from deitctl.data.dataset import ImageDataset
from deitctl.data.range_survey import scale_for
from deitctl.errors import ConfigError, ExportError
from deitctl.evaluation.images import ScoredImages
from deitctl.events import Reporter, SilentReporter
from deitctl.exporters.compare import (
    Verification,
    compare,
    compare_quantized,
    list_cutoffs,
    run_checked,
)
from deitctl.exporters.dynamic_size import has_dynamic_size
from deitctl.exporters.formats import Format, recognize_export
from deitctl.exporters.golden import read_golden
from deitctl.exporters.metadata import describe_model, read_stated_range
from deitctl.exporters.quantize import PRECISIONS
from deitctl.exporters.verification_images import (
    Images,
    Outputs,
    compute_reference,
    open_images,
    read_images,
)
from deitctl.exporters.verify_whole_images import verify_dynamic_size, verify_image_files
from deitctl.home import expand_home
from deitctl.models.checkpoint_io import CONFIG
from deitctl.models.factory import load_model
from deitctl.models.model_config import HEADS, ModelConfig
from deitctl.models.tasks import CLASSIFICATION, TASKS
from deitctl.sizes import ImageSize, long_side, parse_size, short_side

COMPARED = ("img_size", "resize_to", "crop_pct", "crop_mode", "interpolation")
"""Keys of the preprocessing that must be the model's."""


@dataclass(frozen=True, kw_only=True)
class ExportInfo:
    """What an export is."""

    path: Path
    """The file or folder."""
    format: str
    """As `--to` calls it."""
    quantize: str | None = None
    """The precision; null: fp32."""


# bases in this order, because dataclasses list the fields of the last base first
@dataclass(frozen=True, kw_only=True)
class VerifyResult(Verification, ExportInfo):
    """How far an export is from its model; without one, from its golden sample alone."""

    model: str | None = None
    """What it was compared with; null: nothing, only the golden sample was checked."""
    golden_diff: float
    """RMS difference of the golden sample's logits, in their standard deviations."""
    golden_tolerance: float
    """The largest `golden_diff` that passes."""


@set_arithmetic(tf32=False, deterministic=False)
def verify_export(
    path: str | Path,
    *,
    verify_data: str = "",
    model: str = "",
    weights: str = "",
    classes: Classes = "",
    num_images: int = 64,
    image_folder: str = "",
    reporter: Reporter | None = None,
) -> VerifyResult:
    """Run an export in a fresh process on its golden sample, and on images against its model.

    Args:
        path: a file or folder that `export` wrote.
        verify_data: data, a folder of images or an image; of a run's own data those that it was
            not trained on. Empty: the run's data, else `digits`.
        model: what to compare with, see `load_model`; empty: the run in whose folder the export
            lies, if it does.
        weights: see `load_model`.
        classes: names of the classes, see `deitctl.load`.
        num_images: how many images.
        image_folder: folder that the paths of a table in `verify_data` are below.
        reporter: receives progress.

    Raises:
        ExportError: no export of ours, or one that does not run or disagrees.
        ConfigError: images, and no model whose outputs could be compared.
        ModelError: no such model.
        DataError: no such images.
    """
    reporter = reporter or SilentReporter()
    export = expand_home(path)
    require_images(num_images)
    kind = recognize_export(export)
    if not kind.runs_here:
        raise ExportError(f"What runs {export} is for {kind.runs_on} alone.", "Verify it there.")
    metadata = kind.read_metadata(export)
    golden = read_golden(metadata, *_read_input(metadata, export))
    ref = model or _find_model_folder(export)
    if not ref and (verify_data or weights):
        raise ConfigError(
            f"There is no model to compare {export} with.",
            "Name the one that it was exported from: --model MODEL. "
            "Without images only the golden sample is checked.",
        )
    with reporter.task("check the golden sample", None, "bytes"):
        # Alone and first, because it needs no model: what fails here is the file's fault or the
        # runtime's.
        outputs = run_checked(kind.name, export, golden.pixels, golden)
        golden_diff = golden.compute_difference(outputs[0, 0])
    verification = Verification()
    if not ref:
        reporter.note(
            "Only the golden sample was checked; --model MODEL compares images with the model, too."
        )
    else:
        scored = open_images(weights or ref, verify_data, reporter, image_folder)
        loaded = load_model(ref, weights=weights, reporter=reporter)
        model_config = apply_class_names(loaded.model_config, classes, weights or ref, reporter)
        if (head := metadata.get("head", "")) not in HEADS:
            raise ExportError(f"{export} does not say how its heads are fused.", "Export it again.")
        # `export --value-range` and `--task` may have set others.
        model_config = model_config.with_value_range(read_stated_range(metadata))
        model_config = replace(model_config.with_task(_read_task(metadata, export)), head=head)
        pre = model_config.preprocessing
        dataset = scale_for(scored.dataset, pre.value_range)
        # A model that was trained further since would fail by its logits; this says why.
        _require_same_model(describe_model(model_config, head), metadata, export, ref)
        sample = read_images(dataset, pre, num_images)
        expected = compute_reference(loaded.model, model_config, head, sample.pixels)
        verification = verify_against_model(
            export, kind, expected, dataset, sample, model_config, reporter
        )
        verification = name_images(verification, scored, weights or ref, sample)
        note_ties(verification, reporter)
    return VerifyResult(
        path=export,
        format=kind.name,
        quantize=metadata.get("quantize"),
        golden_diff=golden_diff,
        golden_tolerance=golden.tolerance,
        model=ref or None,
        **vars(verification),
    )


def verify_against_model(
    path: Path,
    kind: Format,
    expected: Outputs,
    dataset: ImageDataset,
    sample: Images,
    model_config: ModelConfig,
    reporter: Reporter,
) -> Verification:
    """Run an export in a fresh process on golden sample and images, and compare it with its model.

    Args:
        path: the file or folder.
        kind: its format.
        expected: the model's outputs for `sample`, from `compute_reference`.
        dataset: where the images of `sample` are from.
        sample: the images.
        model_config: the model's config, with the head rule of the export.
        reporter: receives progress.

    Returns:
        How far it is from the model; an empty one where its runtime is for another system.

    Raises:
        ExportError: it does not run, or disagrees.
    """
    if not kind.runs_here:
        reporter.note(
            f"Written and not verified: its runtime is for {kind.runs_on} alone. "
            "`deitctl verify` verifies it there."
        )
        return Verification()
    with reporter.task("verify in a fresh process", len(sample.names)) as task:
        verification = _run_and_compare(path, kind, expected, dataset, sample, model_config)
        task.advance(verification.num_verified)
    if verification.remark:
        reporter.note(verification.remark)
    match = match_classes(model_config, dataset.class_names)
    # Where images were left out (too elongated to resize), preds and labels no longer pair up.
    is_single = not (model_config.is_multilabel or dataset.is_multilabel)
    if match is None or not is_single or verification.num_verified < len(sample.names):
        return verification
    targets = np.array(match.rows)[dataset.labels[list(sample.indices)]]
    top1, model_top1 = (
        100 * float((preds == targets).mean())
        for preds in (np.array(verification.preds), expected[0].argmax(axis=1))
    )
    return replace(verification, top1=top1, model_top1=model_top1)


def _run_and_compare(
    path: Path,
    kind: Format,
    expected: Outputs,
    dataset: ImageDataset,
    sample: Images,
    model_config: ModelConfig,
) -> Verification:
    """Compare as the metadata require: quantized or fp32, of one size or dynamic."""
    metadata = kind.read_metadata(path)
    pre, quantize = model_config.preprocessing, metadata.get("quantize")
    if quantize and quantize not in PRECISIONS:
        raise ExportError(
            f"{path} states the precision {quantize[:40]!r}, which deitctl does not write.",
            "Export it again.",
        )
    golden = read_golden(metadata, pre.img_size, pre.in_chans)
    tolerance = PRECISIONS[quantize].tolerance if quantize else None
    cutoffs = list_cutoffs(model_config)
    if has_dynamic_size(metadata):
        return verify_dynamic_size(
            path, golden, expected, dataset, sample, pre, tolerance=tolerance, cutoffs=cutoffs
        )
    outputs = run_checked(kind.name, path, sample.pixels, golden)
    if tolerance is not None:
        return compare_quantized(outputs, expected, sample.names, tolerance, cutoffs)
    verification = compare(outputs, expected, sample.names, kind.tolerance, cutoffs)
    # Only transformers' own preprocessing is verified from files; timm's is deitctl's, pixel by
    # pixel.
    if kind.labels is None:
        return verification
    labels = kind.labels(model_config)
    return verify_image_files(
        path, expected, dataset, sample, pre, labels, tolerance=kind.tolerance, cutoffs=cutoffs
    )


def name_images(
    verification: Verification, images: ScoredImages, model: str, sample: Images
) -> Verification:
    """Add to a verification which images it was on, and how many of them the model had learned."""
    if not verification.num_verified:
        return verification
    return replace(
        verification,
        data=images.data,
        split=images.split,
        num_train_images=images.count_train_images(model, sample.indices),
    )


def note_ties(verification: Verification, reporter: Reporter) -> None:
    """Report images with another top-1 class, or other labels, although the export was verified."""
    what, why = "another top-1 class", "their two best being"
    if verification.labels_agreement is not None:
        what, why = "other labels", "a probability and its threshold being"
    if differing := verification.differing:
        reporter.note(
            f"{len(differing)} of {verification.num_verified} images have {what}, "
            f"{why} as close as outputs differ "
            f"(by up to {verification.max_abs_diff:.2g}): "
            f"{', '.join(differing[:5])}" + (" and others." if len(differing) > 5 else ".")
        )


def require_images(num_images: int) -> None:
    """Raise `ConfigError` unless there is an image to verify on."""
    if num_images < 1:
        raise ConfigError(f"num_images = {num_images}: verification needs 1 image or more.")


def _find_model_folder(path: Path) -> str:
    """Return the model folder that an export lies in (`RUN/export/FILE`), or an empty string.

    Never the export itself: a timm folder is a model too, and would be its own reference.
    """
    folder = path.resolve().parent
    is_in_run = folder.name == "export" and (folder.parent / CONFIG).is_file()
    return str(folder.parent) if is_in_run else ""


def _read_input(metadata: Mapping[str, str], path: Path) -> tuple[ImageSize, int]:
    """Return the size and the channels of an export's input."""
    try:
        preprocessing = json.loads(metadata["preprocessing"])
        size = preprocessing["img_size"]
        if isinstance(size, str | bool) or not short_side(parse_size(size)) >= 1:
            raise ValueError("no size of an image")
        if long_side(size := parse_size(size)) > MAX_SIZE:
            raise ValueError("no size of an image")
        return size, count_channels(str(preprocessing.get("channels")))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ExportError(
            f"{path} has metadata that cannot be read.", "Export it again."
        ) from error


def _read_task(metadata: Mapping[str, str], path: Path) -> str:
    if (task := metadata.get("task", CLASSIFICATION)) not in TASKS:
        raise ExportError(f"{path} states the task {task[:40]!r}.", "Export it again.")
    return task


def _require_same_model(
    ours: Mapping[str, str], theirs: Mapping[str, str], path: Path, ref: str
) -> None:
    """Raise `ExportError` if an export has other classes, preprocessing, temperature or thresholds."""
    our_values, their_values = _flatten_preprocessing(ours), _flatten_preprocessing(theirs)
    differs = [key for key in our_values if our_values[key] != their_values[key]]
    differs += [
        key
        for key in ("architecture", "temperature", "class_names", "task", "thresholds")
        if ours.get(key) != theirs.get(key)
    ]
    if differs:
        raise ExportError(
            f"{path} was not exported from {ref} as it is now: {', '.join(differs)} differ.",
            "Export it again, or name its model.",
        )


def _flatten_preprocessing(metadata: Mapping[str, str]) -> dict[str, Any]:
    pre = json.loads(metadata["preprocessing"])
    normalization = pre["normalization"]
    return {key: pre.get(key) for key in COMPARED} | {
        key: normalization.get(key) for key in ("mean", "std")
    }
