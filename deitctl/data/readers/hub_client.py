"""Requests to the hub about a data set: its commit, files and their content; errors in one line."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from deitctl.data.readers.hub_address import HubAddress
from deitctl.errors import DataError, WeightsNotFound
from deitctl.events import Reporter, Task
from deitctl.home import choose_cache_path
from deitctl.models.hub_errors import find_status, to_line
from deitctl.models.weights import require_hub
from deitctl.paths import read_json, read_text, write_bytes
from deitctl.threads import DaemonThreads

NUM_DOWNLOADS = 4
"""Files that are downloaded at a time."""
MAIN = "main"
KIND = "dataset"


class HubFile(NamedTuple):
    """A file in a repository."""

    path: str
    size: int
    """In bytes."""


@dataclass(frozen=True)
class HubListing:
    """The files of a repository at a commit."""

    address: HubAddress
    """Pinned."""
    files: tuple[HubFile, ...]

    @property
    def folder(self) -> Path:
        """Where the hub's client puts them."""
        return _find_repository(self.address) / "snapshots" / self.address.revision


def list_hub_files(address: HubAddress, reporter: Reporter) -> HubListing:
    """Return the files of a data set on the hub, or as its cache has them where the hub is out of reach.

    Args:
        address: of the data set.
        reporter: receives that the hub was out of reach.

    Raises:
        DataError: there is no such data set or revision, it is not open to this user, or it is neither on
            this machine nor within reach.
    """
    if address.is_pinned and (listing := _read_listing(address)):
        return listing
    try:
        require_hub()
    except WeightsNotFound as error:
        return _list_cached(address, error.message, reporter)
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with _explained(address):
        api = HfApi()
        commit = api.dataset_info(address.repository, revision=address.revision or MAIN).sha
        pinned = address.pin(str(commit))
        _write(
            _name_record(address, f"{quote(address.revision or MAIN, safe='')}.commit"), str(commit)
        )
        if listing := _read_listing(pinned):
            return listing
        tree = api.list_repo_tree(
            address.repository, recursive=True, revision=pinned.revision, repo_type=KIND
        )
        files = tuple(HubFile(f.path, f.size) for f in tree if isinstance(f, RepoFile))
    _write(_name_record(pinned, f"{commit}.json"), json.dumps(files))
    return HubListing(pinned, files)


def download(listing: HubListing, files: Sequence[HubFile], reporter: Reporter) -> None:
    """Download files of a repository into the cache of the hub's client, those that are not there.

    Raises:
        DataError: they cannot be downloaded, or there is no room for them; what came stays.
    """
    from huggingface_hub import constants

    missing = [file for file in files if not (listing.folder / file.path).exists()]
    if not missing:
        return
    short, num_bytes = listing.address.short, sum(file.size for file in missing)
    count = f"{len(missing):,} of its {len(files):,} files"
    try:
        require_hub()
    except WeightsNotFound as error:
        raise DataError(
            f"{short}: {count} are not on this machine ({missing[0].path}), and {error.message}.",
            f"Where there is a network: `hf download {listing.address.repository} --repo-type dataset "
            f"--revision {listing.address.revision}`, into $HF_HUB_CACHE of this machine.",
        ) from error
    cache = Path(constants.HF_HUB_CACHE)
    _require_room(cache, num_bytes, short)
    size = f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
    num_files = f"{len(missing):,} file{'s' if len(missing) != 1 else ''}"
    reporter.note(f"{short}: {num_files}, {size}, to download into {cache}.")
    with (
        reporter.task(f"download {listing.address.repository}", num_bytes, "bytes") as task,
        DaemonThreads(NUM_DOWNLOADS) as threads,
    ):
        bar = _make_bar(task)
        for _ in threads.map(lambda file: _download_file(listing.address, file, bar), missing):
            pass


def _download_file(address: HubAddress, file: HubFile, bar: Any) -> None:
    from huggingface_hub import hf_hub_download

    with _explained(address), _quiet():
        hf_hub_download(
            address.repository,
            file.path,
            repo_type=KIND,
            revision=address.revision,
            tqdm_class=bar,
        )


def _make_bar(task: Task) -> Any:
    """Return what the hub's client takes for the class of its progress bars."""
    lock = threading.Lock()

    class Bar:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.n = 0

        def update(self, amount: float | None = 1) -> None:
            with lock:
                task.advance(int(amount or 0))

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def close(self) -> None:
            pass

    return Bar


def _require_room(cache: Path, num_bytes: int, short: str) -> None:
    while not cache.exists() and cache != cache.parent:
        cache = cache.parent
    free = shutil.disk_usage(cache).free
    if free < num_bytes:
        raise DataError(
            f"{short} has {num_bytes / 1e9:.1f} GB to download, and the disk of {cache} has "
            f"{free / 1e9:.1f} GB free.",
            "$HF_HUB_CACHE names a folder on another disk.",
        )


def _find_repository(address: HubAddress) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"datasets--{address.repository.replace('/', '--')}"


def _name_record(address: HubAddress, name: str) -> Path:
    folder = choose_cache_path("hub") / address.repository.replace("/", "--")
    return folder / name


def _write(path: Path, text: str) -> None:
    """Remember something for a start without a network, where the cache can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.encode())
    except (OSError, DataError):
        return


def _read_listing(address: HubAddress) -> HubListing | None:
    try:
        files = read_json(_name_record(address, f"{address.revision}.json"))
        return HubListing(address, tuple(HubFile(str(path), int(size)) for path, size in files))
    except (OSError, ValueError, TypeError):
        return None


def _list_cached(address: HubAddress, why: str, reporter: Reporter) -> HubListing:
    """Return the files of the commit that a revision was last, as the cache has them."""
    name, commit = address.revision or MAIN, read_commit(address)
    pinned = address.pin(commit)
    listing = _read_listing(pinned) if commit else None
    if listing is None and commit:
        listing = HubListing(pinned, _list_snapshot(HubListing(pinned, ()).folder))
        if listing.files:
            reporter.warn(
                f"{address.short}: {len(listing.files):,} files of commit {commit[:7]} are here, from another "
                f"program's download; whether these are all is not known, because {why}."
            )
    if listing is None or not listing.files:
        raise DataError(
            f"{address} is not on this machine, and {why}.",
            f"Where there is a network: `hf download {address.repository} --repo-type dataset`, into "
            "$HF_HUB_CACHE of this machine.",
        )
    if not address.is_pinned:
        reporter.note(f"{address}: {why}; {name} is commit {commit[:7]}, as it was last seen here.")
    return listing


def read_commit(address: HubAddress) -> str:
    """Return the commit that a revision was when it was last looked up here; empty if it never was."""
    name = address.revision or MAIN
    places = (
        _name_record(address, f"{quote(name, safe='')}.commit"),
        _find_repository(address) / "refs" / name,
    )
    return name if address.is_pinned else next(filter(None, map(_read_line, places)), "")


def _read_line(path: Path) -> str:
    try:
        line = read_text(path, 200).strip()
    except (OSError, ValueError):
        return ""
    return line if HubAddress("", line).is_pinned else ""


def _list_snapshot(folder: Path) -> tuple[HubFile, ...]:
    files = []
    for path, _, names in os.walk(folder):
        for name in names:
            file = Path(path, name)
            if file.exists():
                files.append(HubFile(file.relative_to(folder).as_posix(), file.stat().st_size))
    return tuple(sorted(files))


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the client logs: it says of each lost connection in two lines that it goes on."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _explained(address: HubAddress) -> Iterator[None]:
    """Turn the errors of the hub's client into `DataError`."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # the client's transport errors differ between its versions
        raise _to_data_error(error, address) from error


def _to_data_error(error: Exception, address: HubAddress) -> DataError:
    """Return in one line what the hub answered, and what to do."""
    from huggingface_hub import errors

    name, status = address.repository, find_status(error)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return DataError(
            f"{address.short} is gated: its owner decides who may download it.",
            f"Accept its terms at https://huggingface.co/datasets/{name}, then log in here: hf auth login.",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DataError(f"{address.short} has no revision {address.revision or MAIN!r}.")
    if (
        isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError)
        or status == 401
    ):
        return DataError(
            f"The hub has no data set {name!r} that may be read from here.",
            "Check the name; for a private one log in: hf auth login.",
        )
    if status == 429:
        return DataError(
            f"The hub takes no more requests for {address.short} now (429).",
            "Run the command again in some minutes, what came stays; `hf auth login` raises the limit.",
        )
    reason = getattr(error, "server_message", None) or (f"HTTP {status}" if status else error)
    return DataError(
        f"{address.short} cannot be downloaded: {to_line(reason) or type(error).__name__}.",
        "Run the command again: what came stays.",
    )
