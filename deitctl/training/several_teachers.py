"""Settings of several teachers: `--teacher A --teacher B`, or `A+B`, with the settings that each has of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from deitctl.config import TEACHER_SETTINGS, DistillConfig, TeacherConfig, TrainConfig
from deitctl.errors import ConfigError
from deitctl.events import Reporter
from deitctl.home import expand_home
from deitctl.models.backbone import lacks_classifier
from deitctl.models.sources import name_weights
from deitctl.settings import convert, find_setting

JOINED = "+"
"""Between the names of teachers that are one value, of a sweep for example."""
OWN_FILES = ("distill.teacher_weights", "distill.teacher_classes", "distill.teacher_cache")
"""What one teacher has and no other."""


def split_teachers(value: Any) -> list[str]:
    """Return the names of teachers: of a list, or of a text `A+B` that is no path."""
    if isinstance(value, list | tuple):
        return [name for part in value for name in split_teachers(part)]
    text = str(value)
    if JOINED not in text or expand_home(text).exists():
        return [text]
    return [part.strip() for part in text.split(JOINED)]


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the settings with those of the first teacher alone, and those of each other one, by dotted name.

    A value that is given once is that of all teachers.

    Raises:
        ConfigError: other numbers of values than of teachers, or one file for several teachers.
    """
    teachers = split_teachers(settings.get("distill.teacher") or "")
    if "" in teachers and len(teachers) > 1:
        raise ConfigError("One of several teachers has no name.", "Name it, or leave it out.")
    each: list[dict[str, Any]] = [{"distill.teacher": name} for name in teachers if name] or [{}]
    rest = {name: value for name, value in settings.items() if name not in TEACHER_SETTINGS}
    for name in TEACHER_SETTINGS[1:]:
        if (value := settings.get(name)) is None:
            continue
        flag = find_setting(name).flag
        values = value if isinstance(value, list) else [value] * len(each)
        if len(values) != len(each):
            raise ConfigError(
                f"{flag} is given {len(values)} times, for {len(each)} teacher{'s' * (len(each) > 1)}.",
                "Give one for each --teacher, in their order, or one for all.",
            )
        if (
            name in OWN_FILES
            and not isinstance(value, list)
            and len(each) > 1
            and value not in ("", "off")
        ):
            raise ConfigError(
                f"{flag} {value} is one for {len(each)} teachers.",
                f'Give one for each --teacher, in their order; {flag} "" for one that has none.',
            )
        for own, single in zip(each, values, strict=True):
            own[name] = single
    first, *more = each
    return {**rest, **first}, more


def add_teachers(config: TrainConfig, more: list[dict[str, Any]]) -> TrainConfig:
    """Return a configuration with teachers beside the first, of settings by dotted name.

    Raises:
        ConfigError: a value that does not fit.
    """
    distill = config.distill
    if distill is None or not more:
        return config
    teachers = tuple(
        TeacherConfig(
            **{
                name.removeprefix("distill."): convert(
                    value, find_setting(name).kind, name.removeprefix("distill.")
                )
                for name, value in settings.items()
            }
        )
        for settings in more
    )
    return replace(config, distill=replace(distill, more_teachers=teachers))


def map_teachers(config: TrainConfig, change: Callable[[TrainConfig], TrainConfig]) -> TrainConfig:
    """Return a configuration each of whose teachers is changed as if it were the only one.

    Args:
        config: of the run.
        change: returns a configuration of one teacher that is like another but for the settings of a teacher.
    """
    distill = config.distill
    if distill is None:
        return config
    alone = replace(distill, more_teachers=())
    each = [alone, *(replace(alone, **vars(teacher)) for teacher in distill.more_teachers)]
    changed = [change(replace(config, distill=one)).distill or one for one in each]
    names = [field.name for field in fields(TeacherConfig)]
    own = [{name: getattr(one, name) for name in names} for one in changed]
    more = tuple(TeacherConfig(**values) for values in own[1:])
    return replace(config, distill=replace(distill, **own[0], more_teachers=more))


def list_each(distill: DistillConfig) -> list[TeacherConfig]:
    """Return the settings of each teacher, those of the first too."""
    first = {field.name: getattr(distill, field.name) for field in fields(TeacherConfig)}
    return [TeacherConfig(**first), *distill.more_teachers]


def settle_roles(config: TrainConfig, reporter: Reporter) -> TrainConfig:
    """Return a configuration in which no role is `auto`: of several teachers in a mode of labels and features.

    Those without a classifier give features, and the others labels; where all have one, all give both.
    """
    distill = config.distill
    if distill is None or not (
        distill.more_teachers and distill.label_mode and distill.uses_features
    ):
        return config
    each = [distill.teacher_role, *(t.teacher_role for t in distill.more_teachers)]
    if "auto" not in each:
        return config
    headless = [
        lacks_classifier(t.teacher, t.teacher_weights, reporter) for t in list_each(distill)
    ]
    is_divided = any(headless) or bool({"labels", "features"} & {*each})
    roles = [
        role if role != "auto" else "both" if not is_divided else "features" if bare else "labels"
        for role, bare in zip(each, headless, strict=True)
    ]
    reporter.note(
        "Of the teachers "
        + ", ".join(
            f"{name_weights(t.teacher, t.teacher_weights)} gives {'labels and features' if role == 'both' else role}"
            for t, role in zip(list_each(distill), roles, strict=True)
        )
        + " (--teacher-role)."
    )
    more = tuple(
        replace(teacher, teacher_role=role)
        for teacher, role in zip(distill.more_teachers, roles[1:], strict=True)
    )
    return replace(config, distill=replace(distill, teacher_role=roles[0], more_teachers=more))


def check_roles(distill: DistillConfig) -> None:
    """Refuse roles that leave out what the mode learns, or that the mode does not have; raise `ConfigError`."""
    roles = [distill.teacher_role, *(t.teacher_role for t in distill.more_teachers)]
    for what, is_learned in (
        ("labels", bool(distill.label_mode)),
        ("features", distill.uses_features),
    ):
        if is_learned and not any(role in (what, "both", "auto") for role in roles):
            raise ConfigError(
                f"Mode {distill.mode} learns {what}, and no teacher gives them.",
                f"Give one of them --teacher-role {what}, or use another --mode.",
            )
        if not is_learned and what in roles:
            raise ConfigError(
                f"--teacher-role {what} gives what mode {distill.mode} does not learn.",
                "Leave it out, or use --mode features+hard.",
            )
    names = [(t.teacher, t.teacher_weights) for t in list_each(distill)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)[0]
        raise ConfigError(f"{twice} is named twice as a teacher.", "Leave one of them out.")
