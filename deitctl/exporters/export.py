"""Export a model to another format, verified on real images before the file gets its name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from deitctl.data.class_file import Classes, apply_class_names
from deitctl.data.eval_transform import Pixels
from deitctl.data.range_survey import scale_for
from deitctl.errors import ConfigError, ExportError, ModelError, did_you_mean
from deitctl.events import Reporter, SilentReporter
from deitctl.exporters.compare import Verification
from deitctl.exporters.destination import (
    choose_path,
    count_bytes,
    get_default_stem,
    remove,
    write_draft,
)
from deitctl.exporters.dynamic_size import make_dynamic, make_golden_view, require_resizable
from deitctl.exporters.formats import FORMATS, Format
from deitctl.exporters.metadata import collect_metadata
from deitctl.exporters.model_card import README, History, make_model_card
from deitctl.exporters.network import BareClassifier, ExportedClassifier
from deitctl.exporters.quantize import PRECISIONS
from deitctl.exporters.verification_images import (
    NUM_CALIBRATION,
    Images,
    compute_reference,
    open_calibration_images,
    open_images,
    read_images,
)
from deitctl.exporters.verify import (
    ExportInfo,
    name_images,
    note_ties,
    require_images,
    verify_against_model,
)
from deitctl.home import expand_home
from deitctl.models.catalog import find
from deitctl.models.checkpoint_io import CONFIG
from deitctl.models.factory import load_model
from deitctl.models.heads import choose_head
from deitctl.models.model_config import HEADS, ModelConfig, parse_value_range
from deitctl.paths import write_bytes
from deitctl.settings import read_toml
from deitctl.training.run_dir import Run


@dataclass(frozen=True, kw_only=True)
class ExportResult(Verification, ExportInfo):
    """An exported file or folder, and how far its outputs are from the model's."""

    head: str
    """The rule by which the heads are fused."""
    bytes: int
    """Of the file, or of all files of the folder."""
    speedup: float | None = None
    """Of a quantized ONNX network: its speed relative to fp32 on this CPU, for one image."""


def export(
    model: str,
    *,
    to: str,
    output: str = "",
    weights: str = "",
    classes: Classes = "",
    head: str = "auto",
    verify_data: str = "",
    num_images: int = 64,
    image_folder: str = "",
    quantize: str = "",
    calibration_data: str = "",
    preprocess: bool = True,
    dynamic_size: bool = False,
    value_range: str = "auto",
    runtime: str = "",
    reporter: Reporter | None = None,
) -> ExportResult:
    """Write a model in another format and verify in a fresh process that it outputs the same.

    Args:
        model: the model, see `load_model`.
        to: a name of `FORMATS`.
        output: the file or folder; a folder that exists gets a file of the default name. Empty:
            below the model if that is a folder, else here.
        weights: see `load_model`.
        classes: names of the classes, see `deitctl.load`.
        head: the rule by which the heads are fused.
        verify_data: data, a folder of images or an image; of a run's own data those that it was
            not trained on. Empty: the run's data, else `digits`.
        num_images: how many images to verify on.
        image_folder: folder that the paths of a table in `verify_data` or `calibration_data` are below.
        quantize: a name of `PRECISIONS`; empty: fp32.
        calibration_data: images for int8-static, as in `verify_data`; empty: those that a run was
            trained on. Images that the file is verified on are left out.
        preprocess: False leaves normalization and softmax to the reader: normalized images in,
            logits out.
        dynamic_size: the file takes whole images of any size, and resizes them itself.
        value_range: `LOW,HIGH`, which the file's metadata keeps as the range of images of more than 8
            bits; `auto`: the model's.
        runtime: a downloaded archive of the runtime that the format holds; empty: fetched, see
            `web.provide_runtime`.
        reporter: receives progress.

    Raises:
        ExportError: no such format or precision, a missing package or runtime, or a file that
            disagrees, which is kept as `*.rejected`.
        ModelError: no such model, or weights that do not fit.
        DataError: no such images.
    """
    reporter = reporter or SilentReporter()
    if to not in FORMATS:
        raise ExportError(
            f"There is no format {to!r}.",
            f"{did_you_mean(to, FORMATS)} There are: {', '.join(FORMATS)}.".strip(),
        )
    require_images(num_images)
    kind = _choose_variant(to, quantize, preprocess, dynamic_size, runtime, head)
    # Before the model is loaded, so that a missing package is reported at once.
    kind.require()
    path = choose_path(model, output, kind)
    if kind.provide_runtime is not None:
        kind.provide_runtime(runtime, reporter)
    scored = open_images(weights or model, verify_data, reporter, image_folder)
    loaded = load_model(model, weights=weights, reporter=reporter)
    loaded = replace(
        loaded,
        model_config=apply_class_names(loaded.model_config, classes, weights or model, reporter),
    )
    head_rule = choose_head(head, loaded.model_config.head, loaded.model)
    # A format whose own reader fuses the heads is verified by that reader's rule, not by ours.
    fused = choose_head(kind.head, "", loaded.model) if kind.head else head_rule
    _note_what_is_lost(kind, head_rule, fused, loaded.model_config.temperature(fused), reporter)
    model_config = replace(loaded.model_config, head=head_rule)
    if (chosen_range := parse_value_range(value_range)) is not None:
        model_config = model_config.with_value_range(chosen_range)
    pre = model_config.preprocessing
    scored = replace(scored, dataset=scale_for(scored.dataset, pre.value_range))
    if dynamic_size:
        require_resizable(pre)
    network = (ExportedClassifier if preprocess else BareClassifier)(
        loaded.model, model_config, fused
    )
    sample = read_images(scored.dataset, pre, num_images)
    calibration = _read_calibration(
        weights or model, calibration_data, quantize, sample, model_config, reporter, image_folder
    )
    reference = partial(compute_reference, network.model, model_config, fused)
    expected = reference(sample.pixels)
    speedup = None
    with write_draft(path) as draft:
        with reporter.task(f"write {path.name}", None, "bytes"):
            kind.write(network, model_config, collect_metadata(network, model_config, to), draft)
        verify = partial(
            verify_against_model,
            draft,
            kind,
            expected,
            scored.dataset,
            sample,
            model_config,
            reporter,
        )
        # fp32 first, always: the tolerance of a quantized file would hide a mean that is a little
        # wrong
        verification = verify()
        if quantize:
            file = draft / kind.model_file
            with _quantize_draft(file, kind, quantize, calibration) as plain:
                verification = verify()
                if kind.measure_speedup is not None:
                    speedup = kind.measure_speedup(plain, file, sample.pixels[:1])
        if dynamic_size:
            # last, so that the quantized network was verified by itself before
            make_dynamic(draft, pre, reference(make_golden_view(pre))[0, 0], draft)
            verification = verify()
        verification = name_images(verification, scored, weights or model, sample)
        # Last, because the model card states the figures of the verification; never of an
        # unverified export.
        if kind.usage and verification.num_verified:
            readme = make_model_card(
                model_config,
                _read_history(model, weights),
                title=get_default_stem(model),
                library=to,
                usage=kind.usage,
                head=fused,
                verification=verification,
                labels_file=kind.files[0],
                preprocesses=not kind.head,
            )
            write_bytes(draft / README, readme.encode())
    note_ties(verification, reporter)
    return ExportResult(
        path=path,
        format=to,
        quantize=quantize or None,
        head=fused,
        bytes=count_bytes(path),
        speedup=speedup,
        **vars(verification),
    )


def _note_what_is_lost(
    kind: Format, head_rule: str, fused: str, temperature: float, reporter: Reporter
) -> None:
    """Report a head rule or a temperature that the format's own reader does not apply."""
    if fused != head_rule:
        reporter.note(
            f"{kind.name} fuses heads by {fused}, whatever the head rule; "
            f"{head_rule} is recorded in {CONFIG}."
        )
    if kind.head and temperature != 1:
        reporter.note(
            f"{kind.name} has no place for a temperature: its scores are the softmax "
            f"of the logits, deitctl's that of the logits divided by {temperature:.3g}. "
            f"The order of the classes is the same; the temperature is in {CONFIG}."
        )


def _read_calibration(
    model: str,
    data: str,
    quantize: str,
    verified: Images,
    model_config: ModelConfig,
    reporter: Reporter,
    image_folder: str,
) -> Pixels | None:
    """Return images to calibrate with, where the precision needs them."""
    if not quantize or not PRECISIONS[quantize].calibrated:
        if data:
            raise ConfigError("--calibration-data is for --quantize int8-static.")
        return None
    dataset = open_calibration_images(model, data, verified, reporter, image_folder)
    return read_images(dataset, model_config.preprocessing, NUM_CALIBRATION).pixels


def _choose_variant(
    to: str, quantize: str, preprocess: bool, dynamic_size: bool, runtime: str, head: str
) -> Format:
    """Return a format whose suffix names what is not the default.

    Raises:
        ExportError: there is no such precision, or the format lacks a variant.
        ModelError: there is no such head rule.
    """
    kind = FORMATS[to]
    if quantize and quantize not in PRECISIONS:
        raise ExportError(
            f"There is no precision {quantize!r}.",
            f"{did_you_mean(quantize, PRECISIONS)} There are: {', '.join(PRECISIONS)}.".strip(),
        )
    if quantize and quantize not in kind.precisions:
        formats = [f"--to {name}" for name, f in FORMATS.items() if quantize in f.precisions]
        raise ExportError(
            f"{to} is not quantized to {quantize}: "
            f"--quantize {quantize} is for {' or '.join(formats)}."
        )
    if not preprocess and not kind.has_variants:
        raise ExportError(f"{to} has no bare variant: --no-preprocess is for --to onnx.")
    if dynamic_size and not kind.has_variants:
        raise ExportError(f"{to} takes images of one size: --dynamic-size is for --to onnx.")
    if dynamic_size and not preprocess:
        raise ExportError(
            "--dynamic-size puts more preprocessing into the file, --no-preprocess none.",
            "Leave one out.",
        )
    if runtime and kind.provide_runtime is None:
        raise ExportError(f"{to} holds no runtime: --runtime is for --to web.")
    if head not in ("auto", *HEADS):
        raise ModelError(
            f"There is no head rule {head!r}.", f"There are: auto, {', '.join(HEADS)}."
        )
    parts = (
        head if head != "auto" and not kind.head else "",
        "" if preprocess else "bare",
        "dynamic" if dynamic_size else "",
        quantize,
    )
    return replace(kind, suffix="".join(f"-{part}" for part in parts if part) + kind.suffix)


@contextmanager
def _quantize_draft(
    file: Path, kind: Format, quantize: str, calibration: Pixels | None
) -> Iterator[Path]:
    """Replace an fp32 file by a quantized one; yield where the fp32 file is until the end."""
    assert kind.quantize is not None  # `_choose_variant` refused the others
    # Inside the draft folder of a page, so that both are removed with the draft if anything fails.
    plain = file.with_name(f"{file.name}.fp32")
    os.replace(file, plain)
    try:
        kind.quantize(plain, quantize, file, calibration)
        yield plain
    finally:
        remove(plain)


def _read_history(model: str, weights: str) -> History:
    """Return where a model's weights are from, as its files or the catalog state it."""
    # A local folder or --weights may hide a published name: then nothing is known about its
    # training.
    folder = expand_home(model)
    run = Run(folder, writes=False)
    if run.config_file.is_file():
        return History(run=read_toml(run.config_file), result=run.result() or {})
    return History(published=None if weights or folder.exists() else find(model))
