"""Export a model to another format, verified on real images before the file gets its name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from deitctl.arithmetic import set_arithmetic
from deitctl.data.class_file import Classes, apply_class_names
from deitctl.data.eval_transform import Pixels
from deitctl.data.range_survey import scale_for
from deitctl.errors import ConfigError
from deitctl.evaluation.images import ScoredImages
from deitctl.events import Reporter, SilentReporter
from deitctl.exporters.compare import Verification
from deitctl.exporters.destination import (
    choose_path,
    count_bytes,
    get_default_stem,
    remove,
    write_draft,
)
from deitctl.exporters.dynamic_size import make_dynamic, make_golden_view
from deitctl.exporters.formats import Format
from deitctl.exporters.metadata import collect_metadata
from deitctl.exporters.model_card import README, History, make_model_card
from deitctl.exporters.network import BareClassifier, ExportedClassifier
from deitctl.exporters.quantize import PRECISIONS
from deitctl.exporters.variant import choose_variant, require_accepts
from deitctl.exporters.verification_images import (
    NUM_CALIBRATION,
    Images,
    Outputs,
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
from deitctl.models.factory import LoadedModel, load_model
from deitctl.models.heads import choose_head
from deitctl.models.model_config import ModelConfig, Preprocessing, parse_value_range
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


@set_arithmetic(tf32=False, deterministic=False)
def export(
    model: str,
    *,
    to: str,
    output: str = "",
    weights: str = "",
    classes: Classes = "",
    task: str = "auto",
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
        task: see `deitctl.load`.
        head: the rule by which the heads are fused.
        verify_data: data, a folder of images or an image; of a run's own data those that it was
            not trained on. Empty: the run's data, else `digits`.
        num_images: how many images to verify on.
        image_folder: folder that the paths of a table in `verify_data` or `calibration_data` are below.
        quantize: a name of `PRECISIONS`; empty: fp32.
        calibration_data: images for int8-static, as in `verify_data`; empty: those that a run was
            trained on. Images that the file is verified on are left out.
        preprocess: False leaves normalization and probabilities to the reader: normalized images in,
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
    reporter, origin = reporter or SilentReporter(), weights or model
    kind = choose_variant(to, quantize, preprocess, dynamic_size, runtime, head)
    require_images(num_images)
    # Before the model is loaded, so that a missing package is reported at once.
    kind.require()
    path = choose_path(model, output, kind)
    if kind.provide_runtime is not None:
        kind.provide_runtime(runtime, reporter)
    scored = open_images(origin, verify_data, reporter, image_folder)
    loaded = load_model(model, weights=weights, reporter=reporter)
    model_config = loaded.model_config.with_task(task)
    model_config = apply_class_names(model_config, classes, origin, reporter)
    if (chosen_range := parse_value_range(value_range)) is not None:
        model_config = model_config.with_value_range(chosen_range)
    pre = model_config.preprocessing
    require_accepts(kind, pre, dynamic_size=dynamic_size)
    loaded = replace(loaded, model_config=model_config)
    network, model_config = _wrap_network(loaded, kind, head, preprocess, reporter)
    scored = replace(scored, dataset=scale_for(scored.dataset, pre.value_range))
    sample = read_images(scored.dataset, pre, num_images)
    calibration = _read_calibration(
        origin, calibration_data, quantize, sample, pre, reporter, image_folder
    )
    job = _Job(kind, network, model_config, scored, sample, reporter)
    with write_draft(path) as draft:
        job.write(draft, path.name)
        verification, speedup = job.verify_steps(draft, quantize, calibration, dynamic_size)
        verification = name_images(verification, scored, origin, sample)
        # Last, because the model card states the figures of the verification; never of an
        # unverified export.
        if kind.usage and verification.num_verified:
            job.write_card(draft, model, weights, verification)
    note_ties(verification, reporter)
    return ExportResult(
        path=path,
        format=to,
        quantize=quantize or None,
        head=job.network.head,
        bytes=count_bytes(path),
        speedup=speedup,
        **vars(verification),
    )


@dataclass(frozen=True)
class _Job:
    """A network to write, and the images that what is written is verified on."""

    kind: Format
    network: ExportedClassifier
    model_config: ModelConfig
    """With the head rule of the user, which the format's own reader may not follow."""
    scored: ScoredImages
    sample: Images
    reporter: Reporter

    @cached_property
    def expected(self) -> Outputs:
        """The model's outputs for the images, [2,N,K]."""
        return self._compute(self.sample.pixels)

    def _compute(self, pixels: Pixels) -> Outputs:
        return compute_reference(self.network.model, self.model_config, self.network.head, pixels)

    def write(self, draft: Path, name: str) -> None:
        """Write the network, in fp32."""
        with self.reporter.task(f"write {name}", None, "bytes"):
            metadata = collect_metadata(self.network, self.model_config, self.kind.name)
            self.kind.write(self.network, self.model_config, metadata, draft)

    def verify_steps(
        self, draft: Path, quantize: str, calibration: Pixels | None, dynamic_size: bool
    ) -> tuple[Verification, float | None]:
        """Make of what was written the requested file, and verify it after each step.

        Returns:
            The last verification, and the speed of a quantized network, see `ExportResult`.
        """
        # fp32 first, always: the tolerance of a quantized file would hide a mean that is a little
        # wrong
        verification, speedup = self.verify(draft), None
        if quantize:
            verification, speedup = self.quantize(draft, quantize, calibration)
        if dynamic_size:
            # last, so that the quantized network was verified by itself before
            verification = self.make_dynamic(draft)
        return verification, speedup

    def verify(self, draft: Path) -> Verification:
        """Run what was written in a fresh process, and compare it with the model."""
        return verify_against_model(
            draft,
            self.kind,
            self.expected,
            self.scored.dataset,
            self.sample,
            replace(self.model_config, head=self.network.head),
            self.reporter,
        )

    def quantize(
        self, draft: Path, precision: str, calibration: Pixels | None
    ) -> tuple[Verification, float | None]:
        """Quantize what was written and verify it; return its speed relative to fp32 too."""
        file = draft / self.kind.model_file
        with _quantize_draft(file, self.kind, precision, calibration) as plain:
            verification, measure = self.verify(draft), self.kind.measure_speedup
            speedup = None if measure is None else measure(plain, file, self.sample.pixels[:1])
        return verification, speedup

    def make_dynamic(self, draft: Path) -> Verification:
        """Let what was written resize images itself, and verify it."""
        pre = self.model_config.preprocessing
        make_dynamic(draft, pre, self._compute(make_golden_view(pre))[0, 0], draft)
        return self.verify(draft)

    def write_card(self, draft: Path, model: str, weights: str, verification: Verification) -> None:
        """Write the folder's model card."""
        readme = make_model_card(
            self.model_config,
            _read_history(model, weights),
            title=get_default_stem(model),
            library=self.kind.name,
            usage=self.kind.choose_usage(self.network),
            head=self.network.head,
            verification=verification,
            labels_file=self.kind.files[0],
            preprocesses=not self.kind.head,
        )
        write_bytes(draft / README, readme.encode())


def _wrap_network(
    loaded: LoadedModel, kind: Format, head: str, preprocess: bool, reporter: Reporter
) -> tuple[ExportedClassifier, ModelConfig]:
    """Return the network to write, and its config with the head rule that the user chose."""
    rule = choose_head(head, loaded.model_config.head, loaded.model)
    # A format whose own reader fuses the heads is verified by that reader's rule, not by ours.
    fused = choose_head(kind.head, "", loaded.model) if kind.head else rule
    model_config = replace(loaded.model_config, head=rule)
    if model_config.is_multilabel:  # every reader gets them
        stated = {name: model_config.list_thresholds(name) for name in (rule, fused)}
        model_config = replace(model_config, thresholds={**model_config.thresholds, **stated})
    _note_what_is_lost(kind, model_config, fused, reporter)
    wrap = ExportedClassifier if preprocess else BareClassifier
    return wrap(loaded.model, model_config, fused), model_config


def _note_what_is_lost(
    kind: Format, model_config: ModelConfig, fused: str, reporter: Reporter
) -> None:
    """Report what the format's own reader does not apply: head rule, temperature, thresholds."""
    if fused != model_config.head:
        reporter.note(
            f"{kind.name} fuses heads by {fused}, whatever the head rule; "
            f"{model_config.head} is recorded in {CONFIG}."
        )
    temperature, function = model_config.temperature(fused), "softmax"
    if model_config.is_multilabel:
        function = "sigmoid"
    if kind.head and temperature != 1:
        reporter.note(
            f"{kind.name} has no place for a temperature: its scores are the {function} "
            f"of the logits, deitctl's that of the logits divided by {temperature:.3g}. "
            f"The order of the classes is the same; the temperature is in {CONFIG}."
        )
    if kind.head and model_config.is_multilabel:
        reporter.note(
            f"{kind.name} has no place for thresholds: they are in {CONFIG}, and {README} applies them."
        )


def _read_calibration(
    model: str,
    data: str,
    quantize: str,
    verified: Images,
    pre: Preprocessing,
    reporter: Reporter,
    image_folder: str,
) -> Pixels | None:
    """Return images to calibrate with, where the precision needs them."""
    if not quantize or not PRECISIONS[quantize].calibrated:
        if data:
            raise ConfigError("--calibration-data is for --quantize int8-static.")
        return None
    dataset = open_calibration_images(model, data, verified, reporter, image_folder)
    return read_images(dataset, pre, NUM_CALIBRATION).pixels


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
