"""The proof of an export: what is looked at, by what, and what must be the same. `export` and `verify` share it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deitctl.config import read_toml
from deitctl.data.classes import match_classes
from deitctl.data.dataset import FileDataset, ImageDataset, is_hidden
from deitctl.data.decode import EXTENSIONS
from deitctl.data.open import BUILT_IN, open_for_evaluation
from deitctl.errors import DataError, ExportError
from deitctl.events import Reporter
from deitctl.exporters import Format
from deitctl.exporters.any_size import takes_any_size
from deitctl.exporters.compare_outputs import Answers, Images, Verification, verify
from deitctl.exporters.golden import read_golden
from deitctl.exporters.quantize import PRECISIONS
from deitctl.exporters.verify_any_size import LEVELS, verify_any_size
from deitctl.exporters.verify_files import verify_files
from deitctl.exporters.verify_rounded import verify_rounded
from deitctl.inference.inputs import expand
from deitctl.models.model_config import ModelConfig


@dataclass(frozen=True)
class Proof:
    """How far an export is from its model."""

    found: Verification | None
    """None where its runtime is for another system."""
    relative_diff: float | None = None
    """Of a rounded file: the RMS difference of its logits relative to their spread."""
    remark: str = ""
    """What else was seen, in a sentence."""
    top1: float | None = None
    """Percent of the images whose label the file answers first, where the model knows the labels."""
    model_top1: float | None = None
    """The same of the model."""


def prove(
    path: Path,
    kind: Format,
    wanted: Answers,
    dataset: ImageDataset,
    sample: Images,
    model_config: ModelConfig,
    reporter: Reporter,
) -> Proof:
    """Run an export in a fresh process on its golden sample and on images, and compare it with its model.

    Args:
        path: the file or folder.
        kind: its format.
        wanted: the model's answers to `sample`, from `reference`.
        source: where the images of `sample` are from.
        sample: the images.
        model_config: the model's.
        reporter: told of progress.

    Raises:
        ExportError: it does not run, or disagrees.
    """
    if not kind.runs_here:
        reporter.note(
            f"Written and not proved: what runs it is for {kind.runs_on} alone. There, the same command proves it."
        )
        return Proof(None)
    with reporter.task("verify in a fresh process", len(sample.names)) as task:
        found, relative, remark = _look(path, kind, wanted, dataset, sample, model_config)
        task.advance(found.num_images)
    if remark:
        reporter.note(remark)
    proof = Proof(found, relative, remark)
    if found.num_images < len(sample.names):
        return proof
    top1, model_top1 = _accuracy(found, wanted, dataset, sample, model_config)
    return replace(proof, top1=top1, model_top1=model_top1)


def _look(
    path: Path,
    kind: Format,
    wanted: Answers,
    dataset: ImageDataset,
    sample: Images,
    model_config: ModelConfig,
) -> tuple[Verification, float | None, str]:
    """Compare in the way that the file asks for; return what `Proof` begins with."""
    said = kind.read_metadata(path)
    quantize = said.get("quantize")
    if quantize and quantize not in PRECISIONS:
        raise ExportError(
            f"{path} says that it is {quantize[:40]!r}, which deitctl does not write.",
            "Export it again.",
        )
    golden = read_golden(said, model_config.preprocessing.img_size)
    rounded = PRECISIONS[quantize].tolerance if quantize else None
    if takes_any_size(said):
        pre = model_config.preprocessing
        found, relative, share = verify_any_size(
            path, golden, wanted, dataset, sample, pre, rounded=rounded
        )
        remark = f"{100 * share:.2g} % of the values that the network sees are other than deitctl's, by {LEVELS} of 255 at most."
        return found, relative, f"Whole images: {remark}"
    if rounded is not None:
        return *verify_rounded(
            path, kind.program_file, wanted, sample, tolerance=rounded, golden=golden
        ), ""
    found = verify(path, kind.program_file, wanted, sample, tolerance=kind.tolerance, golden=golden)
    if kind.labels is None:
        return found, None, ""
    seen = verify_files(
        path,
        kind.program_file,
        wanted,
        dataset,
        sample,
        model_config.preprocessing,
        kind.labels(model_config),
        tolerance=kind.tolerance,
    )
    return seen.chosen, None, seen.summary


def _accuracy(
    found: Verification,
    wanted: Answers,
    dataset: ImageDataset,
    sample: Images,
    model_config: ModelConfig,
) -> tuple[float | None, float | None]:
    """Return the top-1 accuracies of the file and of the model; None where the images have no labels that it knows."""
    match = match_classes(model_config, dataset.class_names)
    if match is None:
        return None, None
    targets = np.array(match.rows)[dataset.labels[list(sample.indices)]]
    theirs, ours = (
        100 * float((c == targets).mean())
        for c in (np.array(found.first), wanted[0].argmax(axis=1))
    )
    return theirs, ours


def open_images(ref: str, named: str, reporter: Reporter) -> ImageDataset:
    """Open the images to prove an export on.

    Args:
        ref: the model; where it is a run, its own validation images are taken unless others are named.
        named: data, a folder of images or an image; empty: the run's, else `digits`.
        reporter: told where the run's images are gone.

    Raises:
        DataError: no such images.
    """
    if named:
        path = Path(named).expanduser()
        loose = path.is_dir() and not any(
            p.is_dir() and not is_hidden(p.name) for p in path.iterdir()
        )
        if loose or path.suffix.lower() in EXTENSIONS:
            names = tuple(expand([str(path)], ()))
            return FileDataset(names, np.zeros(len(names), dtype=np.int64), ("",))
        return open_for_evaluation(named, reporter)
    run_file = Path(ref).expanduser() / "run.toml"
    if run_file.is_file():
        data = str(read_toml(run_file).get("data", BUILT_IN))
        try:
            return open_for_evaluation(data, reporter)
        except DataError as error:
            reporter.note(
                f"Verifying on {BUILT_IN}, because the run's own data cannot be opened: {error.message}"
            )
    return open_for_evaluation(BUILT_IN, reporter)


def note_ties(found: Verification | None, reporter: Reporter) -> None:
    """Say which images have another first class although the proof holds."""
    if found is not None and found.differing:
        reporter.note(
            f"{len(found.differing)} of {found.num_images} images have another first class, their two best being as close "
            f"as answers differ (by up to {found.max_abs_diff:.2g}): {', '.join(found.differing[:5])}"
            + (" and others." if len(found.differing) > 5 else ".")
        )
