"""Table 3 of the paper on any data: each variant of distillation with equal recipe and seeds.

With several teachers it is the paper's Table 2 too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deitctl.config import TrainConfig
from deitctl.distillation.teacher import TrainRun
from deitctl.errors import ConfigError, did_you_mean
from deitctl.events import Reporter, SilentReporter
from deitctl.home import expand_home
from deitctl.models import catalog
from deitctl.models.factory import find_architecture
from deitctl.models.sources import list_weight_files, name_weights
from deitctl.paths import write_json
from deitctl.records import hidden, to_object


@dataclass(frozen=True)
class Variant:
    """One row of Table 3."""

    title: str
    mode: str
    """`hard`, `soft` or `none`."""
    dist_token: bool


# DeiT Table 3, in its order; its last three rows are the heads of `token-hard`.
VARIANTS = {
    "none": Variant("none", "none", False),
    "soft": Variant("usual (soft)", "soft", False),
    "hard": Variant("hard", "hard", False),
    "token-soft": Variant("token, soft", "soft", True),
    "token-hard": Variant("token, hard", "hard", True),
}
HEADS = ("cls", "dist", "avg-logits")

MakeConfig = Callable[[str, str, bool], TrainConfig]
"""Returns a run's configuration by teacher (empty: the default), mode and distillation token."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds."""

    mean: float
    """Mean over the seeds."""
    std: float | None
    """Sample standard deviation; null for one seed."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ± {self.std:.2f}" if self.std is not None else "")


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One variant with one teacher, over the seeds; accuracies and agreements in percent."""

    variant: str
    """Key of the variant: `none`, `soft`, `hard`, `token-soft` or `token-hard`."""
    title: str = hidden()
    """Name of the row in the paper."""
    teacher: str | None
    """Teacher; null for `none`."""
    teacher_top1: Spread | None
    """Top-1 accuracy of the teacher."""
    top1: Mapping[str, Spread]
    """Top-1 accuracy by head rule: `cls`, `dist`, `avg-logits`; a model with one head has `cls`."""
    teacher_agreement: Mapping[str, Spread]
    """Images with the teacher's prediction, by head rule (100 - DeiT Table 4)."""
    head_agreement: Spread | None
    """Images with the same prediction of both heads; null for one head."""
    seconds: Spread
    """Duration of a run."""
    runs: Sequence[str]
    """Folders of the runs."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All variants on the same data, recipe and seeds."""

    output: Path
    """Folder of the runs."""
    data: str
    """Data, as it was named."""
    student: str
    """Model, as it was named."""
    epochs: int
    """Epochs of a run."""
    num_seeds: int
    """Runs of each row."""
    num_images: int
    """Validation images."""
    rows: Sequence[ComparisonRow]
    """Variants, in the order of the paper."""


def compare(
    make_config: MakeConfig,
    train_run: TrainRun,
    *,
    output: Path,
    num_images: int,
    teachers: Sequence[str] = (),
    variants: Sequence[str] = (),
    num_seeds: int = 1,
    reporter: Reporter | None = None,
) -> Comparison:
    """Train a student with every variant, every teacher and every seed, and summarize the results.

    The runs of one mode share the teacher's cached targets. The variant `none` gets fresh views
    every epoch, as in `deitctl train`. Finished runs are reused.

    Args:
        make_config: see `MakeConfig`; all its configurations have the same recipe and seed.
        train_run: see `TrainRun`; refuses a folder that holds a run of another configuration.
        output: folder of the runs and of `comparison.json`.
        num_images: validation images, for the record.
        teachers: their names; empty for the default one.
        variants: keys of `VARIANTS`; empty for all.
        num_seeds: runs of each row, with the configuration's seed and those after it.
        reporter: receives progress.

    Raises:
        ConfigError: an unknown variant, teachers of one name, or other runs in the folder.
        DeitctlError: as `train_run`.
    """
    reporter = reporter or SilentReporter()
    variants = list(dict.fromkeys(variants or VARIANTS))
    for name in variants:
        if name not in VARIANTS:
            raise ConfigError(
                f"There is no variant {name!r}.",
                did_you_mean(name, VARIANTS) or f"There are: {', '.join(VARIANTS)}.",
            )
    teachers = list(dict.fromkeys(teachers)) or [""]
    configs = {
        (name, teacher): _configure(make_config, VARIANTS[name], teacher, reporter)
        for name in variants
        for teacher in (teachers if VARIANTS[name].mode != "none" else teachers[:1])
    }
    _check_teachers(teachers, configs.values(), reporter)
    results: dict[tuple[str, str], list[Mapping[str, Any]]] = {key: [] for key in configs}
    first = next(iter(configs.values()))
    for seed in range(first.seed, first.seed + num_seeds):
        for (name, teacher), config in configs.items():
            distill = config.distill
            label = name if distill is None else f"{name}-{Path(distill.teacher).name}"
            root = output / f"{label}-seed{seed}"
            reporter.note(f"Distillation {VARIANTS[name].title}, seed {seed}: {root}")
            run = replace(config, output_dir=str(root), seed=seed)
            results[name, teacher].append(train_run(run))
    comparison = Comparison(
        output=output,
        data=first.data,
        student=first.model,
        epochs=first.recipe.epochs,
        num_seeds=num_seeds,
        num_images=num_images,
        rows=[_summarize(name, records) for (name, _), records in results.items()],
    )
    write_json(output / "comparison.json", to_object(comparison))
    return comparison


def _configure(
    make_config: MakeConfig, variant: Variant, teacher: str, reporter: Reporter
) -> TrainConfig:
    """Return the configuration of a variant; `none` has the recipe of distillation too."""
    mode = variant.mode if variant.mode != "none" else "hard"
    config = make_config(teacher, mode, variant.dist_token)
    distill = config.distill
    if distill is None or (distill.mode, distill.dist_token) != (mode, variant.dist_token):
        raise ConfigError(
            "distill.mode and distill.dist_token are what is compared.",
            "Choose them with --variants instead of --set.",
        )
    # A setting that replaced every --teacher would give all rows one teacher, and one folder.
    path = str(expand_home(teacher).resolve())
    if teacher and distill.teacher not in (teacher, path, name_weights(teacher)):
        raise ConfigError(
            f"distill.teacher = {distill.teacher} replaces --teacher {teacher}, which is compared.",
            "Name teachers with --teacher alone.",
        )
    if variant.mode != "none":
        return config
    arch = find_architecture(config.model, reporter)
    if arch is not None:
        # The plain model, also of a student that was named with a distillation token; a file's
        # weights stay its start.
        weights = config.weights or (config.model if list_weight_files(config.model) else "")
        config = replace(config, model=catalog.get_plain(arch).alias, weights=weights)
    return replace(config, distill=None)


def _check_teachers(
    teachers: Sequence[str], configs: Iterable[TrainConfig], reporter: Reporter
) -> None:
    """Refuse unknown or ambiguous teachers, before hours of training with the others."""
    if len(teachers) > 1 and any(c.distill and c.distill.teacher_weights for c in configs):
        raise ConfigError(
            "--teacher-weights cannot be those of several teachers.",
            "Name teachers by their folders.",
        )
    named = list(filter(None, teachers))
    for name in named:
        find_architecture(name, reporter)
    if len({Path(name_weights(name)).name for name in named}) < len(named):
        raise ConfigError(
            "Two of the teachers have the same last name.",
            "Their runs would be in the same folders.",
        )


def _summarize(variant: str, results: Sequence[Mapping[str, Any]]) -> ComparisonRow:
    def by_head(values: Sequence[Mapping[str, float] | None]) -> dict[str, Spread]:
        present = [v for v in values if v is not None]
        return {h: Spread.of([v[h] for v in present]) for h in HEADS if present and h in present[0]}

    teachers = [r["teacher"] for r in results if r["teacher"] is not None]
    agreements = [r["head_agreement"] for r in results if r["head_agreement"] is not None]
    return ComparisonRow(
        variant=variant,
        title=VARIANTS[variant].title,
        teacher=teachers[0]["name"] if teachers else None,
        teacher_top1=Spread.of([t["top1"] for t in teachers]) if teachers else None,
        top1=by_head([r["heads"] or {"cls": r["best"]["top1"]} for r in results]),
        teacher_agreement=by_head([r["teacher_agreement"] for r in results]),
        head_agreement=Spread.of(agreements) if agreements else None,
        seconds=Spread.of([r["seconds"] for r in results]),
        runs=[r["run"] for r in results],
    )
