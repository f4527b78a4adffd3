"""Push a model or an export to the Hugging Face hub, in one commit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deitctl import __version__
from deitctl.errors import ConfigError, DeitctlError, ExportError, ModelError, WeightsNotFound
from deitctl.events import Reporter, SilentReporter
from deitctl.exporters.export import export
from deitctl.exporters.formats import recognize_export
from deitctl.exporters.metadata import METADATA
from deitctl.exporters.model_card import README, is_unedited
from deitctl.home import expand_home
from deitctl.models.checkpoint_io import CONFIG, WEIGHTS, read_tensor_shapes
from deitctl.models.hub_errors import find_cause, find_status, to_line
from deitctl.models.weights import require_hub
from deitctl.paths import read_json, read_text, suggest_path
from deitctl.training.run_dir import Run

MAIN = "main"
ACCEPTED = "A run, a model folder of deitctl's, or what `deitctl export` wrote can be pushed."


@dataclass(frozen=True, kw_only=True)
class PushedFile:
    """A file in the repository."""

    path: str
    """Its name in the repository."""
    bytes: int


@dataclass(frozen=True, kw_only=True)
class PushResult:
    """What was pushed to the hub, or would be."""

    repository: str
    """OWNER/NAME."""
    revision: str
    """The branch."""
    files: tuple[PushedFile, ...]
    """Every file of the commit."""
    bytes: int
    """Of all files."""
    url: str | None = None
    """Address of the repository; null after --dry-run."""
    commit: str | None = None
    """Id of the commit; null after --dry-run."""


def push(
    path: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str = "",
    message: str = "",
    dry_run: bool = False,
    reporter: Reporter | None = None,
) -> PushResult:
    """Upload a model or an export in one commit; a missing repository is created.

    Args:
        path: a run, which is exported `--to timm` first, a model folder, or an export of ours.
        repository: OWNER/NAME on the hub, or on the hub of its kind that `$HF_ENDPOINT` names.
        private: create it so; one that exists and is public is refused.
        revision: the branch, created if it is missing; empty: main.
        message: of the commit.
        dry_run: only list the files; nothing is sent.
        reporter: receives progress.

    Raises:
        ConfigError: no repository can have that name, or there is no token.
        ExportError: the path is no model or export of ours, or the run's export disagrees with it.
        DeitctlError: the hub cannot be reached, or refuses.
    """
    reporter = reporter or SilentReporter()
    source = expand_home(path)
    # The client's own check accepts a name without owner, which is its user's default namespace.
    _require_name(repository)
    if not source.exists():
        raise ExportError(f"There is nothing at {source}.", suggest_path(source) or ACCEPTED)
    if not dry_run:
        _require_access()
    with _collect_files(source, reporter) as files:
        result = PushResult(
            repository=repository, revision=revision or MAIN, **_measure_files(files)
        )
        if dry_run:
            return result
        message = message or f"Upload {source.resolve().name} with deitctl {__version__}"
        with reporter.task(f"push to {repository}", None, "bytes"):
            return _send(result, files, private, message, reporter)


def _measure_files(files: Mapping[str, Path]) -> dict[str, Any]:
    """Return `files` and `bytes` of a `PushResult`."""
    sizes = {name: file.stat().st_size for name, file in files.items()}
    return {
        "files": tuple(PushedFile(path=name, bytes=size) for name, size in sizes.items()),
        "bytes": sum(sizes.values()),
    }


def _require_name(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
        if repository.count("/") == 1:
            return
    except HFValidationError:
        pass
    raise ConfigError(f"{repository!r} is no name of a hub repository: they are OWNER/NAME.")


def _require_access() -> None:
    """Raise unless there are a token and a hub, before any work."""
    from huggingface_hub import get_token

    # Before the export: without a token nothing can be sent.
    if not get_token():
        raise ConfigError(
            "There is no token of the hub here.", "Log in: hf auth login; or set HF_TOKEN."
        )
    try:
        require_hub()
    except WeightsNotFound as error:
        raise DeitctlError(
            f"Nothing can be pushed: {error.message}.",
            "--dry-run lists what would be, without a network.",
        ) from error


@contextmanager
def _collect_files(path: Path, reporter: Reporter) -> Iterator[dict[str, Path]]:
    """Yield the files to upload by their names in the repository; a run is exported for it."""
    run = Run(path, writes=False)
    if run.config_file.is_file():
        if not run.has_model:
            raise ExportError(
                f"{path} is a run without weights yet.",
                "Train until it saves some: deitctl train --resume.",
            )
        with tempfile.TemporaryDirectory(prefix="deitctl-push-") as folder:
            exported = Path(folder) / path.resolve().name
            # Never the run folder itself: it holds checkpoint, log and paths of this machine. And
            # as an export it is verified.
            export(str(path), to="timm", output=str(exported), reporter=reporter)
            yield _list_folder(exported)
    elif path.name.endswith(".rejected"):
        raise ExportError(f"{path} has failed its verification.", "Export it again.")
    elif path.is_dir():
        yield _list_folder(path)
    else:
        recognize_export(path)
        yield {path.name: path}


def _list_folder(folder: Path) -> dict[str, Path]:
    """Return the files of an export or a model folder, and no others that lie there."""
    # Named one by one: a folder may hold notes, keys or data that must not be published.
    names: tuple[str, ...] = (CONFIG, WEIGHTS)
    if (folder / METADATA).is_file() or not (folder / CONFIG).is_file():
        kind = recognize_export(folder)
        if not kind.is_folder:  # a Core ML package, which its users take for a file
            return {
                # In a folder of its own, because Core ML knows a package by its suffix.
                f"{folder.name}/{p.relative_to(folder)}": p
                for p in sorted(folder.rglob("*"))
                if p.is_file()
            }
        names = kind.files
    elif not _is_own_model(folder):
        raise ExportError(
            f"{folder} was not written by deitctl: its {CONFIG} has no entry of deitctl's.",
            f"Write it anew: deitctl export {folder} --to timm --output FOLDER.",
        )
    inside = (
        below for name in (*names, README) for below in (folder / name, *(folder / name).rglob("*"))
    )
    return {file.relative_to(folder).as_posix(): file for file in inside if file.is_file()}


def _is_own_model(folder: Path) -> bool:
    try:
        config = read_json(folder / CONFIG)
        read_tensor_shapes(folder / WEIGHTS)
    except (OSError, ValueError, ModelError) as error:
        raise ExportError(
            f"{folder} is no model folder that can be read: {error}", ACCEPTED
        ) from error
    return isinstance(config, dict) and "deitctl" in config


def _send(
    result: PushResult, files: Mapping[str, Path], private: bool, message: str, reporter: Reporter
) -> PushResult:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    api, repository = HfApi(), result.repository
    disable_progress_bars()
    try:
        # None leaves the default of the organization; False would ask for a public repository.
        api.create_repo(repository, private=private or None, exist_ok=True)
        # exist_ok ignores `private` for a repository that exists, and a public one would publish
        # the model.
        if private and not api.repo_info(repository).private:
            raise DeitctlError(
                f"{repository} exists and is public; nothing was pushed.",
                "Make it private in its settings, or leave --private out.",
            )
        # refs/pr/N is a pull request, which the hub creates and nobody branches.
        if result.revision != MAIN and not result.revision.startswith("refs/"):
            api.create_branch(repository, branch=result.revision, exist_ok=True)
        if README in files and _has_edited_readme(api, result, files[README]):
            reporter.note(f"{README} was edited on the hub and stays as it is there.")
            files = {name: file for name, file in files.items() if name != README}
        # One commit: a repository never holds weights of one model and config of another.
        commit = api.create_commit(
            repository,
            [CommitOperationAdd(name, str(file)) for name, file in files.items()],
            commit_message=message,
            revision=result.revision,
        )
    except DeitctlError:
        raise
    # the client's errors are those of its transport, which changes with its versions
    except Exception as error:
        raise _to_hub_error(error, repository) from error
    url = f"{api.endpoint}/{repository}"
    return replace(result, url=url, commit=str(commit.oid), **_measure_files(files))


def _has_edited_readme(api: Any, result: PushResult, ours: Path) -> bool:
    """Return whether the hub's README.md was edited and ours was not: it must not be lost."""
    repository, revision = result.repository, result.revision
    if not is_unedited(read_text(ours)):
        return False
    if not api.file_exists(repository, README, revision=revision):
        return False
    with tempfile.TemporaryDirectory(prefix="deitctl-push-") as folder:
        theirs = api.hf_hub_download(repository, README, revision=revision, local_dir=folder)
        return not is_unedited(Path(theirs).read_text(errors="replace"))


def _to_hub_error(error: BaseException, repository: str) -> DeitctlError:
    """Return in one line what the hub answered, which its client wraps in several."""
    cause, status = find_cause(error), find_status(error)
    if status == 401:
        return DeitctlError(
            "The hub does not accept the token that is here.", "Log in again: hf auth login."
        )
    if status == 403:
        return DeitctlError(
            f"The token that is here may not write to {repository}.",
            "Use one with write access: hf auth login.",
        )
    if status:
        reason = getattr(cause, "server_message", None) or f"HTTP {status}"
        return DeitctlError(f"The hub refuses {repository}: {to_line(reason)}.")
    return DeitctlError(
        f"The hub did not answer: {to_line(cause)}.",
        "Nothing was committed, unless the answer was lost after it.",
    )
