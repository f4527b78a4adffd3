"""Configurations of a sweep's runs: one resolution of settings for all, so that trials are on equal terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deitctl.checks.preflight import warn_about_classes
from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.training_data import Source, open_folds
from deitctl.errors import ConfigError
from deitctl.events import Reporter, SilentReporter
from deitctl.models import catalog
from deitctl.models.factory import find_architecture
from deitctl.models.sources import list_weight_files
from deitctl.sweeps.trials import Trial
from deitctl.sweeps.variation import MODE, Variation
from deitctl.training.configure import build_config

TEACHER = "distill.teacher"


class TrialConfigs:
    """Resolves trials; the data is opened once."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        overrides: Mapping[str, Any],
        variations: Sequence[Variation],
        reporter: Reporter,
    ) -> None:
        """Refuse settings that are varied too; arguments as `build_config`."""
        for variation in variations:
            if variation.name in settings or variation.name in overrides:
                raise ConfigError(
                    f"{variation.short} is varied, and set to one value.", "Leave one of them out."
                )
        self._settings, self._overrides = dict(settings), dict(overrides)
        self._reporter = reporter
        self.has_teacher = has_teacher(settings, variations)
        # of trials that have none, until their teacher is removed
        teachers = [v.values for v in variations if v.name == TEACHER]
        self._teacher = str(teachers[0][0]) if teachers and teachers[0] else ""
        varied = {v.name.removeprefix("distill.") for v in variations}
        self._opens_again = bool(varied & set(Source.__dataclass_fields__))
        self._datasets: tuple[ImageDataset, ImageDataset] | None = None
        self.num_images = 0
        """Validation images; of folds those of all together."""

    def make(self, trial: Trial) -> TrainConfig:
        """Return the configuration of a trial with the first seed, of folds without one; raises as `build_config`."""
        settings = self._settings | dict(trial.values)
        mode = settings.get(MODE, "hard")
        if not self.has_teacher:
            # other settings of a teacher stay, and are refused where there is none
            settings = {k: v for k, v in settings.items() if (k, v) != (MODE, "none")}
        elif mode == "none":
            # the plain model has what distillation has, but for the teacher
            settings[MODE] = "hard"
            if self._teacher:
                settings.setdefault(TEACHER, self._teacher)
        is_first = not self.num_images
        config, train, val = build_config(
            settings,
            overrides=self._overrides,
            distilled=self.has_teacher,
            datasets=self._datasets,
            reporter=self._reporter if is_first else SilentReporter(),
        )
        if is_first:
            warn_about_classes(config.data, train, val, self._reporter)
            # so that the default data are named, and their use noted, once
            self._settings["data"] = config.data
            self.num_images = len(val.labels)
            if config.folds and not config.fold:
                folded = open_folds(Source.of(config), reporter=SilentReporter())
                self.num_images = len(folded.images.labels)
        if not self._opens_again:
            self._datasets = train, val
        if self.has_teacher and mode == "none":
            config = remove_teacher(config, self._reporter)
        return config


def has_teacher(settings: Mapping[str, Any], variations: Sequence[Variation]) -> bool:
    """Return whether any of a sweep's runs has a teacher."""
    modes = next((v.values for v in variations if v.name == MODE), (settings.get(MODE),))
    if set(modes) == {"none"}:
        return False
    named = [*settings, *(variation.name for variation in variations)]
    return any(name.startswith("distill.") for name in named)


def remove_teacher(config: TrainConfig, reporter: Reporter) -> TrainConfig:
    """Return the configuration of the plain model on equal terms with the distilled one."""
    if config.distill is None:
        return config
    arch = find_architecture(config.model, reporter)
    if arch is not None:
        # The plain model, also of a student that was named with a distillation token; a file's
        # weights stay its start.
        weights = config.weights or (config.model if list_weight_files(config.model) else "")
        config = replace(config, model=catalog.get_plain(arch).alias, weights=weights)
    return replace(config, distill=None)


def place_run(config: TrainConfig, trial: Trial, seed: int, fold: int, output: Path) -> TrainConfig:
    """Return the configuration of a trial's run with a seed, and of a fold unless it is 0, in a folder of its own."""
    root = output / (f"{trial.name}_seed={seed}" + (f"_fold={fold}" if fold else ""))
    return replace(config, seed=seed, fold=fold or config.fold, output_dir=str(root))
