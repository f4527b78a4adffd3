"""The functions of the Python API that join packages: training, distillation, sweeps, evaluation, bench.

Keywords are the command line's options. Packages meet here that do not import each other: distillation is given the
training run of a teacher that is fine-tuned, and report draws what training and evaluation return. The other
public functions are those of one package, see `deitctl/__init__.py`. Imports are inside the functions, so that
`import deitctl` costs no torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_overloads, overload

from deitctl.config import EXTRA_SETTINGS, TEACHER_SETTINGS
from deitctl.errors import ConfigError, require_positive
from deitctl.events import Reporter, SilentReporter
from deitctl.settings import convert, dotted_name, list_options
from deitctl.sizes import ImageSize

if TYPE_CHECKING:
    from torch.utils.data import Dataset as TorchDataset

    from deitctl.config import (
        CompileChoice,
        FinetuneChoice,
        ModeChoice,
        OrderChoice,
        RoleChoice,
        SelectChoice,
        StrategyChoice,
        TaskChoice,
        TrainConfig,
    )
    from deitctl.data.dataset import ImageDataset
    from deitctl.data.folds import FoldedData
    from deitctl.data.own_augmentation import Augmentation
    from deitctl.distillation.callable_teacher import CallableTeacher
    from deitctl.distillation.precompute import CacheTeacherResult, VerifyCacheResult
    from deitctl.distillation.rank import TeacherRanking
    from deitctl.distributed import World
    from deitctl.evaluation.multilabel_result import Result
    from deitctl.evaluation.results import EvalResults
    from deitctl.profiling.bench_result import BenchResult
    from deitctl.sweeps.result import SweepResult
    from deitctl.training.extensions import Callback, Extensions
    from deitctl.training.folds import FoldsResult
    from deitctl.training.objective import Objective
    from deitctl.training.plan import TrainPlan
    from deitctl.training.replay import Replay
    from deitctl.training.result import TrainResult
    from deitctl.training.run_dir import Run

PathLike = str | Path
AUTO = "auto"
OnBadImage = Literal["skip", "stop"]
Datasets = tuple["ImageDataset", "ImageDataset"]
Data = Union[str, Path, "TorchDataset[Any]", tuple["TorchDataset[Any]", "TorchDataset[Any]"]]
"""Data by name, or a program's: all images, or those of training and of validation."""
F = TypeVar("F", bound=Callable[..., Any])
FUNCTIONS = ("objective", "augmentation", "callbacks")
"""Keywords of training that are functions of the caller's, see `Extensions`."""
OF_NAMED_DATA = (
    "task",
    "fraction",
    "distill.unlabelled",
    "group_by",
    "folds",
    "fold",
    "image_folder",
    "value_range",
    "extra_data",
    "extra_weight",
)
"""Settings that say how data is read which the settings name."""
NO_SETTINGS = ("overrides", "reporter", "resume", "more_epochs", "config")
"""Keywords of training that say what to do, and nothing about a run."""


def take_signature(function: F) -> F:
    """Give a function the signature of its last overload, which so is written once."""
    function.__signature__ = inspect.signature(get_overloads(function)[-1])  # type: ignore[attr-defined]
    return function


@overload
def train(
    data: PathLike = "",
    *,
    folds: int,
    fold: None = None,
    reporter: Reporter | None = None,
    **settings: Any,
) -> FoldsResult: ...


@overload
def train(
    data: Data = "",
    *,
    model: PathLike | None = None,
    recipe: PathLike | None = None,
    epochs: int | None = None,
    batch_size: int | Literal["auto"] | None = None,
    img_size: ImageSize | None = None,
    in_chans: int | None = None,
    seed: int | None = None,
    task: TaskChoice | None = None,
    split_seed: int | None = None,
    fraction: float | None = None,
    extra_data: PathLike | Sequence[PathLike] | None = None,
    extra_weight: float | Sequence[float] | None = None,
    group_by: str | None = None,
    folds: int | None = None,
    fold: int | None = None,
    image_folder: PathLike | None = None,
    value_range: str | None = None,
    output: PathLike | None = None,
    pretrained: bool | None = None,
    weights: PathLike | None = None,
    classes: PathLike | None = None,
    lr: float | None = None,
    loss: Literal["auto", "ce", "bce", "asl"] | None = None,
    class_weights: Literal["none", "inverse", "effective", "neg_pos"] | None = None,
    logit_adjustment: float | None = None,
    opt: str | None = None,
    sched: Literal["cosine", "linear", "wsd", "constant", "onecycle"] | None = None,
    select: SelectChoice | None = None,
    patience: int | None = None,
    data_order: OrderChoice | None = None,
    window: int | None = None,
    freeze_blocks: int | None = None,
    thaw_epoch: int | None = None,
    cache_dir: PathLike | None = None,
    cache_size: str | None = None,
    workers: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    compile: CompileChoice | bool | None = None,
    cuda_graphs: bool | None = None,
    deterministic: bool | None = None,
    strategy: StrategyChoice | None = None,
    micro_batch_size: int | None = None,
    grad_checkpointing: bool | None = None,
    on_bad_image: OnBadImage | None = None,
    resume: PathLike | None = None,
    more_epochs: int | None = None,
    config: PathLike | None = None,
    save_every: str | None = None,
    log: str | None = None,
    objective: Objective | None = None,
    augmentation: Augmentation | None = None,
    callbacks: Sequence[Callback] | None = None,
    reporter: Reporter | None = None,
    **overrides: Any,
) -> TrainResult: ...


@take_signature
def train(data: Data = "", **settings: Any) -> TrainResult | FoldsResult:
    """Train a classifier, or continue a run.

    Args:
        data: folder, tar, shards or table of images, a `torch.utils.data.Dataset` or a pair of them; empty: the digits.
        model: alias, timm name, hub name, run folder or weights file.
        recipe: name or TOML file; None: chosen by the data.
        epochs: and every further keyword: the setting or option of `deitctl train` of that name, None for its default.
        resume: run folder to continue, or `auto` for the newest unfinished run of this configuration.
        more_epochs: of the finished run that `resume` names, which is trained that many epochs longer.
        config: run.toml of a run to repeat.
        objective: what is minimized instead of the recipe's loss: `(student, batch) -> dict` of named losses.
        augmentation: of a training view, after the recipe's: `(image, generator) -> image`.
        callbacks: called after each epoch: `on_epoch_end(metrics) -> bool | None`; True ends the run.
        reporter: receives notes, warnings and progress; None: silent.
        overrides: any other settings by dotted name, `**{"augment.mixup": 0.2}` for example.

    Returns:
        What the run ends with; with `folds` and no `fold`, what the runs of all folds end with.

    Raises:
        DeitctlError: bad settings, data, model or output folder, or a loss that diverges.
        Interrupted: stopped by a signal after the finished steps were saved.
    """
    return _run(_collect({"data": data, **settings}))


@overload
def distill(
    data: PathLike = "",
    *,
    folds: int,
    fold: None = None,
    reporter: Reporter | None = None,
    **settings: Any,
) -> FoldsResult: ...


@overload
def distill(
    data: Data = "",
    *,
    teacher: PathLike | CallableTeacher | Sequence[PathLike | CallableTeacher] | None = None,
    student: PathLike | None = None,
    recipe: PathLike | None = None,
    epochs: int | None = None,
    batch_size: int | Literal["auto"] | None = None,
    img_size: ImageSize | None = None,
    in_chans: int | None = None,
    seed: int | None = None,
    task: TaskChoice | None = None,
    split_seed: int | None = None,
    fraction: float | None = None,
    extra_data: PathLike | Sequence[PathLike] | None = None,
    extra_weight: float | Sequence[float] | None = None,
    group_by: str | None = None,
    folds: int | None = None,
    fold: int | None = None,
    image_folder: PathLike | None = None,
    value_range: str | None = None,
    output: PathLike | None = None,
    teacher_weights: PathLike | list[PathLike] | None = None,
    teacher_role: RoleChoice | list[RoleChoice] | None = None,
    teacher_classes: PathLike | list[PathLike] | None = None,
    teacher_img_size: ImageSize | list[ImageSize] | None = None,
    finetune_teacher: FinetuneChoice | list[FinetuneChoice] | None = None,
    mode: ModeChoice | Literal["none"] | None = None,
    feature_loss: Literal["vkd", "cosine", "mse"] | None = None,
    feature_weight: float | None = None,
    feature_pool: Literal["auto", "cls", "avg"] | None = None,
    alpha: float | None = None,
    tau: float | None = None,
    reduction: Literal["batchmean", "mean"] | None = None,
    dist_token: bool | None = None,
    teacher_input: Literal["mixed", "unmixed"] | None = None,
    views: int | None = None,
    view_seed: int | None = None,
    logits_topk: int | None = None,
    teacher_cache: PathLike | list[PathLike] | None = None,
    unlabelled: PathLike | None = None,
    allow_weak_teacher: bool | None = None,
    pretrained: bool | None = None,
    weights: PathLike | None = None,
    classes: PathLike | None = None,
    lr: float | None = None,
    loss: Literal["auto", "ce", "bce", "asl"] | None = None,
    class_weights: Literal["none", "inverse", "effective", "neg_pos"] | None = None,
    logit_adjustment: float | None = None,
    opt: str | None = None,
    sched: Literal["cosine", "linear", "wsd", "constant", "onecycle"] | None = None,
    select: SelectChoice | None = None,
    patience: int | None = None,
    data_order: OrderChoice | None = None,
    window: int | None = None,
    freeze_blocks: int | None = None,
    thaw_epoch: int | None = None,
    cache_dir: PathLike | None = None,
    cache_size: str | None = None,
    workers: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    compile: CompileChoice | bool | None = None,
    cuda_graphs: bool | None = None,
    deterministic: bool | None = None,
    strategy: StrategyChoice | None = None,
    micro_batch_size: int | None = None,
    grad_checkpointing: bool | None = None,
    on_bad_image: OnBadImage | None = None,
    resume: PathLike | None = None,
    more_epochs: int | None = None,
    config: PathLike | None = None,
    save_every: str | None = None,
    log: str | None = None,
    objective: Objective | None = None,
    augmentation: Augmentation | None = None,
    callbacks: Sequence[Callback] | None = None,
    reporter: Reporter | None = None,
    **overrides: Any,
) -> TrainResult: ...


@take_signature
def distill(data: Data = "", **settings: Any) -> TrainResult | FoldsResult:
    """Train a student that also learns from a teacher; arguments and errors as `train`.

    Args:
        data: as `train`.
        teacher: model, or function as a `CallableTeacher`, that gives the targets; its other keywords are those of
            `deitctl distill`. Several in a list: their labels are averaged; settings of each are lists too.
        student: a DeiT, which gets a distillation token, or any timm model.
        recipe: as `train`, and so are the others.
        reporter: as `train`.
        overrides: as `train`.

    Raises:
        TeacherError: a teacher near chance, of other classes, or without weights.
    """
    return _run(_collect({"data": data, **settings}, distilled=settings.get("mode") != "none"))


def plan(
    data: PathLike = "",
    *,
    distilled: bool = False,
    reporter: Reporter | None = None,
    **settings: Any,
) -> TrainPlan:
    """Return what `train`, or with `distilled` what `distill` would do with the same keywords.

    Raises:
        ConfigError: `resume` names a run, which has its plan; `auto` plans a new run.
    """
    from deitctl.profiling.batch_size import with_chosen_batch_size
    from deitctl.training.plan import plan_training

    arguments = {"data": data, "reporter": reporter, **settings}
    request = _collect(arguments, distilled=distilled and settings.get("mode") != "none")
    if request.resume and request.resume != AUTO:
        raise ConfigError(
            f"A dry run plans a new run, and {request.resume} is to be resumed.",
            "Leave --dry-run or --resume out.",
        )
    request, opened = _open_objects(request)
    with _join_processes(request) as world:
        folded = _open_folds(request, world)
        config, datasets = _configure(request, opened if folded is None else folded.split(1), world)
    if request.auto_batch_size:
        config = with_chosen_batch_size(config, datasets, request.reporter)
    return plan_training(
        config,
        datasets=datasets,
        folded=folded,
        own_teacher=request.extensions.teacher,
        reporter=request.reporter,
    )


def replay(
    record: PathLike,
    *,
    workers: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    objective: Objective | None = None,
    augmentation: Augmentation | None = None,
    reporter: Reporter | None = None,
) -> Replay:
    """Repeat the step of RUN/incidents/STEP on any device and in any precision; with the run's own functions, if
    it had any."""
    from deitctl.training import replay as package
    from deitctl.training.extensions import Extensions

    machine = {"workers": workers, "device": device, "precision": precision}
    chosen = {name: value for name, value in machine.items() if value is not None}
    extensions = Extensions(objective=objective, augmentation=augmentation)
    return package.replay(Path(record), settings=chosen, extensions=extensions, reporter=reporter)


def cache_teacher(
    data: PathLike = "",
    *,
    teacher: PathLike | Sequence[PathLike] | None = None,
    student: PathLike | None = None,
    recipe: PathLike | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    task: TaskChoice | None = None,
    split_seed: int | None = None,
    fraction: float | None = None,
    extra_data: PathLike | Sequence[PathLike] | None = None,
    extra_weight: float | Sequence[float] | None = None,
    group_by: str | None = None,
    folds: int | None = None,
    fold: int | None = None,
    image_folder: PathLike | None = None,
    value_range: str | None = None,
    teacher_weights: PathLike | list[PathLike] | None = None,
    teacher_role: RoleChoice | list[RoleChoice] | None = None,
    teacher_classes: PathLike | list[PathLike] | None = None,
    teacher_img_size: ImageSize | list[ImageSize] | None = None,
    finetune_teacher: FinetuneChoice | list[FinetuneChoice] | None = None,
    mode: ModeChoice | None = None,
    feature_pool: Literal["auto", "cls", "avg"] | None = None,
    tau: float | None = None,
    views: int | None = None,
    view_seed: int | None = None,
    logits_topk: int | None = None,
    teacher_cache: PathLike | list[PathLike] | None = None,
    unlabelled: PathLike | None = None,
    allow_weak_teacher: bool | None = None,
    pretrained: bool | None = None,
    weights: PathLike | None = None,
    classes: PathLike | None = None,
    cache_dir: PathLike | None = None,
    cache_size: str | None = None,
    workers: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    batch_size: int = 64,
    reporter: Reporter | None = None,
    **overrides: Any,
) -> CacheTeacherResult:
    """Compute and store a teacher's targets for every view, so that `distill` never loads it.

    Args:
        data: as `distill`, and so are the keywords that are not here: a cache is keyed by what its targets depend on.
        batch_size: views at a time.
    """
    arguments = locals()
    batch_size = arguments.pop("batch_size")
    from deitctl.distillation.precompute import cache_teacher as fill_cache

    with _prepare_teacher(arguments) as (config, datasets, train_run, reporter):
        return fill_cache(config, datasets, train_run, batch_size=batch_size, reporter=reporter)


def verify_teacher_cache(
    data: PathLike = "",
    *,
    num_images: int = 256,
    batch_size: int = 64,
    reporter: Reporter | None = None,
    **settings: Any,
) -> VerifyCacheResult:
    """Compute a sample of cached targets again, and compare; settings as `cache_teacher`.

    Raises:
        TeacherError: nothing is cached, or the targets differ.
    """
    from deitctl.distillation import precompute
    from deitctl.distributed import is_distributed

    if is_distributed():
        raise ConfigError("--verify is for one process.", "Run it without torchrun.")
    arguments = {"data": data, "reporter": reporter, **settings}
    with _prepare_teacher(arguments) as (config, datasets, train_run, reporter):
        return precompute.verify_teacher_cache(
            config,
            datasets,
            train_run,
            num_images=num_images,
            batch_size=batch_size,
            reporter=reporter,
        )


def rank_teachers(
    data: PathLike = "",
    teachers: Sequence[PathLike] = (),
    *,
    recipe: PathLike | None = None,
    img_size: ImageSize | None = None,
    task: TaskChoice | None = None,
    split_seed: int | None = None,
    fraction: float | None = None,
    extra_data: PathLike | Sequence[PathLike] | None = None,
    extra_weight: float | Sequence[float] | None = None,
    group_by: str | None = None,
    folds: int | None = None,
    fold: int | None = None,
    image_folder: PathLike | None = None,
    value_range: str | None = None,
    teacher_img_size: ImageSize | None = None,
    mode: Literal["hard", "soft", "features", "features+hard", "features+soft"] | None = None,
    view_seed: int | None = None,
    logits_topk: int | None = None,
    cache_dir: PathLike | None = None,
    cache_size: str | None = None,
    workers: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    views: int = 2,
    num_images: int = 256,
    reporter: Reporter | None = None,
    **overrides: Any,
) -> TeacherRanking:
    """Compare teachers before one is chosen: accuracy, what they say about training views, agreement and cost.

    None is trained, so a teacher of other classes gives features alone, and is scored by a classifier that is fitted
    to them; one that fails is a row with the reason.

    Args:
        data: as `distill`, and so are the keywords that are not here.
        teachers: models, or `NAME=FILE` of an architecture and its weights.
        img_size: of the student's input, whose ratio of height and width the teachers take.
        views: of each sampled training image.
        num_images: training images to sample, at most.

    Raises:
        ConfigError: no teacher is named.
    """
    named = {k: v for k, v in locals().items() if k not in ("teachers", "views", "num_images")}
    from deitctl.checks.preflight import warn_about_classes
    from deitctl.data.sources import BUILT_IN
    from deitctl.data.training_data import open_for_training
    from deitctl.distillation.rank import rank_teachers as rank
    from deitctl.distillation.rank import split_weights
    from deitctl.distributed import SINGLE_PROCESS
    from deitctl.profiling.flops import count_flops
    from deitctl.training.configure import make_absolute, name_source
    from deitctl.training.head_init import fit_ridge
    from deitctl.training.several_teachers import split_teachers

    require_positive(views=views, num_images=num_images)
    if not teachers:
        raise ConfigError("No teacher is named.", "Name one or more: a model, or NAME=FILE.")
    for ref in map(str, teachers):
        if len(several := split_teachers(split_weights(ref)[0])) > 1:
            raise ConfigError(
                f"{ref} is {len(several)} teachers, and each is measured alone.",
                f"Name them one by one: {' '.join(several)}",
            )
    request = _collect({**named, "teacher_input": "unmixed"}, distilled=True)
    chosen = make_absolute(request.settings) | request.overrides
    source = name_source(str(chosen.get("data") or BUILT_IN), chosen)
    datasets = open_for_training(source, reporter=request.reporter)
    warn_about_classes(source.ref, *datasets, request.reporter)

    def configure(name: str, weights: str) -> TrainConfig:
        teacher = {"teacher": name, "teacher_weights": weights, "finetune_teacher": "none"}
        # nothing is trained: what a student's run decides is of no interest
        settings = {
            **named,
            **teacher,
            "teacher_input": "unmixed",
            "reporter": SilentReporter(),
        }
        return _configure(_collect(settings, distilled=True), datasets, SINGLE_PROCESS)[0]

    return rank(
        [str(teacher) for teacher in teachers],
        datasets,
        configure,
        lambda model, size, chans: count_flops(model, size, chans).forward,
        lambda *features_labels_classes: fit_ridge(*features_labels_classes, smoothing=0.0)[:2],
        num_images=num_images,
        num_views=views,
        reporter=request.reporter,
    )


def sweep(
    data: PathLike = "",
    *,
    vary: str | Sequence[str] | Mapping[str, Sequence[Any] | str] = (),
    seeds: int = 1,
    random: int = 0,
    optuna: int = 0,
    preset: str = "",
    jobs: int = 1,
    teacher: PathLike | Sequence[PathLike] | None = None,
    output: PathLike | None = None,
    slurm: PathLike = "",
    collect: bool = False,
    dry_run: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
    **settings: Any,
) -> SweepResult:
    """Train with every combination of varied settings and several seeds, and compare them seed by seed.

    Args:
        data: as `train`.
        vary: values by the name of a setting, or texts `optim.lr=1e-4,3e-4` and `optim.lr=1e-5..1e-3:log`.
        seeds: runs of each combination, with the seed and those after it.
        random: combinations to draw; 0: all of them.
        optuna: combinations that Optuna suggests by the results so far; 0: none.
        preset: `deit-table3` or `deit-table2`, the paper's comparisons, or `deit-in-small`, both on a few digits,
            or `beyond-in-small`, features, two teachers and images without labels;
            empty: none.
        jobs: runs at once, each a process.
        teacher: one, or several to compare.
        output: folder of the runs; None: runs/sweep-DATA.
        slurm: sbatch file to write instead of training.
        collect: summarize what is trained, and train nothing.
        dry_run: likewise, and write nothing.
        command: what the sbatch file names as its origin.
        reporter: as `train`.
        settings: keywords and dotted names as of `train` and `distill`, for all runs.

    Raises:
        ConfigError: nothing to vary, a value that does not fit, or runs of other settings in the output folder.
        Interrupted: stopped by a signal; the same call goes on.
    """
    if unfit := [name for name in ("resume", "more_epochs", "config") if settings.get(name)]:
        raise ConfigError(
            f"--{unfit[0].replace('_', '-')} is for one run, and a sweep has several.",
            "The same command continues a sweep.",
        )
    if settings.get("model") and settings.get("student"):
        raise ConfigError("--model and --student name the same.", "Leave one of them out.")
    from torch.cuda import device_count

    from deitctl.sweeps.definition import define_sweep
    from deitctl.sweeps.sweep import Sweep
    from deitctl.sweeps.variation import parse_variations
    from deitctl.training.configure import add_file_settings

    require_positive(seeds=seeds, jobs=jobs)
    teachers = [teacher] if isinstance(teacher, str | Path) else list(teacher or ())
    if len(teachers) == 1:
        settings["teacher"] = teachers[0]
    request = _collect({"data": data, "reporter": reporter, **settings}, distilled=True)
    if request.data is not None or request.extensions.name_all() or request.extensions.callbacks:
        raise ConfigError(
            "A sweep's runs are processes of their own, which a program cannot pass objects to.",
            "Call deitctl.train for each run.",
        )
    if request.auto_batch_size:
        raise ConfigError(
            "--batch-size auto may choose another size for every run of a sweep.", "Name a number."
        )
    definition = define_sweep(
        parse_variations([vary] if isinstance(vary, str) else vary),
        preset=preset,
        teachers=[str(name) for name in teachers],
        random=random,
        optuna=optuna,
        num_seeds=seeds,
        seed=int(request.settings.get("seed", 0)),
        named=add_file_settings({**request.settings, **request.overrides}),
    )
    if definition.settings:
        values = (f"{name.removeprefix('recipe.')} {v}" for name, v in definition.settings.items())
        request.reporter.note(f"Preset {preset}: {', '.join(values)}.")
    folder = output or Path("runs") / f"{preset or 'sweep'}-{Path(data or 'digits').name}"
    chosen = {**definition.settings, **request.settings}
    runs = Sweep(definition, chosen, request.overrides, Path(folder), request.reporter)
    if slurm and not dry_run:
        runs.write_slurm(Path(slurm), command=command or "deitctl sweep", num_jobs=jobs)
    elif not (dry_run or collect):
        device = str(settings.get("device") or "auto")
        runs.train(num_jobs=jobs, num_gpus=device_count() if device in ("auto", "cuda") else 0)
    return runs.summarize()


def bench(
    data: PathLike = "",
    *,
    model: PathLike | None = None,
    teacher: PathLike | None = None,
    recipe: PathLike | None = None,
    batch_size: int | Literal["auto"] | None = None,
    img_size: ImageSize | None = None,
    in_chans: int | None = None,
    workers: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    image_folder: PathLike | None = None,
    seconds: float = 2.0,
    reporter: Reporter | None = None,
    **overrides: Any,
) -> BenchResult:
    """Measure the speed of a training on this machine, stage by stage, with random weights.

    Args:
        data: as `train`; empty: synthetic images of ImageNet's size.
        teacher: model to distill from; None: none. The other settings are those of `train`.
        seconds: duration of a stage, about.
    """
    arguments = {k: v for k, v in locals().items() if k != "seconds"}
    from deitctl.profiling import bench as package

    request = _collect(arguments)
    return package.bench(
        request.settings,
        overrides=request.overrides,
        auto_batch_size=request.auto_batch_size,
        seconds=seconds,
        reporter=request.reporter,
    )


def evaluate(
    data: PathLike = "",
    *,
    model: PathLike = "",
    split: Literal["", "train", "val", "test", "all", "fold"] = "",
    weights: PathLike = "",
    classes: PathLike | Sequence[str] = "",
    head: str = "auto",
    protocol: str = "native",
    task: TaskChoice = "auto",
    real_labels: PathLike = "",
    save_temperature: bool = False,
    save_thresholds: bool = False,
    batch_size: int | None = None,
    img_size: ImageSize = 0,
    image_folder: PathLike = "",
    value_range: str = "auto",
    on_bad_image: OnBadImage = "skip",
    cache_dir: PathLike = "",
    cache_size: str = "",
    workers: int = -1,
    device: str = "auto",
    precision: str = "auto",
    predictions: PathLike = "",
    report: PathLike = "",
    figures: PathLike = "",
    command: str = "",
    reporter: Reporter | None = None,
) -> Result:
    """Evaluate a model on labeled images; labels are matched by class name or WordNet id.

    Args:
        data: as `train`, or a run folder, whose held-out images it stands for; empty: those of the
            model, if it is a run's.
        model: name, folder or file, an ONNX file of `export` included; empty: the run that `data`
            is, else the default model.
        split: which images; empty: those that the model was not trained on.
        weights: for a model that is named by architecture.
        classes: names of its classes, see `deitctl.load`.
        head: head rule of the predictions; `auto`: the model's own.
        protocol: whose preprocessing: native (the model's own), deit, timm or hf.
        task: whether images have several labels, and the model predicts them; `auto`: as the data, its
            run and the model say.
        real_labels: ReaL labels of ImageNet's validation images.
        save_temperature: store the fitted temperature with the model.
        save_thresholds: store the fitted thresholds of several labels an image with the model.
        batch_size: images at a time; None: 64, on an accelerator by its memory.
        img_size: side of the input in pixels; 0: the model's own.
        image_folder: folder that the paths of a table are below; empty: where the table or its run leads.
        value_range: `LOW,HIGH`, black and white of images of more than 8 bits, whose values outside
            are clipped; `auto`: what their files state, else the model's, else one for all.
        on_bad_image: `skip` leaves out an image that cannot be read, `stop` raises.
        cache_dir: folder of what is read from stores; empty: `data/` below `$DEITCTL_CACHE`.
        cache_size: of that folder, `200GB`; `0`: nothing is cached.
        workers: loader processes; -1: chosen from the machine.
        device: auto, cuda, cuda:N, mps or cpu.
        precision: auto (fp32), fp32, tf32, bf16 or fp16.
        predictions: JSON Lines file for the result of each image.
        report: HTML file to write.
        figures: folder for the report's figures as PNG.
        command: what the report names as its origin.
        reporter: as `train`.

    Raises:
        DataError: no such data, or classes that the model does not have.
        ModelError: no such model.
    """
    arguments = locals()
    models, protocols = [arguments.pop("model")], [arguments.pop("protocol")]
    return evaluate_models(**arguments, models=models, protocols=protocols).evaluations[0]


def evaluate_models(
    data: PathLike = "",
    *,
    models: Sequence[PathLike],
    protocols: Sequence[str] = ("native",),
    report: PathLike = "",
    figures: PathLike = "",
    command: str = "",
    reporter: Reporter | None = None,
    **options: Any,
) -> EvalResults:
    """Evaluate every model under every protocol on the same images, and compare them; options as `evaluate`."""
    from deitctl.distributed import is_main_process
    from deitctl.evaluation import evaluate as package
    from deitctl.report.build import require_report_paths, write_report

    options = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    reporter = reporter or SilentReporter()
    require_report_paths(str(report), str(figures), options.get("predictions", ""))
    results = package.evaluate_models(
        str(data),
        models=[str(model) for model in models],
        protocols=protocols,
        reporter=reporter,
        **options,
    )
    if is_main_process():
        write_report(results, reporter, report=str(report), figures=str(figures), command=command)
    return results


@dataclass(frozen=True)
class _Request:
    """The arguments of a training function."""

    data: Any
    """The caller's data sets; None: data that the settings name."""
    extensions: Extensions

    settings: dict[str, Any]
    """By dotted name of `TrainConfig`; `recipe` is the name or file of one."""
    overrides: dict[str, Any]
    reporter: Reporter
    distilled: bool
    auto_batch_size: bool
    resume: str
    more_epochs: int
    config: str


def _collect(arguments: Mapping[str, Any], *, distilled: bool = False) -> _Request:
    """Sort the arguments of a training function; those that are None or empty are left out."""
    arguments, data, extensions = _take_objects(arguments)
    keywords = {keyword: setting.name for keyword, setting in list_options().items()}
    keywords |= {"data": "data", "recipe": "recipe", "student": "model"}
    texts = {"data", "recipe"} | {s.name for s in list_options().values() if s.kind is str}
    settings, overrides = {}, dict(arguments.get("overrides", {}))
    for keyword, value in arguments.items():
        if keyword in NO_SETTINGS or value is None or value == "":
            continue
        if keyword in keywords:
            name = keywords[keyword]
            if name in EXTRA_SETTINGS:
                settings[name] = (
                    [value] if isinstance(value, str | Path | int | float) else [*value]
                )
            elif name in TEACHER_SETTINGS and isinstance(value, list):  # of several teachers
                settings[name] = [_spell(part, name in texts, keyword) for part in value]
            else:
                settings[name] = _spell(value, name in texts, keyword)
        else:
            overrides[keyword] = value
    unlabelled = (settings | overrides).get("distill.unlabelled")
    if unlabelled and not distilled and not arguments.get("resume"):
        raise ConfigError(
            f"--unlabelled {unlabelled} names images that a teacher labels, and there is none.",
            "Leave it out, or name a teacher: deitctl distill --teacher NAME.",
        )
    auto = str(settings.get("recipe.batch_size")).lower() == AUTO
    if auto:
        del settings["recipe.batch_size"]
    return _Request(
        data,
        extensions,
        settings,
        {dotted_name(key): value for key, value in overrides.items()},
        arguments.get("reporter") or SilentReporter(),
        distilled,
        auto,
        str(arguments.get("resume") or ""),
        _more_epochs(arguments),
        str(arguments.get("config") or ""),
    )


def _spell(value: Any, is_text: bool, keyword: str) -> Any:
    """Return a setting's value as a configuration has it: a path as a text."""
    value = str(value) if isinstance(value, Path) else value
    return convert(value, str, keyword) if is_text else value


def _take_objects(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Any, Extensions]:
    """Take out what is no setting but a caller's object: data sets and functions.

    In their place are the names by which the run knows them.

    Raises:
        ConfigError: an object that cannot be what its keyword says.
    """
    from deitctl.distillation.callable_teacher import CallableTeacher
    from deitctl.training.extensions import Extensions

    rest = {key: value for key, value in arguments.items() if key not in FUNCTIONS}
    functions = {key: arguments[key] for key in FUNCTIONS if arguments.get(key) is not None}
    for key in ("objective", "augmentation"):
        if key in functions and not callable(functions[key]):
            raise ConfigError(f"{key} = {functions[key]!r:.80} is no function.")
    callbacks = functions.get("callbacks", ())
    if not isinstance(callbacks, Sequence) or not all(
        callable(getattr(callback, "on_epoch_end", None)) for callback in callbacks
    ):
        raise ConfigError(
            f"callbacks = {callbacks!r:.80} is no list of objects with on_epoch_end(metrics)."
        )
    data, teacher = rest.get("data"), rest.get("teacher")
    if isinstance(data, str | Path | None):
        data = None
    else:
        del rest["data"]
    if isinstance(teacher, list | tuple):
        own = [part for part in teacher if isinstance(part, CallableTeacher)]
        if len(own) > 1:
            raise ConfigError(
                "Several teachers of the caller's are one function: let it average their logits.",
                "Pass one CallableTeacher, beside teachers by name.",
            )
        if own:
            functions["teacher"] = own[0]
        rest["teacher"] = [p.name if isinstance(p, CallableTeacher) else p for p in teacher]
    if isinstance(teacher, CallableTeacher):
        functions["teacher"], rest["teacher"] = teacher, teacher.name
    return rest, data, Extensions(draw_figures=_draw_figures, **functions)


def _more_epochs(arguments: Mapping[str, Any]) -> int:
    """Return the epochs that a finished run is to have beside its own; 0 for a run without."""
    more = arguments.get("more_epochs")
    if more is None:
        return 0
    if arguments.get("resume") in (None, "", AUTO):
        raise ConfigError(
            "--more-epochs is for a finished run, and none is named.", "Add --resume RUN."
        )
    require_positive(more_epochs=more)
    return int(more)


@contextmanager
def _join_processes(request: _Request) -> Iterator[World]:
    """Join the processes of a run before its data is opened, which the main process does for all."""
    from deitctl.device import choose_device
    from deitctl.distributed import SINGLE_PROCESS, is_distributed, process_group
    from deitctl.settings import read_toml

    if not is_distributed():  # the device is chosen, and refused, where it is used
        yield SINGLE_PROCESS
        return
    named = (read_toml(Path(request.config)) if request.config else {}) | request.settings
    named |= request.overrides
    device = choose_device(
        str(named.get("device", "auto")), deterministic=named.get("deterministic") is True
    )
    with process_group(device.torch_device) as world:
        yield world


def _configure(
    request: _Request, datasets: Datasets | None, world: World
) -> tuple[TrainConfig, Datasets]:
    from deitctl.checks.preflight import warn_about_classes

    config, opened = _open_configured(request, datasets, world)
    if datasets is None and not request.resume:
        warn_about_classes(config.data, *opened, request.reporter)
    return config, opened


def _open_configured(
    request: _Request, datasets: Datasets | None, world: World
) -> tuple[TrainConfig, Datasets]:
    from deitctl.data.training_data import Source, open_for_training
    from deitctl.training.configure import build_config, settle_task
    from deitctl.training.repeat import read_config

    settings = request.settings
    if request.config:
        config = read_config(
            Path(request.config),
            settings,
            request.overrides,
            distilled=request.distilled,
            reporter=request.reporter,
        )
        opened = datasets or open_for_training(
            Source.of(config), reporter=request.reporter, world=world
        )
        return settle_task(config, opened[0]), opened
    if not request.distilled:
        # other settings of a teacher stay, and are refused where there is none
        settings = {k: v for k, v in settings.items() if (k, v) != ("distill.mode", "none")}
    config, train, val = build_config(
        settings,
        overrides=request.overrides,
        distilled=request.distilled,
        datasets=datasets,
        reporter=request.reporter,
        world=world,
    )
    return config, (train, val)


def _run(request: _Request) -> TrainResult | FoldsResult:
    from deitctl.profiling.batch_size import with_chosen_batch_size
    from deitctl.recipes import get_recipe
    from deitctl.training import launch
    from deitctl.training.configure import make_absolute, refuse_settings
    from deitctl.training.folds import find_folds, is_folds, train_folds

    extensions = request.extensions
    request, opened = _open_objects(request)
    if request.resume and request.resume != AUTO:
        root = Path(request.resume)
        own = {"config": request.config, "output": request.settings.get("output_dir")}
        refuse_settings([name for name, value in own.items() if value], root)
        settings = make_absolute(request.settings) | request.overrides
        if "recipe" in settings:
            settings["recipe.name"] = get_recipe(settings.pop("recipe")).name
        if is_folds(root):
            return _resume_folds(root, settings, request, extensions)
        return launch.resume(
            root,
            settings=settings,
            more_epochs=request.more_epochs,
            datasets=opened,
            extensions=extensions,
            reporter=request.reporter,
        )
    with _join_processes(request) as world:
        folded = _open_folds(request, world)
        config, datasets = _configure(request, opened if folded is None else folded.split(1), world)

        def choose(config: TrainConfig) -> TrainConfig:
            return with_chosen_batch_size(config, datasets, request.reporter)

        if folded is not None:
            if request.resume == AUTO:
                config = find_folds(config, request.reporter)
            return train_folds(
                config,
                folded,
                extensions=extensions,
                reporter=request.reporter,
                choose=choose if request.auto_batch_size else None,
            )
        return launch.start_or_resume(
            config,
            auto=request.resume == AUTO,
            datasets=datasets,
            reporter=request.reporter,
            extensions=extensions,
            choose=choose if request.auto_batch_size else None,
        )


def _open_objects(request: _Request) -> tuple[_Request, Datasets | None]:
    """Open the caller's data sets, if it has passed any, and name them in the settings.

    Raises:
        ConfigError: settings of data that is named.
    """
    from deitctl.data.readers.torch_dataset import open_for_training
    from deitctl.settings import read_toml

    if request.data is None:
        return request, None
    named = request.settings | request.overrides
    if others := [name for name in OF_NAMED_DATA if named.get(name) not in (None, "", "auto", 0)]:
        raise ConfigError(
            f"{others[0]} is a setting of data that is named, and a data set was passed.",
            "Split, group and label the images in the data set.",
        )
    if request.resume not in ("", AUTO):
        named = read_toml(Path(request.resume) / "run.toml") | named
    seed = convert(named.get("split_seed", 0), int, "split_seed")
    name, train, val = open_for_training(request.data, seed=seed, reporter=request.reporter)
    return replace(request, settings=request.settings | {"data": name}), (train, val)


def _resume_folds(
    root: Path, settings: Mapping[str, Any], request: _Request, extensions: Extensions
) -> FoldsResult:
    from deitctl.data.training_data import Source, open_folds
    from deitctl.training.folds import read_folds_config, train_folds

    if request.more_epochs:
        raise ConfigError(
            f"{root} has the runs of several folds, which are not trained longer together.",
            f"Name one: --resume {root / 'fold1'}",
        )
    config = read_folds_config(root, settings)
    with _join_processes(request) as world:
        folded = open_folds(Source.of(config), reporter=request.reporter, world=world)
        return train_folds(config, folded, extensions=extensions, reporter=request.reporter)


def _open_folds(request: _Request, world: World) -> FoldedData | None:
    """Return the images of all folds that are to be trained; None for a run, or one fold alone."""
    from deitctl.data.sources import BUILT_IN
    from deitctl.data.training_data import Source, open_folds
    from deitctl.training.configure import make_absolute, name_source
    from deitctl.training.repeat import read_config

    if request.config:
        config = read_config(
            Path(request.config), request.settings, request.overrides, distilled=request.distilled
        )
        source = Source.of(config)
    else:
        named = make_absolute(request.settings) | request.overrides
        source = name_source(str(named.get("data") or BUILT_IN), named)
    if not source.folds or source.fold:
        return None
    return open_folds(source, reporter=request.reporter, world=world)


def _draw_figures(root: Path) -> list[Path]:
    """Draw the figures of the run in a folder, and return their files."""
    from deitctl.report.figures import draw_curves
    from deitctl.training.run_dir import Run

    run = Run(root)
    run.require_own_names()
    steps, epochs = (list(run.records(kind)) for kind in ("step", "epoch"))
    path, teacher_top1 = run.figures / "curves.png", run.teacher_top1()
    draw_curves(path, steps, epochs, teacher_top1=teacher_top1, title=root.name)
    return [path, *_draw_evaluation(run)]


def _draw_evaluation(run: Run) -> list[Path]:
    """Draw a report's figures of the finished run for its trackers; none for those that show no images.

    Not of several processes, which would have to evaluate together, and not of a program's data.
    """
    from deitctl.data.readers.torch_dataset import PREFIX
    from deitctl.distributed import is_distributed
    from deitctl.evaluation import evaluate as package
    from deitctl.evaluation.result import EvalResult
    from deitctl.report.build import build_contents
    from deitctl.report.figures import draw_figures
    from deitctl.trackers.feed import parse_trackers
    from deitctl.training.run_dir import Run

    _, config = Run.open(run.root)
    shows_images = set(parse_trackers(config.log)) - {"csv"}
    if not shows_images or is_distributed() or config.data.startswith(PREFIX):
        return []
    reporter = SilentReporter()
    results = package.evaluate_models("", models=[str(run.root)], reporter=reporter)
    if not all(isinstance(result, EvalResult) for result in results.evaluations):
        return []
    return draw_figures(build_contents(results, "", reporter), run.figures)


def _train_run(
    datasets: Datasets, reporter: Reporter
) -> Callable[[TrainConfig], Mapping[str, Any]]:
    """Return the function by which distillation trains a teacher that is fine-tuned."""
    from deitctl.training.extensions import Extensions
    from deitctl.training.launch import train_or_find

    def train_run(config: TrainConfig) -> Mapping[str, Any]:
        extensions = Extensions(draw_figures=_draw_figures)
        return train_or_find(config, datasets, reporter, extensions=extensions)

    return train_run


@contextmanager
def _prepare_teacher(
    arguments: Mapping[str, Any],
) -> Iterator[tuple[TrainConfig, Datasets, Callable[[TrainConfig], Mapping[str, Any]], Reporter]]:
    from deitctl.data.stores.store_settings import reading_stores

    if arguments.get("mode") == "none":
        raise ConfigError("--mode none has no teacher.", "Use hard or soft.")
    request = _collect({**arguments, "teacher_input": "unmixed"}, distilled=True)
    if request.extensions.teacher is not None:
        raise ConfigError(
            "The targets of a function are cached by the run that it teaches.",
            "Pass it to deitctl.distill(teacher=...).",
        )
    request, opened = _open_objects(request)
    with _join_processes(request) as world:
        config, datasets = _configure(request, opened, world)
        with reading_stores(config.cache_dir, config.cache_size, request.reporter):
            yield config, datasets, _train_run(datasets, request.reporter), request.reporter
