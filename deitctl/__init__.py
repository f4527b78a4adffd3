"""deitctl: train, distil, evaluate, use and ship DeiT image classifiers.

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
    "bench": "deitctl.workflows.bench",
    "check": "deitctl.workflows.check",
    "compare": "deitctl.workflows.compare",
    "teach": "deitctl.workflows.teach",
    "Request": "deitctl.workflows.configure",
    "Teaching": "deitctl.workflows.configure",
    "configure": "deitctl.workflows.configure",
    "evaluate": "deitctl.workflows.evaluate:evaluate_model",
    "explain": "deitctl.workflows.explain",
    "export": "deitctl.workflows.export",
    "pack": "deitctl.workflows.pack",
    "predict": "deitctl.workflows.predict",
    "push": "deitctl.workflows.push",
    "resume": "deitctl.workflows.train",
    "train": "deitctl.workflows.train:run_training",
    "verify": "deitctl.workflows.verify:verify_export",
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
