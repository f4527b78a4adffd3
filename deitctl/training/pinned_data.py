"""Data on the hub that a run names is of the commit that it began with, whichever of its sources it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from deitctl.config import TrainConfig
from deitctl.data.readers.hub import is_pin_of, pin_reference
from deitctl.distributed import World


def pin_data(config: TrainConfig, world: World) -> TrainConfig:
    """Return a configuration with the commits of what the main process has opened of the hub; collective."""
    return world.broadcast_object(_replace_references(config, pin_reference))


def pin_as(config: TrainConfig, existing: TrainConfig) -> TrainConfig:
    """Return a configuration with the commits of a run, where it names the same data of the hub."""
    pinned = _list_references(existing)

    def pin(ref: str) -> str:
        return next((each for each in pinned if is_pin_of(each, ref)), ref)

    return _replace_references(config, pin)


def _list_references(config: TrainConfig) -> list[str]:
    unlabelled = config.distill.unlabelled if config.distill else ""
    return [config.data, *config.extra_data, unlabelled]


def _replace_references(config: TrainConfig, pin: Callable[[str], str]) -> TrainConfig:
    distill = config.distill
    if distill is not None:
        distill = replace(distill, unlabelled=pin(distill.unlabelled))
    extra_data = tuple(pin(ref) for ref in config.extra_data)
    return replace(config, data=pin(config.data), extra_data=extra_data, distill=distill)
