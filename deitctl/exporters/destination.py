"""Paths of exports: default names, drafts until verification, what is not overwritten."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deitctl.errors import ExportError
from deitctl.exporters.coreml import MANIFEST
from deitctl.exporters.formats import Format
from deitctl.exporters.model_card import README, is_unedited
from deitctl.home import expand_home
from deitctl.models.sources import get_repo_id, get_stem
from deitctl.paths import DiskError, refuse_links

NEW_OUTPUT = "Name a new --output."


def choose_path(model: str, output: str, kind: Format) -> Path:
    """Return where an export of a model goes.

    Args:
        model: the model.
        output: what the user named; a folder that exists gets a file of the default name. Empty:
            below the model if that is a folder, else here.
        kind: the format, whose packages are installed.

    Raises:
        ExportError: something is there that is no earlier export, or a README.md that has been
            edited.
    """
    source = expand_home(get_repo_id(model) or model)
    name = get_default_stem(model) + kind.suffix
    path = expand_home(output)
    if not output:
        # `verify` finds the model of an export by this place, RUN/export/FILE.
        path = source / "export" / name if source.is_dir() else Path(name)
        # A run may be a stranger's; what the user names with --output may lie below a link.
        refuse_links(source, ["export"])
    elif not kind.is_folder and (_is_folder(path, kind) or output.endswith(("/", os.sep))):
        path = path / name
    if kind.is_folder:
        if path.exists():
            _require_own_folder(path, kind)
    elif _is_folder(path, kind):
        raise ExportError(f"{path} exists and is no earlier export.", NEW_OUTPUT)
    elif path.is_file() and not _is_earlier_export(path, kind):
        raise ExportError(f"{path} exists and is no earlier export: it would be lost.", NEW_OUTPUT)
    return path


def _require_own_folder(path: Path, kind: Format) -> None:
    """Raise `ExportError` if a folder holds other files, or a README.md that has been edited."""
    inside = path.iterdir() if path.is_dir() else [path]
    # Only names that the format itself writes are replaced: anything else in the folder is the
    # user's.
    others = {p.name for p in inside if p.name not in (*kind.files, README) or not p.is_file()}
    if others:
        raise ExportError(
            f"{path} exists and is no earlier export: it has {min(others)}.", NEW_OUTPUT
        )
    if (path / README).exists() and not is_unedited((path / README).read_text(errors="replace")):
        raise ExportError(
            f"{path / README} has been edited and would be lost.",
            "Name a new --output, or move it.",
        )


def _is_earlier_export(path: Path, kind: Format) -> bool:
    """Return whether a file is an export of ours in this format, of whatever version."""
    try:
        return "deitctl_version" in kind.read_metadata(path)
    except ExportError:
        return False


def _is_folder(path: Path, kind: Format) -> bool:
    """Return whether this is a folder, and no Core ML package, which its users take for a file."""
    # A package is a directory on disk, so `is_dir` alone would write a second package into it.
    return path.is_dir() and not (path.suffix == kind.suffix and (path / MANIFEST).is_file())


def get_default_stem(model: str) -> str:
    """Return the name of a model that has no other: its file's or folder's."""
    # Resolved: `.` has no name.
    return get_stem(model if get_repo_id(model) else str(expand_home(model).resolve()))


@contextmanager
def write_draft(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `path`, or `path.rejected` after an `ExportError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, because a rename is atomic only within a file system. In a folder whose
        # name nobody can guess, so that no link waits there. The name is the target's:
        # torch.export.load and coremltools go by the suffix.
        folder = Path(tempfile.mkdtemp(prefix=".draft-", dir=path.parent))
    except OSError as error:
        raise DiskError.from_os_error(path, error) from error
    draft = folder / path.name
    try:
        try:
            yield draft
        except ExportError as error:
            if not draft.exists():
                raise
            rejected = path.with_name(f"{path.name}.rejected")
            # Kept, because what a runtime does with it is the only evidence of why it disagrees.
            _move(draft, rejected)
            raise ExportError(
                error.message, f"{error.hint} The rejected export is kept as {rejected}.".strip()
            ) from error
        _move(draft, path)
    except DiskError as error:
        error.message = error.message.replace(str(draft), str(path))  # as the user named it
        raise
    except OSError as error:
        raise DiskError.from_os_error(path, error) from error
    finally:
        remove(folder)


def _move(source: Path, target: Path) -> None:
    """Rename a file or folder, over an earlier one if there is one; of a link, over the link."""
    # A folder cannot be replaced in one step, nor a link by a folder.
    if target.is_dir() or (target.is_symlink() and source.is_dir()):
        remove(target)
    os.replace(source, target)


def remove(path: Path) -> None:
    """Remove a file or a folder with all its files, if it exists; of a link, the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink()


def count_bytes(path: Path) -> int:
    """Return the size of a file, or of the files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
