"""Tars for tests: members by name, in the order of a dictionary."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image


def jpeg(shade: int) -> bytes:
    """A small JPEG, of another shade for each number."""
    file = io.BytesIO()
    Image.new("RGB", (24, 18), (shade % 256, shade * 7 % 256, 90)).save(file, "jpeg")
    return file.getvalue()


def write_tar(
    path: Path, members: Mapping[str, bytes], tar_format: int = tarfile.USTAR_FORMAT
) -> Path:
    """Write files into a tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, shade: int, **members: object) -> dict[str, bytes]:
    """The members of a sample: a JPEG, and `cls=3`, `json={...}` or `txt="rose"` beside it."""
    own = {"jpg": jpeg(shade)}
    for suffix, value in members.items():
        own[suffix.replace("_", ".")] = (
            json.dumps(value).encode()
            if suffix == "json"
            else value
            if isinstance(value, bytes)
            else str(value).encode()
        )
    return {f"{key}.{suffix}": own[suffix] for suffix in sorted(own)}
