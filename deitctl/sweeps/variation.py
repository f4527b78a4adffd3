"""What a sweep varies: a setting with the values to choose from, or with a range to draw from."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deitctl.config import MACHINE_SETTINGS, ModeChoice, Option
from deitctl.errors import ConfigError
from deitctl.settings import (
    Setting,
    convert,
    dotted_name,
    find_setting,
    require_range,
)
from deitctl.sizes import format_size

MODE = "distill.mode"
RANGE = re.compile(r"(?P<low>[^.:]*\.?[^.:]+)\.\.(?P<high>[^:]+)(?P<log>:log)?")
DIGITS = 4
"""Significant digits of a number that is drawn, so that names and files have what was trained."""
FIXED = {
    "data": "A sweep has one data set",
    "image_folder": "A sweep has one data set",
    "value_range": "A sweep has one data set",
    "seed": "Use --seeds N, which trains every trial with the same seeds",
    "fold": "Use --folds K, which trains every trial on the same K folds",
    "folds": "Use --folds K, which trains every trial on the same K folds",
} | dict.fromkeys(MACHINE_SETTINGS, "It does not change what a run learns")
"""Settings that a sweep does not vary, and why."""
SPECIAL = {
    "recipe": Setting("recipe", str, Option("Name or TOML file of a recipe."), ""),
    MODE: Setting(MODE, Literal["none", ModeChoice], Option("Distillation, or none."), "hard"),
}
"""What is varied as if it were one setting with these values."""
SPELLINGS = {"student": "model", "teacher": "distill.teacher"}
Vary = Sequence[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    is_log: bool
    """Whether their logarithms are drawn evenly."""
    is_integer: bool

    def at(self, fraction: float) -> float:
        """Return the number at a fraction of the range, 0 to 1, to `DIGITS` digits."""
        if self.is_log:
            number = self.low * (self.high / self.low) ** fraction
        else:
            number = self.low + (self.high - self.low) * fraction
        return self.fit(number)

    def fit(self, number: float) -> float:
        """Round a number, and keep it in the range."""
        rounded = round(number) if self.is_integer else float(f"{number:.{DIGITS}g}")
        return min(max(rounded, self.low), self.high)


@dataclass(frozen=True)
class Variation:
    """A setting that a sweep varies."""

    name: str
    """Dotted, from `TrainConfig` on; or `recipe`."""
    values: tuple[Any, ...] = ()
    """What it takes; empty for a range."""
    range: Range | None = None

    @property
    def short(self) -> str:
        """The name as `--set` takes it."""
        return self.name.removeprefix("recipe.")

    def pick(self, fraction: float) -> Any:
        """Return the value at a fraction, 0 to 1 (excluded), of the values or the range."""
        if self.range is not None:
            return self.range.at(fraction)
        return self.values[int(fraction * len(self.values))]

    def __str__(self) -> str:
        if self.range is None:
            return ",".join(map(format_value, self.values))
        low, high = map(format_value, (self.range.low, self.range.high))
        return f"{low}..{high}" + (":log" if self.range.is_log else "")


def parse_variations(vary: Vary) -> list[Variation]:
    """Return what is to be varied.

    Args:
        vary: texts `optim.lr=1e-4,3e-4` or `optim.lr=1e-5..1e-3:log`, or values by name. Commas within
            brackets belong to a value; the last of two of one name counts.

    Raises:
        ConfigError: no such setting, a value that does not fit, or a setting that cannot be varied.
    """
    pairs = (
        list(vary.items()) if isinstance(vary, Mapping) else [_split_pair(text) for text in vary]
    )
    variations = [_parse(key, values) for key, values in pairs]
    return list({variation.name: variation for variation in variations}.values())


def _split_pair(text: str) -> tuple[str, str]:
    key, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not key or not values:
        raise ConfigError(
            f"--vary {text!r} is not key=values.", "Example: --vary optim.lr=1e-4,3e-4"
        )
    return key, values


def _parse(key: str, values: Any) -> Variation:
    name = SPELLINGS.get(key) or dotted_name(key)
    short = name.removeprefix("recipe.")
    if name in FIXED:
        raise ConfigError(f"{short} cannot be varied.", f"{FIXED[name]}.")
    setting = SPECIAL.get(name) or find_setting(name)
    if isinstance(values, str):
        if setting.kind in (int, float) and (match := RANGE.fullmatch(values)):
            return Variation(name, range=_parse_range(setting, match, short))
        values = _split_values(values)
    values = list(values) if isinstance(values, Sequence) else [values]
    if not values:
        raise ConfigError(f"--vary {short} has no values.", "Example: --vary optim.lr=1e-4,3e-4")
    converted = [convert(value, setting.kind, short) for value in values]
    for value in converted:
        require_range(setting, value, short)
    return Variation(name, tuple(dict.fromkeys(converted)))


def _split_values(text: str) -> list[str]:
    """Split at commas that are not within brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _parse_range(setting: Setting, match: re.Match[str], short: str) -> Range:
    low, high = (convert(match[end].strip(), setting.kind, short) for end in ("low", "high"))
    for end in (low, high):
        require_range(setting, end, short)
    if low >= high:
        raise ConfigError(f"--vary {short}={match[0]} is empty.", "The smaller number comes first.")
    if match["log"] and low <= 0:
        raise ConfigError(f"--vary {short}={match[0]} has no logarithm at {low}.", "Begin above 0.")
    return Range(low, high, bool(match["log"]), setting.kind is int)


def format_value(value: Any) -> str:
    """Return a value as names and tables have it; of a path its last part."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        text = f"{value:.6g}"
        return text if math.isfinite(value) else str(value)
    if isinstance(value, tuple) and list(map(type, value)) == [int, int]:
        return format_size(value)
    if isinstance(value, tuple | list):
        return "-".join(map(format_value, value))
    # of `A+B`, two teachers, the last part of each
    names = [Path(part).name or part for part in str(value).split("+")]
    return "+".join(names) if value != "" else "empty"
