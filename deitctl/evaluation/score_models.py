"""Score models on labeled images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from deitctl.data.classes import NUMBERS, ClassMatch, match_classes
from deitctl.data.dataset import ImageDataset
from deitctl.data.open import BUILT_IN, open_for_evaluation
from deitctl.device import INFERENCE_PRECISION, Device, choose_device
from deitctl.distributed import process_group
from deitctl.errors import ConfigError, DataError
from deitctl.evaluation.accumulator import EvalModel, ExportedNetwork
from deitctl.evaluation.bootstrap import Difference, bootstrap, compare
from deitctl.evaluation.calibration import calibrate
from deitctl.evaluation.evaluate import evaluate_all
from deitctl.evaluation.protocols import PROTOCOLS, preprocessing_for
from deitctl.evaluation.real_labels import (
    imagenet_numbers,
    read_real_labels,
    require_known,
    score_real,
)
from deitctl.evaluation.records import EvalResult, EvalResults
from deitctl.evaluation.result import Evaluation
from deitctl.events import Reporter, SilentReporter
from deitctl.inference.onnx_classifier import SUFFIX, load_onnx_classifier
from deitctl.models.catalog import DEFAULT_MODEL
from deitctl.models.checkpoint_io import CONFIG, load_model_config
from deitctl.models.factory import WEIGHT_SUFFIXES, is_model_folder, load_model
from deitctl.models.heads import choose_head
from deitctl.models.model_config import ModelConfig
from deitctl.paths import read_json, require_writable, write_bytes, write_json


def evaluate_model(
    data: str = "", *, model: str = "", protocol: str = "native", **options: Any
) -> EvalResult:
    """Score one model under one protocol; everything else is as `evaluate_models` has it."""
    return evaluate_models(data, models=[model], protocols=[protocol], **options).results[0]


def evaluate_models(
    data: str = "",
    *,
    models: Sequence[str] = ("",),
    protocols: Sequence[str] = ("native",),
    weights: str = "",
    head: str = "auto",
    batch_size: int = 64,
    img_size: int = 0,
    workers: int = -1,
    device: str = "auto",
    precision: str = "auto",
    predictions: str = "",
    report: str = "",
    figures: str = "",
    command: str = "",
    real_labels: str = "",
    save_temperature: bool = False,
    on_bad_image: str = "skip",
    reporter: Reporter | None = None,
) -> EvalResults:
    """Score every model under every protocol in one pass over `data`, labels matched by class name or WordNet id.

    Args:
        data: a folder, tar, table or `digits`; of train and val the latter.
        models: see `load_model`; or ONNX files of `export`, which answer on the CPU.
        protocols: whose preprocessing, see `preprocessing_for`.
        weights: see `load_model`; for one model.
        head: which head answers.
        batch_size: images at a time.
        img_size: another input size, pixels; 0 for the model's own.
        workers: loader processes, -1 chosen from the machine.
        device: see `choose_device`.
        precision: `auto` is fp32.
        predictions: file to write a record an image to, as JSON lines.
        report: HTML file to write what can be looked at to.
        figures: folder to write the same to as PNG.
        command: what the report says it was made by.
        real_labels: file with all the right labels of ImageNet's validation images, see `read_real_labels`.
        save_temperature: whether the fitted temperatures are kept in the model's folder, which must be the only model.
        on_bad_image: `skip` leaves an image that cannot be read out and names it, `stop` ends there.
        reporter: told of progress.

    Raises:
        ConfigError: no such device, protocol or way with bad images; weights or a temperature for several models.
        DataError: no such data, classes that a model does not know, or with `stop` an image that cannot be read.
        ModelError: no such model.
    """
    reporter = reporter or SilentReporter()
    names = list(dict.fromkeys(model or DEFAULT_MODEL for model in models))
    protocols = list(dict.fromkeys(protocols))
    _require_sense(names, protocols, weights, on_bad_image, save_temperature)
    _require_room(predictions, report, figures, f"{names[0]}/{CONFIG}" if save_temperature else "")
    real = read_real_labels(Path(real_labels).expanduser()) if real_labels else None
    dataset = open_for_evaluation(data or BUILT_IN, reporter)
    if real is not None:
        require_known(dataset, real)
    only_files = all(name.lower().endswith(SUFFIX) for name in names)
    where = choose_device(
        "cpu" if only_files and device == "auto" else device,
        INFERENCE_PRECISION if precision == "auto" else precision,
    )
    where.tune_malloc()
    judged = []
    for name in names:
        if name.lower().endswith(SUFFIX):
            network, model_config, how = _load_file(
                name, head, weights, img_size, device, precision
            )
        else:
            network, model_config, how = _load(name, head, weights, img_size, where, reporter)
        numbers = imagenet_numbers(model_config.class_names or ()) if real is not None else None
        if save_temperature and img_size not in (
            0,
            load_model_config(Path(name).expanduser()).preprocessing.img_size,
        ):
            raise ConfigError(
                f"A temperature is kept for a model's own input size, not for {img_size} pixels."
            )
        match = _match(model_config, dataset, data or BUILT_IN, reporter)
        for protocol in protocols:
            contender = EvalModel(
                model=network,
                preprocessing=preprocessing_for(model_config, protocol),
                rows=match.rows,
                head=how,
                temperature=model_config.temperature(how),
            )
            judged.append((name, protocol, model_config, match, numbers, contender))
    with process_group(where.torch_device) as world:
        scored = evaluate_all(
            [contender for *_, contender in judged],
            dataset,
            device=where,
            batch_size=batch_size,
            workers=where.loader_workers(workers),
            reporter=reporter,
            world=world,
            stop_on_bad_image=on_bad_image == "stop",
            keep_logits=True,
            only_numbers=True,
        )
    results = tuple(
        EvalResult(
            name=_name(name, protocol, names, protocols),
            model=name,
            protocol=protocol,
            data=data or BUILT_IN,
            model_config=model_config,
            dataset=dataset,
            match=match,
            contender=contender,
            scores=scores,
            intervals=_intervals(scores),
            calibration=calibrate(scores) if world.is_main else None,
            real=None
            if real is None or numbers is None
            else score_real(scores, dataset, numbers, real),
        )
        for (name, protocol, model_config, match, numbers, contender), scores in zip(
            judged, scored, strict=True
        )
    )
    found = EvalResults(results=results, differences=_differences(results))
    if world.is_main:
        if predictions:
            records = (r for result in results for r in result.records())
            write_bytes(
                Path(predictions).expanduser(),
                "".join(json.dumps(r) + "\n" for r in records).encode(),
            )
        if report or figures:
            _draw(found, where, command, report, figures, reporter)
        if save_temperature:
            _keep_temperatures(results[0], reporter)
    return found


def _require_sense(
    models: Sequence[str],
    protocols: Sequence[str],
    weights: str,
    on_bad_image: str,
    save_temperature: bool,
) -> None:
    """Raise `ConfigError` for options that do not exist or do not go together."""
    if on_bad_image not in ("skip", "stop"):
        raise ConfigError(
            f"There is no way {on_bad_image!r} with images that cannot be read.",
            "There are: skip, stop.",
        )
    if weights and len(models) > 1:
        raise ConfigError(
            f"--weights is for one model, and there are {len(models)}.",
            "Name files or folders as models.",
        )
    if not protocols:
        raise ConfigError("No protocol is named.", f"There are: {', '.join(PROTOCOLS)}.")
    if save_temperature:
        _require_folder(models, protocols)


Loaded = tuple[nn.Module | ExportedNetwork, ModelConfig, str]
"""A model, its config and the head rule."""


def _load(
    name: str, head: str, weights: str, img_size: int, where: Device, reporter: Reporter
) -> Loaded:
    """Load a model onto its device."""
    loaded = load_model(name, weights=weights, img_size=img_size, reporter=reporter)
    return (
        where.to_device(loaded.model),
        loaded.model_config,
        choose_head(head, loaded.model_config.head, loaded.model),
    )


def _load_file(
    name: str, head: str, weights: str, img_size: int, device: str, precision: str
) -> Loaded:
    """Load an exported file, which runs on the CPU whatever the others do, and does what it was exported for alone."""
    file = load_onnx_classifier(
        name, weights=weights, head=head, img_size=img_size, device=device, precision=precision
    )
    return file, file.model_config, file.model_config.head


def _draw(
    found: EvalResults, device: Device, command: str, report: str, figures: str, reporter: Reporter
) -> None:
    from deitctl.report.build import contents_of
    from deitctl.report.figures import draw_figures
    from deitctl.report.html import write_report

    contents = contents_of(found, device, command, reporter)
    if report:
        write_report(contents, Path(report).expanduser())
        reporter.note(f"The report: {report}")
    if figures:
        drawn = draw_figures(contents, Path(figures).expanduser())
        reporter.note(f"{len(drawn)} figures in {figures}")


def _require_room(predictions: str, report: str, figures: str, model_config: str) -> None:
    """Raise `DeitctlError` unless everything can be written where it is wanted, before anything is computed."""
    if report and Path(report).suffix.lower() not in (".html", ".htm"):
        raise ConfigError(
            f"--report writes a page, and {report} is not called so.", "Name it FILE.html."
        )
    if report and predictions and Path(report).resolve() == Path(predictions).resolve():
        raise ConfigError(f"--report and --predictions are both {report}.", "Name two files.")
    files = {"--predictions": predictions, "--report": report, "--model": model_config}
    for option, path in files.items():
        if path:
            require_writable(Path(path).expanduser(), option)
    if figures:
        require_writable(Path(figures).expanduser(), "--figures", folder=True)


def _name(model: str, protocol: str, models: Sequence[str], protocols: Sequence[str]) -> str:
    """Name an evaluation by what differs: the end of the model's path, the protocol, or both."""
    last = {
        name: Path(name).stem if Path(name).suffix in WEIGHT_SUFFIXES else Path(name).name
        for name in models
    }
    if len(models) == 1:
        return last[model] if len(protocols) == 1 else protocol
    short = last[model] if len(set(last.values())) == len(models) else model
    return short if len(protocols) == 1 else f"{short}, {protocol}"


def _match(
    model_config: ModelConfig, dataset: ImageDataset, data: str, reporter: Reporter
) -> ClassMatch:
    match = match_classes(model_config, dataset.class_names)
    if match is None:
        raise DataError(
            _strangers(model_config, dataset, data),
            "Evaluate a model that was trained on these classes.",
        )
    if match.kind == "numbers":
        reporter.note(
            f"The folders of {data} are called 0 to 999: taken for ImageNet's classes, as in ImageNetV2."
        )
    return match


def _strangers(model_config: ModelConfig, dataset: ImageDataset, data: str) -> str:
    unknown = [n for n in dataset.class_names if match_classes(model_config, [n]) is None]
    example = f", for example {unknown[0]!r}" if unknown else ""
    known = (
        "without names"
        if model_config.class_names is None
        else f"such as {model_config.label(0)!r}"
    )
    if (
        unknown and set(dataset.class_names) <= NUMBERS and max(map(int, dataset.class_names)) > 99
    ):  # more than digits
        known += "; folders called by number are taken for ImageNetV2's only where all of 0 to 999 have images"
    return (
        f"The model does not know {len(unknown)} of the {len(dataset.class_names)} classes of {data}{example}; "
        f"its {model_config.num_classes} classes are {known}."
    )


def _intervals(scores: Evaluation) -> dict[str, tuple[float, float]]:
    """Return bootstrap intervals. There is none of the calibration error: resampling adds to it, and would miss it."""
    hits5 = (scores.best == scores.targets[:, None]).any(1)
    rules = (
        {rule: right.numpy() for rule, right in scores.correct_by.items()} if scores.heads else {}
    )
    found = bootstrap(
        {
            "top1": scores.correct.numpy(),
            "top5": hits5.numpy(),
            "loss": scores.losses.numpy(),
            **rules,
        }
    )
    return {
        k: (low, high) if k == "loss" else (100 * low, 100 * high)
        for k, (low, high) in found.items()
    }


def _differences(results: Sequence[EvalResult]) -> tuple[Difference, ...]:
    """Compare the first with each of the others; models that know different classes among the data's alone."""
    among = (
        len(
            {
                frozenset(r.model_config.class_names or ()) or r.model_config.num_classes
                for r in results
            }
        )
        > 1
    )
    right = [
        (r.scores.among == r.scores.labels if among else r.scores.correct).numpy() for r in results
    ]
    return tuple(
        compare(results[0].name, other.name, right[0], theirs, among_classes=among)
        for other, theirs in zip(results[1:], right[1:], strict=True)
    )


def _require_folder(models: Sequence[str], protocols: Sequence[str]) -> None:
    """Raise `ConfigError` unless a temperature has one place to be kept in, before anything is computed."""
    if len(models) > 1 or list(protocols) != ["native"]:
        raise ConfigError(
            "A temperature is kept for one model under its own protocol.",
            "Evaluate it alone, as native.",
        )
    if models[0].lower().endswith(SUFFIX):
        raise ConfigError(
            f"{models[0]} has its temperature inside.",
            "Keep one with the model that it was exported from, and export it again.",
        )
    if not is_model_folder(models[0]):
        raise ConfigError(
            f"{models[0]} is not a model folder, so a temperature cannot be kept with it.",
            f"Make one: deitctl export {models[0]} --to timm --output FOLDER; then --model FOLDER.",
        )


def _keep_temperatures(result: EvalResult, reporter: Reporter) -> None:
    """Write what was fitted into the config.json of a model's folder."""
    if result.calibration is None:
        reporter.warn(
            f"No temperature fits {result.model} on {result.data}, and none is kept: it has {result.scores.top1:.1f} % "
            "right. Use more images, among them some that it gets wrong."
        )
        return
    path = Path(result.model).expanduser() / CONFIG
    config = read_json(path)
    config["deitctl"] = {
        **(config.get("deitctl") or {}),
        "temperatures": result.calibration.temperatures,
    }
    write_json(path, config)
    reporter.note(
        f"Kept with the model: temperature {result.calibration.temperature:.3f} ({result.scores.head}); "
        f"expected calibration error {result.scores.ece:.4f} -> {result.calibration.ece:.4f}."
    )
