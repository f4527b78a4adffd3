"""Evaluates models on labeled images: metrics, intervals, calibration and per-class scores."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from deitctl.data.class_file import Classes, apply_class_names
from deitctl.data.classes import NUMBERS, ClassMatch, match_classes
from deitctl.data.dataset import ImageDataset
from deitctl.data.range_survey import scale_for
from deitctl.data.splits import ALL
from deitctl.device import INFERENCE_PRECISION, Device, choose_device
from deitctl.distributed import is_main_process, process_group
from deitctl.errors import ConfigError, DataError, require_positive
from deitctl.evaluation.bootstrap import PairedComparison, bootstrap_intervals, compare_pair
from deitctl.evaluation.calibration import calibrate
from deitctl.evaluation.eval_model import PROTOCOLS, EvalModel, get_preprocessing
from deitctl.evaluation.images import ScoredImages, choose_images, is_run
from deitctl.evaluation.metrics import compute_reliability, count_confusions, score_classes
from deitctl.evaluation.real_labels import (
    map_to_imagenet,
    read_real_labels,
    require_real_labels,
    score_real_labels,
)
from deitctl.evaluation.result import (
    OUTSIDE_NAME,
    Confusion,
    EvalResult,
    EvalResults,
)
from deitctl.evaluation.subject import EvalSubject, name_classes
from deitctl.evaluation.validate import validate
from deitctl.events import Reporter, SilentReporter
from deitctl.home import expand_home
from deitctl.inference.onnx_classifier import SUFFIX, OnnxClassifier, load_onnx_classifier
from deitctl.models.catalog import DEFAULT_MODEL
from deitctl.models.checkpoint_io import CONFIG, load_model_config
from deitctl.models.factory import load_model
from deitctl.models.heads import choose_head
from deitctl.models.model_config import ModelConfig, parse_value_range
from deitctl.models.sources import get_stem, is_model_folder, name_weights
from deitctl.paths import read_json, require_writable, write_bytes, write_json
from deitctl.records import to_object
from deitctl.sizes import ImageSize

MAX_CONFUSIONS = 10
Network = nn.Module | OnnxClassifier


def evaluate_models(
    data: str = "",
    *,
    models: Sequence[str] = ("",),
    split: str = "",
    protocols: Sequence[str] = ("native",),
    weights: str = "",
    classes: Classes = "",
    head: str = "auto",
    batch_size: int = 64,
    img_size: ImageSize = 0,
    workers: int = -1,
    device: str = "auto",
    precision: str = "auto",
    predictions: str = "",
    real_labels: str = "",
    value_range: str = "auto",
    image_folder: str = "",
    save_temperature: bool = False,
    on_bad_image: str = "skip",
    reporter: Reporter | None = None,
) -> EvalResults:
    """Evaluate every model under every protocol in one pass over the images.

    Labels are matched with a model's classes by name or WordNet id.

    Args:
        data: a folder, tar, table or `digits`; or a run folder, whose held-out images it stands
            for. Empty: those of the first model that is a run's.
        models: see `load_model`; or ONNX files of `deitctl export`, which run on the CPU. Empty:
            the run that `data` is, else the default model.
        split: train, val, test or all; empty: see `choose_images`.
        protocols: preprocessing protocols, see `get_preprocessing`.
        weights: see `load_model`; for one model only.
        classes: names of the classes of every model, see `deitctl.load`.
        head: head rule of the predictions, `auto` for each model's own.
        batch_size: images per batch.
        img_size: another input size, pixels; 0 for each model's own.
        workers: loader processes, -1 chosen from the machine.
        device: see `choose_device`.
        precision: `auto` is fp32.
        predictions: JSON Lines file to write the result of every image to.
        real_labels: ReaL labels of ImageNet's validation images, see `read_real_labels`.
        value_range: of images of more than 8 bits whose files state none: `LOW,HIGH`, or `auto`:
            each model's own, or one for all of these images.
        image_folder: that the paths of a table are below; empty: where the table leads.
        save_temperature: whether to store the fitted temperatures in the folder of the one model.
        on_bad_image: `skip` leaves out an image that cannot be read, `stop` raises.
        reporter: shows progress.

    Raises:
        ConfigError: no such device, protocol or `on_bad_image`, a `batch_size` below 1, or weights
            or a temperature for several models.
        DataError: no such data, classes that a model does not have, or with `stop` an image that
            cannot be read.
        ModelError: no such model.
    """
    reporter = reporter or SilentReporter()
    own = data if is_run(data) else DEFAULT_MODEL
    models = list(dict.fromkeys(model or own for model in models))
    protocols = list(dict.fromkeys(protocols))
    require_positive(batch_size=batch_size)
    _check_options(models, protocols, weights, on_bad_image)
    # Before any work: an evaluation of hours must not end with a file that cannot be written.
    if save_temperature:
        _check_save_temperature(models, protocols, img_size)
    if predictions:
        require_writable(expand_home(predictions), "--predictions")
    real = read_real_labels(expand_home(real_labels)) if real_labels else None
    images = choose_images(
        data,
        [weights] if weights else models,
        split,
        image_folder=image_folder,
        reporter=reporter,
    )
    data, dataset = images.data, images.dataset
    if real is not None:
        require_real_labels(dataset, real)
    chosen = _choose_device(models, device, precision)
    chosen.tune_malloc()
    networks = [
        _load_network(
            ref,
            chosen,
            weights=weights,
            classes=classes,
            head=head,
            img_size=img_size,
            device=device,
            precision=precision,
            reporter=reporter,
        )
        for ref in models
    ]
    networks, dataset = _settle_ranges(networks, dataset, value_range, reporter)
    if real is not None:
        for _, model_config in networks:
            map_to_imagenet(model_config)  # refuses models of other classes before the pass
    subjects = _build_subjects(models, networks, protocols, data, dataset, reporter)
    _note_unknown_training(subjects, images, weights, reporter)
    results = _run_pass(
        subjects,
        chosen,
        real,
        batch_size=batch_size,
        workers=workers,
        stop_on_bad_image=on_bad_image == "stop",
        reporter=reporter,
    )
    names = _choose_names(models, protocols)
    evaluations = [
        replace(
            result,
            name=name,
            model=name_weights(result.model, weights),
            data=data,
            split=images.split,
            num_train_images=images.count_train_images(
                weights or result.model, result.indices.tolist()
            ),
        )
        for result, name in zip(results, names, strict=True)
    ]
    if is_main_process() and predictions:
        _write_predictions(evaluations, expand_home(predictions))
    if is_main_process() and save_temperature:
        _save_temperatures(evaluations[0], reporter)
    return EvalResults(
        data=data,
        evaluations=evaluations,
        comparisons=_compare_with_first(evaluations),
        device=chosen,
    )


def _is_onnx(ref: str) -> bool:
    return ref.lower().endswith(SUFFIX)


def _check_options(
    models: Sequence[str], protocols: Sequence[str], weights: str, on_bad_image: str
) -> None:
    """Raise `ConfigError` for values that do not exist or do not go together."""
    if on_bad_image not in ("skip", "stop"):
        raise ConfigError(f"--on-bad-image cannot be {on_bad_image!r}.", "It can be: skip, stop.")
    if weights and len(models) > 1:
        raise ConfigError(
            f"--weights is for one model, and there are {len(models)}.",
            "Name files or folders as models.",
        )
    if not protocols:
        raise ConfigError("No protocol is named.", f"There are: {', '.join(PROTOCOLS)}.")


def _check_save_temperature(
    models: Sequence[str], protocols: Sequence[str], img_size: ImageSize
) -> None:
    """Raise `ConfigError` unless a temperature can be fitted to one model and stored with it."""
    ref = models[0]
    if len(models) > 1 or list(protocols) != ["native"]:
        raise ConfigError(
            "--save-temperature is for one model under its own protocol.",
            "Evaluate that model only, with --protocol native.",
        )
    if _is_onnx(ref):
        raise ConfigError(
            f"{ref} has its temperature inside.",
            "Use --save-temperature on the model that it was exported from, and export it again.",
        )
    if not is_model_folder(ref):
        raise ConfigError(
            f"{ref} is not a model folder, so no temperature can be stored in it.",
            f"Make one: deitctl export {ref} --to timm --output FOLDER; then --model FOLDER.",
        )
    folder = expand_home(ref)
    require_writable(folder / CONFIG, "--model")
    own_size = load_model_config(folder).preprocessing.img_size
    if img_size not in (0, own_size):
        raise ConfigError(
            f"--save-temperature is for the model's own input size, {own_size} pixels, "
            f"not for {img_size}.",
            "Leave out --img-size.",
        )


def _choose_device(models: Sequence[str], device: str, precision: str) -> Device:
    only_onnx = all(_is_onnx(ref) for ref in models)
    return choose_device(
        "cpu" if only_onnx and device == "auto" else device,
        INFERENCE_PRECISION if precision == "auto" else precision,
    )


def _load_network(
    ref: str,
    chosen: Device,
    *,
    weights: str,
    classes: Classes,
    head: str,
    img_size: ImageSize,
    device: str,
    precision: str,
    reporter: Reporter,
) -> tuple[Network, ModelConfig]:
    """Load a model, a torch one onto the chosen device; its config has the head rule in use."""
    if _is_onnx(ref):
        # It runs on the CPU whatever the others do, so an explicit --device or --precision is
        # checked, not what was chosen for them.
        exported = load_onnx_classifier(
            ref,
            weights=weights,
            classes=classes,
            head=head,
            img_size=img_size,
            device=device,
            precision=precision,
            reporter=reporter,
        )
        return exported, exported.model_config
    loaded = load_model(ref, weights=weights, img_size=img_size, reporter=reporter)
    model_config = apply_class_names(loaded.model_config, classes, weights or ref, reporter)
    rule = choose_head(head, model_config.head, loaded.model)
    return chosen.to_device(loaded.model), replace(model_config, head=rule)


def _settle_ranges(
    networks: list[tuple[Network, ModelConfig]],
    dataset: ImageDataset,
    option: str,
    reporter: Reporter,
) -> tuple[list[tuple[Network, ModelConfig]], ImageDataset]:
    """Return models with the value range of the option, and images with one for the other models."""
    if (value_range := parse_value_range(option)) is not None:
        return [(network, config.with_value_range(value_range)) for network, config in networks], (
            dataset
        )
    if all(config.preprocessing.value_range is not None for _, config in networks):
        return networks, dataset

    def warn(message: str) -> None:
        reporter.warn(f"{message} The model has no range of its own.")

    return networks, scale_for(dataset, None, warn)


def _build_subjects(
    models: Sequence[str],
    networks: Sequence[tuple[Network, ModelConfig]],
    protocols: Sequence[str],
    data: str,
    dataset: ImageDataset,
    reporter: Reporter,
) -> list[EvalSubject]:
    """Return every model under every protocol, its classes matched with the data's."""
    matches = [
        _match_classes(model_config, dataset, data, reporter) for _, model_config in networks
    ]
    titles = name_classes(networks[0][1], matches[0], dataset.class_names)
    return [
        EvalSubject(
            ref=ref,
            protocol=protocol,
            eval_model=EvalModel(
                model=network,
                preprocessing=get_preprocessing(model_config, protocol),
                rows=match.rows,
                head=model_config.head,
                temperature=model_config.temperature(model_config.head),
            ),
            model_config=model_config,
            dataset=dataset,
            match=match,
            class_titles=titles,
        )
        for ref, (network, model_config), match in zip(models, networks, matches, strict=True)
        for protocol in protocols
    ]


def _match_classes(
    model_config: ModelConfig, dataset: ImageDataset, data: str, reporter: Reporter
) -> ClassMatch:
    """Find the data's classes among the model's; raise `DataError` if one is missing."""
    names = dataset.class_names
    match = match_classes(model_config, names)
    if match is None:
        missing = [name for name in names if match_classes(model_config, [name]) is None]
        example = f", for example {missing[0]!r}" if missing else ""
        classes = (
            "without names"
            if model_config.class_names is None
            else f"such as {model_config.label(0)!r}"
        )
        # Numbers above those of `digits` are probably a part of ImageNetV2. They are not matched,
        # because they could be any model's class numbers.
        if missing and set(names) <= NUMBERS and max(map(int, names)) > 99:
            classes += "; numbers are read as ImageNetV2's only if all of 0 to 999 have images"
        raise DataError(
            f"The model does not have {len(missing)} of the {len(names)} classes of {data}"
            f"{example}; its {model_config.num_classes} classes are {classes}.",
            "--classes FILE names its classes."
            if model_config.class_names is None
            else "Evaluate a model that was trained on these classes.",
        )
    if match.kind == "numbers":
        reporter.note(
            f"The folders of {data} are named 0 to 999: they are read as ImageNet's class numbers, "
            "as in ImageNetV2."
        )
    return match


def _note_unknown_training(
    subjects: Sequence[EvalSubject], images: ScoredImages, weights: str, reporter: Reporter
) -> None:
    """Say where a file of no run may have been trained on the data: it has exactly its classes."""
    if images.split != ALL:
        return
    for subject in {subject.ref: subject for subject in subjects}.values():
        ref, config = weights or subject.ref, subject.model_config
        is_file = expand_home(ref).exists() and ref not in images.train_masks
        # ImageNet's classes have descriptions, and its val is not trained on.
        if is_file and subject.match.kind != "subset" and config.descriptions is None:
            reporter.note(
                f"Whether {ref} was trained on some of these images is not known. If it is of a "
                f"run: deitctl eval RUN --model {shlex.quote(ref)} scores those held out."
            )


def _run_pass(
    subjects: Sequence[EvalSubject],
    device: Device,
    real: list[list[int]] | None,
    *,
    batch_size: int,
    workers: int,
    stop_on_bad_image: bool,
    reporter: Reporter,
) -> list[EvalResult]:
    """Validate all subjects in one pass over their dataset, and add what needs no other pass."""
    with process_group(device.torch_device) as world:
        results = validate(
            [subject.eval_model for subject in subjects],
            subjects[0].dataset,
            device=device,
            batch_size=batch_size,
            workers=device.choose_num_workers(workers),
            reporter=reporter,
            world=world,
            stop_on_bad_image=stop_on_bad_image,
            store_logits=True,
            require_finite=True,
        )
    return [
        _add_details(result, subject, real, is_main=world.is_main)
        for result, subject in zip(results, subjects, strict=True)
    ]


def _choose_names(models: Sequence[str], protocols: Sequence[str]) -> list[str]:
    """Name results by what differs: the last part of the model's path, the protocol, or both."""
    last_parts = [get_stem(ref) for ref in models]
    if len(models) == 1:
        return last_parts if len(protocols) == 1 else list(protocols)
    names = last_parts if len(set(last_parts)) == len(models) else models
    if len(protocols) == 1:
        return list(names)
    return [f"{name}, {protocol}" for name in names for protocol in protocols]


def _add_details(
    result: EvalResult, subject: EvalSubject, real: list[list[int]] | None, *, is_main: bool
) -> EvalResult:
    """Add to the metrics of a pass what `EvalResult` has besides; only the main process calibrates."""
    class_names = subject.dataset.class_names
    labels, preds = result.labels.numpy(), result.data_preds.numpy()
    per_class = score_classes(labels, preds, class_names, subject.class_titles)
    calibration = None
    if is_main and result.logits is not None:
        targets = result.targets[result.logit_rows]
        calibration = calibrate(result.logits, targets, result.head)
    real_labels = None
    if real is not None:
        to_imagenet = map_to_imagenet(subject.model_config)
        real_labels = score_real_labels(result, subject.dataset, to_imagenet, real)
    return replace(
        result,
        model=subject.ref,
        protocol=subject.protocol,
        subject=subject,
        # The calibration error has none: resampling increases it, so its interval would miss it.
        loss_interval=bootstrap_intervals({"loss": result.losses.numpy()})["loss"],
        calibration=calibration,
        real_labels=real_labels,
        reliability=compute_reliability(result.confidences, result.correct),
        per_class=per_class,
        confusions=[
            Confusion(
                class_names[label],
                class_names[pred] if pred < len(class_names) else OUTSIDE_NAME,
                num_images,
            )
            for label, pred, num_images in count_confusions(labels, preds, MAX_CONFUSIONS)
        ],
    )


def _compare_with_first(results: Sequence[EvalResult]) -> list[PairedComparison]:
    """Compare the first with each of the others.

    Models with different classes are compared among the data's classes only.
    """
    classes = {
        frozenset(r.subject.model_config.class_names or ()) or r.subject.model_config.num_classes
        for r in results
        if r.subject
    }
    among_classes = len(classes) > 1
    correct = [
        (r.preds_among_classes == r.labels if among_classes else r.correct).numpy() for r in results
    ]
    return [
        compare_pair(
            results[0].name, other.name, correct[0], other_correct, among_classes=among_classes
        )
        for other, other_correct in zip(results[1:], correct[1:], strict=True)
    ]


def _write_predictions(evaluations: Sequence[EvalResult], path: Path) -> None:
    images = (image for evaluation in evaluations for image in evaluation.iter_images())
    write_bytes(path, "".join(json.dumps(to_object(i)) + "\n" for i in images).encode())


def _save_temperatures(result: EvalResult, reporter: Reporter) -> None:
    """Write the fitted temperatures into the config.json of the model's folder."""
    calibration = result.calibration
    if calibration is None:
        reporter.warn(
            f"No temperature fits {result.model} on {result.data} (top-1 {result.top1:.1f} %), "
            "so none is stored. Use more images, among them some that it predicts wrongly."
        )
        return
    path = expand_home(result.model) / CONFIG
    config = read_json(path)
    own = config.get("deitctl") or {}
    config["deitctl"] = {**own, "temperatures": calibration.temperatures}
    write_json(path, config)
    reporter.note(
        f"Stored in {path}: temperature {calibration.temperature:.3f} (head {result.head}); "
        f"expected calibration error {result.ece:.4f} -> {calibration.ece:.4f}."
    )
