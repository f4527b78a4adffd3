"""The paper's Table 3 (and with several teachers its Table 2) on any data: every way to distill, on equal terms."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deitctl.config import MACHINE_SETTINGS, TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.errors import ConfigError, DeitctlError, did_you_mean
from deitctl.events import Reporter, SilentReporter
from deitctl.models import catalog
from deitctl.models.factory import find_architecture, list_weight_files
from deitctl.paths import write_json
from deitctl.settings import to_dict
from deitctl.training.configure import Request, Teaching, configure
from deitctl.training.launch import train_or_find
from deitctl.training.run_dir import Run


@dataclass(frozen=True)
class Variant:
    """One row of Table 3."""

    title: str
    mode: str
    """`hard`, `soft` or `none`."""
    token: bool


VARIANTS = {
    "none": Variant("none", "none", False),
    "soft": Variant("usual (soft)", "soft", False),
    "hard": Variant("hard", "hard", False),
    "token-soft": Variant("token, soft", "soft", True),
    "token-hard": Variant("token, hard", "hard", True),
}
"""DeiT Table 3, in its order; its last three rows are the heads of `token-hard`."""
HEADS = ("cls", "dist", "avg-logits")
OF_THE_VARIANT = ("distill.mode", "distill.dist_token", "distill.teacher")
OF_THE_RUN = MACHINE_SETTINGS
"""What may differ between a run that is found and the one that is wanted."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; no deviation of one."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (
            f" ± {self.deviation:.2f}" if self.deviation is not None else ""
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """A way to train, and what its runs came to; percentages."""

    variant: str
    title: str
    teacher: str
    """Empty without one."""
    teacher_top1: Spread | None
    top1: Mapping[str, Spread]
    """By head rule, `cls`, `dist` and `avg-logits`; one head is `cls`."""
    with_teacher: Mapping[str, Spread]
    """Agreement with the teacher by head rule (100 - DeiT Table 4)."""
    between_heads: Spread | None
    seconds: Spread
    runs: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON has it."""

        def plain(value: Spread | None) -> dict[str, float | None] | None:
            return None if value is None else {"mean": value.mean, "deviation": value.deviation}

        return {
            "variant": self.variant,
            "teacher": self.teacher or None,
            "teacher_top1": plain(self.teacher_top1),
            "top1": {k: plain(v) for k, v in self.top1.items()},
            "agreement_with_teacher": {k: plain(v) for k, v in self.with_teacher.items()},
            "agreement_of_heads": plain(self.between_heads),
            "seconds": plain(self.seconds),
            "runs": list(self.runs),
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All rows, on the same data, recipe and seeds."""

    output: Path
    data: str
    student: str
    epochs: int
    seeds: int
    num_images: int
    rows: Sequence[Row]

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `--format json` prints."""
        return {
            "output": str(self.output),
            "data": self.data,
            "student": self.student,
            "epochs": self.epochs,
            "seeds": self.seeds,
            "num_images": self.num_images,
            "rows": [row.to_dict() for row in self.rows],
        }


def compare(
    request: Request,
    *,
    teachers: Sequence[str] = (),
    variants: Sequence[str] = (),
    seeds: int = 1,
    reporter: Reporter | None = None,
) -> Comparison:
    """Train a student in every way of `variants`, with every teacher, from `seeds` seeds, and set the results side by side.

    Every run has the same recipe, epochs and views, and the runs of a mode share the teacher's words. The one without
    a teacher sees new views every epoch, as `deitctl train` would show them. Runs that are finished are found again.

    Args:
        request: data, student, recipe; its `teaching` says what all teachers have in common.
        teachers: their names; empty for the default one.
        variants: names of `VARIANTS`; empty for all.
        seeds: how many, from the request's seed on.
        reporter: told of progress.

    Raises:
        ConfigError: no such variant, or other runs in the output folder.
        DeitctlError: as `run_training`.
    """
    reporter = reporter or SilentReporter()
    variants = list(dict.fromkeys(variants or VARIANTS))
    for name in variants:
        if name not in VARIANTS:
            raise ConfigError(
                f"There is no variant {name!r}.",
                did_you_mean(name, VARIANTS) or f"There are: {', '.join(VARIANTS)}.",
            )
    teaching = request.teaching or Teaching()
    if len(teachers) > 1 and teaching.weights:
        raise ConfigError(
            "--teacher-weights cannot be those of several teachers.",
            "Name teachers by their folders.",
        )
    for change in request.changes:
        if change.partition("=")[0].strip() in OF_THE_VARIANT:
            raise ConfigError(
                f"--set {change} is what is compared.", "Choose with --variants and --teacher."
            )
    names = list(dict.fromkeys(teachers)) or [teaching.teacher]
    for name in filter(None, names):
        find_architecture(
            name, reporter
        )  # a name that means nothing is said before hours of training with the others
    if len({Path(name).name for name in names}) < len(names):
        raise ConfigError(
            "Two of the teachers have the same last name.",
            "Their runs would be in the same folders.",
        )
    first = int(request.given.get("seed") or 0)
    wanted = [
        (v, t) for v in variants for t in (names if VARIANTS[v].mode != "none" else names[:1])
    ]
    results: dict[tuple[str, str], list[dict[str, Any]]] = {pair: [] for pair in wanted}
    configs = {}
    for variant, teacher in wanted:
        asked = replace(request, teaching=replace(teaching, teacher=teacher))
        configs[variant, teacher], datasets = _configure(asked, VARIANTS[variant], reporter)
    output = Path(request.output)
    for seed in range(first, first + seeds):
        for variant, teacher in wanted:
            config = configs[variant, teacher]
            label = (
                variant
                if config.distill is None
                else f"{variant}-{Path(config.distill.teacher).name}"
            )
            root = output / f"{label}-seed{seed}"
            reporter.note(f"Distillation {VARIANTS[variant].title}, seed {seed}: {root}")
            run = replace(
                config, output_dir=str(root), seed=seed, split_seed=first
            )  # the same images for every seed
            results[variant, teacher].append(_run(run, datasets, reporter))
    config = configs[wanted[0]]
    done = Comparison(
        output=output,
        data=config.data,
        student=config.model,
        epochs=config.recipe.epochs,
        seeds=seeds,
        num_images=len(datasets[1].labels),
        rows=[_row(v, t, results[v, t]) for v, t in wanted],
    )
    write_json(output / "comparison.json", done.to_dict())
    return done


def _configure(
    request: Request, variant: Variant, reporter: Reporter
) -> tuple[TrainConfig, tuple[ImageDataset, ImageDataset]]:
    """Resolve the configuration of a variant; all of them take the recipe that distillation takes."""
    assert request.teaching is not None
    mode = variant.mode if variant.mode != "none" else "hard"
    teaching = replace(request.teaching, mode=mode, token=variant.token)
    config, *datasets = configure(replace(request, teaching=teaching), reporter)
    if variant.mode == "none":
        arch = find_architecture(config.model, reporter)
        if (
            arch is not None
        ):  # without the token, whatever the student was called; a file's weights are its start still
            start = config.weights or (config.model if list_weight_files(config.model) else "")
            config = replace(config, model=catalog.get_plain(arch).alias, weights=start)
        config = replace(config, distill=None)
    return config, (datasets[0], datasets[1])


def _run(
    config: TrainConfig, datasets: tuple[ImageDataset, ImageDataset], reporter: Reporter
) -> dict[str, Any]:
    """Train into the run's folder, or find it there, and return its result."""
    root = Path(config.output_dir)
    if Run(root).config_file.is_file():
        _, there = Run.open(root)
        mine, theirs = to_dict(config), to_dict(there)
        if differing := [
            k for k in mine.keys() | theirs if k not in OF_THE_RUN and mine.get(k) != theirs.get(k)
        ]:
            raise ConfigError(
                f"{root} is a run with another {' and '.join(sorted(differing))}.",
                "Name another --output for this comparison.",
            )
    train_or_find(config, datasets, reporter)
    result = Run(root).result()
    if result is None:
        raise DeitctlError(f"{root} has no result.", "Delete that folder and compare again.")
    return result


def _row(variant: str, teacher: str, results: Sequence[Mapping[str, Any]]) -> Row:
    def by_head(values: Sequence[Mapping[str, float] | None]) -> dict[str, Spread]:
        kept = [v for v in values if v is not None]
        return {h: Spread.of([v[h] for v in kept]) for h in HEADS if kept and h in kept[0]}

    taught = [r["teacher"] for r in results if r["teacher"] is not None]
    agreements = [r["agreement"] for r in results if r["agreement"] is not None]
    return Row(
        variant=variant,
        title=VARIANTS[variant].title,
        teacher=taught[0]["name"] if taught else "",
        teacher_top1=Spread.of([t["top1"] for t in taught]) if taught else None,
        top1=by_head([r["heads"] or {"cls": r["best"]["top1"]} for r in results]),
        with_teacher=by_head([r["teacher_agreement"] for r in results]),
        between_heads=Spread.of(agreements) if agreements else None,
        seconds=Spread.of([r["seconds"] for r in results]),
        runs=[r["run"] for r in results],
    )
