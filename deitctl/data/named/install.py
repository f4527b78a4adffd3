"""A data set by name is downloaded, unpacked and checked once, by one process, and appears whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deitctl.data.named.downloads import CACHE, Download, fetch_files
from deitctl.data.named.names import NamedData
from deitctl.data.named.samples import Samples, list_samples
from deitctl.data.named.stored import FILE, write_stored
from deitctl.data.named.torchvision_classes import list_downloads, load_class, unpacking
from deitctl.errors import DataError, DeitctlError
from deitctl.events import Reporter
from deitctl.home import choose_cache_path
from deitctl.lock import locked
from deitctl.paths import DISK_ERRNOS, DiskError

FOLDER = "datasets"
"""Below `$DEITCTL_CACHE`."""
ARCHIVES = "downloads"
"""In it, with a folder for each data set: what was downloaded, or put there."""


def find_folder(name: str, reporter: Reporter) -> Path:
    """Return the folder of a data set, which may not be there yet."""
    # Windows has no colons in names
    return choose_cache_path(FOLDER, reporter) / name.replace(":", "-")


def find_archives(folder: Path) -> Path:
    """Return where the archives of the data set in a folder lie, or are put."""
    return folder.parent / ARCHIVES / folder.name


def install(data: NamedData, folder: Path, reporter: Reporter) -> None:
    """Download and unpack a data set, unless it is there; one process does, and others wait for it.

    Raises:
        DataError: it cannot be had, or is not what was published.
        DiskError: there is too little space, or the cache cannot be written.
    """
    with locked(
        folder.parent / f".{folder.name}.lock",
        what=f"The data set {data.name}",
        when_busy=lambda: reporter.note(f"Another process downloads {data.name}: waiting for it."),
        reporter=reporter,
    ):
        if (folder / FILE).is_file():
            return
        if folder.exists():
            raise DataError(
                f"{folder} has no {FILE}, so that whether {data.name} is complete is not known.",
                "Move that folder away: the next start downloads it.",
            )
        archives = find_archives(folder)
        fetched = fetch_files(data.name, list_downloads(data), archives, reporter)

        def fetch(download: Download) -> None:
            fetched.extend(fetch_files(data.name, [download], archives, reporter))

        try:
            with _staging(folder) as staging:
                _fill(data, staging, archives, fetch, reporter)
        except OSError as error:
            raise DiskError.from_os_error(folder, error, CACHE) from error
        for path in fetched:  # not what somebody else has put there
            path.unlink(missing_ok=True)
        with suppress(OSError):
            archives.rmdir()


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Yield a folder that gets its name when it is complete, and is removed if it does not get there."""
    prefix = (
        f".{folder.name}~"  # of no other data set: `imagenette` begins as `imagenette-160` does
    )
    for left in folder.parent.glob(f"{prefix}*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
    try:
        yield staging
        staging.chmod(0o755)
        staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _fill(
    data: NamedData,
    staging: Path,
    archives: Path,
    fetch: Callable[[Download], None],
    reporter: Reporter,
) -> None:
    """Unpack a data set into a folder, check it, and write its file."""
    torch_class = load_class(data.torch_class)
    parts = {}
    for name, split in data.splits.items():
        title = f"{data.name} {name}".rstrip()
        with reporter.task(f"unpack {title}", None, "files") as task:
            try:
                with unpacking(torch_class, archives, task, fetch):
                    dataset = torch_class(str(staging), **split.arguments, download=True)
            except (DeitctlError, MemoryError):
                raise
            except Exception as error:  # whatever torchvision, an archive or a table in it may be
                if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
                    raise
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                raise DataError(f"{data.name} cannot be unpacked: {reason}") from error
        parts[name] = list_samples(dataset, title, reporter)
        _require_published(data, title, parts[name], split.count)
    if data.class_names:
        parts = {
            name: Samples(part.files, part.pixels, part.labels, data.class_names)
            for name, part in parts.items()
        }
    if len({part.class_names for part in parts.values()}) > 1:
        raise DataError(f"The parts of {data.name} have different classes.")
    if all(part.pixels is not None for part in parts.values()):
        _empty(staging)  # the file has all of it
    write_stored(staging / FILE, parts)


def _require_published(data: NamedData, title: str, part: Samples, count: int) -> None:
    """Raise `DataError` unless a part has the published number of images and classes."""
    missing = sum(not os.path.isfile(file) for file in part.files)
    num_images = len(part.labels) - missing
    if missing or not num_images or (count and num_images != count):
        raise DataError(
            f"{title} has {num_images:,} images, and {count or len(part.labels):,} were published.",
            "What was downloaded is another version, or not all of it.",
        )
    num_classes = len(data.class_names or part.class_names)
    if data.num_classes and not num_classes == len(part.class_names) == data.num_classes:
        raise DataError(
            f"{title} has {len(part.class_names):,} classes, and {data.num_classes:,} were published."
        )


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
