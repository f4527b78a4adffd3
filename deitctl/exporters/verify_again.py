"""Prove an export again: later, elsewhere, under another version of its runtime."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deitctl.errors import ConfigError, ExportError
from deitctl.events import Reporter, SilentReporter
from deitctl.exporters import recognize
from deitctl.exporters.compare_outputs import checked_answers, images, reference
from deitctl.exporters.golden import read_golden
from deitctl.exporters.network import describe
from deitctl.exporters.verification import Proof, note_ties, open_images, prove
from deitctl.models.checkpoint_io import CONFIG
from deitctl.models.factory import load_model
from deitctl.models.model_config import HEADS

COMPARED = ("img_size", "resize_to", "crop_pct", "crop_mode", "interpolation")
"""What of the preprocessing must be the model's."""


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """What a proof found; without a model, of the golden sample alone."""

    path: Path
    format: str
    quantize: str | None
    golden: float
    """RMS difference of the golden sample's logits, in their standard deviations."""
    golden_tolerance: float
    model: str | None
    proof: Proof | None

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `--format json` prints."""
        found = self.proof.found if self.proof else None
        return {
            "path": str(self.path),
            "format": self.format,
            "quantize": self.quantize,
            "golden": self.golden,
            "golden_tolerance": self.golden_tolerance,
            "model": self.model,
            "verified_on": found.num_images if found else 0,
            "max_abs_diff": found.max_abs_diff if found else None,
            "top1_agreement": found.top1_agreement if found else None,
            "top1": self.proof.top1 if self.proof else None,
            "model_top1": self.proof.model_top1 if self.proof else None,
            "relative_diff": self.proof.relative_diff if self.proof else None,
            "differing": list(found.differing) if found else [],
        }


def verify_export(
    path: str,
    *,
    images_from: str = "",
    model: str = "",
    weights: str = "",
    count: int = 64,
    reporter: Reporter | None = None,
) -> VerifyResult:
    """Run an export in a fresh process: on its golden sample, and on images beside the model that it was made of.

    Args:
        path: a file or folder that `export` wrote.
        images_from: data, a folder of images or an image; empty: those that a run was validated on, else `digits`.
        model: what to compare with, see `load_model`; empty: the run in whose folder the export lies, if it does.
        weights: see `load_model`.
        count: how many images.
        reporter: told of progress.

    Raises:
        ExportError: no export of ours, one that does not run, or disagrees with its golden sample or its model.
        ConfigError: images, and no model whose answers could be compared.
        ModelError: no such model.
        DataError: no such images.
    """
    reporter = reporter or SilentReporter()
    where = Path(path).expanduser()
    if count < 1:
        raise ConfigError(f"count = {count}: verification needs 1 image or more.")
    name, kind = recognize(where)
    if not kind.runs_here:
        raise ExportError(f"What runs {where} is for {kind.runs_on} alone.", "Verify it there.")
    said = kind.read_metadata(where)
    size = _img_size(said, where)
    golden = read_golden(said, size)
    ref = model or _made_of(where)
    if not ref and (images_from or weights):
        raise ConfigError(
            f"There is no model to compare {where} with.",
            "Name the one that it was exported from: --model MODEL. Without images the golden sample alone is looked at.",
        )
    with reporter.task("look at the golden sample", None, "bytes"):
        difference = golden.difference(
            checked_answers(golden.pixels, where, kind.program_file, golden)[0, 0]
        )
    proof = None
    if not ref:
        reporter.note(
            "The golden sample alone was looked at; --model MODEL compares images with the model, too."
        )
    else:
        dataset = open_images(ref, images_from, reporter)
        loaded = load_model(ref, weights=weights, reporter=reporter)
        if (head := said.get("head", "")) not in HEADS:
            raise ExportError(f"{where} does not say how its heads are joined.", "Export it again.")
        _require_same(describe(loaded.model_config, head), said, where, ref)
        sample = images(dataset, loaded.model_config.preprocessing, count)
        wanted = reference(loaded.model, loaded.model_config, head, sample.pixels)
        proof = prove(where, kind, wanted, dataset, sample, loaded.model_config, reporter)
        note_ties(proof.found, reporter)
    return VerifyResult(
        path=where,
        format=name,
        quantize=said.get("quantize"),
        golden=difference,
        golden_tolerance=golden.tolerance,
        model=ref or None,
        proof=proof,
    )


def _made_of(path: Path) -> str:
    """Return the model folder that an export lies in (`RUN/export/FILE`); never the export, which would be its own proof."""
    around = path.resolve().parent
    return (
        str(around.parent) if around.name == "export" and (around.parent / CONFIG).is_file() else ""
    )


def _img_size(said: Mapping[str, str], path: Path) -> int:
    try:
        return int(json.loads(said["preprocessing"])["img_size"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ExportError(
            f"{path} has metadata that cannot be read.", "Export it again."
        ) from error


def _require_same(model: Mapping[str, str], said: Mapping[str, str], path: Path, ref: str) -> None:
    """Raise `ExportError` where the file is of other classes, another preprocessing or another temperature."""
    ours, theirs = (_compared(x) for x in (model, said))
    differs = [key for key in ours if ours[key] != theirs[key]]
    differs += [
        key
        for key in ("architecture", "temperature", "class_names")
        if model.get(key) != said.get(key)
    ]
    if differs:
        raise ExportError(
            f"{path} was not made of {ref} as it is now: {', '.join(differs)} differ.",
            "Export it again, or name its model.",
        )


def _compared(said: Mapping[str, str]) -> dict[str, Any]:
    pre = json.loads(said["preprocessing"])
    colors = pre["normalization"]
    return {key: pre.get(key) for key in COMPARED} | {
        key: colors.get(key) for key in ("mean", "std")
    }
