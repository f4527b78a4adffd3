"""Ship a model to other programs, proven on real images before it gets its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from deitctl.data.eval_transform import Pixels
from deitctl.data.open import BUILT_IN, open_for_training
from deitctl.errors import ConfigError, ExportError, ModelError, did_you_mean
from deitctl.events import Reporter, SilentReporter
from deitctl.exporters import FORMATS, Format
from deitctl.exporters.any_size import golden_view, require_resizable, take_any_size
from deitctl.exporters.compare_outputs import images, reference
from deitctl.exporters.destination import draft_of, output_path, remove, size, stem
from deitctl.exporters.metadata import metadata_of
from deitctl.exporters.network import BareClassifier, ExportedClassifier
from deitctl.exporters.quantize import PRECISIONS
from deitctl.exporters.readme import README, History, readme
from deitctl.exporters.verification import Proof, note_ties, open_images, prove
from deitctl.models.catalog import find
from deitctl.models.checkpoint_io import CONFIG
from deitctl.models.factory import load_model
from deitctl.models.heads import choose_head
from deitctl.models.model_config import HEADS, ModelConfig
from deitctl.paths import write_bytes
from deitctl.settings import read_toml
from deitctl.training.run_dir import Run

CALIBRATION = 128
"""Images that int8-static is calibrated on."""


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """An exported file or folder and how it was proven; agreement in percent."""

    path: Path
    format: str
    head: str
    """The rule by which the heads are joined."""
    bytes: int
    verified_on: int
    """Images; 0 where the format's runtime is for another system."""
    max_abs_diff: float | None
    top1_agreement: float | None
    quantize: str | None = None
    relative_diff: float | None = None
    """Of a rounded file: the RMS difference of its logits relative to their spread."""
    speedup: float | None = None
    """Of a rounded file that computes otherwise: how many times as fast as fp32 it answers here."""
    top1: float | None = None
    """Accuracy of the file on the images, where the model knows their labels."""
    model_top1: float | None = None
    differing: tuple[str, ...] = ()
    """Images with another first class, their two best being as close as answers differ."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `--format json` prints."""
        return {
            "path": str(self.path),
            "format": self.format,
            "head": self.head,
            "bytes": self.bytes,
            "verified_on": self.verified_on,
            "max_abs_diff": self.max_abs_diff,
            "top1_agreement": self.top1_agreement,
            "quantize": self.quantize,
            "relative_diff": self.relative_diff,
            "speedup": self.speedup,
            "top1": self.top1,
            "model_top1": self.model_top1,
            "differing": list(self.differing),
        }


def export(
    ref: str,
    *,
    to: str,
    output: str = "",
    weights: str = "",
    head: str = "auto",
    verify_with: str = "",
    count: int = 64,
    quantize: str = "",
    calibrate_with: str = "",
    preprocess: bool = True,
    any_size: bool = False,
    runtime: str = "",
    reporter: Reporter | None = None,
) -> ExportResult:
    """Write a model in another format and prove in a fresh process that it answers as before.

    Args:
        ref: the model, see `load_model`.
        to: a name of `FORMATS`.
        output: the file or folder; a folder that exists gets a file of the default name. Empty: below `ref` if that
            is a folder, else here.
        weights: see `load_model`.
        head: which head answers.
        verify_with: data, a folder of images or an image; empty: the data that a run was trained on, else `digits`.
        count: how many images to verify on.
        quantize: a name of `PRECISIONS`; empty: fp32.
        calibrate_with: images for int8-static, as in `verify_with`; empty: those that a run was trained on.
        preprocess: False leaves normalization and softmax to the reader: normalized images in, logits out.
        any_size: the file takes whole images of any size, and resizes them itself.
        runtime: a downloaded archive of the runtime that the format holds; empty: fetched, see `web_runtime.provide`.
        reporter: told of progress.

    Raises:
        ExportError: no such format or precision, a missing package or runtime, or a file that disagrees, which is kept as `*.rejected`.
        ModelError: no such model, or weights that do not fit.
        DataError: no such images.
    """
    reporter = reporter or SilentReporter()
    if to not in FORMATS:
        raise ExportError(
            f"There is no format {to!r}.",
            f"{did_you_mean(to, FORMATS)} There are: {', '.join(FORMATS)}.".strip(),
        )
    if count < 1:
        raise ConfigError(f"count = {count}: verification needs 1 image or more.")
    kind = _variant(to, quantize, preprocess, any_size, runtime, head)
    kind.require()
    path = output_path(ref, output, kind)
    if kind.provide is not None:
        kind.provide(runtime, reporter)
    dataset = open_images(ref, verify_with, reporter)
    loaded = load_model(ref, weights=weights, reporter=reporter)
    how = choose_head(head, loaded.model_config.head, loaded.model)
    answered = choose_head(kind.head, "", loaded.model) if kind.head else how
    if answered != how:
        reporter.note(
            f"{to} answers with {answered}, whatever the head rule; {how} is written down in {CONFIG}."
        )
    temperature = loaded.model_config.temperature(answered)
    if kind.head and temperature != 1:
        reporter.note(
            f"{to} has no place for a temperature: its scores are those of the logits, deitctl's of the logits divided "
            f"by {temperature:.3g}. The order of the classes is the same; the number is in {CONFIG}."
        )
    model_config = replace(loaded.model_config, head=how)
    if any_size:
        require_resizable(model_config.preprocessing)
    network = (ExportedClassifier if preprocess else BareClassifier)(
        loaded.model, model_config, answered
    )
    sample = images(dataset, model_config.preprocessing, count)
    calibration = _calibration(ref, calibrate_with, quantize, model_config, reporter)
    wanted = reference(network.model, model_config, answered, sample.pixels)
    with draft_of(path) as draft:
        with reporter.task(f"write {path.name}", None, "bytes"):
            kind.write(network, model_config, metadata_of(network, model_config, to), draft)
        again = partial(prove, draft, kind, wanted, dataset, sample, model_config, reporter)
        proof, faster = again(), None
        if quantize:
            proof, faster = _rounded(draft / kind.model, kind, quantize, calibration, again)
        if any_size:
            pre = model_config.preprocessing
            take_any_size(
                draft,
                pre,
                reference(network.model, model_config, answered, golden_view(pre))[0, 0],
                draft,
            )
            proof = again()
        if kind.usage and proof.found is not None:
            about = readme(
                model_config,
                _history(ref, weights),
                title=stem(ref),
                library=to,
                usage=kind.usage,
                head=answered,
                found=proof.found,
                remark=proof.remark,
                names_in=kind.files[0],
                normalizes=not kind.head,
            )
            write_bytes(draft / README, about.encode())
    note_ties(proof.found, reporter)
    return ExportResult(
        path=path,
        format=to,
        head=answered,
        bytes=size(path),
        verified_on=proof.found.num_images if proof.found else 0,
        max_abs_diff=proof.found.max_abs_diff if proof.found else None,
        top1_agreement=proof.found.top1_agreement if proof.found else None,
        quantize=quantize or None,
        relative_diff=proof.relative_diff,
        speedup=faster,
        top1=proof.top1,
        model_top1=proof.model_top1,
        differing=tuple(proof.found.differing) if proof.found else (),
    )


def _calibration(
    ref: str, named: str, quantize: str, model_config: ModelConfig, reporter: Reporter
) -> Pixels | None:
    """Return images to calibrate with, where the precision needs them."""
    if not quantize or not PRECISIONS[quantize].calibrated:
        if named:
            raise ConfigError("--calibrate-with is for --quantize int8-static.")
        return None
    run_file = Path(ref).expanduser() / "run.toml"
    if named:
        dataset = open_images("", named, reporter)
    elif run_file.is_file():
        dataset, _ = open_for_training(
            str(read_toml(run_file).get("data", BUILT_IN)), seed=0, reporter=reporter
        )
    else:
        raise ConfigError(
            "int8-static is calibrated on images like those that it will see.",
            "Name some that it is not proved on: --calibrate-with IMAGES.",
        )
    return images(dataset, model_config.preprocessing, CALIBRATION).pixels


def _variant(
    to: str, quantize: str, preprocess: bool, any_size: bool, runtime: str, head: str
) -> Format:
    """Return a format, its name ending in what is not as usual."""
    kind = FORMATS[to]
    if quantize and quantize not in PRECISIONS:
        raise ExportError(
            f"There is no precision {quantize!r}.",
            f"{did_you_mean(quantize, PRECISIONS)} There are: {', '.join(PRECISIONS)}.".strip(),
        )
    if quantize and quantize not in kind.precisions:
        able = " or ".join(
            f"--to {name}" for name, other in FORMATS.items() if quantize in other.precisions
        )
        raise ExportError(
            f"{to} is not rounded to {quantize}: --quantize {quantize} is for {able}."
        )
    if not preprocess and not kind.has_variants:
        raise ExportError(f"{to} has no bare variant: --no-preprocess is for --to onnx.")
    if any_size and not kind.has_variants:
        raise ExportError(f"{to} takes images of one size: --any-size is for --to onnx.")
    if any_size and not preprocess:
        raise ExportError(
            "--any-size puts more preprocessing into the file, --no-preprocess none.",
            "Leave one out.",
        )
    if runtime and kind.provide is None:
        raise ExportError(f"{to} holds no runtime: --runtime is for --to web.")
    if head not in ("auto", *HEADS):
        raise ModelError(
            f"There is no head rule {head!r}.", f"There are: auto, {', '.join(HEADS)}."
        )
    said = (
        (head != "auto" and not kind.head, head),
        (not preprocess, "bare"),
        (any_size, "any"),
        (bool(quantize), quantize),
    )
    return replace(kind, suffix="".join(f"-{name}" for so, name in said if so) + kind.suffix)


def _rounded(
    draft: Path, kind: Format, quantize: str, calibration: Pixels | None, prove: Callable[[], Proof]
) -> tuple[Proof, float | None]:
    """Replace a proven fp32 file by a rounded one, and return its proof and how many times as fast it is."""
    assert kind.quantize is not None  # `_variant` has looked
    plain = draft.with_name(f"{draft.name}.fp32")
    os.replace(draft, plain)
    try:
        kind.quantize(plain, quantize, draft, calibration)
        return prove(), kind.speedup and kind.speedup(plain, draft)
    finally:
        remove(plain)


def _history(ref: str, weights: str) -> History:
    """Return what is known of where a model's weights are from."""
    folder = Path(ref).expanduser()
    run = Run(folder, writes=False)
    if run.config_file.is_file():
        return History(run=read_toml(run.config_file), result=run.result() or {})
    return History(published=None if weights or folder.exists() else find(ref))
