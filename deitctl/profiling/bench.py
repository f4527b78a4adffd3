"""How fast a training will be on this machine, where its time goes, and what to do about it."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import deitctl
from deitctl.config import TrainConfig
from deitctl.cores import available_cores
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import Batch
from deitctl.data.open import BUILT_IN, open_for_training
from deitctl.device import Device, choose_device
from deitctl.errors import ConfigError
from deitctl.events import Reporter, SilentReporter
from deitctl.profiling.batch_size import choose_batch_size, power_of_two
from deitctl.profiling.bench_advice import advise, expected_of, parts_of
from deitctl.profiling.bench_data import image_stages, loader_stage
from deitctl.profiling.bench_network import (
    ADAMW_BYTES,
    AVERAGE_BYTES,
    Limits,
    at_hand,
    evaluation_stage,
    loop_stage,
    save_stage,
    seconds_an_image,
    step_stage,
    student_stages,
    teacher_stage,
    update_stages,
)
from deitctl.profiling.bench_result import BenchResult, Limit, Stage, StageClock, pooled
from deitctl.profiling.clock import Timing, measure
from deitctl.profiling.flops import flops_of
from deitctl.profiling.peak import PeakThroughput, measure_ceilings
from deitctl.profiling.synthetic_images import FILES, HEIGHT, WIDTH, imagenet_like
from deitctl.profiling.trial_run import TrialRun, rehearse
from deitctl.training.configure import Request, Teaching, check, configure, distill_config
from deitctl.training.optim import peak_learning_rate
from deitctl.training.step import at_a_time

SECONDS = 2.0
"""Of a stage; the loops take twice as long."""
ROUNDS = 3
"""In which the parts of a step and the loops are measured."""
NOISE = 0.1
"""Share of the training's time by which parts and loops may disagree before it is said."""
CEILING = 0.5
"""Share of a stage's time that each ceiling takes."""
MOST_SECONDS = 600.0
BUSY = 0.5
"""Load a core from which others are said to be at work."""


@dataclass(frozen=True)
class Opened:
    """Data, and how long it took to open."""

    datasets: tuple[ImageDataset, ImageDataset]
    timing: Timing | None
    synthetic_images: bool


def bench(
    request: Request,
    *,
    teacher: str = "",
    choose_batch: bool = False,
    seconds: float = SECONDS,
    reporter: Reporter | None = None,
) -> BenchResult:
    """Measure every stage of a training on this machine, and the training itself. Nothing is downloaded or kept.

    Args:
        request: the training, as for `configure`, without its teacher; no data: images as large as ImageNet's are made up.
        teacher: a model that teaches, empty for none; both have random weights, which are as fast as any.
        choose_batch: whether the batch size is chosen as by `--batch-size auto`.
        seconds: of a stage, about.
        reporter: told of progress.

    Raises:
        ConfigError: a setting that does not exist or fit.
        DataError: no data, or not one image of it can be read.
    """
    if not 0 < seconds <= MOST_SECONDS:
        raise ConfigError(
            f"seconds = {seconds:g}: a stage takes more than 0 and at most {MOST_SECONDS:g} seconds."
        )
    reporter, begun, load = reporter or SilentReporter(), time.perf_counter(), _load()
    if load is not None and load > BUSY * available_cores():
        reporter.warn(
            f"Other programs are at work here (load {load:.1f} on {available_cores()} cores): what is measured is what they leave."
        )
    with tempfile.TemporaryDirectory(prefix="deitctl-bench-") as name:
        folder = Path(name)
        opened = _open(request, folder, seconds, reporter)
        config = _configure(request, teacher, opened, folder, reporter)
        device = choose_device(config.device, config.precision)
        why = ""
        if choose_batch:
            choice = choose_batch_size(config, opened.datasets, device, reporter)
            config, why = (
                replace(config, recipe=replace(config.recipe, batch_size=choice.size)),
                choice.sentence,
            )
            reporter.note(why)
        return _bench(config, opened, device, folder, seconds, reporter, why, load, begun)


def _load() -> float | None:
    """Return how many programs wanted a core in the last minute, None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _open(request: Request, folder: Path, seconds: float, reporter: Reporter) -> Opened:
    """Open the data and time it, or make images up."""
    if not request.data:
        reporter.note(
            f"No data named: {FILES} images of {WIDTH} x {HEIGHT} pixels are made up, as ImageNet's are."
        )
        return Opened(imagenet_like(folder), None, synthetic_images=True)
    start = time.perf_counter()
    datasets = open_for_training(request.data, seed=0, reporter=reporter)
    first = time.perf_counter() - start

    def work() -> int:
        return sum(
            len(s.labels)
            for s in open_for_training(request.data, seed=0, reporter=SilentReporter())
        )

    return Opened(
        datasets,
        replace(measure(work, seconds=seconds / 4, most=20), first=first),
        synthetic_images=False,
    )


def _configure(
    request: Request, teacher: str, opened: Opened, folder: Path, reporter: Reporter
) -> TrainConfig:
    """Resolve the request as `train` would, or with a teacher `distill`, but without looking for weights."""
    request = replace(request, data=request.data or str(folder), teaching=None)
    config, *_ = configure(request, reporter, opened.datasets)
    if teacher:
        built_in = config.data == BUILT_IN
        config = replace(
            config, distill=distill_config(Teaching(teacher=teacher), built_in, config.recipe)
        )
        check(config)
    return config


def _bench(
    config: TrainConfig,
    opened: Opened,
    device: Device,
    folder: Path,
    seconds: float,
    reporter: Reporter,
    why: str,
    load: float | None,
    begun: float,
) -> BenchResult:
    with reporter.task("prepare", None, "steps"):
        whole = rehearse(config, opened.datasets, device)
        flops: dict[str, int] = flops_of(whole.state.model, whole.img_size)._asdict()
        if whole.teacher is not None:
            flops["teacher"] = flops_of(
                whole.teacher.model, whole.teacher.model_config.preprocessing.img_size
            ).forward
        guess = seconds_an_image(whole)
        precisions = list(
            dict.fromkeys(["fp32", device.precision, choose_device(config.device).precision])
        )
        ceilings = measure_ceilings(device, precisions, seconds=CEILING * seconds)
    job = whole.at(_affordable(whole.plan.recipe.batch_size, guess, seconds))
    stages: dict[str, Stage] = {}
    if opened.timing is not None:
        stages["open"] = Stage(name="open", title="open the data", timing=opened.timing)
    with reporter.task("bench", None, "stages") as task:
        clock = StageClock(device, seconds, lambda title: task.advance(1, stage=title))
        stages |= {
            s.name: s
            for s in _stages(job, clock, folder, _limits(job, flops, ceilings), guess, reporter)
        }
    parts = parts_of(job, stages)
    noise = max(-parts["loop"], -parts["slowed"]) / sum(parts.values()) if parts else 0.0
    if noise > NOISE:
        reporter.warn(
            f"The parts of a step and the loops around them disagree by {100 * noise:.0f} %, because they were measured at "
            "different moments. Measure longer (--seconds), or when nothing else is at work."
        )
    return BenchResult(
        job=_describe(job, opened, why, ceilings) | {"load_before": load},
        ceilings=ceilings,
        flops=flops,
        stages=stages,
        parts=parts,
        expected=expected_of(job, stages, parts),
        advice=tuple(advise(job, device, ceilings, stages, parts)),
        seconds=time.perf_counter() - begun,
    )


def _affordable(batch_size: int, guess: float, seconds: float) -> int:
    """Return the recipe's batch size, or the largest power of two of which two steps take no longer than a stage."""
    if 2 * batch_size * guess <= seconds:
        return batch_size
    return min(batch_size, max(2, power_of_two(max(1, int(seconds / guess / 2)))))


def _stages(
    job: TrialRun, clock: StageClock, folder: Path, limits: Limits, guess: float, reporter: Reporter
) -> Iterator[Stage]:
    """Measure all stages in the order of the work; those of the training in rounds, so that they meet the same moments."""
    batch = job.batch()
    yield from image_stages(job, clock, folder)
    yield loader_stage(job, clock)
    rounds: dict[str, list[Stage]] = {}
    shorter = StageClock(clock.device, clock.seconds / ROUNDS, clock.step)
    for _ in range(ROUNDS):
        for stage in _training_stages(job, batch, shorter, limits, guess, reporter):
            rounds.setdefault(stage.name, []).append(stage)
    yield from map(pooled, rounds.values())
    size = len(batch.keys)
    if 4 * size * guess <= clock.seconds and 2 * size <= len(job.train.labels):
        double = job.at(2 * size)
        yield step_stage(job, batch, clock, "step", f"step of {size} images")
        yield step_stage(double, double.batch(), clock, "double_step", f"step of {2 * size} images")
    yield save_stage(job, clock, folder)
    yield evaluation_stage(
        job, next(batch.parts(at_a_time(job.plan, job.state))), clock, limits.forward
    )


def _training_stages(
    job: TrialRun, batch: Batch, clock: StageClock, limits: Limits, guess: float, reporter: Reporter
) -> Iterator[Stage]:
    """Measure the parts of a step, images being taken as a step does, and the training loop with a batch at hand and as it is."""
    part = next(batch.parts(at_a_time(job.plan, job.state)))
    if job.teacher is not None:
        yield teacher_stage(job, part, clock, limits.teacher)
    yield from student_stages(job, part, clock, limits)
    at = "loop_at_hand", "loop, images at hand"
    yield loop_stage(job, lambda: at_hand(batch), clock, *at, guess, reporter)
    yield loop_stage(job, job.batches, clock, "loop", "loop, whole", guess, reporter)
    yield from update_stages(job, clock, limits)


def _limits(job: TrialRun, flops: dict[str, int], ceilings: PeakThroughput) -> Limits:
    precision = job.device.precision
    products, name = ceilings.flops[precision], precision
    learn = sum(p.numel() for p in job.state.model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in job.state.model.parameters())
    size = job.plan.recipe.batch_size
    return Limits(
        forward=Limit(flops["forward"], products, name),
        backward=Limit(flops["step"] - flops["forward"], products, name),
        teacher=Limit(flops["teacher"], products, name) if "teacher" in flops else None,
        optimizer=Limit(ADAMW_BYTES * learn / size, ceilings.copy, "copy"),
        average=Limit(AVERAGE_BYTES * every / size, ceilings.copy, "copy"),
    )


def _describe(job: TrialRun, opened: Opened, why: str, ceilings: PeakThroughput) -> dict[str, Any]:
    config, device = job.config, job.device
    cuda = device.torch_device.type == "cuda"
    batch_size = min(config.recipe.batch_size, len(job.train.labels))
    return {
        "deitctl": deitctl.__version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device.torch_device)
        if cuda
        else f"{device.torch_device} ({platform.machine()})",
        "precision": device.precision,
        "threads": ceilings.threads,
        "cores": ceilings.cores,
        "workers": job.workers,
        "model": config.model,
        "teacher": config.distill.teacher if config.distill is not None else None,
        "teacher_input": config.distill.teacher_input if config.distill is not None else None,
        "recipe": config.recipe.name,
        "epochs": config.recipe.epochs,
        "img_size": job.img_size,
        "batch_size": batch_size,
        "measured_batch_size": job.plan.recipe.batch_size,
        "batch_size_why": why,
        "peak_learning_rate": peak_learning_rate(config.recipe.optim, batch_size),
        "data": "made up" if opened.synthetic_images else config.data,
        "train_images": len(job.train.labels),
        "val_images": len(job.val.labels),
        "classes": len(job.train.class_names),
    }
