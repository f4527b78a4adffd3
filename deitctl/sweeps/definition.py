"""What a sweep is: what varies, how trials are chosen, with how many seeds. `sweep.toml` keeps it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deitctl.config import TrainConfig
from deitctl.errors import ConfigError
from deitctl.paths import read_json, write_bytes
from deitctl.settings import MODEL_ARGS, read_toml, to_dict
from deitctl.sweeps.presets import TEACHER, Preset, find_preset, name_teachers
from deitctl.sweeps.result import Method
from deitctl.sweeps.trials import MAX_TRIALS, Trial, list_grid, make_trials
from deitctl.sweeps.variation import MODE, Variation, parse_variations

FILE = "sweep.toml"
MAX_RECORD = 64 * 2**20


@dataclass(frozen=True)
class SweepDefinition:
    """What a sweep is."""

    variations: Sequence[Variation]
    method: Method
    num_trials: int
    """Requested of random draws or of Optuna; 0 for a grid."""
    num_seeds: int
    seed: int
    """The first of the runs' seeds, and that of draws."""
    preset: str = ""
    rows: Sequence[Mapping[str, Any]] = ()
    """Trials of a grid, where these are not all combinations."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of all runs by dotted name, where the caller sets no others."""


def define_sweep(
    variations: Sequence[Variation],
    *,
    preset: str,
    teachers: Sequence[str],
    random: int,
    optuna: int,
    num_seeds: int,
    seed: int,
    named: Collection[str] = (),
) -> SweepDefinition:
    """Return a sweep's definition.

    Args:
        variations: what the user varies; those of a preset come first, unless they are varied here.
        preset: a key of `PRESETS`, or empty.
        teachers: several ones are varied.
        random: trials to draw; 0: a grid.
        optuna: trials for Optuna to suggest; 0: none.
        num_seeds: runs of each trial.
        seed: the first.
        named: settings that the user names, which a preset leaves to them; by dotted name.

    Raises:
        ConfigError: no such preset, nothing to vary, or methods that exclude each other.
    """
    chosen = find_preset(preset) if preset else Preset(help="")
    teachers = list(teachers or chosen.teachers)
    if random and optuna:
        raise ConfigError("--random and --optuna are two ways of choosing.", "Leave one out.")
    if max(random, optuna) > MAX_TRIALS:
        raise ConfigError(f"These are more than {MAX_TRIALS:,} trials.", "Draw fewer.")
    if len(teachers) < chosen.min_teachers:
        raise ConfigError(
            f"--preset {preset} compares {chosen.min_teachers} teachers or more.",
            "Name them: --teacher A --teacher B",
        )
    rows: list[dict[str, Any]] = []
    if chosen.rows:
        if random or optuna:
            raise ConfigError(
                f"--preset {preset} has trials of its own.", "Leave --random or --optuna out."
            )
        if len(teachers) > chosen.min_teachers:
            raise ConfigError(
                f"--preset {preset} compares {chosen.min_teachers} teachers, not {len(teachers)}.",
                "Name as many, or vary them by yourself: --vary distill.teacher=A,B",
            )
        settings = _leave_out(chosen.settings, named)
        rows = _multiply(name_teachers(chosen.rows, teachers), variations, preset)
        names = {name for row in rows for name in row}
        shared = {name: value for name, value in settings.items() if name not in names}
        # A row may have another value of a setting of all, unless the user has named one.
        decided = {name for name in chosen.settings if name not in settings}
        common = {name: value for name, value in settings.items() if name in names}
        rows = [common | {k: v for k, v in row.items() if k not in decided} for row in rows]
        return SweepDefinition(
            _list_variations(rows), "grid", 0, num_seeds, seed, preset, rows, shared
        )
    own = {variation.name: variation for variation in variations}
    merged = {v.name: own.get(v.name, v) for v in parse_variations(chosen.variations)} | own
    if len(teachers) > 1:
        (by_teacher,) = parse_variations({TEACHER: teachers})
        if by_teacher.name in merged:
            raise ConfigError(
                "The teacher is varied twice, by --vary and by several --teacher.",
                "Leave one of them out.",
            )
        merged[by_teacher.name] = by_teacher
    if not merged and num_seeds < 2:
        raise ConfigError(
            "Nothing is varied.",
            "Name it, --vary optim.lr=1e-4,3e-4 for example, or a --preset, or several --seeds.",
        )
    if (random or optuna) and not merged:
        raise ConfigError("Nothing is varied.", "Example: --vary optim.lr=1e-5..1e-3:log")
    method: Method = "random" if random else "optuna" if optuna else "grid"
    return SweepDefinition(list(merged.values()), method, random or optuna, num_seeds, seed, preset)


def _leave_out(settings: Mapping[str, Any], named: Collection[str]) -> dict[str, Any]:
    """Return a preset's settings without those that the user names, and without its model's own shape where the user
    names a model."""
    has_model = "model" in named
    return {
        name: value
        for name, value in settings.items()
        if name not in named and not (has_model and name.startswith(MODEL_ARGS))
    }


def _multiply(
    rows: Sequence[Mapping[str, Any]], variations: Sequence[Variation], preset: str
) -> list[dict[str, Any]]:
    """Return each of a preset's rows with every combination of what the user varies."""
    for variation in variations:
        if any(variation.name in row for row in rows):
            raise ConfigError(
                f"--preset {preset} has {variation.short} in its trials.", "Vary something else."
            )
    grid = [trial.values for trial in list_grid(variations)]
    return [{**row, **values} for row in rows for values in grid]


def _list_variations(rows: Sequence[Mapping[str, Any]]) -> list[Variation]:
    """Return the settings of trials, with the values that each of them takes."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [
        Variation(name, tuple(dict.fromkeys(row[name] for row in rows if name in row)))
        for name in names
    ]


def write_definition(output: Path, definition: SweepDefinition, config: TrainConfig) -> None:
    """Write `sweep.toml`; the configuration is that of the first run."""
    import tomli_w

    values: dict[str, Any] = {
        "method": definition.method,
        "num_trials": definition.num_trials,
        "num_seeds": definition.num_seeds,
        "seed": definition.seed,
        "preset": definition.preset,
        "vary": _spell(definition.variations),
        "settings": _leave_out_none(definition.settings),
        "trials": [_leave_out_none(row) for row in definition.rows],
        "first_run": to_dict(config),
    }
    write_bytes(output / FILE, tomli_w.dumps(values).encode())


def _leave_out_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as TOML can have them."""
    return {name: value for name, value in values.items() if value is not None}


def _spell(variations: Sequence[Variation]) -> dict[str, str]:
    return {variation.short: str(variation) for variation in variations}


def require_same_space(output: Path, definition: SweepDefinition) -> None:
    """Raise `ConfigError` if a folder holds trials that Optuna suggested for something else."""
    if not (output / FILE).is_file():
        return
    earlier = read_toml(output / FILE)
    if earlier.get("method") == "optuna" and earlier.get("vary") != _spell(definition.variations):
        raise ConfigError(
            f"{output} holds a sweep that varies something else: {earlier.get('vary')}.",
            "Name another --output.",
        )


def read_suggested(record: Path, variations: Sequence[Variation]) -> list[Trial]:
    """Return the trials that `sweep.json` has, in their order; none if there is no such file.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        value = read_json(record, MAX_RECORD)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{record} cannot be read: {error}.",
            "Delete it: trials are then suggested anew, and runs of equal settings reused.",
        ) from error
    if not isinstance(value, dict) or value.get("method") != "optuna":
        return []
    trials = value.get("trials")
    combinations = [
        _read_values(trial["values"], variations, record)
        for trial in (trials if isinstance(trials, list) else [])[:MAX_TRIALS]
        if isinstance(trial, dict) and isinstance(trial.get("values"), dict)
    ]
    return make_trials(variations, combinations)


def _read_values(
    values: dict[str, Any], variations: Sequence[Variation], record: Path
) -> dict[str, Any]:
    """Return the values of a trial that these variations allow; JSON has lists for tuples."""
    result: dict[str, Any] = {}
    for v in variations:
        if v.name not in values and values.get(MODE) == "none" and v.name.startswith("distill."):
            continue
        value: Any = values.get(v.name)
        value = tuple(value) if isinstance(value, list) else value
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if v.range is not None and is_number and v.range.low <= value <= v.range.high:
            result[v.name] = v.range.fit(value)
        elif v.range is None and value in v.values:
            result[v.name] = value
        else:
            raise ConfigError(
                f"{record} has a trial with {v.short} = {value!r}, which is not varied so.",
                "Name another --output.",
            )
    return result
