"""Starts and resumes runs. `distill` is `train` with a teacher."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from deitctl.config import MACHINE_SETTINGS, TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import translate_worker_errors
from deitctl.data.open import open_for_training
from deitctl.device import Device, choose_device
from deitctl.distillation.distillation_teacher import DistillationTeacher
from deitctl.distributed import World, is_distributed, launch_id, process_group
from deitctl.errors import ConfigError, DeitctlError, Interrupted, Signalled
from deitctl.events import Reporter, SilentReporter
from deitctl.lock import locked
from deitctl.models.factory import LoadedModel
from deitctl.paths import DiskError, write_bytes, write_json
from deitctl.records import to_object
from deitctl.settings import list_differences, override
from deitctl.training.build import build_student, build_training
from deitctl.training.configure import check, name_command
from deitctl.training.result import TrainResult
from deitctl.training.run_dir import Run, new_run_folder
from deitctl.training.trainer import Trainer

Datasets = tuple[ImageDataset, ImageDataset]  # training and validation images


def run_training(
    config: TrainConfig,
    *,
    datasets: Datasets | None = None,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Train from the beginning, into a new run folder.

    Args:
        config: the whole configuration, see `deitctl.training.configure`.
        datasets: training and validation images, if they are open already.
        reporter: shows progress; silent if None.

    Raises:
        DeitctlError: bad data, model, teacher or output folder, or training diverged.
        Interrupted: stopped by a signal, after the state was saved.
    """
    device = choose_device(config.device, config.precision)
    with process_group(device.torch_device) as world:
        config = _with_new_folder(config, world)
        with open_run(config, datasets, reporter, device, world, resume=False) as trainer:
            return trainer.fit()


def resume(
    root: Path,
    *,
    settings: Mapping[str, object] | None = None,
    datasets: Datasets | None = None,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Continue a run from its last checkpoint, so that it ends as if it had never stopped; raises
    as `run_training`.

    Args:
        root: the run folder.
        settings: by dotted name. Those of the machine (`MACHINE_SETTINGS`) may differ from the
            run's.
        datasets: training and validation images, if they are open already.
        reporter: shows progress; silent if None.

    Raises:
        ConfigError: another setting differs, or the folder is no run.
    """
    _, config = Run.open(root)
    changes = {k: v for k, v in (settings or {}).items() if v is not None}
    require_same(root, config, changes)
    config = override(config, {k: v for k, v in changes.items() if k in MACHINE_SETTINGS})
    check(config)
    config = replace(config, output_dir=str(root))
    device = choose_device(config.device, config.precision)
    with (
        process_group(device.torch_device) as world,
        open_run(config, datasets, reporter, device, world, resume=True) as trainer,
    ):
        return trainer.fit()


@contextmanager
def open_run(
    config: TrainConfig,
    datasets: Datasets | None,
    reporter: Reporter | None,
    device: Device,
    world: World,
    *,
    resume: bool,
) -> Iterator[Trainer]:
    """Lock the run in `config.output_dir` and build its trainer; interrupts become `Interrupted`."""
    reporter = reporter or SilentReporter()
    train, val = datasets or open_for_training(
        config.data, seed=config.data_seed, reporter=reporter
    )
    student = build_student(config, train, reporter)
    for change in student.changes:
        reporter.note(f"{config.model}: {change}.")
    run = Run(Path(config.output_dir), writes=world.is_main)
    command = f"deitctl train --resume {run.quoted}"
    try:
        with ExitStack() as stack:
            if world.is_main:
                try:
                    stack.enter_context(
                        locked(run.lock_file, what=str(run.root), reporter=reporter)
                    )
                except OSError as error:
                    raise DiskError.from_os_error(run.root, error) from error
            if resume:
                reporter.note(f"Resuming {run.root}.")
            elif world.is_main:
                # Before the teacher is fine-tuned, because the folder may not be writable.
                Run.create(run.root, config)
                run.cut_log(0)  # of a run that was killed before its first checkpoint
                write_bytes(run.launch_id_file, (launch_id() if is_distributed() else "").encode())
            trainer = build_trainer(run, config, student, (train, val), device, reporter, world)
            if resume:
                trainer.load_checkpoint()
            with translate_worker_errors(f"Continue with fewer: {command} --workers 0"):
                yield trainer
    except (KeyboardInterrupt, Signalled, Interrupted) as stop:
        signum = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else stop.signum
        raise Interrupted(signum, command) from stop


def build_trainer(
    run: Run,
    config: TrainConfig,
    student: LoadedModel,
    datasets: Datasets,
    device: Device,
    reporter: Reporter,
    world: World,
) -> Trainer:
    """Check the teacher, if there is one, and build everything for the first step."""
    teacher = None
    if config.distill is not None:
        teacher = DistillationTeacher(
            config,
            *datasets,
            student.model_config.preprocessing,
            device=device,
            reporter=reporter,
            world=world,
            # distillation is below training, and gets the function that fine-tunes a teacher here
            train_run=lambda teacher: train_or_find(teacher, datasets, reporter),
        )
        if run.writes:
            write_json(run.root / "teacher.json", to_object(teacher.preflight))
    setup = build_training(
        config, student, *datasets, device=device, reporter=reporter, teacher=teacher, world=world
    )
    return Trainer(run, setup, reporter)


def require_same(root: Path, config: TrainConfig, settings: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for settings that differ from the run's and are not the machine's."""
    requested = override(config, {k: v for k, v in settings.items() if k not in MACHINE_SETTINGS})
    if changed := list_differences(config, requested):
        raise ConfigError(
            f"{root} cannot be resumed with other settings: {'; '.join(changed)}.",
            "Leave them out, or start a new run with the change: "
            f"{name_command(config)} --config {root / 'run.toml'} ...",
        )


def start_or_resume(
    config: TrainConfig,
    *,
    auto: bool,
    datasets: Datasets | None,
    reporter: Reporter,
    choose: Callable[[TrainConfig], TrainConfig] | None = None,
) -> TrainResult:
    """Start a run, or with `auto` continue the newest unfinished one of the configuration; raises
    as `find_unfinished`.

    Processes that torchrun restarts continue the run that they started, with `auto` or without.

    Args:
        config: the whole configuration.
        auto: whether to look for an unfinished run.
        datasets: training and validation images, if they are open already.
        reporter: shows progress.
        choose: chooses the batch size of a new run; an unfinished run of any batch size is then
            continued.
    """
    launch = launch_id() if is_distributed() else ""
    device = choose_device(config.device, config.precision)
    with process_group(device.torch_device) as world:
        root = None
        if (
            auto or launch
        ) and world.is_main:  # one process looks, so that all continue the same run
            root = find_unfinished(
                config, reporter, launch="" if auto else launch, any_batch=choose is not None
            )
        if (root := world.broadcast_object(root)) is not None:
            machine = {n: getattr(config, n) for n in MACHINE_SETTINGS if n != "output_dir"}
            return resume(root, settings=machine, datasets=datasets, reporter=reporter)
        if auto:
            reporter.note("No unfinished run of this configuration: a new one begins.")
        config = _with_new_folder(choose(config) if choose else config, world)
        with open_run(config, datasets, reporter, device, world, resume=False) as trainer:
            return trainer.fit()


def _with_new_folder(config: TrainConfig, world: World) -> TrainConfig:
    """Check the configuration, and give it an output folder if it has none."""
    check(config)
    model = [Path(config.model).name]
    if config.distill is not None:
        model += ["from", Path(config.distill.teacher).name]
    stem = "-".join([*model, Path(config.data).name])
    root = world.broadcast_object(config.output_dir or str(new_run_folder(stem)))
    return replace(config, output_dir=root)


def find_unfinished(
    config: TrainConfig, reporter: Reporter, *, launch: str = "", any_batch: bool = False
) -> Path | None:
    """Return the newest unfinished run of a configuration, or the run in its output folder; None if
    there is none.

    Args:
        config: its `output_dir`, if set, is the only folder that is looked at, else those in runs/.
        reporter: notes an unfinished run of the same model and data that differs.
        launch: only a run that was started by this launch of several processes.
        any_batch: whether the batch size may differ.

    Raises:
        ConfigError: the output folder holds a run of another configuration.
    """
    output = config.output_dir
    for root in [Path(output)] if output else sorted(Path("runs").glob("*"), key=_age):
        run = Run(root)
        if not run.config_file.is_file() or (launch and run.read_launch_id() != launch):
            continue
        try:
            _, existing = Run.open(root)
        except ConfigError:
            continue
        batch_size = existing.recipe.batch_size if any_batch else config.recipe.batch_size
        requested = replace(config, recipe=replace(config.recipe, batch_size=batch_size))
        changed, finished = list_differences(existing, requested), run.result() is not None
        if changed and output:
            raise ConfigError(
                f"{root} holds a run of another configuration: {'; '.join(changed)}.",
                "Name another --output, or leave out what differs.",
            )
        # A finished run is only evaluated again, so that the same line of a job script succeeds
        # twice.
        if not changed and (not finished or (output and not launch)):
            return root
        if not finished and (existing.model, existing.data) == (config.model, config.data):
            reporter.note(
                f"{root} is unfinished, but of another configuration: {'; '.join(changed)}."
            )
    return None


def _age(root: Path) -> float:
    """Return minus the time of a run's last change, so that the newest sorts first."""
    run = Run(root)
    files = (run.config_file, run.metrics_file, run.checkpoint)
    return -max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


def train_or_find(
    config: TrainConfig,
    datasets: Datasets,
    reporter: Reporter,
    *,
    require_equal: bool = False,
) -> dict[str, Any]:
    """Train into the folder that a configuration names, or resume or find the run there; return its
    result record.

    Raises:
        ConfigError: with `require_equal`, the folder holds a run of another configuration.
    """
    root = Path(config.output_dir)
    device = choose_device(config.device, config.precision)
    with process_group(device.torch_device) as world:
        exists, finished = world.broadcast_object(
            (Run(root).config_file.is_file(), Run(root).result() is not None)
        )
        if exists and require_equal and (changed := list_differences(Run.open(root)[1], config)):
            raise ConfigError(
                f"{root} holds a run of another configuration: {'; '.join(changed)}.",
                "Name another --output, or leave out what differs.",
            )
        if not exists:
            run_training(config, datasets=datasets, reporter=reporter)
        elif not finished:
            machine = {name: getattr(config, name) for name in ("device", "precision", "workers")}
            resume(root, settings=machine, datasets=datasets, reporter=reporter)
        else:
            reporter.note(f"Found finished: {root}.")
    result = Run(root).result()
    if result is None:
        raise DeitctlError(f"{root} has no result.", "Delete that folder, and run this again.")
    return result
