"""Trials that Optuna suggests (TPE, arXiv 2304.11127), each a function of the seed, its number and the results so far.

The study is built again for every suggestion, from what the run folders hold: nothing else is to be kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from deitctl.errors import ConfigError
from deitctl.rng import derive_seed
from deitctl.sweeps.trials import ATTEMPTS, Trial, make_trials
from deitctl.sweeps.variation import Variation

Scored = tuple[Mapping[str, Any], float]
"""The values of a trial, and its mean score, of which higher is better."""


def require_optuna() -> None:
    """Raise `ConfigError` if Optuna is not installed."""
    if find_spec("optuna") is None:
        raise ConfigError("--optuna needs Optuna.", "pip install 'deitctl[sweep]'")


def suggest_trial(
    variations: Sequence[Variation], scored: Sequence[Scored], trials: Sequence[Trial], seed: int
) -> Trial | None:
    """Return a trial that is not among `trials`, None where there seems to be none.

    Args:
        variations: what is varied.
        scored: the trials that are finished.
        trials: all so far.
        seed: of the suggestions.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = {trial.name.lower() for trial in trials}
    for attempt in range(ATTEMPTS):
        sampler = optuna.samplers.TPESampler(
            seed=derive_seed(seed, "optuna", len(trials), attempt) % 2**32
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for values, score in scored:
            study.add_trial(_to_optuna(variations, values, score))
        params = study.ask(_distributions(variations)).params
        values = {v.name: _from_optuna(v, params[v.name]) for v in variations}
        (trial,) = make_trials(variations, [values])
        if trial.name.lower() not in names:
            return trial
    return None


def _distributions(variations: Sequence[Variation]) -> dict[str, Any]:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    distributions: dict[str, Any] = {}
    for v in variations:
        if v.range is None:  # by their positions, because Optuna stores no tuples
            distributions[v.name] = CategoricalDistribution(list(range(len(v.values))))
        elif v.range.is_integer:
            low, high = int(v.range.low), int(v.range.high)
            distributions[v.name] = IntDistribution(low, high, log=v.range.is_log)
        else:
            distributions[v.name] = FloatDistribution(v.range.low, v.range.high, log=v.range.is_log)
    return distributions


def _to_optuna(variations: Sequence[Variation], values: Mapping[str, Any], score: float) -> Any:
    from optuna.trial import create_trial

    # a trial without a teacher has no values of a teacher's settings
    present = [v for v in variations if v.name in values]
    params = {
        v.name: values[v.name] if v.range is not None else v.values.index(values[v.name])
        for v in present
    }
    return create_trial(params=params, distributions=_distributions(present), value=score)


def _from_optuna(variation: Variation, param: Any) -> Any:
    if variation.range is not None:
        return variation.range.fit(param)
    return variation.values[param]
