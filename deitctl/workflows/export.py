"""Ship a model to other programs, proven on real pictures before it gets its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deitctl.card import ModelCard
from deitctl.catalog import find
from deitctl.checkpoint import CONFIG, cannot_write, write_bytes
from deitctl.config import read_toml
from deitctl.data.decode import EXTENSIONS
from deitctl.data.open import BUILT_IN, open_for_evaluation
from deitctl.data.sources import FileSource, Source, is_hidden
from deitctl.errors import ConfigError, DataError, ExportError, did_you_mean
from deitctl.events import Reporter, SilentReporter
from deitctl.exporters import FORMATS, Format
from deitctl.exporters.coreml import MANIFEST
from deitctl.exporters.network import BareClassifier, ExportedClassifier, describe
from deitctl.exporters.quantize import PRECISIONS
from deitctl.exporters.readme import README, History, is_untouched, readme
from deitctl.exporters.verify import Answers, Pictures, Verification, pictures, reference, verify
from deitctl.exporters.verify_files import verify_files
from deitctl.exporters.verify_rounded import verify_rounded
from deitctl.inference.inputs import expand
from deitctl.models.build import HUB_PREFIX, WEIGHT_SUFFIXES, load_model
from deitctl.models.heads import choose_head
from deitctl.training.run import Run


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """An exported file or folder and how it was proven; agreement in percent."""

    path: Path
    format: str
    bytes: int
    verified_on: int
    """Pictures; 0 where the format's runtime is for another system."""
    max_abs_diff: float | None
    top1_agreement: float | None
    quantize: str | None = None
    relative_diff: float | None = None
    """Of a rounded file: the RMS difference of its logits relative to their spread."""
    speedup: float | None = None
    """Of a rounded file that computes otherwise: how many times as fast as fp32 it answers here."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `--format json` prints."""
        return {
            "path": str(self.path), "format": self.format, "bytes": self.bytes, "verified_on": self.verified_on,
            "max_abs_diff": self.max_abs_diff, "top1_agreement": self.top1_agreement, "quantize": self.quantize,
            "relative_diff": self.relative_diff, "speedup": self.speedup,
        }  # fmt: skip


def export(
    ref: str, *, to: str, output: str = "", weights: str = "", head: str = "auto", verify_with: str = "",
    count: int = 64, quantize: str = "", preprocess: bool = True, reporter: Reporter | None = None,
) -> ExportResult:  # fmt: skip
    """Write a model in another format and prove in a fresh process that it answers as before.

    Args:
        ref: the model, see `load_model`.
        to: a name of `FORMATS`.
        output: the file or folder; a folder that exists gets a file of the default name. Empty: below `ref` if that
            is a folder, else here.
        weights: see `load_model`.
        head: which head answers.
        verify_with: data, a folder of pictures or a picture; empty: the data that a run was trained on, else `digits`.
        count: how many pictures to verify on.
        quantize: a name of `PRECISIONS`; empty: fp32.
        preprocess: False leaves normalisation and softmax to the reader: normalised pictures in, logits out.
        reporter: told of progress.

    Raises:
        ExportError: no such format or precision, a missing package, or a file that disagrees, which is kept as `*.rejected`.
        ModelError: no such model, or weights that do not fit.
        DataError: no such pictures.
    """
    reporter = reporter or SilentReporter()
    if to not in FORMATS:
        raise ExportError(
            f"There is no format {to!r}.", f"{did_you_mean(to, FORMATS)} There are: {', '.join(FORMATS)}.".strip()
        )
    if count < 1:
        raise ConfigError(f"count = {count}: verification needs 1 picture or more.")
    kind = _variant(to, quantize, preprocess)
    kind.require()
    path = _output_path(ref, output, kind)
    source = _source(ref, verify_with, reporter)
    loaded = load_model(ref, weights=weights, reporter=reporter)
    how = choose_head(head, loaded.card.head, loaded.model)
    answered = choose_head(kind.head, "", loaded.model) if kind.head else how
    if answered != how:
        reporter.note(f"{to} answers with {answered}, whatever the head rule; {how} is written down in {CONFIG}.")
    temperature = loaded.card.temperature(answered)
    if kind.head and temperature != 1:
        reporter.note(
            f"{to} has no place for a temperature: its scores are those of the logits, deitctl's of the logits divided "
            f"by {temperature:.3g}. The order of the classes is the same; the number is in {CONFIG}."
        )
    card = replace(loaded.card, head=how)
    network = (ExportedClassifier if preprocess else BareClassifier)(loaded.model, card, answered)
    sample = pictures(source, card.preprocessing, count)
    wanted = reference(network.model, card, answered, sample.pixels)
    with _draft_of(path, kind) as draft:
        with reporter.task(f"write {path.name}", None, "bytes"):
            kind.write(network, card, describe(card, answered, bare=not preprocess), draft)
        proof = _prove(draft, kind, wanted, source, sample, card, quantize, reporter)
        if kind.is_folder and proof.found is not None:
            about = readme(
                card, _history(ref, weights), title=_stem(ref), library=to, usage=kind.usage, head=answered,
                found=proof.found, remark=proof.remark, names_in=kind.files[0], normalises=not kind.head,
            )  # fmt: skip
            write_bytes(draft / README, about.encode())
    found = proof.found
    if found is not None:
        _note_ties(found, reporter)
    return ExportResult(
        path=path, format=to, bytes=_size(path), verified_on=found.images if found else 0,
        max_abs_diff=found.max_abs_diff if found else None, top1_agreement=found.top1_agreement if found else None,
        quantize=quantize or None, relative_diff=proof.relative_diff,
        speedup=proof.speedup,
    )  # fmt: skip


@dataclass(frozen=True)
class _Proof:
    found: Verification | None
    """None where it could not be run."""
    remark: str = ""
    relative_diff: float | None = None
    speedup: float | None = None


def _prove(
    draft: Path, kind: Format, wanted: Answers, source: Source, sample: Pictures, card: ModelCard, quantize: str,
    reporter: Reporter,
) -> _Proof:  # fmt: skip
    """Prove what was written; then round it, if that is wanted, and prove that."""
    if not kind.runs_here:
        reporter.note(
            f"Written and not proved: what runs it is for {kind.runs_on} alone. There, the same command proves it."
        )
        return _Proof(None)
    with reporter.task("verify in a fresh process", len(sample.names)) as task:
        proof = _Proof(verify(draft, kind.program_file, wanted, sample, tolerance=kind.tolerance))
        if kind.labels is not None:
            seen = verify_files(
                draft, kind.program_file, wanted, source, sample, card.preprocessing, kind.labels(card),
                tolerance=kind.tolerance,
            )  # fmt: skip
            proof = _Proof(seen.chosen, seen.summary)
            reporter.note(seen.summary)
        task.advance(len(sample.names))
    if not quantize:
        return proof
    with reporter.task(f"round to {quantize}, verify and time", None, "bytes"):
        return _round(draft, kind, quantize, wanted, sample)


def _variant(to: str, quantize: str, preprocess: bool) -> Format:
    """Return a format, its name ending in what is not as usual."""
    kind = FORMATS[to]
    if quantize and quantize not in PRECISIONS:
        raise ExportError(
            f"There is no precision {quantize!r}.",
            f"{did_you_mean(quantize, PRECISIONS)} There are: {', '.join(PRECISIONS)}.".strip(),
        )
    if not preprocess and not kind.has_bare:
        raise ExportError(f"{to} has no bare variant: --no-preprocess is for --to onnx.")
    if quantize and quantize not in kind.precisions:
        able = " or ".join(f"--to {name}" for name, other in FORMATS.items() if quantize in other.precisions)
        raise ExportError(f"{to} is not rounded to {quantize}: --quantize {quantize} is for {able}.")
    return replace(kind, suffix=("" if preprocess else "-bare") + (f"-{quantize}" if quantize else "") + kind.suffix)


def _round(draft: Path, kind: Format, quantize: str, wanted: Answers, sample: Pictures) -> _Proof:
    """Replace a proven fp32 file by a rounded one, proven too and timed against it."""
    plain = draft.with_name(f"{draft.name}.fp32")
    os.replace(draft, plain)
    try:
        assert kind.quantize is not None  # `_variant` has looked
        kind.quantize(plain, quantize, draft)
        tolerance = PRECISIONS[quantize].tolerance
        found, relative = verify_rounded(draft, kind.program_file, wanted, sample, tolerance=tolerance)
        return _Proof(found, relative_diff=relative, speedup=kind.speedup and kind.speedup(plain, draft))
    finally:
        _remove(plain)


def _output_path(ref: str, output: str, kind: Format) -> Path:
    given = Path(ref.removeprefix(HUB_PREFIX)).expanduser()
    name = _stem(ref) + kind.suffix
    if not output:
        path = given / "export" / name if given.is_dir() else Path(name)
    else:
        path = Path(output).expanduser()
        if not kind.is_folder and (_is_folder(path, kind) or output.endswith(("/", os.sep))):
            path = path / name
    if not kind.is_folder and _is_folder(path, kind):
        raise ExportError(f"{path} exists and is no earlier export.", "Name a new --output.")
    if kind.is_folder and path.exists():
        ours = {*kind.files, README}
        inside = path.iterdir() if path.is_dir() else [path]
        strangers = {p.name for p in inside if p.name not in ours or not p.is_file()}
        if not strangers and (path / README).exists() and not is_untouched((path / README).read_text(errors="replace")):
            raise ExportError(f"{path / README} has been edited and would be lost.", "Name a new --output, or move it.")
        if strangers:
            raise ExportError(
                f"{path} exists and is no earlier export: it has {min(strangers)}.", "Name a new --output."
            )
    return path


def _is_folder(path: Path, kind: Format) -> bool:
    """Say whether this is a folder, and none that its users take for a file: an earlier Core ML package."""
    return path.is_dir() and not (path.suffix == kind.suffix and (path / MANIFEST).is_file())


def _stem(ref: str) -> str:
    """Return what a model is called where it has no other name."""
    given = Path(ref.removeprefix(HUB_PREFIX)).expanduser()
    return given.stem if given.suffix in WEIGHT_SUFFIXES else given.resolve().name


def _history(ref: str, weights: str) -> History:
    """Return what is known of where a model's weights are from."""
    folder = Path(ref).expanduser()
    run = Run(folder, writes=False)
    if run.config_file.is_file():
        return History(run=read_toml(run.config_file), result=run.result() or {})
    return History(published=None if weights or folder.exists() else find(ref))


def _source(ref: str, verify_with: str, reporter: Reporter) -> Source:
    """Open the pictures to verify on."""
    if verify_with:
        path = Path(verify_with).expanduser()
        loose = path.is_dir() and not any(p.is_dir() and not is_hidden(p.name) for p in path.iterdir())
        if loose or path.suffix.lower() in EXTENSIONS:
            names = tuple(expand([str(path)], ()))
            return FileSource(names, np.zeros(len(names), dtype=np.int64), ("",))
        return open_for_evaluation(verify_with, reporter)
    run_file = Path(ref).expanduser() / "run.toml"
    if run_file.is_file():
        data = str(read_toml(run_file).get("data", BUILT_IN))
        try:
            return open_for_evaluation(data, reporter)
        except DataError as error:
            reporter.note(f"Verifying on {BUILT_IN}, because the run's own data cannot be opened: {error.message}")
    return open_for_evaluation(BUILT_IN, reporter)


@contextmanager
def _draft_of(path: Path, kind: Format) -> Iterator[Path]:
    """Lend a sibling name to write to; what is proven becomes `path`, what fails `path` + `.rejected`."""
    draft = path.with_name(f".draft-{os.getpid()}-{path.name}")
    try:
        try:
            yield draft
        except ExportError as error:
            if not draft.exists():
                raise
            rejected = path.with_name(f"{path.name}.rejected")
            _move(draft, rejected)
            raise ExportError(error.message, f"{error.hint} What was written is kept as {rejected}.".strip()) from error
        _move(draft, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        _remove(draft)


def _move(source: Path, target: Path) -> None:
    """Rename a file or folder, over an earlier one if there is one."""
    if target.is_dir():  # a folder cannot be replaced in one step
        _remove(target)
    os.replace(source, target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.unlink()


def _note_ties(found: Verification, reporter: Reporter) -> None:
    if found.differing:
        reporter.note(
            f"{len(found.differing)} of {found.images} pictures have another first class, their two best being as close "
            f"as answers differ (by up to {found.max_abs_diff:.2g}), such as {found.differing[0]}."
        )


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
