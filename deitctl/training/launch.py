"""Starts and resumes runs. `distill` is `train` with a teacher."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from deitctl.config import MACHINE_SETTINGS, PLACES, TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.fingerprint import fingerprint_split
from deitctl.data.readers.hub_address import is_hub, parse_address
from deitctl.data.readers.torch_dataset import PREFIX
from deitctl.data.stores.store_settings import reading_stores
from deitctl.data.value_range import write_range
from deitctl.device import Device, choose_run_device
from deitctl.distillation.ensemble import name_teachers
from deitctl.distillation.finetune import RESULT
from deitctl.distillation.preflight import RECORD as PREFLIGHT
from deitctl.distillation.preflight import Preflight
from deitctl.distributed import World, process_group
from deitctl.errors import (
    ConfigError,
    DeitctlError,
    TeacherError,
)
from deitctl.events import Reporter, SilentReporter
from deitctl.models.factory import LoadedModel
from deitctl.paths import read_json, write_bytes, write_json
from deitctl.records import to_object
from deitctl.settings import list_learning, override, write_toml
from deitctl.training.build import build_student, build_training, note_changes
from deitctl.training.class_balance import CLASS_WEIGHTS, ClassCounts, describe_class_weights
from deitctl.training.compiled_setup import compile_setup
from deitctl.training.configure import check, name_command
from deitctl.training.disk_space import warn_of_full_disks, warn_of_small_shared_memory
from deitctl.training.earlier_runs import add_epochs, find_unfinished, require_same
from deitctl.training.extensions import (
    NO_EXTENSIONS,
    Extensions,
    guard_objective,
    require_recipe_loss,
    require_same_extensions,
)
from deitctl.training.normalization import ChannelStats, set_channels, write_channels
from deitctl.training.objective import check_loss, choose_loss, report_loss
from deitctl.training.opened_data import Datasets, open_run_data
from deitctl.training.pinned_data import pin_as
from deitctl.training.result import TrainResult, is_result
from deitctl.training.resumption import load_checkpoint
from deitctl.training.run_dir import Run, create_run_folder, require_runs_folder
from deitctl.training.run_start import begin_run, explain_stop, lock_run, name_launch
from deitctl.training.session import describe_session, write_session
from deitctl.training.strategy import check_processes
from deitctl.training.teacher_head import fit_teacher_head
from deitctl.training.tracking import track
from deitctl.training.trainer import Trainer


def run_training(
    config: TrainConfig,
    *,
    datasets: Datasets | None = None,
    extensions: Extensions = NO_EXTENSIONS,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Train from the beginning, into a new run folder.

    Args:
        config: the whole configuration, see `deitctl.training.configure`.
        datasets: training and validation images, if they are open already.
        extensions: what the caller adds.
        reporter: shows progress; silent if None.

    Raises:
        DeitctlError: bad data, model, teacher or output folder, or training diverged.
        Interrupted: stopped by a signal, after the state was saved.
    """
    check(config)
    device = choose_run_device(config)
    with (
        process_group(device.torch_device) as world,
        device.computing(),
        open_run(config, datasets, reporter, device, world, extensions, resume=False) as trainer,
    ):
        return trainer.fit()


def resume(
    root: Path,
    *,
    settings: Mapping[str, object] | None = None,
    more_epochs: int = 0,
    datasets: Datasets | None = None,
    extensions: Extensions = NO_EXTENSIONS,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Continue a run from its last checkpoint, so that it ends as if it had never stopped; raises
    as `run_training`.

    Args:
        root: the run folder.
        settings: by dotted name. Those of the machine (`MACHINE_SETTINGS`) may differ from the
            run's, and so may the place of the data.
        more_epochs: of a finished run, which is trained that many epochs longer.
        datasets: training and validation images, if they are open already.
        extensions: what the caller adds.
        reporter: shows progress; silent if None.

    Raises:
        ConfigError: another setting differs, the folder is no run, or an unfinished one is to have
            more epochs.
    """
    reporter = reporter or SilentReporter()
    run, config = Run.open(root)
    changes = {k: v for k, v in (settings or {}).items() if v is not None}
    require_same(root, config, changes)
    # The data may have been moved.
    if "data" in changes:  # whose images lie where it says, not where those of the former were
        changes = {"image_folder": ""} | changes
    may_change = (*MACHINE_SETTINGS, *PLACES)
    changed = override(config, {k: v for k, v in changes.items() if k in may_change})
    config = pin_as(changed, config)
    check(config)
    config = replace(config, output_dir=str(root))
    device = choose_run_device(config)
    with process_group(device.torch_device) as world, device.computing():
        before = config.recipe
        if more_epochs and world.is_main:
            config = add_epochs(run, config, more_epochs, launch=name_launch())
        config = world.broadcast_object(config)
        if run.result() is not None and not more_epochs:
            reporter.note(
                f"{root} is finished, and is evaluated again. To train it longer: "
                f"deitctl train --resume {run.quoted} --more-epochs {before.epochs}"
            )
        with open_run(
            config, datasets, reporter, device, world, extensions, resume=True
        ) as trainer:
            if config.recipe != before and world.is_main:
                # Now, because until here data, model or checkpoint could have been refused.
                run.extend(config, name_launch())
            places: dict[str, Any] = {k: changes[k] for k in PLACES if k in changes}
            if any(places.values()) and world.is_main:  # seen to be the run's
                moved = pin_as(override(Run.open(root)[1], places), trainer.config)
                write_bytes(run.config_file, write_toml(moved).encode())
            return trainer.fit()


@contextmanager
def open_run(
    config: TrainConfig,
    datasets: Datasets | None,
    reporter: Reporter | None,
    device: Device,
    world: World,
    extensions: Extensions = NO_EXTENSIONS,
    *,
    resume: bool,
) -> Iterator[Trainer]:
    """Lock the run in `config.output_dir`, or in a new folder if that is empty, and build its
    trainer; interrupts become `Interrupted`."""
    reporter = reporter or SilentReporter()
    check_processes(config, world, device, has_objective=extensions.objective is not None)
    if config.folds and not config.fold:
        raise ConfigError(
            f"A run is of one of {config.folds} folds, and none is named.", "Add --fold I."
        )
    with reading_stores(config.cache_dir, config.cache_size, reporter):
        if resume:
            require_same_extensions(Path(config.output_dir), extensions, reporter)
        config, datasets = open_run_data(
            config, datasets, reporter, world, extensions, resume=resume
        )
        student = _build_student(config, datasets[0], reporter, world, resume=resume)
        _check_loss(config, datasets[0], reporter, world, extensions)
        if not config.output_dir:
            # Of several processes the main one makes the folder, which is so no other run's.
            root = str(create_run_folder(*name_run(config))) if world.is_main else ""
            config = replace(config, output_dir=world.broadcast_object(root))
        run = Run(Path(config.output_dir), writes=world.is_main)
        with explain_stop(run), lock_run(run, reporter):
            begin_run(run, config, datasets, reporter, extensions, resume=resume)
            trainer = build_trainer(
                run, config, student, datasets, device, reporter, world, extensions
            )
            if resume:
                load_checkpoint(trainer)
            if world.is_main:
                write_session(run.root, describe_session(trainer))
            with track(trainer, extensions):
                yield trainer


def _build_student(
    config: TrainConfig, train: ImageDataset, reporter: Reporter, world: World, *, resume: bool
) -> LoadedModel:
    """Build the student; bands are normalized as when the run began, or as the main process measures them."""
    # As the run began: images that can be read now, and could not be then, would change it.
    channels = Run(Path(config.output_dir)).saved_channels() if resume and train.bands else None
    if train.bands and not world.is_main:
        channels = ChannelStats((0.0,) * train.bands, (1.0,) * train.bands)
    student = build_student(config, train, reporter, channels=channels)
    if train.bands:
        pre = student.model_config.preprocessing
        stats = world.broadcast_object(ChannelStats(pre.mean, pre.std))
        student = replace(student, model_config=set_channels(student.model_config, stats))
    note_changes(config, student, reporter)
    return student


def _check_loss(
    config: TrainConfig,
    train: ImageDataset,
    reporter: Reporter,
    world: World,
    extensions: Extensions,
) -> None:
    """Raise `ConfigError` for a loss that is not for these labels, and report which it is."""
    if extensions.objective is not None:
        require_recipe_loss(config.recipe)
        return
    counts = ClassCounts.of(train)
    check_loss(config, counts)
    if world.is_main:
        report_loss(config, counts, reporter)


def build_trainer(
    run: Run,
    config: TrainConfig,
    student: LoadedModel,
    datasets: Datasets,
    device: Device,
    reporter: Reporter,
    world: World,
    extensions: Extensions = NO_EXTENSIONS,
) -> Trainer:
    """Check the teacher, if there is one, and build everything for the first step."""
    teacher = None
    if config.distill is not None:
        teacher = name_teachers(
            config,
            *datasets,
            student.model_config.preprocessing,
            device=device,
            reporter=reporter,
            own=extensions.teacher,
            world=world,
            # distillation is below training, and gets the function that fine-tunes a teacher here
            train_run=lambda teacher: train_or_find(teacher, datasets, reporter),
        ).prepare()
        _require_same_teachers(run, config, teacher.preflights)
        if run.writes:
            first, *more = map(to_object, teacher.preflights)
            write_json(run.root / PREFLIGHT, first | ({"more_teachers": more} if more else {}))
    setup = build_training(
        config,
        student,
        *datasets,
        device=device,
        reporter=reporter,
        teacher=teacher,
        objective=extensions.objective and guard_objective(extensions.objective),
        world=world,
    )
    setup = compile_setup(setup, run.root, reporter, writes=run.writes)
    setup.state.progress.settings = list_learning(config)
    setup.state.progress.data_fingerprint = fingerprint_split(setup.train, setup.val)
    windows = setup.windows
    setup.state.progress.blocks_fingerprint = "" if windows is None else windows.fingerprint
    setup.state.progress.value_range = write_range(setup.train.value_range)
    if setup.train.bands:
        setup.state.progress.channels = write_channels(setup.model_config)
    if run.writes:
        _write_class_weights(run, config, setup.train)
        warn_of_full_disks(run.root, setup, reporter)
        warn_of_small_shared_memory(device, reporter)
    return Trainer(run, setup, reporter, extensions.callbacks)


def _write_class_weights(run: Run, config: TrainConfig, train: ImageDataset) -> None:
    counts = ClassCounts.of(train)
    loss = choose_loss(config.recipe, is_multilabel=counts.is_multilabel)
    if weights := describe_class_weights(config.recipe, counts, loss=loss):
        write_json(run.root / CLASS_WEIGHTS, to_object(weights))


def _require_same_teachers(run: Run, config: TrainConfig, preflights: Sequence[Preflight]) -> None:
    """Raise `TeacherError` if a resumed run began with other published weights of a teacher."""
    try:
        first = read_json(run.root / PREFLIGHT)
    except (OSError, ValueError):
        return  # a new run
    if not isinstance(first, dict):
        return  # nothing that deitctl wrote
    key, more = "weights_fingerprint", first.get("more_teachers")
    records = [first, *(more if isinstance(more, list) else [])]
    for preflight, earlier in zip(preflights, records, strict=False):
        # A teacher that was fine-tuned on the data again may differ in its last bits.
        if (
            isinstance(earlier, dict)
            and preflight.finetuned == earlier.get("finetuned") == "no"
            and earlier.get(key) != preflight.weights_fingerprint
        ):
            raise TeacherError(
                f"{run.root} began with other weights of its teacher ({earlier.get(key)}) than "
                f"{preflight.name} has now ({preflight.weights_fingerprint}).",
                f"Start a new run: {name_command(config)} --config {shlex.quote(str(run.config_file))}",
            )


def start_or_resume(
    config: TrainConfig,
    *,
    auto: bool,
    datasets: Datasets | None,
    reporter: Reporter,
    extensions: Extensions = NO_EXTENSIONS,
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
        extensions: what the caller adds.
        choose: chooses the batch size of a new run; an unfinished run of any batch size is then
            continued.
    """
    check(config)
    launch = name_launch()
    device = choose_run_device(config)
    with process_group(device.torch_device) as world, device.computing():
        root = None
        if (
            auto or launch
        ) and world.is_main:  # one process looks, so that all continue the same run
            root = find_unfinished(
                config, reporter, launch="" if auto else launch, any_batch=choose is not None
            )
        if (root := world.broadcast_object(root)) is not None:
            machine = {n: getattr(config, n) for n in MACHINE_SETTINGS if n != "output_dir"}
            return resume(
                root,
                settings=machine,
                datasets=datasets,
                extensions=extensions,
                reporter=reporter,
            )
        if auto:
            reporter.note("No unfinished run of this configuration: a new one begins.")
        config = choose(config) if choose else config
        with open_run(
            config, datasets, reporter, device, world, extensions, resume=False
        ) as trainer:
            return trainer.fit()


def name_run(config: TrainConfig) -> list[str]:
    """Return the parts of a new run's name: model, teacher, data, and a seed that is not the
    default."""
    names = [config.model]
    if config.distill is not None:
        names += ["from", config.distill.teacher]
    names.append(parse_address(config.data).short if is_hub(config.data) else config.data)
    return [Path(name).name for name in names] + ([f"s{config.seed}"] if config.seed else [])


def require_output(config: TrainConfig) -> None:
    """Raise `DeitctlError` if a new run could not be begun in its folder; nothing is written."""
    if not config.output_dir:
        require_runs_folder(*name_run(config))
        return
    run = Run(Path(config.output_dir))
    run.require_creatable()
    run.require_new()


def train_or_find(
    config: TrainConfig,
    datasets: Datasets,
    reporter: Reporter,
    *,
    extensions: Extensions = NO_EXTENSIONS,
) -> dict[str, Any]:
    """Train into the folder that a configuration names, or resume or find the run there; return its
    result record."""
    root = Path(config.output_dir)
    device = choose_run_device(config)
    with process_group(device.torch_device) as world, device.computing():
        if not config.recipe.epochs:
            fit_teacher_head(config, datasets[0], device, reporter, world)
            return dict(read_json(root / RESULT))
        exists, finished = world.broadcast_object(
            (Run(root).config_file.is_file(), Run(root).result() is not None)
        )
        if not exists:
            run_training(config, datasets=datasets, extensions=extensions, reporter=reporter)
        elif not finished:
            names = ["device", "precision", "workers"]
            if Run(root).saved_position() is not None and not config.data.startswith(PREFIX):
                names += ["data", "image_folder"]  # as they are named now, from here
            resume(
                root,
                settings={name: getattr(config, name) for name in names},
                datasets=datasets,
                extensions=extensions,
                reporter=reporter,
            )
    result = Run(root).result()
    if result is None:
        raise DeitctlError(f"{root} has no result.", "Delete that folder, and run this again.")
    if not is_result(result):
        raise DeitctlError(
            f"{Run(root).result_file} is not what a training writes.",
            "Delete it, and run this again: the run's weights are then scored again.",
        )
    return result
