"""Evaluates models on labeled images: metrics, intervals, calibration and per-class scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deitctl.data.open_once import open_once
from deitctl.data.stores.store_settings import reading_stores
from deitctl.device import Device
from deitctl.distributed import World, is_main_process, process_group
from deitctl.evaluation.details import add_details, add_label_details, compare_with_first
from deitctl.evaluation.images import ScoredImages, choose_images, find_in_chans, is_run
from deitctl.evaluation.multilabel_bootstrap import compare_all
from deitctl.evaluation.multilabel_result import MultilabelResult, Result
from deitctl.evaluation.networks import choose_eval_device, load_network, settle_ranges
from deitctl.evaluation.options import EvalOptions, check_options
from deitctl.evaluation.real_labels import (
    map_to_imagenet,
    read_real_labels,
    require_real_labels,
)
from deitctl.evaluation.result import EvalResult
from deitctl.evaluation.results import EvalResults
from deitctl.evaluation.subject import (
    EvalSubject,
    build_subjects,
    drop_unknown_classes,
    note_unknown_training,
    settle_kind,
)
from deitctl.evaluation.thresholds import save_temperatures, save_thresholds
from deitctl.evaluation.validate import validate
from deitctl.events import Reporter, SilentReporter
from deitctl.home import expand_home
from deitctl.models.catalog import DEFAULT_MODEL
from deitctl.models.sources import get_stem, name_weights
from deitctl.paths import write_bytes
from deitctl.records import to_object

RealLabels = list[list[int]]


def evaluate_models(
    data: str = "",
    *,
    models: Sequence[str] = ("",),
    protocols: Sequence[str] = ("native",),
    reporter: Reporter | None = None,
    **options: Any,
) -> EvalResults:
    """Evaluate every model under every protocol in one pass over the images.

    Labels are matched with a model's classes by name or WordNet id.

    Args:
        data: a folder, tar, table or `digits`; or a run folder, whose held-out images it stands
            for. Empty: those of the first model that is a run's.
        models: see `load_model`; or ONNX files of `deitctl export`, which run on the CPU. Empty:
            the run that `data` is, else the default model.
        protocols: preprocessing protocols, see `get_preprocessing`.
        reporter: shows progress.
        options: the fields of `EvalOptions`.

    Raises:
        ConfigError: no such device, protocol or `on_bad_image`, a `batch_size` below 1, or weights
            or what is to be stored for several models.
        DataError: no such data, classes that a model does not have, labels of another kind than a
            model's, or with `stop` an image that cannot be read.
        ModelError: no such model.
    """
    eval_options, reporter = EvalOptions(**options), reporter or SilentReporter()
    own = data if is_run(data) else DEFAULT_MODEL
    models = list(dict.fromkeys(model or own for model in models))
    protocols = list(dict.fromkeys(protocols))
    check_options(models, protocols, eval_options)
    real = (
        read_real_labels(expand_home(eval_options.real_labels))
        if eval_options.real_labels
        else None
    )
    device = choose_eval_device(models, eval_options.device, eval_options.precision)
    with process_group(device.torch_device) as world:
        images = open_once(
            lambda: _choose_images(data, models, eval_options, reporter),
            world,
            lambda images: [images.dataset],
        )
        device.tune_malloc()
        subjects = _load_subjects(
            models, protocols, images, real, device, eval_options, reporter, world
        )
        note_unknown_training(subjects, images, eval_options.weights, reporter)
        results = _run_pass(subjects, device, real, eval_options, reporter, world)
    evaluations = _name_results(results, models, protocols, images, eval_options.weights)
    if is_main_process():
        _note_fitted_thresholds(evaluations, reporter)
        _write_outputs(evaluations, eval_options, reporter)
    return EvalResults(
        data=images.data,
        evaluations=evaluations,
        comparisons=_compare(evaluations),
        device=device,
    )


def _choose_images(
    data: str, models: Sequence[str], options: EvalOptions, reporter: Reporter
) -> ScoredImages:
    by_weights = [options.weights] if options.weights else models
    with reading_stores(options.cache_dir, options.cache_size, reporter):
        return choose_images(
            data,
            by_weights,
            options.split,
            image_folder=options.image_folder,
            task=options.task,
            in_chans=find_in_chans(by_weights),
            reporter=reporter,
        )


def _load_subjects(
    models: Sequence[str],
    protocols: Sequence[str],
    images: ScoredImages,
    real: RealLabels | None,
    device: Device,
    options: EvalOptions,
    reporter: Reporter,
    world: World,
) -> list[EvalSubject]:
    """Load every model, and match it with the images under every protocol."""
    data, dataset = images.data, images.dataset
    if real is not None:
        require_real_labels(dataset, real)
    networks = [load_network(ref, device, options, reporter) for ref in models]
    networks, dataset = settle_ranges(networks, dataset, options.value_range, reporter, world)
    configs = [config for _, config in networks]
    dataset = drop_unknown_classes(configs, settle_kind(models, configs, data, dataset, reporter))
    if real is not None:
        for _, model_config in networks:
            map_to_imagenet(model_config)  # refuses models of other classes before the pass
    return build_subjects(models, networks, protocols, data, dataset, reporter)


def _run_pass(
    subjects: Sequence[EvalSubject],
    device: Device,
    real: RealLabels | None,
    options: EvalOptions,
    reporter: Reporter,
    world: World,
) -> list[Result]:
    """Validate all subjects in one pass over their dataset, and add what needs no other pass."""
    results = validate(
        [subject.eval_model for subject in subjects],
        subjects[0].dataset,
        device=device,
        batch_size=options.batch_size,
        workers=device.choose_num_workers(options.workers),
        reporter=reporter,
        world=world,
        stop_on_bad_image=options.on_bad_image == "stop",
        store_logits=True,
        require_finite=True,
    )
    return [
        add_label_details(result, subject, is_main=world.is_main)
        if isinstance(result, MultilabelResult)
        else add_details(result, subject, real, is_main=world.is_main)
        for result, subject in zip(results, subjects, strict=True)
    ]


def _name_results(
    results: Sequence[Result],
    models: Sequence[str],
    protocols: Sequence[str],
    images: ScoredImages,
    weights: str,
) -> list[Result]:
    """Return the results with the names of model, data and split, and how many images were trained on."""
    return [
        replace(
            result,
            name=name,
            model=name_weights(result.model, weights),
            data=images.data,
            split=images.split,
            num_train_images=images.count_train_images(
                weights or result.model, result.indices.tolist()
            ),
        )
        for result, name in zip(results, _choose_names(models, protocols), strict=True)
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


def _compare(results: Sequence[Result]) -> list[Any]:
    """Compare the first result with each of the others, by the kind of their labels."""
    several = [r for r in results if isinstance(r, MultilabelResult)]
    if several:
        return list(compare_all(several))
    return list(compare_with_first([r for r in results if isinstance(r, EvalResult)]))


def _note_fitted_thresholds(evaluations: Sequence[Result], reporter: Reporter) -> None:
    for result in evaluations:
        if isinstance(result, MultilabelResult) and result.has_seen_images:
            reporter.note(
                f"The thresholds of {result.model} were fitted to these images: F1 at them is too high, "
                "cross-fitted F1 is that of new images."
            )


def _write_outputs(evaluations: Sequence[Result], options: EvalOptions, reporter: Reporter) -> None:
    """Write the predictions, and store what was fitted with the model."""
    first = evaluations[0]
    if options.predictions:
        _write_predictions(evaluations, expand_home(options.predictions))
    if options.save_temperature:
        save_temperatures(first, reporter)
    if options.save_thresholds:
        if isinstance(first, MultilabelResult):
            save_thresholds(first, reporter)
        else:
            reporter.warn(
                f"{first.model} predicts one class an image, for which no threshold is needed: none is stored."
            )


def _write_predictions(evaluations: Sequence[Result], path: Path) -> None:
    images = (image for evaluation in evaluations for image in evaluation.iter_images())
    write_bytes(path, "".join(json.dumps(to_object(i)) + "\n" for i in images).encode())
