"""Where an export goes: its name, the draft that becomes it once it is proved, and what must not be lost for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deitctl.errors import ExportError
from deitctl.exporters import Format
from deitctl.exporters.coreml import MANIFEST
from deitctl.exporters.readme import README, is_untouched
from deitctl.models.factory import HUB_PREFIX, WEIGHT_SUFFIXES
from deitctl.paths import DiskError


def output_path(ref: str, output: str, kind: Format) -> Path:
    """Return where an export of a model goes.

    Args:
        ref: the model.
        output: what was asked for; a folder that exists gets a file of the default name. Empty: below `ref` if that is a
            folder, else here.
        kind: the format, whose packages are here.

    Raises:
        ExportError: something is there that is no earlier export, or a README.md that has been edited.
    """
    given = Path(ref.removeprefix(HUB_PREFIX)).expanduser()
    name = stem(ref) + kind.suffix
    if not output:
        path = given / "export" / name if given.is_dir() else Path(name)
    else:
        path = Path(output).expanduser()
        if not kind.is_folder and (_is_folder(path, kind) or output.endswith(("/", os.sep))):
            path = path / name
    if not kind.is_folder and _is_folder(path, kind):
        raise ExportError(f"{path} exists and is no earlier export.", "Name a new --output.")
    if path.is_file() and not kind.is_folder and not _is_earlier(path, kind):
        raise ExportError(
            f"{path} exists and is no earlier export: it would be lost.", "Name a new --output."
        )
    if kind.is_folder and path.exists():
        ours = {*kind.files, README}
        inside = path.iterdir() if path.is_dir() else [path]
        strangers = {p.name for p in inside if p.name not in ours or not p.is_file()}
        if (
            not strangers
            and (path / README).exists()
            and not is_untouched((path / README).read_text(errors="replace"))
        ):
            raise ExportError(
                f"{path / README} has been edited and would be lost.",
                "Name a new --output, or move it.",
            )
        if strangers:
            raise ExportError(
                f"{path} exists and is no earlier export: it has {min(strangers)}.",
                "Name a new --output.",
            )
    return path


def _is_earlier(path: Path, kind: Format) -> bool:
    """Say whether a file is an export of ours in this format, of whatever version."""
    try:
        return "deitctl_version" in kind.read_metadata(path)
    except ExportError:
        return False


def _is_folder(path: Path, kind: Format) -> bool:
    """Say whether this is a folder, and none that its users take for a file: an earlier Core ML package."""
    return path.is_dir() and not (path.suffix == kind.suffix and (path / MANIFEST).is_file())


def stem(ref: str) -> str:
    """Return what a model is called where it has no other name."""
    given = Path(ref.removeprefix(HUB_PREFIX)).expanduser()
    return given.stem if given.suffix in WEIGHT_SUFFIXES else given.resolve().name


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
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
            raise ExportError(
                error.message, f"{error.hint} What was written is kept as {rejected}.".strip()
            ) from error
        _move(draft, path)
    except OSError as error:
        raise DiskError.from_os_error(path, error) from error
    finally:
        remove(draft)


def _move(source: Path, target: Path) -> None:
    """Rename a file or folder, over an earlier one if there is one."""
    if target.is_dir():  # a folder cannot be replaced in one step
        remove(target)
    os.replace(source, target)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.unlink()


def size(path: Path) -> int:
    """Return the bytes of a file, or of the files in a folder."""
    return (
        sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        if path.is_dir()
        else path.stat().st_size
    )
