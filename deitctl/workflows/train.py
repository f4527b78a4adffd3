"""Train or distil a classifier: data, teacher, student, epochs, run folder. `distill` is this with a teacher."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from deitctl import rng
from deitctl.config import TrainConfig, override
from deitctl.data.classes import describe_classes
from deitctl.data.open import open_for_training
from deitctl.data.sources import Source
from deitctl.device import choose_device
from deitctl.errors import ConfigError, DeitctlError, Interrupted, Signalled
from deitctl.events import Reporter, SilentReporter
from deitctl.models.build import LoadedModel, build_model
from deitctl.models.vit import VisionTransformer
from deitctl.training.run import Run, new_run_folder
from deitctl.workflows.configure import check
from deitctl.workflows.preflight import Tutor
from deitctl.workflows.session import Session, TrainResult


def run_training(
    config: TrainConfig, *, sources: tuple[Source, Source] | None = None, reporter: Reporter | None = None
) -> TrainResult:
    """Train from the beginning, into a new run folder.

    Args:
        config: everything; `deitctl.workflows.configure` makes one from less.
        sources: the data, if it is open already.
        reporter: told of progress; silent if None.

    Raises:
        DeitctlError: bad data, model, teacher or output folder, or a loss that is no longer a number.
        Interrupted: stopped by a signal; the last finished epoch is saved.
    """
    root = Path(config.output) if config.output else new_run_folder(_stem(config))
    config = replace(config, output=str(root))
    return _train(Run(root), config, sources, reporter or SilentReporter(), fresh=True)


def resume(
    root: Path, *, given: Mapping[str, object] | None = None, sources: tuple[Source, Source] | None = None,
    reporter: Reporter | None = None,
) -> TrainResult:  # fmt: skip
    """Go on with a run after its last finished epoch, ending as if it had never stopped; raises as `run_training`.

    `given` may say another device, precision or number of workers than the run began with; nothing else may change.
    """
    reporter = reporter or SilentReporter()
    run, config = Run.open(root)
    changes = {k: v for k, v in (given or {}).items() if v is not None}
    if fixed := [k for k in changes if k not in ("device", "precision", "workers")]:
        raise ConfigError(f"A resumed run keeps its {fixed[0]}.", "Start a new run: --config run.toml with the change.")
    config = override(config, changes)
    reporter.note(f"Resuming {root}.")
    return _train(run, replace(config, output=str(root)), sources, reporter, fresh=False)


def train_or_find(config: TrainConfig, sources: tuple[Source, Source], reporter: Reporter) -> None:
    """Train a model into the folder its configuration names, or go on with it there, or leave it if it is finished."""
    root = Path(config.output)
    if not Run(root).config_file.is_file():
        run_training(config, sources=sources, reporter=reporter)
    elif Run(root).result() is None:
        machine = {name: getattr(config, name) for name in ("device", "precision", "workers")}
        resume(root, given=machine, sources=sources, reporter=reporter)
    else:
        reporter.note(f"Found finished: {root}.")


def _stem(config: TrainConfig) -> str:
    parts = [Path(config.model).name]
    if config.distill is not None:
        parts += ["from", Path(config.distill.teacher).name]
    return "-".join([*parts, Path(config.data).name])


def _train(
    run: Run, config: TrainConfig, sources: tuple[Source, Source] | None, reporter: Reporter, *, fresh: bool
) -> TrainResult:
    check(config)
    device = choose_device(config.device, config.precision)
    train, val = sources or open_for_training(config.data, seed=config.data_seed, reporter=reporter)
    student = build_student(config, train, reporter)
    for change in student.changes:
        reporter.note(f"{config.model}: {change}.")
    if fresh:  # an output folder that cannot be written is found before the teacher is trained
        run = Run.create(run.root, config)
    try:
        tutor = None
        if config.distill is not None:
            tutor = Tutor(
                config, train, val, student.card.preprocessing, device=device, reporter=reporter,
                train_run=lambda teacher: train_or_find(teacher, (train, val), reporter),
            )  # fmt: skip
        session = Session(run, config, device, student, train, val, tutor, reporter)
        if not fresh:
            session.load()
        with loaders_may_die(f"Continue with fewer: deitctl train --resume {run.root} --workers 0"):
            session.train()
            return session.finish()
    except (KeyboardInterrupt, Signalled, Interrupted) as stop:
        signum = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else stop.signum
        raise Interrupted(signum, f"deitctl train --resume {run.root}") from stop


@contextmanager
def loaders_may_die(hint: str) -> Iterator[None]:
    """Turn torch's word for a loader process that died into a line with `hint`."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DeitctlError("A loader process died, most often for want of memory.", hint) from error


def build_student(config: TrainConfig, train: Source, reporter: Reporter) -> LoadedModel:
    """Build the model that a configuration trains: initialised by its seed, or from the weights it names."""
    recipe = config.recipe
    distilled = None if config.distill is None else config.distill.token
    with rng.scope(config.seed, "init"):
        student = build_model(
            config.model, class_names=train.class_names, descriptions=describe_classes(train.class_names),
            img_size=recipe.img_size, drop_path_rate=recipe.drop_path_rate, pretrained=recipe.pretrained,
            weights=config.weights, distilled=distilled, reporter=reporter,
        )  # fmt: skip
    if recipe.augment.crop_scale == (1.0, 1.0):  # trained on whole pictures, so evaluated on whole pictures
        whole = replace(student.card.preprocessing, crop_pct=1.0, crop_mode="squash")
        student = replace(student, card=replace(student.card, preprocessing=whole))
    if distilled and not isinstance(student.model, VisionTransformer):
        reporter.note(f"{config.model} is no DeiT and has no distillation token: its one head listens to the teacher.")
    return student
