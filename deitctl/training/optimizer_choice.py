"""Which optimizer a name means, and with which arguments; timm's (`timm.optim`), but for AdamW."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from deitctl.config import OptimConfig
from deitctl.errors import ConfigError, did_you_mean
from deitctl.events import Reporter
from deitctl.recipes import OPTIMIZER_DEFAULTS

if TYPE_CHECKING:
    from timm.optim._optim_factory import OptimInfo

ADAMW = "adamw"
TITLES = {ADAMW: "AdamW", "lamb": "LAMB"}
SHOWN = "adamw, lamb, muon, nadamuon, sgd, lion"
FOREIGN = {"apex.": ("NVIDIA Apex", "fused"), "bitsandbytes.": ("bitsandbytes", "bnb")}
"""Packages by the beginning of their classes' names, with the prefix of timm's names for them."""
SET_APART = {"lr": "--lr", "weight_decay": "optim.weight_decay", "momentum": "optim.momentum"}
SET_APART |= {"betas": "optim.betas", "eps": "optim.eps", "params": ""}
"""Arguments of an optimizer that have a setting of their own."""


def check_optimizer(config: OptimConfig) -> None:
    """Refuse an optimizer that cannot be built, or arguments that it does not take; raise `ConfigError`."""
    probe = torch.nn.Parameter(torch.zeros(4, 4))
    create_optimizer([{"params": [probe], "weight_decay": config.weight_decay}], config, config.lr)


def create_optimizer(
    groups: list[dict[str, Any]], config: OptimConfig, peak_lr: float
) -> torch.optim.Optimizer:
    """Build an optimizer for parameter groups.

    Args:
        groups: with their weight decay.
        config: its name and arguments.
        peak_lr: highest rate of the run, by which some scale their weight decay (`adamc` and the like).

    Raises:
        ConfigError: no such optimizer, one that cannot be built here, or arguments that it does not take.
    """
    arguments = collect_arguments(config)
    try:
        if config.opt.lower() == ADAMW:  # `fused` is one pass over memory
            return torch.optim.AdamW(groups, lr=peak_lr, **{"fused": True, **arguments})
        from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]

        with warnings.catch_warnings(action="ignore"):  # that a package would make it faster
            return create_optimizer_v2(
                groups, config.opt, lr=peak_lr, momentum=config.momentum, **arguments
            )
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ConfigError(
            f"The optimizer {config.opt} refuses its arguments: {reason}.",
            "They are set by optim.betas, optim.momentum, optim.eps and optim.opt_args.",
        ) from error


def find_optimizer(name: str) -> OptimInfo:
    """Return what timm knows of an optimizer; raise `ConfigError` for one that cannot be built here."""
    from timm.optim import get_optimizer_info, list_optimizers  # type: ignore[attr-defined]

    names = [str(n) for n in list_optimizers()]
    if name.lower() not in names:
        hint = did_you_mean(name.lower(), names)
        raise ConfigError(
            f"There is no optimizer {name!r}.",
            f"{hint} " * bool(hint)
            + f"Among others there are: {SHOWN}; timm.optim.list_optimizers() lists all.",
        )
    info = get_optimizer_info(name)
    for beginning, (package, prefix) in FOREIGN.items():
        if isinstance(info.opt_class, str) and info.opt_class.startswith(beginning):
            plain = name.lower().removeprefix(prefix).removesuffix("8bit")
            raise ConfigError(
                f"{name} is of {package}, whose states cannot be saved and resumed exactly.",
                f"Use {plain if plain in names else ADAMW}: the same in torch.",
            )
    if info.second_order:
        raise ConfigError(
            f"{name} needs second derivatives, which a training step does not compute.",
            f"Among others there are: {SHOWN}.",
        )
    return info


def collect_arguments(config: OptimConfig) -> dict[str, Any]:
    """Return the arguments that the settings give an optimizer, but for its rate and momentum."""
    if config.opt.lower() == ADAMW and not (config.betas or config.eps or config.opt_args):
        _refuse_momentum(config, has_momentum=False)
        return {}  # without timm, which takes a second to import
    info, arguments = find_optimizer(config.opt), dict[str, Any]()
    _refuse_momentum(config, has_momentum=info.has_momentum)
    if config.betas:
        if not info.has_betas:
            raise ConfigError(f"{config.opt} has no betas: leave optim.betas out.")
        if len(config.betas) != info.num_betas:
            raise ConfigError(f"{config.opt} has {info.num_betas} betas, not {len(config.betas)}.")
        arguments["betas"] = config.betas
    if config.eps:
        if not info.has_eps:
            raise ConfigError(f"{config.opt} has no eps: leave optim.eps out.")
        arguments["eps"] = config.eps
    accepted = inspect.signature(_find_class(info).__init__).parameters  # type: ignore[misc]
    for name, value in _parse(config.opt_args).items():
        if name in SET_APART:
            raise ConfigError(
                f"optim.opt_args: {name} has a setting of its own.",
                f"Use {SET_APART[name]}." if SET_APART[name] else "",
            )
        if name not in accepted:
            others = [n for n in accepted if n not in ("self", *SET_APART)]
            raise ConfigError(
                f"The optimizer {config.opt} has no argument {name!r}.",
                did_you_mean(name, others) or f"It has: {', '.join(others)}.",
            )
        arguments[name] = value
    return arguments


def _find_class(info: OptimInfo) -> type:
    from timm.optim import get_optimizer_class  # type: ignore[attr-defined]

    kind = get_optimizer_class(info.name, bind_defaults=False)
    assert isinstance(kind, type)
    return kind


def _refuse_momentum(config: OptimConfig, *, has_momentum: bool) -> None:
    if config.momentum != OptimConfig.momentum and not has_momentum:
        raise ConfigError(
            f"{config.opt} has no momentum: leave optim.momentum out.",
            "The decays of its running means are optim.betas.",
        )


def _parse(texts: Iterable[str]) -> dict[str, Any]:
    """Return arguments from texts `name=value`, whose values are Python's or words."""
    arguments: dict[str, Any] = {}
    for text in filter(None, (text.strip() for text in texts)):
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name.isidentifier():
            raise ConfigError(
                f"optim.opt_args: {text!r} is not name=value.",
                "Example: --set optim.opt_args=nesterov=false,ns_steps=6",
            )
        words = {"true": True, "false": False, "none": None}
        try:
            arguments[name] = words.get(value.lower(), value)
            if arguments[name] == value:
                arguments[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[name] = value  # a word, as in adjust_lr_fn=match_rms_adamw
    return arguments


def choose_rates(
    config: OptimConfig, fixed: Collection[str], recipe_opt: str = ADAMW
) -> tuple[OptimConfig, str]:
    """Return settings with the learning rate and weight decay of their optimizer, where they were a
    recipe's for another.

    Args:
        config: the settings.
        fixed: names, from the recipe on, of those that the user has chosen: they stay.
        recipe_opt: the optimizer that the recipe's values are for.

    Returns:
        The settings, and what was changed and why, as a sentence; empty if nothing was.

    Raises:
        ConfigError: the rate is another optimizer's, and what it is for this one is not known.
    """
    if config.opt.lower() == recipe_opt:
        return config, ""
    if config.eps and "optim.eps" not in fixed:  # the recipe's, of its own optimizer
        config = replace(config, eps=0.0)
    defaults, theirs = OPTIMIZER_DEFAULTS.get(config.opt.lower()), OPTIMIZER_DEFAULTS[recipe_opt]
    title = TITLES.get(recipe_opt, recipe_opt)
    if defaults is None:
        find_optimizer(config.opt)
        if "optim.lr" not in fixed:
            raise ConfigError(
                f"The recipe's learning rate, {config.lr:g}, is for {title}, and {config.opt} needs another.",
                "Pass --lr, and --set optim.weight_decay if its decay is a part of the gradient.",
            )
        return config, ""
    factors = {
        "optim.lr": defaults.lr_factor / theirs.lr_factor,
        "optim.weight_decay": defaults.decay_factor / theirs.decay_factor,
    }
    changes = {name: f for name, f in factors.items() if name not in fixed and f != 1}
    if not changes:
        return config, ""
    scale = changes.get("optim.lr", 1)
    # The ends of the schedule are rates too: a lower peak over the same end would rise to it.
    ends = {
        name: getattr(config, name) * scale
        for name in ("min_lr", "warmup_lr")
        if f"optim.{name}" not in fixed
    }
    decay = config.weight_decay * changes.get("optim.weight_decay", 1)
    titles = {"optim.lr": "learning rate", "optim.weight_decay": "weight decay"}
    parts = [
        f"{titles[name]} {factor:.3g} times the recipe's for {title}"
        for name, factor in changes.items()
    ]
    reason = f"{config.opt}: {' and '.join(parts)} ({defaults.source or theirs.source}); --lr sets another rate."
    return replace(config, lr=config.lr * scale, weight_decay=decay, **ends), reason


def replace_rates(
    before: OptimConfig,
    now: OptimConfig,
    named: Collection[str],
    where: str,
    reporter: Reporter,
) -> OptimConfig:
    """Return the settings of a run whose optimizer may be replaced, with a weight decay that goes with it.

    Args:
        before: of the run.
        now: with the settings that are replaced.
        named: dotted names of these, from `TrainConfig` on.
        where: the run's file.
        reporter: gets what was changed.

    Raises:
        ConfigError: the optimizer is replaced, and no rate is named.
    """
    names = before.opt.lower(), now.opt.lower()
    if names[0] == names[1]:
        return now
    if "recipe.optim.lr" not in named:
        raise ConfigError(
            f"The learning rate of {where}, {before.lr:g}, is for {before.opt}.",
            f"Pass --lr with --opt {now.opt}.",
        )
    old, new = (OPTIMIZER_DEFAULTS.get(name) for name in names)
    if "recipe.optim.weight_decay" in named or not (old and new):
        return now
    factor = new.decay_factor / old.decay_factor
    if factor == 1:
        return now
    reporter.note(
        f"{now.opt}: weight decay {factor:g} times that of {where}, which is for {before.opt} "
        f"({new.source or old.source}); --set optim.weight_decay sets another."
    )
    return replace(now, weight_decay=now.weight_decay * factor)


def warn_of_rising_rate(config: OptimConfig, peak_lr: float, reporter: Reporter) -> None:
    """Warn where the rate at the end of a schedule is above its peak, so that it rises all along."""
    if config.min_lr > 1.001 * peak_lr and config.sched in ("cosine", "linear", "wsd"):
        reporter.warn(
            "The learning rate rises to the end of the schedule: "
            f"min_lr is {config.min_lr:.3g}, the peak {peak_lr:.3g}. "
            f"--set optim.min_lr={peak_lr / 100:.1g} lets it fall."
        )
