"""`deitctl bench`: speed of a training by stages: data, teacher, step, end to end."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, repeat
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from deitctl.config import TrainConfig
from deitctl.cores import count_cores
from deitctl.data.dataset import ImageDataset
from deitctl.data.draws import count_draws
from deitctl.data.epoch_steps import fit_batch_size
from deitctl.data.eval_views import EvalViews
from deitctl.data.lazy_jpeg import LazyJpeg
from deitctl.data.loader import Batch
from deitctl.data.sources import BUILT_IN
from deitctl.data.training_data import Source, open_for_training
from deitctl.device import Device, choose_device, choose_run_device, ran_out_of_memory
from deitctl.errors import ConfigError, DeitctlError, LoaderLost
from deitctl.events import Reporter, SilentReporter
from deitctl.profiling.batch_size import choose_batch_size, floor_power_of_two
from deitctl.profiling.bench_result import (
    BenchResult,
    BenchSetup,
    FlopsPerImage,
    Stage,
    estimate_run,
    find_bottlenecks,
    split_step_time,
)
from deitctl.profiling.flops import compute_flops
from deitctl.profiling.measure import MemoryMeter, measure_time
from deitctl.profiling.peak import PeakThroughput, measure_peak
from deitctl.profiling.synthetic_images import NUM_FILES, write_synthetic_dataset
from deitctl.profiling.trial_run import TrialRun, build_trial
from deitctl.settings import override
from deitctl.training.configure import build_config, build_distill_config, check, make_absolute
from deitctl.training.input_shape import find_in_chans
from deitctl.training.schedule import compute_peak_lr

STAGE_SECONDS = 2.0
MAX_STAGE_SECONDS = 600.0
NUM_SIZED = 16
"""Images whose sizes are read."""
NUM_VIEWS = 64
"""Images that the data stages go through again and again."""
ADAMW_BYTES, EMA_BYTES = 28, 12
"""Moved for each parameter: AdamW reads weight, gradient and two moments and writes all but the
gradient; the EMA is read and written, and the weight read."""
BUSY_LOAD = 0.5
"""Load average a core above which other programs disturb the measurement."""
T = TypeVar("T")


def bench(
    settings: Mapping[str, Any],
    *,
    overrides: Mapping[str, Any] | None = None,
    auto_batch_size: bool = False,
    seconds: float = STAGE_SECONDS,
    reporter: Reporter | None = None,
) -> BenchResult:
    """Measure every stage of a training on this machine. Nothing is downloaded or kept.

    Models have random weights, which are as fast as any.

    Args:
        settings: as for `build_config`; with a `distill.teacher` a distillation; without `data`
            synthetic images of ImageNet's size.
        overrides: as for `build_config`.
        auto_batch_size: choose the batch size as `--batch-size auto` does.
        seconds: about, of each stage.
        reporter: shows progress.

    Raises:
        ConfigError: a setting that does not exist or is out of range.
        DataError: no data, or no image of it can be read.
    """
    if not 0 < seconds <= MAX_STAGE_SECONDS:
        raise ConfigError(
            f"seconds = {seconds:g}: use more than 0 and at most {MAX_STAGE_SECONDS:g} for a stage."
        )
    reporter, start = reporter or SilentReporter(), time.perf_counter()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # not on Windows
    if load > BUSY_LOAD * count_cores():
        reporter.warn(
            f"Other programs use this machine (load {load:.1f} on {count_cores()} cores): "
            "figures will be too low."
        )
    with tempfile.TemporaryDirectory(prefix="deitctl-bench-") as name:
        folder = Path(name)
        if data := settings.get("data"):
            named = {**settings, **(overrides or {})}
            in_chans = find_in_chans(str(settings.get("model", "")), named, reporter)
            source = Source(str(data), str(settings.get("image_folder", "")), in_chans=in_chans)
            datasets = open_for_training(source, reporter=reporter)
        else:
            reporter.note(f"No data named: using {NUM_FILES} synthetic images of ImageNet's size.")
            datasets = write_synthetic_dataset(folder)
        config = _configure(settings, overrides, datasets, folder, reporter)
        device = choose_run_device(config)
        reason = None
        if auto_batch_size:
            choice = choose_batch_size(config, datasets, device, reporter)
            reporter.note(choice.message)
            recipe = replace(config.recipe, batch_size=choice.batch_size)
            config, reason = replace(config, recipe=recipe), choice.reason
        with device.computing(), reporter.task("prepare", None, "steps"):
            trial = build_trial(config, datasets, device)
            flops = _count_flops(trial)
            # fp32, ours and the best: a hint compares them
            candidates = ("fp32", device.precision, choose_device(config.device).precision)
            peak = measure_peak(device, list(dict.fromkeys(candidates)), seconds=seconds / 2)
            trial = _fit_batch_size(trial, seconds)
        setup = _describe(
            trial,
            config,
            data=config.data if data else None,
            batch_size_reason=reason,
        )
        with device.computing(), reporter.task("bench", None, "stages") as task:
            stages = StageTable(device, seconds, lambda name: task.advance(1, stage=name))
            measure_data(trial, stages)
            data_wait = measure_steps(trial, stages, flops, peak)
    per_step = setup.measured_batch_size / setup.batch_size
    step_time = split_step_time(stages.by_name, data_wait, per_step=per_step)
    hints = find_bottlenecks(setup, config, peak, stages.by_name, step_time)
    return BenchResult(
        setup=setup,
        peak=peak,
        flops_per_image=flops,
        stages=tuple(stages.by_name.values()),
        step_time_s=step_time,
        data_wait_share=data_wait / sum(step_time.values()) if step_time else None,
        expected=estimate_run(setup, config, stages.by_name, step_time),
        hints=tuple(hints),
        seconds=time.perf_counter() - start,
    )


def _configure(
    settings: Mapping[str, Any],
    overrides: Mapping[str, Any] | None,
    datasets: tuple[ImageDataset, ImageDataset],
    folder: Path,
    reporter: Reporter,
) -> TrainConfig:
    """Resolve settings as `train` or `distill` does, but without looking for weights."""
    settings = make_absolute(settings)
    settings["data"] = settings.get("data") or str(folder)
    teaching = {k: settings.pop(k) for k in list(settings) if k.startswith("distill.")}
    # `train` does not look for the student's weights, on which `distill` lets the recipe depend
    config, *_ = build_config(settings, datasets=datasets, reporter=reporter)
    if teaching.get("distill.teacher"):
        distill = build_distill_config(teaching, config.data == BUILT_IN, config.recipe)
        config = override(replace(config, distill=distill), teaching)
    config = override(config, overrides or {})
    check(config)
    return config


def _count_flops(trial: TrialRun) -> FlopsPerImage:
    pre, teacher = trial.context.preprocessing, None
    student = compute_flops(trial.state.model, pre.img_size, pre.in_chans)
    if trial.teacher_network is not None:
        teacher = 0
        for network in trial.teacher_network.networks:
            own = network.model_config.preprocessing
            teacher += compute_flops(network.model, own.img_size, own.in_chans).forward
    return FlopsPerImage(forward=student.forward, step=student.step, teacher=teacher)


def _fit_batch_size(trial: TrialRun, seconds: float) -> TrialRun:
    """Return a trial of a batch size of which two steps fit into a stage, or of the recipe's.

    It is one that the loader divides an epoch into.
    """
    # a small step is enough to predict how long a large one takes
    small = trial.with_batch_size(min(8, trial.batch_size))
    batch = small.batch()
    image_s = measure_time(lambda: small.step(batch), seconds=0.5).median / small.batch_size
    limited = _limit_batch_size(trial.batch_size, image_s, seconds)
    return trial.with_batch_size(fit_batch_size(count_draws(trial.train), limited))


def _limit_batch_size(batch_size: int, image_s: float, seconds: float) -> int:
    if 2 * batch_size * image_s <= seconds:
        return batch_size
    # two, because the first one warms up
    fitting = max(1, int(seconds / image_s / 2))
    return min(batch_size, max(2, floor_power_of_two(fitting)))


def _describe(
    trial: TrialRun,
    config: TrainConfig,
    *,
    data: str | None,
    batch_size_reason: str | None,
) -> BenchSetup:
    recipe, device = config.recipe, trial.context.device
    batch_size = fit_batch_size(count_draws(trial.train), recipe.batch_size)
    return BenchSetup(
        model=config.model,
        teacher=config.distill.teacher if config.distill is not None else None,
        teacher_input=config.distill.teacher_input if config.distill is not None else None,
        data=data,
        num_train_images=len(trial.train.labels),
        num_val_images=len(trial.val.labels),
        num_classes=len(trial.train.class_names),
        median_side_px=_measure_median_side(trial),
        recipe=recipe.name,
        epochs=recipe.epochs,
        img_size_px=trial.img_size,
        batch_size=batch_size,
        batch_size_reason=batch_size_reason,
        measured_batch_size=trial.batch_size,
        peak_lr=compute_peak_lr(recipe.optim, batch_size),
        num_workers=trial.workers,
        device=torch.cuda.get_device_name(device.torch_device)
        if device.torch_device.type == "cuda"
        else f"{device.torch_device} ({platform.machine()})",
        precision=device.precision,
    )


def _measure_median_side(trial: TrialRun) -> float:
    indices = [key.index for key in trial.readable_keys(NUM_SIZED)]
    return float(np.median([min(trial.train.open(index).size) for index in indices]))


class StageTable:
    """Measures stages for about `seconds` each; one that fails has its error."""

    def __init__(self, device: Device, seconds: float, on_stage: Callable[[str], object]) -> None:
        self.device, self.seconds, self.on_stage = device, seconds, on_stage
        self.by_name: dict[str, Stage] = {}

    def measure(
        self,
        name: str,
        work: Callable[[], object],
        num_images: int = 1,
        peak: tuple[str, float] | None = None,
    ) -> Stage:
        """Measure `work` on `num_images`; `peak` is its roofline: a name and images/s."""
        self.on_stage(name)
        meter = MemoryMeter(self.device)
        meter.start()
        stage = Stage(name=name)
        try:
            measurement = measure_time(work, seconds=self.seconds)
        except LoaderLost:  # an accident, which says nothing about the machine
            raise
        except (DeitctlError, RuntimeError, MemoryError) as error:
            if isinstance(error, DeitctlError):
                stage = replace(stage, error=error.message)
            elif ran_out_of_memory(error):
                stage = replace(stage, error="out of memory")
            else:
                raise
        else:
            growth, rate = meter.growth(), num_images / measurement.median
            stage = replace(
                stage,
                images_per_second=rate,
                images_per_second_iqr=rate * measurement.iqr / measurement.median
                if len(measurement.times) > 1
                else None,
                memory_mib=None if growth is None else growth / 2**20,
                peak=peak[0] if peak else None,
                peak_share=rate / peak[1] if peak else None,
            )
        self.by_name[name] = stage
        return stage


def measure_data(trial: TrialRun, stages: StageTable) -> None:
    """Measure reading, decoding and rendering on one core, and the loader with its processes."""
    keys = trial.readable_keys(NUM_VIEWS)
    indices = [key.index for key in keys]
    views, eval_views = trial.train_views(), EvalViews(trial.val, [trial.context.preprocessing])
    stages.measure("read", _call_in_turn(indices, trial.train.read_bytes))
    stages.measure("decode", _call_in_turn(indices, lambda n: _decode(trial.train, n)))
    stages.measure("train_view", _call_in_turn(keys, views.__getitem__))
    positions = range(min(NUM_VIEWS, len(trial.val.labels)))
    stages.measure("eval_view", _call_in_turn(positions, eval_views.__getitem__))

    # a stream of its own: one that has been read ahead would be faster
    stream = trial.build_loader()
    turn = max(1, trial.workers)  # processes take turns: a turn has a batch of each

    def next_turn() -> None:
        for _ in range(turn):
            next(stream)

    stages.measure("loader", next_turn, turn * trial.batch_size)


def _call_in_turn(items: Sequence[T], function: Callable[[T], object]) -> Callable[[], object]:
    """Return work that calls `function` on the next item, round and round."""
    ring = cycle(items)
    return lambda: function(next(ring))


def _decode(dataset: ImageDataset, index: int) -> None:
    image = dataset.open(index)
    if isinstance(image, LazyJpeg):
        image.crop((0, 0, *image.size))


def measure_steps(
    trial: TrialRun, stages: StageTable, flops: FlopsPerImage, peak: PeakThroughput
) -> float:
    """Measure parts of a step, steps, and steps with the loader; return the data wait, s/image."""
    precision, size = trial.context.device.precision, trial.batch_size
    batch = trial.batch()
    micro_batch = trial.first_micro_batch(batch)
    count = len(micro_batch.keys)
    operations = peak.flops_per_second[precision]
    bandwidth = peak.copy_bytes_per_second
    parameters = list(trial.state.model.parameters())
    # a frozen backbone has no gradients and no moments
    trained = sum(p.numel() for p in parameters if p.requires_grad)

    if flops.teacher is not None:
        stages.measure(
            "teacher",
            lambda: trial.compute_teacher_targets(micro_batch),
            count,
            peak=(precision, operations / flops.teacher),
        )
    forward_s: list[float] = []

    def forward_backward() -> None:
        start = time.perf_counter()
        loss = trial.forward(micro_batch)
        trial.context.device.synchronize()
        forward_s.append(time.perf_counter() - start)
        trial.backward(loss)

    both = stages.measure("forward", forward_backward, count)
    stages.by_name["backward"] = replace(both, name="backward")
    if both.seconds is not None:
        # timed in the same calls, because a difference of two measurements can be below 0
        forward = float(np.median(forward_s[1:] or forward_s)) / count
        backward = max(both.seconds - forward, 0.01 * both.seconds)
        for name, image_s, cost in (
            ("forward", forward, flops.forward),
            ("backward", backward, flops.step - flops.forward),
        ):
            share = cost / image_s / operations
            stages.by_name[name] = replace(
                both,
                name=name,
                images_per_second=1 / image_s,
                images_per_second_iqr=None,  # that of both together is the spread of neither
                peak=precision,
                peak_share=share,
            )
        # here, because it needs gradients
        peak_rate = size * bandwidth / (ADAMW_BYTES * trained)
        stages.measure("optimizer", trial.optimizer_step, size, peak=("copy", peak_rate))
    if trial.state.ema is not None:
        peak_rate = size * bandwidth / (EMA_BYTES * sum(p.numel() for p in parameters))
        stages.measure("ema_update", trial.update_ema, size, peak=("copy", peak_rate))
    _measure_loop("step_cached_batch", trial, repeat(batch), stages)
    data_wait = _measure_loop("end_to_end", trial, trial.build_loader(), stages)
    stages.measure(
        "evaluation",
        lambda: trial.evaluate(micro_batch),
        count,
        peak=(precision, operations / flops.forward),
    )
    return data_wait


def _measure_loop(
    name: str, trial: TrialRun, batches: Iterator[Batch], stages: StageTable
) -> float:
    """Measure steps on `batches`; return the seconds an image of waiting for them."""
    waits: list[float] = []

    def step() -> None:
        for _ in range(trial.steps_per_sync):
            start = time.perf_counter()
            batch = next(batches)
            waits.append(time.perf_counter() - start)
            trial.step(batch)

    stages.measure(name, step, trial.steps_per_sync * trial.batch_size)
    # the first wait starts the workers
    return float(np.mean(waits[1:])) / trial.batch_size if len(waits) > 1 else 0.0
