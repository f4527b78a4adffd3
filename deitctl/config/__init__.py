"""Configurations of a training: frozen dataclasses that a recipe fills, options override and `run.toml` keeps.

A setting is declared once, in this package: its type, default, range, help, and the panel of `--help` that lists it.
The options of the command line follow from it (`cli/options.py`).
"""

from deitctl.config.augment import AugmentConfig
from deitctl.config.distill import (
    AVERAGE_TAU,
    TEACHER_DEFAULT,
    TEACHER_SETTINGS,
    DistillConfig,
    FeatureConfig,
    FinetuneChoice,
    ModeChoice,
    RoleChoice,
    TeacherConfig,
)
from deitctl.config.optim import OptimConfig
from deitctl.config.option import (
    EVERYDAY,
    MACHINE,
    MAX_CHANS,
    MAX_COUNT,
    MAX_FOLDS,
    MAX_SIZE,
    MODEL_HELP,
    OPTIMIZATION,
    RECIPE,
    RESUMING,
    TEACHER,
    Option,
)
from deitctl.config.recipe import AslConfig, BceConfig, ProgressiveResize, Recipe
from deitctl.config.train import (
    EXTRA_SETTINGS,
    MACHINE_SETTINGS,
    PLACES,
    CompileChoice,
    OrderChoice,
    SelectChoice,
    StrategyChoice,
    TaskChoice,
    TrainConfig,
)

__all__ = [
    "AVERAGE_TAU",
    "EVERYDAY",
    "EXTRA_SETTINGS",
    "MACHINE",
    "MACHINE_SETTINGS",
    "MAX_CHANS",
    "MAX_COUNT",
    "MAX_FOLDS",
    "MAX_SIZE",
    "MODEL_HELP",
    "OPTIMIZATION",
    "PLACES",
    "RECIPE",
    "RESUMING",
    "TEACHER",
    "TEACHER_DEFAULT",
    "TEACHER_SETTINGS",
    "AslConfig",
    "AugmentConfig",
    "BceConfig",
    "CompileChoice",
    "DistillConfig",
    "FeatureConfig",
    "FinetuneChoice",
    "ModeChoice",
    "OptimConfig",
    "Option",
    "OrderChoice",
    "ProgressiveResize",
    "Recipe",
    "RoleChoice",
    "SelectChoice",
    "StrategyChoice",
    "TaskChoice",
    "TeacherConfig",
    "TrainConfig",
]
