"""The user's folders, and what stands in for them in a container, where there is often none.

`docker run --user 12345` has no name, no home, and often nothing but the temporary folder to write
to. What would be kept in the home is then kept in a private folder below the temporary one.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from deitctl.events import Reporter

CACHE_VARIABLE = "DEITCTL_CACHE"
VARIABLES = ("HF_HOME", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_HOME", "MPLCONFIGDIR")
"""Variables by which huggingface_hub, torch, matplotlib and Triton find their folders."""

_told: set[Path] = set()


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Return a path with the home in the place of `~`, unchanged where there is none."""
    # Path.expanduser raises an error where there is no home, and for a file named `~x`.
    return Path(os.path.expanduser(path))


def find_home() -> Path:
    """Return the user's home; the root of the file system, as in Docker, if the system knows none."""
    home = os.path.expanduser("~")
    return Path(home if os.path.isabs(home) else os.path.abspath(os.sep))


def can_write(folder: Path) -> bool:
    """Whether a folder can be written, or made if it does not exist."""
    existing = folder
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    # What is no folder is somebody's mistake: writing to it fails, in a line that names it.
    return not existing.is_dir() or os.access(existing, os.W_OK | os.X_OK)


def _name_private_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"deitctl-{os.geteuid()}"


def is_in_private_folder(path: Path) -> bool:
    """Whether a file lies in the folder that `find_private_folder` makes."""
    return hasattr(os, "geteuid") and path.is_relative_to(_name_private_folder())


def find_private_folder() -> Path | None:
    """Return a folder below the temporary one that is this user's alone, made if need be.

    None if there is no temporary folder, or another user has planted something under that name.
    """
    if not hasattr(os, "geteuid"):
        return None  # Windows always has a home, and the temporary folder is in it
    try:
        folder = _name_private_folder()
        folder.mkdir(mode=0o700, exist_ok=True)
        status, above = folder.lstat(), folder.parent.stat()
    except OSError:
        return None
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    # Without the sticky bit anybody could put another folder in its place.
    is_fixed = bool(above.st_mode & stat.S_ISVTX) or not above.st_mode & 0o022
    return folder if is_own and is_fixed and not status.st_mode & 0o077 else None


def cache_root() -> Path:
    """Return the folder of cached teachers, targets and indexes: `$DEITCTL_CACHE` or the user's."""
    if override := os.environ.get(CACHE_VARIABLE):
        return expand_home(override)
    return Path(os.environ.get("XDG_CACHE_HOME") or find_home() / ".cache") / "deitctl"


def choose_cache_path(name: str, reporter: Reporter | None = None) -> Path:
    """Return the path of something cached: where it is, or else where it can be written.

    Args:
        name: relative to the cache, `teachers/x`.
        reporter: is warned, once in a process, that what is cached may not be kept.
    """
    root = cache_root()
    if (root / name).exists() or can_write(root / name):
        return root / name
    private = find_private_folder()
    if private is None:
        return root / name  # writing there fails, in one line that names it
    if reporter is not None and root not in _told:
        _told.add(root)
        reporter.warn(
            f"The cache {root} cannot be written: {private / 'cache'} is used, and is lost with a "
            f"container. ${CACHE_VARIABLE} names a folder that is kept."
        )
    return private / "cache" / name


def provide_folders() -> None:
    """Give the libraries folders of their own where there is no home that can be written.

    They would write below a folder named `~` in the current one, fail, or warn. To be called before
    they are imported, because they look at the environment then.
    """
    caches = find_home() / ".cache"
    # They do not take the root of the file system for the home, even if the user is root.
    is_known = os.path.isabs(os.path.expanduser("~"))
    if (is_known and can_write(caches)) or (private := find_private_folder()) is None:
        return
    for variable in VARIABLES:
        # Weights that an image has in a home that cannot be written are read there.
        is_baked = variable == "HF_HOME" and (caches / "huggingface").is_dir()
        folder = caches / "huggingface" if is_baked else private / variable.lower()
        os.environ.setdefault(variable, str(folder))
