"""deitctl: train, distill, evaluate, use and ship DeiT image classifiers.

The library is the workflows of the command line, without printing:

    import deitctl
    for record in deitctl.predict(["cat.jpg"], model="deit_tiny"):
        ...
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "bench": "deitctl.profiling.bench",
    "check": "deitctl.checks.check",
    "compare": "deitctl.distillation.compare",
    "teach": "deitctl.distillation.precompute",
    "Request": "deitctl.training.configure",
    "Teaching": "deitctl.training.configure",
    "configure": "deitctl.training.configure",
    "evaluate": "deitctl.evaluation.evaluate:evaluate_model",
    "explain": "deitctl.explanation.explain",
    "export": "deitctl.exporters.export",
    "pack": "deitctl.packing.pack",
    "predict": "deitctl.inference.classify",
    "push": "deitctl.hub.push",
    "resume": "deitctl.training.launch",
    "train": "deitctl.training.launch:run_training",
    "verify": "deitctl.exporters.verify:verify_export",
    "DeitctlError": "deitctl.errors",
    "SilentReporter": "deitctl.events",
    "TrainConfig": "deitctl.config",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that `import deitctl` costs nothing."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'deitctl' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    value = getattr(import_module(module), attribute or name)
    globals()[name] = value
    return value
