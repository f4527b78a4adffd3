"""Settings of a configuration by dotted name: list, override, convert, compare and check them; TOML in and out."""

from __future__ import annotations

import dataclasses
import math
import reprlib
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from deitctl.config import MACHINE_SETTINGS, PLACES, Option, TrainConfig
from deitctl.errors import ConfigError, did_you_mean
from deitctl.paths import read_text, suggest_path
from deitctl.sizes import ImageSize, parse_size

C = TypeVar("C")
MAX_TOML = 2**18
"""Bytes of a TOML file; a run's has two thousand."""
MAX_DOTS = 100
"""Dots in a line of TOML."""
BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
MODEL_ARGS = "model_args."
"""What the names of a model's own arguments begin with: `--set model.depth=6` sets `model_args.depth`."""


@dataclass(frozen=True)
class Setting:
    """A field of a configuration, as `config` declares it."""

    name: str
    """Dotted, from `TrainConfig` on."""
    kind: Any
    option: Option
    default: Any

    @property
    def flag(self) -> str:
        """The option on the command line."""
        dashed = self.name.rpartition(".")[2].replace("_", "-")
        return self.option.flag or (
            f"--{dashed}/--no-{dashed}" if self.kind is bool else f"--{dashed}"
        )

    @property
    def keyword(self) -> str:
        """The keyword in the Python API: the option without its dashes, also of a switch `--no-NAME`."""
        flag = self.flag.partition("/")[0].removeprefix("--").removeprefix("no-")
        return self.option.keyword or flag.replace("-", "_")


@cache  # the annotations are evaluated once: every start of the command line needs all of them
def list_settings(kind: type = TrainConfig, prefix: str = "") -> tuple[Setting, ...]:
    """Return every setting of a config class, those of its groups included."""
    return tuple(_iterate_settings(kind, prefix))


def _iterate_settings(kind: type, prefix: str) -> Iterator[Setting]:
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        group = next((t for t in (hint, *get_args(hint)) if dataclasses.is_dataclass(t)), None)
        if get_origin(hint) is tuple:  # of several groups, which have no names
            group = None
        option = next((a for a in get_args(hint) if isinstance(a, Option)), None)
        if option is not None:
            yield Setting(prefix + field.name, get_args(hint)[0], option, field.default)
        elif isinstance(group, type):
            yield from _iterate_settings(group, f"{prefix}{field.name}.")
        else:
            yield Setting(prefix + field.name, hint, Option(""), field.default)


@cache
def list_options() -> dict[str, Setting]:
    """Return the settings that have an option of their own, by keyword."""
    return {setting.keyword: setting for setting in list_settings() if setting.option.panel}


def setting_names(kind: type, prefix: str = "") -> list[str]:
    """List the dotted names of every setting of a config class."""
    return [setting.name for setting in list_settings(kind, prefix)]


def dotted_name(key: str) -> str:
    """Return the full name of a setting, which may be named by its keyword, or without `recipe.`."""
    if key.startswith("model."):
        return MODEL_ARGS + key.removeprefix("model.")
    if key.partition(".")[0] in TrainConfig.__dataclass_fields__:
        return key
    options = list_options()
    return options[key].name if key in options else f"recipe.{key}"


def parse_overrides(texts: Iterable[str]) -> dict[str, str]:
    """Return the `key=value` texts of --set as settings by dotted name.

    Raises:
        ConfigError: no `=`, or a setting that has an argument or option of its own.
    """
    overrides = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key:
            raise ConfigError(
                f"--set {text!r} is not key=value.", "Example: --set optim.weight_decay=0.1"
            )
        name = dotted_name(key)
        if name in ("data", "image_folder", "extra_data", "seed", "model", "weights", "output_dir"):
            raise ConfigError(
                f"--set {key} is not possible.",
                f"Use the command's own argument or option for {key}.",
            )
        overrides[name] = value
    return overrides


def find_setting(name: str) -> Setting:
    """Return the setting of a dotted name; raise `ConfigError`, with the nearest one, if there is none."""
    for setting in list_settings():
        if setting.name == name:
            return setting
    if name.startswith(MODEL_ARGS):  # any argument of the model's constructor
        return Setting(name, Any, Option(""), None)
    raise _report_unknown(name, list_settings())


def require_range(setting: Setting, value: Any, name: str) -> None:
    """Raise `ConfigError` for a number, or one of several, out of the range that the setting declares."""
    numbers = value if isinstance(value, list | tuple) else (value,)
    if any(isinstance(n, int | float) and not setting.option.allows(n) for n in numbers):
        raise ConfigError(f"{name} = {value} is out of range: it must be {setting.option.limits}.")


def check_ranges(config: TrainConfig) -> None:
    """Refuse numbers out of the range that their option declares; raise `ConfigError`."""
    values = flatten(to_dict(config))
    for setting in list_settings():
        require_range(setting, values.get(setting.name), setting.name.removeprefix("recipe."))
    for name in ("crop_scale", "crop_ratio"):
        low, high = getattr(config.recipe.augment, name)
        if low > high:
            raise ConfigError(
                f"augment.{name} = ({low}, {high}) is out of range: the smaller number comes first."
            )


def list_differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Say in which settings two runs differ, but for the machine's."""
    was, now = (flatten(_leave_machine_out(config)) for config in (old, new))
    return [
        f"{spell_name(k)} is {spell_value(k, was.get(k, 'not set'))}, not {spell_value(k, now.get(k, 'set'))}"
        for k in {**was, **now}
        if was.get(k) != now.get(k)
    ]


def spell_name(name: str) -> str:
    """Return the name by which a setting is typed, from its dotted one."""
    if name.startswith(MODEL_ARGS):
        return f"model.{name.removeprefix(MODEL_ARGS)}"
    return "recipe" if name == "recipe.name" else name.removeprefix("recipe.")


def spell_value(name: str, value: Any) -> str:
    """Return a value of a setting, by its dotted name, as it is typed."""
    if name == "recipe.img_size" and isinstance(value, list | tuple):
        return "x".join(map(str, value))
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def list_learning(config: TrainConfig) -> dict[str, Any]:
    """Return by name the settings that decide what a run learns, of values that JSON has.

    Not the places of the data, which may be moved.
    """
    settings = _leave_machine_out(config)
    settings.setdefault("distill", None)  # so that a run without a teacher is known to have none
    return {name: value for name, value in flatten(settings).items() if name not in PLACES}


def _leave_machine_out(config: TrainConfig) -> dict[str, Any]:
    return {k: v for k, v in to_dict(config).items() if k not in MACHINE_SETTINGS}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under their dotted names."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {prefix + key: value}
        )
    return result


def override(config: C, changes: Mapping[str, Any]) -> C:
    """Return `config` with dotted keys replaced, each value converted to its field's type.

    Raises:
        ConfigError: a key that does not exist (with the nearest one), or a value that does not fit.
    """
    kind: type = type(config)
    for key, value in changes.items():
        config = _replace(config, key.split("."), value, key, list_settings(kind))
    return config


def _replace(config: C, path: list[str], value: Any, key: str, settings: Iterable[Setting]) -> C:
    hints = get_type_hints(type(config))
    short = key.removeprefix("recipe.")
    if path[0] not in hints:
        raise _report_unknown(key, settings)
    current = getattr(config, path[0])
    if len(path) > 1:
        if path[0] == "distill" and current is None:
            raise ConfigError(
                f"{key!r} cannot be set: a teacher is for `distill`, and this run has none."
            )
        if isinstance(current, Mapping):
            new: Any = {
                **current,
                path[1]: convert(value, Any, short.replace(MODEL_ARGS, "model.")),
            }
            return dataclasses.replace(config, **{path[0]: new})  # type: ignore[type-var]
        if not dataclasses.is_dataclass(type(current)):
            raise ConfigError(f"{key!r} cannot be set: {path[0]!r} is not a group of settings.")
        new = _replace(current, path[1:], value, key, settings)
    else:
        new = convert(value, hints[path[0]], short)
    return dataclasses.replace(config, **{path[0]: new})  # type: ignore[type-var]


def _report_unknown(key: str, settings: Iterable[Setting]) -> ConfigError:
    short = key.removeprefix("recipe.")
    names = {s.name.removeprefix("recipe."): None for s in settings}
    names |= {s.keyword: None for s in settings if s.option.panel}
    # `mixup` is most likely `augment.mixup`: the last part of a name says what is meant.
    same = [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]]
    hint = f"Did you mean {same[0]!r}?" if same else did_you_mean(short, names)
    return ConfigError(
        f"There is no setting {short!r}.", hint or "`deitctl train --dry-run` lists them."
    )


def convert(value: Any, hint: Any, name: str) -> Any:
    """Convert a text or TOML value to the type of a field; raise `ConfigError` if it does not fit."""
    origin, args = get_origin(hint), get_args(hint)
    try:
        if origin is Literal:
            if {"on", "off"} <= set(args) and str(
                value
            ).lower() in BOOLEANS:  # a switch before it had auto
                value = "on" if _to_bool(value) else "off"
            if value in args:
                return value
            raise ValueError(f"expected one of {', '.join(map(str, args))}")
        if hint == ImageSize:
            return parse_size(value)
        if hint is Any:
            return _parse_argument(value)
        if origin is Mapping:
            if not isinstance(value, Mapping):
                raise ValueError("set one at a time, model.depth=6 for example")
            return {str(key): _parse_argument(argument) for key, argument in value.items()}
        if origin in (Union, types.UnionType):
            return None if value is None else convert(value, args[0], name)
        if origin is tuple:
            text = value.strip("()[] ") if isinstance(value, str) else None
            parts = list(value) if text is None else text.split(",")
            if args[-1] is Ellipsis:  # of any number, none among them
                parts = [] if text == "" else parts
                args = args[:1] * len(parts)
            if len(parts) != len(args):
                raise ValueError(f"expected {len(args)} numbers")
            return tuple(convert(p, a, name) for p, a in zip(parts, args, strict=True))
        if dataclasses.is_dataclass(hint):
            if isinstance(value, Mapping):
                return from_dict(hint, value, name)  # type: ignore[arg-type]
            if isinstance(value, cast(type, hint)):
                return value
            raise ValueError("it is a group of settings")
        if hint is bool:
            return _to_bool(value)
        if hint is str and not isinstance(value, str):
            raise ValueError("expected a text")
        return _to_number(value, hint) if hint in (int, float) else hint(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{name} = {reprlib.repr(value)} does not fit: {error}.") from error


def _parse_argument(value: Any) -> Any:
    """Return a model's argument, of which only the model knows the type: a number, a boolean or a text."""
    if isinstance(value, list | tuple):
        return [_parse_argument(part) for part in value]
    if not isinstance(value, str):
        if not isinstance(value, bool | int | float):
            raise ValueError("expected a number, true or false, or a text")
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _to_number(value: Any, kind: type) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number")
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise ValueError("expected a whole number")
    number = kind(value)
    if kind is float and not math.isfinite(number):
        raise ValueError("expected a finite number")
    return number


def _to_bool(value: Any) -> bool:
    if str(value).lower() not in BOOLEANS:
        raise ValueError("expected true or false")
    return BOOLEANS[str(value).lower()]


def from_dict(kind: type[C], values: Mapping[str, Any], where: str) -> C:
    """Build a config from nested mappings; raise `ConfigError` on a missing, unknown or unfit entry."""
    hints = get_type_hints(kind)
    if unknown := [k for k in values if k not in hints]:
        raise ConfigError(
            f"{where} has no setting {unknown[0]!r}.", did_you_mean(unknown[0], hints)
        )
    settings = {k: convert(v, hints[k], f"{where}.{k}") for k, v in values.items()}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        defaults = (field.default, field.default_factory)
        if field.name not in settings and defaults == (dataclasses.MISSING, dataclasses.MISSING):
            raise ConfigError(f"{where} lacks the setting {field.name!r}.")
    return kind(**settings)


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as nested dicts that TOML can hold (None is left out)."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items() if v is not None}
        return list(value) if isinstance(value, tuple) else value

    settings = {k: plain(v) for k, v in dataclasses.asdict(config).items() if v is not None}
    return {k: v for k, v in settings.items() if v != {}}  # a model without own arguments


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; raise `ConfigError` if it is missing or broken."""
    try:
        text = read_text(path, MAX_TOML)
        if any(line.count(".") > MAX_DOTS for line in text.splitlines()):
            # tomllib takes minutes for a key of ten thousand parts
            raise ValueError("it is nested too deeply")
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.", suggest_path(path)) from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply.") from error
    except ValueError as error:  # no TOML, no UTF-8, a number that Python will not read
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error


def write_toml(config: Any) -> str:
    """Return a config as TOML text."""
    import tomli_w

    return tomli_w.dumps(to_dict(config))
