"""Files that are no data set: archives, named with the command that unpacks them, and others."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path

from deitctl.data.file_types import START_BYTES, identify
from deitctl.errors import DataError

UNPACK = {
    "a ZIP archive": "unzip {} -d images",
    "a RAR archive": "unrar x {} images/",
    "a 7z archive": "7z x {} -oimages",
    **dict.fromkeys(
        ("a GZIP archive", "a BZIP2 archive", "an XZ archive", "a Zstandard archive"),
        "mkdir images && tar -xf {} -C images",
    ),
}
"""Command that unpacks an archive, by what `identify` calls it."""
ARCHIVES = {
    ".zip": "a ZIP archive",
    ".rar": "a RAR archive",
    ".7z": "a 7z archive",
    **dict.fromkeys((".gz", ".tgz"), "a GZIP archive"),
    **dict.fromkeys((".bz2", ".tbz", ".tbz2"), "a BZIP2 archive"),
    **dict.fromkeys((".xz", ".txz"), "an XZ archive"),
    **dict.fromkeys((".zst", ".tzst"), "a Zstandard archive"),
}
"""Archives by the end of their names."""


OLD_PACK = b"deitctl pack "
"""How files began that earlier versions packed."""


def make_refusal(path: Path, kinds: str) -> DataError:
    """Return the error of a file that is no data set: what it is, an archive with what unpacks it.

    Args:
        path: the file.
        kinds: what a data set is, as a hint.
    """
    kind = ""
    with suppress(OSError), path.open("rb") as file:
        start = file.read(START_BYTES)
        if start.startswith(OLD_PACK):
            return make_pack_refusal(path)
        kind = identify(start, path.stat().st_size)
    # An archive by its content, else by its name.
    named = [a for suffix, a in ARCHIVES.items() if path.name.lower().endswith(suffix)]
    kind = kind or (named[0] if named else "")
    command = UNPACK.get(kind)
    if command:
        return DataError(
            f"{path} is {kind}, whose images are not read in place.",
            f"Unpack it, and pass the folder as DATA: `{command.format(shlex.quote(str(path)))}`.",
        )
    return DataError(f"{path} is {kind + ', ' if kind else ''}not a dataset.", kinds)


def make_pack_refusal(path: Path) -> DataError:
    """Return the error of a file that an earlier version packed."""
    return DataError(
        f"{path} was packed by an earlier version of deitctl, whose format is gone.",
        "Pack the images that it was made of again: deitctl pack DATA OUT",
    )


def find_old_pack(folder: Path) -> Path | None:
    """Return a file in a folder that an earlier version packed, by its content; None if there is none."""
    for path in sorted(folder.glob("*.pack")):
        with suppress(OSError):
            if path.is_file():
                with path.open("rb") as file:
                    if file.read(len(OLD_PACK)) == OLD_PACK:
                        return path
    return None
