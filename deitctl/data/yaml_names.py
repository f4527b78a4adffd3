"""Lists and maps of class names in YAML, as YOLO's data.yaml and configs of trainers have them.

A name stays the text that it is: YAML itself would read `no`, a country, as False.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_MAX_NAME = 1000  # characters
_ITEM = re.compile(r"(\s*)-\s+(\S.*)")
_PAIR = re.compile(r"(\s*)(\"[^\"]*\"|'[^']*'|[^\s:\"'#-][^:]*):\s+(\S.*)")
_TOKEN = re.compile(r"\"[^\"]*\"|'[^']*'|[^,\"']+|.")
_SCALAR = re.compile(r"(?:\"([^\"\\]*)\"|'([^']*)'|([^\s\"'\[\]{}&*!|>%@`#].*?))(?:\s+#.*)?")


def parse_yaml_names(text: str, keys: Sequence[str]) -> list[str] | dict[str, str | int]:
    """Return the list or the map of names below a key, or that the whole text is.

    Args:
        text: of the file.
        keys: names of keys, in order of preference.

    Raises:
        ValueError: it is neither.
    """
    lines = [
        line
        for line in text.splitlines()
        if line.strip() and not line.lstrip().startswith("#") and not line.startswith(("---", "%"))
    ]
    for key in keys:
        for place, line in enumerate(lines):
            if match := re.fullmatch(rf"[\"']?{key}[\"']?\s*:(?:\s+(.*))?", line):
                inline = re.sub(r"^#.*", "", match[1] or "")
                return _parse_block(
                    [*([inline] if inline else []), *_take_block(lines[place + 1 :])]
                )
    return _parse_block(lines)


def _take_block(lines: Sequence[str]) -> list[str]:
    """Return the lines before the next key that is not indented."""
    ends = (n for n, line in enumerate(lines) if not line.startswith((" ", "\t", "-", "]", "}")))
    return list(lines[: next(ends, len(lines))])


def _parse_block(lines: Sequence[str]) -> list[str] | dict[str, str | int]:
    flow = " ".join(line.strip() for line in lines)
    if flow[:1] in ("[", "{"):
        flow = re.sub(r"(?<=[\]}])\s+#.*", "", flow)
        if flow[-1] != {"[": "]", "{": "}"}[flow[0]]:
            raise ValueError("a list that does not end")
        lines = [f"- {p}" if flow[0] == "[" else p for p in _split_flow(flow[1:-1])]
    for pattern in (_ITEM, _PAIR):
        matches = [match for line in lines if (match := pattern.fullmatch(line))]
        # Lines that are indented further belong to one another.
        if lines and len(matches) == len(lines) and len({match[1] for match in matches}) == 1:
            break
    else:
        raise ValueError("neither a list nor a map of names")
    values = [_read_scalar(match[match.re.groups]) for match in matches]
    if pattern is _ITEM:
        return values
    names = [_read_scalar(match[2]) for match in matches]
    if len(set(names)) < len(names):
        raise ValueError("a key twice")
    is_number = all(map(_is_number, values)) and not all(map(_is_number, names))
    return dict(zip(names, map(int, values) if is_number else values, strict=True))


def _split_flow(text: str) -> list[str]:
    """Return what stands between commas that are not quoted; the last may end with one."""
    parts = [""]
    for token in _TOKEN.findall(text):
        if token in ("'", '"'):
            raise ValueError("a quote that does not end")
        if token == ",":
            parts.append("")
        else:
            parts[-1] += token
    stripped = [part.strip() for part in parts]
    return stripped if stripped[-1] else stripped[:-1]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 8


def _read_scalar(text: str) -> str:
    match = _SCALAR.fullmatch(text.strip()) if len(text) <= _MAX_NAME else None
    if match is None or ": " in (match[3] or ""):  # `- name: cat` is a map in a list
        raise ValueError(f"{text[:40]!r} is no name")
    return next((group for group in match.groups() if group is not None), "")
