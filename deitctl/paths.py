"""File access: bounded reads, atomic writes, a non-recursive walk, the cache folder."""

from __future__ import annotations

import errno
import json
import os
import shlex
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from deitctl.errors import DeitctlError
from deitctl.home import expand_home

MAX_TEXT = 16 * 2**20
"""Bytes of a config or record; with all classes of ImageNet-21k it has one or two million."""
OUTPUT = "--output (or $DEITCTL_CACHE)"  # the option that names most of what is written
MAX_SIBLINGS = 5000
"""Names in a folder with which a misspelled one is compared: a tenth of a second."""
MIN_SIMILARITY = 0.7
"""Of a name to the one that was meant, 0..1, as difflib counts it."""
MIN_SIMILARITY_OF_NUMBERS = 0.9
"""Of names with other digits."""
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class DiskError(DeitctlError):
    """A disk is full, or a folder is not writable."""

    is_full = False
    """Whether there was no space left."""

    @classmethod
    def from_os_error(cls, path: Path, error: OSError, option: str = OUTPUT) -> DiskError:
        """Return the error for a failed write; `option` is what the user names the path with."""
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space" in str(error)
        disk_error = cls(
            f"Cannot write {path}: {error.strerror or error}.",
            f"{'Free some space, or name' if is_full else 'Name'} another {option}.",
        )
        disk_error.is_full = is_full
        return disk_error


def shorten(path: str | Path) -> str:
    """Return a path as seen from the current folder if it lies in it, else unchanged."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except (OSError, ValueError):
        return str(path)


def suggest_path(path: str | Path, *names: str) -> str:
    """Return `Did you mean 'x'?` for a path that is not there, or the empty string.

    The first part of it that is missing is compared, in any case, with the names beside it; a name
    without a folder also with those in `runs/`.

    Args:
        path: as the user has named it.
        names: other things than paths that the user may have meant.
    """
    missing = expand_home(path)
    try:
        if missing.exists():
            return ""
        near = list(_find_near_paths(missing))
        if len(missing.parts) == 1:
            in_runs = Path("runs") / missing
            near = [in_runs, *near] if in_runs.exists() else [*near, *_find_near_paths(in_runs)]
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return ""
    near_names = [
        *get_close_matches(str(path), names, n=2, cutoff=MIN_SIMILARITY),
        *map(str, dict.fromkeys(near)),
    ]
    return f"Did you mean {' or '.join(map(repr, near_names[:3]))}?" if near_names else ""


def _find_near_paths(missing: Path) -> Iterator[Path]:
    wrong = next((p for p in (*reversed(missing.parents), missing) if not p.exists()), None)
    if wrong is None or not wrong.parent.is_dir():
        return
    siblings: dict[str, list[str]] = {}
    with os.scandir(wrong.parent) as entries:
        for entry in islice(entries, MAX_SIBLINGS):
            if not entry.name.startswith(".") or wrong.name.startswith("."):
                siblings.setdefault(entry.name.lower(), []).append(entry.name)
    below = missing.relative_to(wrong)
    typed = wrong.name.lower()
    for name in get_close_matches(typed, siblings, n=3, cutoff=MIN_SIMILARITY):
        # other numbers name other things: image-0012.jpg is no misspelled image-3400.jpg
        if _read_digits(name) != _read_digits(typed) and not get_close_matches(
            typed, [name], cutoff=MIN_SIMILARITY_OF_NUMBERS
        ):
            continue
        for sibling in sorted(siblings[name]):
            candidate = wrong.parent / sibling / below
            if candidate.exists():
                yield candidate
            # more than one part may be misspelled; a link to nothing would come again and again
            elif (wrong.parent / sibling).exists():
                yield from _find_near_paths(candidate)


def _read_digits(name: str) -> str:
    return "".join(filter(str.isdigit, name))


@contextmanager
def open_regular(path: str | Path, limit: int) -> Iterator[BinaryIO]:
    """Open a regular file of at most `limit` bytes for reading.

    Pipes, devices, sockets and folders are refused without opening them; symbolic links are
    followed.

    Raises:
        OSError: missing, not a regular file, too large, or not readable; `strerror` says which.
        ValueError: a NUL in the name.
    """
    _require_regular(os.stat(path), path)  # opening a device can have side effects
    # O_NONBLOCK: if the file was replaced by a pipe since, open() must not wait for a writer
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        _require_regular(status, path)  # again: it may have been replaced
        if status.st_size > limit:
            raise OSError(
                errno.EFBIG, f"it has {status.st_size:,} bytes, more than {limit:,}", str(path)
            )
        yield file


def read_regular(path: str | Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes; raise as `open_regular`."""
    with open_regular(path, limit) as file:
        return file.read(os.fstat(file.fileno()).st_size)  # 0 for files of /proc


def _require_regular(status: os.stat_result, path: str | Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a device or a socket, not a file", str(path))


def open_no_follow(path: Path, flags: int, mode: int = 0o666) -> int:
    """Open a file of ours below a folder that may be somebody else's; never what a link names.

    Args:
        path: a name that deitctl writes. Its folder may be a link: it is the user's.
        flags: of `os.open`. With `O_WRONLY` or `O_RDWR`, a file with several names (hard links) is
            refused too.
        mode: of a file that is created, before the umask.

    Returns:
        The file descriptor, which no child process inherits.

    Raises:
        DiskError: it is a link, a folder, a pipe or a device.
        OSError: it cannot be opened.
    """
    writes = bool(flags & (os.O_WRONLY | os.O_RDWR))
    # Before it is opened, because opening a device can have effects; and Windows has no O_NOFOLLOW.
    with suppress(FileNotFoundError):
        _require_own(os.lstat(path), path, writes=writes)
    for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        # Cut after the second look: it may have become another name of a foreign file since.
        handle = os.open(path, flags & ~os.O_TRUNC, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:  # it became a link since
            raise _refuse(path, "a symbolic link") from error
        raise
    try:
        _require_own(os.fstat(handle), path, writes=writes)
        if flags & os.O_TRUNC:
            os.ftruncate(handle, 0)
    except BaseException:
        os.close(handle)
        raise
    return handle


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Raise `DiskError` if a name of ours in a folder, or a part of it, is a symbolic link.

    Args:
        folder: may itself be a link, or lie below one.
        names: relative to it, as `figures/curves.png`.
    """
    for name in names:
        path = folder
        for part in Path(name).parts:
            path = path / part
            if _is_link(path):
                raise _refuse(path, "a symbolic link")


def _is_link(path: Path) -> bool:
    is_junction = getattr(os.path, "isjunction", None)  # Windows, Python 3.12
    return path.is_symlink() or bool(is_junction and is_junction(path))


def _require_own(status: os.stat_result, path: Path, *, writes: bool) -> None:
    """Raise `DiskError` for what is no file, or not this name's alone."""
    if stat.S_ISLNK(status.st_mode):
        raise _refuse(path, "a symbolic link")
    if stat.S_ISDIR(status.st_mode):
        raise _refuse(path, "a folder")
    if not stat.S_ISREG(status.st_mode):
        raise _refuse(path, "a pipe, a device or a socket")
    if writes and status.st_nlink > 1:
        file = shlex.quote(str(path))
        raise DiskError(
            f"{path} is one of several names (hard links) of a file, and deitctl writes only files of its own.",
            f"Make it a file of its own: cp {file} {file}.copy && mv {file}.copy {file}",
        )


def _refuse(path: Path, kind: str) -> DiskError:
    return DiskError(
        f"{path} is {kind}, and deitctl writes only files of its own.",
        f"Look what it is, then delete it, or name another {OUTPUT}.",
    )


def read_text(path: str | Path, limit: int = MAX_TEXT) -> str:
    """Return the text of a UTF-8 file; raise as `read_regular`, `ValueError` for other bytes."""
    return read_regular(path, limit).decode("utf-8").replace("\r\n", "\n")


def read_json(path: str | Path, limit: int = MAX_TEXT) -> Any:
    """Parse a JSON file; raise as `read_text`, `ValueError` if invalid or nested too deeply."""
    try:
        value = json.loads(read_text(path, limit))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    # parsed, but repr() or == of it could exceed the recursion limit
    if _is_deeper_than(value, 64):
        raise ValueError("it is nested too deeply")
    return value


def _is_deeper_than(value: Any, levels: int) -> bool:
    """Return whether lists and objects are nested more than `levels` deep, without recursion."""
    layer = [value]
    for _ in range(levels):
        layer = [
            inner
            for v in layer
            if isinstance(v, dict | list)
            for inner in (v.values() if isinstance(v, dict) else v)
        ]
        if not layer:
            return False
    return True


def walk(
    folder: str, *, follow: bool, on_error: Callable[[str], None] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (folder, folder names, file names) as `os.walk` does; skip unreadable folders.

    `on_error` gets each that is skipped.

    A loop, because recursion fails on a hostile folder's depth. The caller may remove subfolder
    names to prune; with `follow`, links to folders are entered, and the caller guards against
    cycles.
    """
    pending = [folder]
    while pending:
        current = pending.pop()
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(current) as entries:
                for entry in entries:
                    (folders if _is_folder(entry) else files).append(entry.name)
        except (OSError, ValueError):
            if on_error is not None:
                on_error(current)
            continue
        yield current, folders, files
        paths = [os.path.join(current, name) for name in folders]
        pending += [path for path in reversed(paths) if follow or not os.path.islink(path)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


@contextmanager
def atomic_path(path: Path, option: str = OUTPUT) -> Iterator[Path]:
    """Yield a temporary sibling to write, which is flushed and renamed to `path` at the end.

    Readers never see a partial file. Errors of the block are raised unchanged, unless the disk
    caused them.

    Args:
        path: the final name; an existing file is replaced.
        option: the option that the user names it with, for the message.

    Raises:
        DiskError: the disk is full, or the folder is not writable.
    """
    in_block = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            in_block = True
            yield Path(name)
            in_block = False
            with open(name, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_read_umask())  # mkstemp's own mode is 0o600
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if in_block and not (isinstance(error, OSError) and error.errno in DISK_ERRNOS):
            raise
        os_error = error if isinstance(error, OSError) else OSError(str(error))
        raise DiskError.from_os_error(path, os_error, option) from error


@contextmanager
def open_atomic(path: Path, option: str = OUTPUT) -> Iterator[BinaryIO]:
    """Open a file for binary writing that replaces `path` at the end, see `atomic_path`."""
    with atomic_path(path, option) as temporary, temporary.open("wb") as file:
        yield file


_umask_lock = threading.Lock()


def _read_umask() -> int:
    # reading the umask sets it for a moment, which another saving thread would read
    with _umask_lock:
        mask = os.umask(0)
        os.umask(mask)
    return mask


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically; raise `DiskError` if that fails."""
    with open_atomic(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; raise `DiskError` if that fails."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a file name that is not valid text: written in escapes
        text = json.dumps(value, indent=2).encode()
    write_bytes(path, text + b"\n")


def require_writable(path: Path, option: str, *, folder: bool = False) -> None:
    """Raise `DiskError` unless `path` can be written; to be called before long work.

    Args:
        path: what will be written.
        option: the option that the user names it with.
        folder: whether `path` is a folder; it is created.
    """
    try:
        parent = path if folder else path.parent
        parent.mkdir(parents=True, exist_ok=True)
        if not folder and path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        tempfile.TemporaryFile(dir=parent).close()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DiskError(
            f"Cannot write {path}: {reason}.",
            f"Name another {'folder' if folder else 'file'} with {option}.",
        ) from error


def require_creatable(path: Path, *, within: Path | None = None, option: str = OUTPUT) -> None:
    """Raise `DiskError` unless a file can be made at `path` with its folders; nothing is left behind.

    Args:
        path: of the file, which may exist.
        within: what the message names, if not the file.
        option: what the user names it with.
    """
    try:
        folder = path.parent
        while not os.path.lexists(folder) and folder != folder.parent:
            folder = folder.parent
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        os_error = error if isinstance(error, OSError) else OSError(str(error))
        raise DiskError.from_os_error(within or path, os_error, option) from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a power failure cannot undo a rename in it."""
    if os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
