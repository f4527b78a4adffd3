"""Numbers of bytes as people write them: 500MB, 1.5GB, 8GiB."""

from __future__ import annotations

import re

from deitctl.errors import ConfigError

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
BINARY_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
MAX_BYTES = 2**60
MIN_BARE = 10**6
"""Text that is a smaller number without a unit was meant to have one."""


def parse_bytes(value: str | int, name: str) -> int:
    """Return a number of bytes.

    Args:
        value: bytes, or text with a unit: `500MB`, `1.5GB`, `8GiB`.
        name: of the setting, for the message.

    Raises:
        ConfigError: it is no number of bytes from 1 on, or text of a small one without a unit.
    """
    match = _PATTERN.fullmatch(str(value).strip())
    if match is None or (match[3] and not match[2]):
        raise ConfigError(
            f"{name} = {value!r} is not a number of bytes.", "Write it as 500MB, 1GB."
        )
    number, unit, binary = float(match[1]), match[2].lower(), match[3]
    size = number * (BINARY_UNITS if binary else UNITS)[unit]
    if not 1 <= size <= MAX_BYTES:
        raise ConfigError(f"{name} = {value!r} is out of range.", "Write it as 500MB, 1GB.")
    if isinstance(value, str) and value.strip().isdigit() and size < MIN_BARE:
        raise ConfigError(
            f"{name} = {value!r} has no unit, and would be {int(size):,} byte(s).",
            f"Write it as {int(size)}MB or {int(size)}GB; {int(size)}B is bytes.",
        )
    return int(size)
