"""The trials of a sweep: each is a combination of values, trained once with every seed, and fold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from deitctl.errors import ConfigError
from deitctl.rng import generator
from deitctl.sweeps.variation import MODE, Variation, format_value

MAX_TRIALS = 10_000
ATTEMPTS = 50
"""Draws for each trial, after which the values count as used up."""
MAX_PART_BYTES = 60
MAX_NAME_BYTES = 200
"""File systems allow 255; `_seed=N_fold=I` follows."""


@dataclass(frozen=True)
class Trial:
    """A combination of values."""

    values: Mapping[str, Any]
    """By dotted name of the setting."""
    name: str
    """Of the run folders, before seed and fold."""


def list_grid(variations: Sequence[Variation]) -> list[Trial]:
    """Return every combination; the last setting changes first.

    Raises:
        ConfigError: a range, which has no grid, or too many combinations.
    """
    for variation in variations:
        if variation.range is not None:
            raise ConfigError(
                f"--vary {variation.short}={variation} is a range, which a grid does not have.",
                "Name values, as a,b,c, or draw from it: --random N or --optuna N.",
            )
    if math.prod(len(v.values) for v in variations) > MAX_TRIALS:
        raise ConfigError(
            f"These are more than {MAX_TRIALS:,} combinations.",
            "Vary less, or draw some: --random N.",
        )
    names = [v.name for v in variations]
    combinations = product(*(v.values for v in variations))
    return make_trials(
        variations, (dict(zip(names, values, strict=True)) for values in combinations)
    )


def draw_trials(variations: Sequence[Variation], count: int, seed: int) -> list[Trial]:
    """Return `count` different combinations, or all that there are if these are fewer.

    Each draw is a function of the seed and its number: a larger count begins with the same trials.
    """
    trials: dict[str, Trial] = {}
    for number in range(ATTEMPTS * count):
        if len(trials) == count:
            break
        values = {
            v.name: v.pick(generator(seed, "sweep", number, v.name).random()) for v in variations
        }
        (trial,) = make_trials(variations, [values])
        trials.setdefault(trial.name, trial)
    return list(trials.values())


def make_trials(
    variations: Sequence[Variation], combinations: Iterable[Mapping[str, Any]]
) -> list[Trial]:
    """Return the different trials of combinations.

    A trial without a teacher has none of a teacher's settings: those that differ in these alone are one.

    Raises:
        ConfigError: different trials have the same name.
    """
    short = shorten_names(variations)
    trials: dict[str, Trial] = {}
    for combination in combinations:
        values = dict(combination)
        if values.get(MODE) == "none":
            values = {k: v for k, v in values.items() if k == MODE or not k.startswith("distill.")}
        parts = [_clean(f"{short[name]}={format_value(value)}") for name, value in values.items()]
        trial = Trial(values, "_".join(parts) or "base")
        if len(trial.name.encode()) > MAX_NAME_BYTES:
            raise ConfigError(
                f"The name of a trial would be too long for a folder: {trial.name[:60]}...",
                "Vary fewer settings at once.",
            )
        # case does not distinguish folders on every system
        if trials.setdefault(trial.name.lower(), trial).values != values:
            raise ConfigError(
                f"Two trials would have the same folder, {trial.name}.",
                "Name values, models or teachers that differ in their last part.",
            )
    return list(trials.values())


def shorten_names(variations: Sequence[Variation]) -> dict[str, str]:
    """Return the last part of each setting's name, or more of it where two have the same."""
    last = Counter(v.name.rpartition(".")[2] for v in variations)
    return {
        v.name: v.name.rpartition(".")[2] if last[v.name.rpartition(".")[2]] == 1 else v.short
        for v in variations
    }


def _clean(part: str) -> str:
    plain = "".join(c if c.isalnum() or c in "._=+-" else "-" for c in part)
    return plain.encode()[:MAX_PART_BYTES].decode(errors="ignore")
