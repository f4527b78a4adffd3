"""deitctl: train, distill, evaluate, use and ship DeiT image classifiers.

The functions are the commands, without printing, with the options as keywords:

    import deitctl
    for prediction in deitctl.predict("cat.jpg", model="deit_tiny"):
        ...
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deitctl.api import (
        bench,
        cache_teacher,
        distill,
        evaluate,
        evaluate_models,
        plan,
        rank_teachers,
        replay,
        sweep,
        train,
        verify_teacher_cache,
    )
    from deitctl.checks.check import check
    from deitctl.distillation.callable_teacher import CallableTeacher
    from deitctl.errors import DeitctlError
    from deitctl.evaluation.multilabel_result import MultilabelResult
    from deitctl.evaluation.result import EvalResult
    from deitctl.events import Reporter, SilentReporter
    from deitctl.explanation.explain import explain
    from deitctl.exporters.export import export
    from deitctl.exporters.verify import verify_export as verify
    from deitctl.hub.push import push
    from deitctl.inference.classifier import load, predict
    from deitctl.models.heads import forward_heads
    from deitctl.models.model_config import Preprocessing
    from deitctl.packing.pack import pack
    from deitctl.packing.verify import verify_pack
    from deitctl.profiling.environment import collect_env
    from deitctl.profiling.recipe_info import describe_recipe, list_recipes
    from deitctl.sweeps.run_list import compare_runs, list_runs
    from deitctl.training.reproduce import reproduce

__version__ = "0.1.0"

_MODULES = {
    "bench": "deitctl.api",
    "cache_teacher": "deitctl.api",
    "CallableTeacher": "deitctl.distillation.callable_teacher",
    "check": "deitctl.checks.check",
    "collect_env": "deitctl.profiling.environment",
    "compare_runs": "deitctl.sweeps.run_list",
    "DeitctlError": "deitctl.errors",
    "describe_recipe": "deitctl.profiling.recipe_info",
    "distill": "deitctl.api",
    "EvalResult": "deitctl.evaluation.result",
    "evaluate": "deitctl.api",
    "evaluate_models": "deitctl.api",
    "explain": "deitctl.explanation.explain",
    "export": "deitctl.exporters.export",
    "forward_heads": "deitctl.models.heads",
    "list_recipes": "deitctl.profiling.recipe_info",
    "list_runs": "deitctl.sweeps.run_list",
    "load": "deitctl.inference.classifier",
    "MultilabelResult": "deitctl.evaluation.multilabel_result",
    "pack": "deitctl.packing.pack",
    "plan": "deitctl.api",
    "predict": "deitctl.inference.classifier",
    "Preprocessing": "deitctl.models.model_config",
    "push": "deitctl.hub.push",
    "rank_teachers": "deitctl.api",
    "replay": "deitctl.api",
    "Reporter": "deitctl.events",
    "reproduce": "deitctl.training.reproduce",
    "SilentReporter": "deitctl.events",
    "sweep": "deitctl.api",
    "train": "deitctl.api",
    "verify": "deitctl.exporters.verify:verify_export",
    "verify_pack": "deitctl.packing.verify",
    "verify_teacher_cache": "deitctl.api",
}
__all__ = [
    "CallableTeacher",
    "DeitctlError",
    "EvalResult",
    "MultilabelResult",
    "Preprocessing",
    "Reporter",
    "SilentReporter",
    "__version__",
    "bench",
    "cache_teacher",
    "check",
    "collect_env",
    "compare_runs",
    "describe_recipe",
    "distill",
    "evaluate",
    "evaluate_models",
    "explain",
    "export",
    "forward_heads",
    "list_recipes",
    "list_runs",
    "load",
    "pack",
    "plan",
    "predict",
    "push",
    "rank_teachers",
    "replay",
    "reproduce",
    "sweep",
    "train",
    "verify",
    "verify_pack",
    "verify_teacher_cache",
]


if not TYPE_CHECKING:  # a type checker that saw it would take any name for one of ours

    def __getattr__(name: str) -> Any:
        # PEP 562: a public name is imported when it is first used, so that `import deitctl` takes no torch
        if name not in _MODULES:
            raise AttributeError(f"module 'deitctl' has no attribute {name!r}")
        from deitctl.home import provide_folders

        provide_folders()
        module, _, attribute = _MODULES[name].partition(":")
        value = getattr(import_module(module), attribute or name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
