"""Put a model or an export onto the Hugging Face hub, in one commit."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deitctl import __version__
from deitctl.errors import ConfigError, DeitctlError, ExportError, ModelError, WeightsNotFound
from deitctl.events import Reporter, SilentReporter
from deitctl.exporters import recognize
from deitctl.exporters.export import export
from deitctl.exporters.metadata import METADATA
from deitctl.exporters.readme import README, is_untouched
from deitctl.models.checkpoint_io import CONFIG, WEIGHTS, read_tensor_shapes
from deitctl.models.weights import require_hub
from deitctl.paths import read_json, read_text
from deitctl.training.run_dir import Run

MAIN = "main"
MAKE_ONE = "A run, a model folder of deitctl's, or what `deitctl export` wrote can be pushed."


@dataclass(frozen=True, kw_only=True)
class PushResult:
    """What went to the hub, or would go."""

    repository: str
    revision: str
    files: Mapping[str, int]
    """Bytes of each file."""
    url: str = ""
    """Where to see it; empty where nothing was sent."""
    commit: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `--format json` prints."""
        return {
            "repository": self.repository,
            "revision": self.revision,
            "url": self.url or None,
            "commit": self.commit or None,
            "files": [{"path": p, "bytes": n} for p, n in self.files.items()],
            "bytes": sum(self.files.values()),
        }


def push(
    path: str,
    repository: str,
    *,
    private: bool = False,
    revision: str = "",
    message: str = "",
    dry_run: bool = False,
    reporter: Reporter | None = None,
) -> PushResult:
    """Upload a model or an export in one commit; the repository is made if it is not there.

    Args:
        path: a run, which is exported `--to timm` first, or a model folder or an exported file of ours.
        repository: OWNER/NAME on the hub, or on the hub of its kind that `$HF_ENDPOINT` names.
        private: make it so; one that exists and is public is refused.
        revision: the branch, made if it is not there; empty: main.
        message: of the commit.
        dry_run: only say which files would go; the hub is not asked.
        reporter: told of progress.

    Raises:
        ConfigError: no repository has that name, or no token is here.
        ExportError: the path is no model or export of ours, or the run's export disagrees with it.
        DeitctlError: the hub cannot be reached, or refuses.
    """
    reporter = reporter or SilentReporter()
    _require_name(repository)
    if not dry_run:
        _require_access()
    with _files_of(Path(path).expanduser(), reporter) as files:
        sizes = {name: file.stat().st_size for name, file in files.items()}
        result = PushResult(repository=repository, revision=revision or MAIN, files=sizes)
        if dry_run:
            return result
        said = (
            message or f"Upload {Path(path).expanduser().resolve().name} with deitctl {__version__}"
        )
        with reporter.task(f"push to {repository}", None, "bytes"):
            return _send(result, files, private, said, reporter)


def _require_name(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
        if repository.count("/") == 1:
            return
    except HFValidationError:
        pass
    raise ConfigError(f"{repository!r} is no repository of the hub: its names are OWNER/NAME.")


def _require_access() -> None:
    """Raise unless there are a token and a hub, before any work."""
    from huggingface_hub import get_token

    if not get_token():
        raise ConfigError(
            "There is no token of the hub here.", "Log in: hf auth login; or set HF_TOKEN."
        )
    try:
        require_hub()
    except WeightsNotFound as error:
        raise DeitctlError(
            f"Nothing can be pushed: {error.message}.",
            "--dry-run says what would be, without a network.",
        ) from error


@contextmanager
def _files_of(path: Path, reporter: Reporter) -> Iterator[dict[str, Path]]:
    """Lend the files to upload, each by its name in the repository; those of a run are written for the purpose."""
    run = Run(path, writes=False)
    if run.config_file.is_file():
        if not run.has_model:
            raise ExportError(
                f"{path} is a run without weights yet.", "Let it save some: deitctl train --resume."
            )
        with tempfile.TemporaryDirectory(prefix="deitctl-push-") as folder:
            made = Path(folder) / path.resolve().name
            export(str(path), to="timm", output=str(made), reporter=reporter)
            yield _folder_files(made)
    elif not path.exists():
        raise ExportError(f"There is nothing at {path}.", MAKE_ONE)
    elif path.name.endswith(".rejected"):
        raise ExportError(f"{path} has failed its proof.", "Export it again.")
    else:
        yield _folder_files(path) if path.is_dir() else _file(path)


def _file(path: Path) -> dict[str, Path]:
    recognize(path)
    return {path.name: path}


def _folder_files(folder: Path) -> dict[str, Path]:
    """Return the files of an export or a model folder, and no others that lie there."""
    names: tuple[str, ...] = (CONFIG, WEIGHTS)
    if (folder / METADATA).is_file() or not (folder / CONFIG).is_file():
        kind = recognize(folder)[1]
        if not kind.is_folder:  # a Core ML package, which its users take for a file
            return {
                f"{folder.name}/{p.relative_to(folder)}": p
                for p in sorted(folder.rglob("*"))
                if p.is_file()
            }
        names = kind.files
    elif not _is_model_of_ours(folder):
        raise ExportError(
            f"{folder} was not written by deitctl: its {CONFIG} says nothing of it.",
            f"Write it anew: deitctl export {folder} --to timm --output FOLDER.",
        )
    inside = (
        below for name in (*names, README) for below in (folder / name, *(folder / name).rglob("*"))
    )
    return {file.relative_to(folder).as_posix(): file for file in inside if file.is_file()}


def _is_model_of_ours(folder: Path) -> bool:
    try:
        config = read_json(folder / CONFIG)
        read_tensor_shapes(folder / WEIGHTS)
    except (OSError, ValueError, ModelError) as error:
        raise ExportError(
            f"{folder} is no model folder that can be read: {error}", MAKE_ONE
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
        api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise DeitctlError(
                f"{repository} is there already and public; nothing was pushed.",
                "Make it private in its settings, or leave --private out.",
            )
        if result.revision != MAIN and not result.revision.startswith("refs/"):
            api.create_branch(repository, branch=result.revision, exist_ok=True)
        if README in files and _has_edited_readme(api, result, files[README]):
            reporter.note(f"{README} was edited on the hub and stays as it is there.")
            files = {name: file for name, file in files.items() if name != README}
        commit = api.create_commit(
            repository,
            [CommitOperationAdd(name, str(file)) for name, file in files.items()],
            commit_message=message,
            revision=result.revision,
        )
    except DeitctlError:
        raise
    except (
        Exception
    ) as error:  # the client's errors are those of its transport, which changes with its versions
        raise _refused(error, repository) from error
    return PushResult(
        repository=repository,
        revision=result.revision,
        files={name: result.files[name] for name in files},
        url=f"{api.endpoint}/{repository}",
        commit=str(commit.oid),
    )


def _has_edited_readme(api: Any, result: PushResult, ours: Path) -> bool:
    """Say whether the hub's README.md was edited there, and would be lost for one that nobody has edited."""
    if not is_untouched(read_text(ours)) or not api.file_exists(
        result.repository, README, revision=result.revision
    ):
        return False
    with tempfile.TemporaryDirectory(prefix="deitctl-push-") as folder:
        theirs = api.hf_hub_download(
            result.repository, README, revision=result.revision, local_dir=folder
        )
        return not is_untouched(Path(theirs).read_text(errors="replace"))


def _refused(error: BaseException, repository: str) -> DeitctlError:
    """Say in one line what the hub said, which its client wraps in several."""
    cause = error
    while getattr(cause, "response", None) is None and cause.__cause__ is not None:
        cause = cause.__cause__
    status = getattr(getattr(cause, "response", None), "status_code", 0)
    if status == 401:
        return DeitctlError(
            "The hub does not know the token that is here.", "Log in again: hf auth login."
        )
    if status == 403:
        return DeitctlError(
            f"The token that is here may not write to {repository}.",
            "Use one with write access: hf auth login.",
        )
    if status:
        said = getattr(cause, "server_message", None) or f"HTTP {status}"
        return DeitctlError(f"The hub refuses {repository}: {_one_line(said)}.")
    return DeitctlError(
        f"The hub did not answer: {_one_line(cause)}.", "Nothing was committed, as far as is known."
    )


def _one_line(said: object) -> str:
    return re.sub(r"\s+", " ", str(said)).strip().rstrip(".")[:200]
