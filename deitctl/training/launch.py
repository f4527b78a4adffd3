"""Train or distill a classifier: data, teacher, student, epochs, run folder. `distill` is this with a teacher."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from deitctl import rng
from deitctl.config import MACHINE_SETTINGS, TrainConfig
from deitctl.data.classes import describe_classes
from deitctl.data.dataset import ImageDataset
from deitctl.data.open import open_for_training
from deitctl.device import Device, choose_device
from deitctl.distillation.preflight import DistillationTeacher
from deitctl.distributed import World, is_distributed, launch_id, process_group
from deitctl.errors import ConfigError, DeitctlError, Interrupted, Signalled
from deitctl.events import Reporter, SilentReporter
from deitctl.lock import locked
from deitctl.models.factory import LoadedModel, build_model
from deitctl.models.introspect import compute_early_size
from deitctl.models.vit import VisionTransformer
from deitctl.paths import DiskError, write_bytes
from deitctl.settings import list_differences, override
from deitctl.training.configure import check
from deitctl.training.result import TrainResult
from deitctl.training.run_dir import Run, new_run_folder
from deitctl.training.trainer import Trainer


def run_training(
    config: TrainConfig,
    *,
    datasets: tuple[ImageDataset, ImageDataset] | None = None,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Train from the beginning, into a new run folder.

    Args:
        config: everything; `deitctl.training.configure` makes one from less.
        sources: the data, if it is open already.
        reporter: told of progress; silent if None.

    Raises:
        DeitctlError: bad data, model, teacher or output folder, or a loss that goes wrong.
        Interrupted: stopped by a signal; all that was done is saved.
    """
    check(config)
    device = choose_device(config.device, config.precision)
    with process_group(device.torch_device) as world:
        root = Path(world.broadcast_object(config.output_dir or str(new_run_folder(_stem(config)))))
        config = replace(config, output_dir=str(root))
        return _train(
            root, config, datasets, reporter or SilentReporter(), device, world, fresh=True
        )


def resume(
    root: Path,
    *,
    given: Mapping[str, object] | None = None,
    datasets: tuple[ImageDataset, ImageDataset] | None = None,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Go on with a run after its last saved step, ending as if it had never stopped; raises as `run_training`.

    `given` may say where and how the run goes on (`MACHINE_SETTINGS`); what it learns cannot change.

    Raises:
        ConfigError: `given` says another thing than the run does, or there is no run.
    """
    reporter = reporter or SilentReporter()
    _, config = Run.open(root)
    changes = {k: v for k, v in (given or {}).items() if v is not None}
    require_same(root, config, changes)
    config = override(config, {k: v for k, v in changes.items() if k in MACHINE_SETTINGS})
    device = choose_device(config.device, config.precision)
    with process_group(device.torch_device) as world:
        return _train(
            root,
            replace(config, output_dir=str(root)),
            datasets,
            reporter,
            device,
            world,
            fresh=False,
        )


def require_same(root: Path, config: TrainConfig, given: Mapping[str, Any]) -> None:
    """Refuse settings, by dotted name, that are not the run's own; say in which they differ."""
    wanted = override(config, {k: v for k, v in given.items() if k not in MACHINE_SETTINGS})
    if changed := list_differences(config, wanted):
        raise ConfigError(
            f"{root} cannot be resumed with other settings: {'; '.join(changed)}.",
            f"Leave them out, or start a new run with the change: deitctl train --config {root / 'run.toml'} ...",
        )


def find_unfinished(
    config: TrainConfig, reporter: Reporter, *, launch: str = "", any_batch: bool = False
) -> Path | None:
    """Return the newest run of this configuration that is not finished, or the one in its `output`; None for none.

    Args:
        config: what is wanted; its `output`, if there is one, is the only place that is looked at, else runs/.
        reporter: is told of an unfinished run of the same model and data that differs.
        launch: only a run that this launch of several processes began.
        any_batch: whether the batch size is open, so that a run's own is as good as any.

    Raises:
        ConfigError: the output folder holds a run of another configuration.
    """
    roots = (
        [Path(config.output_dir)] if config.output_dir else sorted(Path("runs").glob("*"), key=_age)
    )
    for root in roots:
        run = Run(root)
        if not run.config_file.is_file():
            continue
        if launch and (
            not run.launch_file.is_file() or run.launch_file.read_text(encoding="utf-8") != launch
        ):
            continue
        try:
            _, theirs = Run.open(root)
        except ConfigError:
            continue
        batch_size = theirs.recipe.batch_size if any_batch else config.recipe.batch_size
        wanted = replace(config, recipe=replace(config.recipe, batch_size=batch_size))
        changed, finished = list_differences(theirs, wanted), run.result() is not None
        if changed and config.output_dir:
            raise ConfigError(
                f"{root} holds a run of another configuration: {'; '.join(changed)}.",
                "Name another --output, or leave out what differs.",
            )
        if not changed and (not finished or (config.output_dir and not launch)):
            return root  # a finished one is scored again, so that the same line of a job script ends well twice
        if not finished and (theirs.model, theirs.data) == (config.model, config.data):
            reporter.note(
                f"{root} is unfinished, but of another configuration: {'; '.join(changed)}."
            )
    return None


def _age(root: Path) -> float:
    """Return minus the time of a run's last change, so that the newest sorts first."""
    times = [
        p.stat().st_mtime
        for p in (root / "run.toml", root / "metrics.jsonl", root / "state")
        if p.exists()
    ]
    return -max(times, default=0.0)


def start_or_resume(
    config: TrainConfig,
    *,
    auto: bool,
    datasets: tuple[ImageDataset, ImageDataset] | None,
    reporter: Reporter,
    choose: Callable[[TrainConfig], TrainConfig] | None = None,
) -> TrainResult:
    """Go on with the newest unfinished run of a configuration (`auto`), or begin one; raises as `find_unfinished`.

    With `choose` the batch size is open: a run that is found has one, and a new one is given what `choose` returns.

    Processes that torchrun starts again go on with the run that they began, whether it was asked for or not.
    """
    launch = launch_id() if is_distributed() else ""
    if auto or launch:
        device = choose_device(config.device, config.precision)
        with process_group(device.torch_device) as world:  # all must come to the same folder
            found = None
            if world.is_main:
                found = find_unfinished(
                    config, reporter, launch="" if auto else launch, any_batch=choose is not None
                )
            root = world.broadcast_object(found)
            if root is not None:
                machine = {
                    name: getattr(config, name) for name in MACHINE_SETTINGS if name != "output_dir"
                }
                return resume(root, given=machine, datasets=datasets, reporter=reporter)
            if auto:
                reporter.note("No unfinished run of this configuration: a new one begins.")
            return run_training(
                choose(config) if choose else config, datasets=datasets, reporter=reporter
            )
    return run_training(choose(config) if choose else config, datasets=datasets, reporter=reporter)


def train_or_find(
    config: TrainConfig, datasets: tuple[ImageDataset, ImageDataset], reporter: Reporter
) -> None:
    """Train a model into the folder its configuration names, or go on with it there, or leave it if it is finished."""
    root = Path(config.output_dir)
    device = choose_device(config.device, config.precision)
    with process_group(device.torch_device) as world:
        begun, finished = world.broadcast_object(
            (Run(root).config_file.is_file(), Run(root).result() is not None)
        )
        if not begun:
            run_training(config, datasets=datasets, reporter=reporter)
        elif not finished:
            machine = {name: getattr(config, name) for name in ("device", "precision", "workers")}
            resume(root, given=machine, datasets=datasets, reporter=reporter)
        else:
            reporter.note(f"Found finished: {root}.")


def _stem(config: TrainConfig) -> str:
    parts = [Path(config.model).name]
    if config.distill is not None:
        parts += ["from", Path(config.distill.teacher).name]
    return "-".join([*parts, Path(config.data).name])


def _train(
    root: Path,
    config: TrainConfig,
    datasets: tuple[ImageDataset, ImageDataset] | None,
    reporter: Reporter,
    device: Device,
    world: World,
    *,
    fresh: bool,
) -> TrainResult:
    train, val = datasets or open_for_training(
        config.data, seed=config.data_seed, reporter=reporter
    )
    student = build_student(config, train, reporter)
    for change in student.changes:
        reporter.note(f"{config.model}: {change}.")
    run = Run(root, writes=world.is_main)
    try:
        with _only_writer(run) if world.is_main else nullcontext():
            if (
                fresh and world.is_main
            ):  # before the teacher is trained: the folder may be one that cannot be written
                Run.create(root, config)
                run.cut_log(0)  # of a run that was killed before it saved anything
                write_bytes(run.launch_file, (launch_id() if is_distributed() else "").encode())
            elif not fresh:
                reporter.note(f"Resuming {root}.")
            session = open_session(run, config, (train, val), student, device, reporter, world)
            if not fresh:
                session.load()
            with loaders_may_die(
                f"Continue with fewer: deitctl train --resume {run.quoted} --workers 0"
            ):
                session.train()
                return session.finish()
    except (KeyboardInterrupt, Signalled, Interrupted) as stop:
        signum = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else stop.signum
        raise Interrupted(signum, f"deitctl train --resume {run.quoted}") from stop


@contextmanager
def _only_writer(run: Run) -> Iterator[None]:
    """Keep other processes out of a run's folder for a block."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(run.lock_file, what=str(run.root)))
        except OSError as error:
            raise DiskError.from_os_error(run.root, error) from error
        yield


def open_session(
    run: Run,
    config: TrainConfig,
    datasets: tuple[ImageDataset, ImageDataset],
    student: LoadedModel,
    device: Device,
    reporter: Reporter,
    world: World,
) -> Trainer:
    """Find the teacher, if there is to be one, and put everything at hand for a run's first step."""
    tutor = None
    if config.distill is not None:
        tutor = DistillationTeacher(
            config,
            *datasets,
            student.model_config.preprocessing,
            device=device,
            reporter=reporter,
            world=world,
            train_run=lambda teacher: train_or_find(teacher, datasets, reporter),
        )
    return Trainer(run, config, device, student, *datasets, tutor, reporter, world)


@contextmanager
def loaders_may_die(hint: str) -> Iterator[None]:
    """Turn torch's word for a loader process that died into a line with `hint`."""
    try:
        yield
    except DeitctlError as error:
        if not error.message.startswith("Caught "):
            raise
        last = error.message.strip().splitlines()[
            -1
        ]  # torch wraps what a loader process raised in its traceback
        raise type(error)(last.partition(": ")[2] or last) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DeitctlError("A loader process died, most often for want of memory.", hint) from error


def build_student(config: TrainConfig, train: ImageDataset, reporter: Reporter) -> LoadedModel:
    """Build the model that a configuration trains: initialized by its seed, or from the weights it names."""
    recipe = config.recipe
    distilled = None if config.distill is None else config.distill.dist_token
    with rng.scope(config.seed, "init"):
        student = build_model(
            config.model,
            class_names=train.class_names,
            descriptions=describe_classes(train.class_names),
            img_size=recipe.img_size,
            drop_path_rate=recipe.drop_path_rate,
            pretrained=recipe.pretrained,
            weights=config.weights,
            distilled=distilled,
            reporter=reporter,
        )
    if recipe.augment.crop_scale == (
        1.0,
        1.0,
    ):  # trained on whole images, so evaluated on whole images
        whole = replace(student.model_config.preprocessing, crop_pct=1.0, crop_mode="squash")
        student = replace(student, model_config=replace(student.model_config, preprocessing=whole))
    if recipe.early_epochs:
        compute_early_size(
            student.model, student.model_config, recipe
        )  # refused before anything is made or trained
    if distilled and not isinstance(student.model, VisionTransformer):
        reporter.note(
            f"{config.model} is no DeiT and has no distillation token: its one head listens to the teacher."
        )
    return student
