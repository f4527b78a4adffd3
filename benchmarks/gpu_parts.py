"""What benchmarks/gpu.py measures, part by part; each returns figures, and raises where it cannot."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
import timm.loss
import timm.utils
import torch
import torchvision
from PIL import Image

import deitctl
from deitctl.config import TrainConfig
from deitctl.errors import Interrupted
from deitctl.models import timm_models
from deitctl.models.checkpoint_io import save_model
from deitctl.models.introspect import describe_layers

Figures = dict[str, Any]
NUM_CLASSES = 10
LIGHT = {"augment.rand_augment": "", "augment.repeated_aug": 1, "augment.crop_scale": (0.5, 1.0)}
"""Views that loaders make quickly: what is measured is the step, and the loader by itself."""


@dataclass(frozen=True)
class Setting:
    """Where and how large the parts are."""

    folder: Path
    rehearse: bool

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    @property
    def precision(self) -> str:
        return "fp32" if self.rehearse else "bf16"

    @property
    def img_size(self) -> int:
        return 32 if self.rehearse else 224

    @property
    def batch_size(self) -> int:
        return 8 if self.rehearse else 512

    @property
    def num_images(self) -> int:
        """Of an epoch."""
        return 24 if self.rehearse else 8192

    @property
    def workers(self) -> int:
        return 0 if self.rehearse else min(16, os.cpu_count() or 1)

    @property
    def teacher(self) -> str:
        return "regnety_002" if self.rehearse else "regnety_160"

    @property
    def teacher_folder(self) -> Path:
        return self.folder / "teacher"

    @property
    def images(self) -> Path:
        return self.folder / "images"


def describe_machine(setting: Setting) -> Figures:
    """Return versions and the GPU's name."""
    has_gpu = torch.cuda.is_available()
    if not has_gpu and not setting.rehearse:
        raise RuntimeError("torch sees no CUDA device")
    return {
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "cuda": torch.version.cuda,
    }


def write_material(setting: Setting) -> Figures:
    """Write images, a few distinct ones under many names, and a teacher of random weights."""
    start = time.monotonic()
    distinct = max(NUM_CLASSES, setting.num_images // 16)
    with ThreadPoolExecutor() as pool:
        files = list(pool.map(partial(write_image, setting.images), range(distinct)))
    for number in range(distinct, setting.num_images):
        source = files[number % distinct]
        os.link(source, source.with_name(f"{number}.jpg"))
    for number in range(2 * NUM_CLASSES):
        target = setting.images / "val" / f"class{number % NUM_CLASSES}"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(files[number % distinct], target / f"{number}.jpg")
    model = timm_models.create_model(setting.teacher, num_classes=NUM_CLASSES)
    names = tuple(sorted(path.name for path in (setting.images / "train").iterdir()))
    model_config = replace(
        timm_models.read_model_config(model, setting.teacher, NUM_CLASSES), class_names=names
    )
    save_model(setting.teacher_folder, model.state_dict(), model_config, describe_layers(model))
    return {"images": setting.num_images, "seconds": time.monotonic() - start}


def write_image(folder: Path, number: int) -> Path:
    """Write a JPEG of 320 x 256 pixels: smooth colors and some noise."""
    draw = np.random.default_rng(number)
    small = Image.fromarray(draw.integers(0, 256, (8, 10, 3), np.uint8))
    pixels = np.asarray(small.resize((320, 256), Image.Resampling.BICUBIC), np.int16)
    noisy = (pixels + draw.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8)
    path = folder / "train" / f"class{number % NUM_CLASSES}" / f"{number}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noisy).save(path, quality=85)
    return path


def distill(setting: Setting, output: str, **settings: Any) -> Any:
    """Distill a student from the teacher as a user does."""
    small = {"model_args.depth": 1} if setting.rehearse else {}
    arguments = {
        "student": "deit_tiny",
        "teacher": setting.teacher_folder,
        "recipe": "paper",
        "pretrained": False,
        "allow_weak_teacher": True,
        "finetune_teacher": "none",
        "teacher_img_size": setting.img_size,
        "batch_size": setting.batch_size,
        "img_size": setting.img_size,
        "workers": setting.workers,
        "device": setting.device,
        "precision": setting.precision,
        "output": setting.folder / "runs" / output,
        **small,
        **settings,
    }
    return deitctl.distill(setting.images, **arguments)


def check_resume(setting: Setting) -> Figures:
    """Stop a run after its first epoch, resume it, and compare its weights with an undisturbed run's."""

    class Stop:
        def on_epoch_end(self, metrics: Any, /) -> None:
            if metrics["epoch"] == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    settings = {"teacher_input": "mixed", "epochs": 2, "deterministic": True}
    whole = distill(setting, "whole", **settings).run
    try:
        distill(setting, "stopped", callbacks=[Stop()], **settings)
    except Interrupted:
        pass
    else:
        raise RuntimeError("the run that was to be stopped was not")
    run = whole.with_name("stopped")
    deitctl.distill(resume=run)
    paths = sorted(path.relative_to(whole) for path in whole.glob("**/*.safetensors"))
    different = [str(p) for p in paths if (whole / p).read_bytes() != (run / p).read_bytes()]
    return {"bit_equal": bool(paths) and not different, "different_files": different}


def measure_stages(setting: Setting) -> Figures:
    """Return images a second of each stage that `deitctl bench` measures, the loader's among them."""
    result = deitctl.bench(
        setting.images,
        model="deit_tiny" if setting.rehearse else "deit_small",
        recipe="paper",
        batch_size=setting.batch_size,
        img_size=setting.img_size,
        workers=setting.workers,
        device=setting.device,
        precision=setting.precision,
        seconds=0.02 if setting.rehearse else 2,
    )
    return {stage.name: stage.images_per_second for stage in result.stages}


def measure_distillation(setting: Setting, student: str, mode: str, *, cached: bool) -> Figures:
    """Return images a second of a run's epochs after the first, which compiles or fills the cache."""
    settings: dict[str, Any] = {"compile": mode != "eager"}
    if mode == "cuda graphs":
        if "cuda_graphs" not in TrainConfig.__dataclass_fields__:
            raise RuntimeError("this tree has no --cuda-graphs")
        settings["cuda_graphs"] = not setting.rehearse  # a CPU has none
    if cached:
        settings |= {
            "teacher_input": "unmixed",
            "views": 1,
            "teacher_cache": setting.folder / "teacher_targets",
        }
    else:
        settings["teacher_input"] = "mixed"
    kind = "cached" if cached else "live"
    output = f"{student}-{mode.replace(' ', '-')}-{kind}"
    run = distill(setting, output, student=student, epochs=3, **settings, **LIGHT).run
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    speeds = [record["images_per_second"] for record in records if record["kind"] == "epoch"]
    return {"images_per_second": statistics.median(speeds[1:]), "epochs": speeds}


def measure_timm(setting: Setting, student: str, mode: str) -> Figures:
    """Return images a second of a loop of timm's parts that does as its train.py, which its package lacks.

    Loader with prefetcher, mixup, loss and token distillation are timm's.
    """
    device = torch.device(setting.device)
    name = f"{student}_distilled_patch16_224"
    small = {"depth": 1} if setting.rehearse else {}
    model = timm.create_model(
        name, num_classes=NUM_CLASSES, img_size=setting.img_size, drop_path_rate=0.1, **small
    ).to(device)
    teacher = timm.create_model(setting.teacher, num_classes=NUM_CLASSES)
    teacher = teacher.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    compute_loss, has_task = build_timm_loss(model, teacher, device)
    if mode == "compiled":
        compute_loss = torch.compile(compute_loss)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05, fused=True)
    average = timm.utils.ModelEmaV3(model, decay=0.99996)
    loader = build_timm_loader(setting, device)
    model.train()
    speeds = []
    for _ in range(3):
        synchronize(device)
        start, count = time.perf_counter(), 0
        for images, targets in loader:
            with torch.autocast(device.type, torch.bfloat16, enabled=not setting.rehearse):
                loss = compute_loss(images, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update(model)
            loss.item()  # as train.py, for its meter
            count += len(images)
        synchronize(device)
        speeds.append(count / (time.perf_counter() - start))
    return {
        "images_per_second": statistics.median(speeds[1:]),
        "epochs": speeds,
        "distillation": "timm.task.TokenDistillationTask" if has_task else "hard labels, own lines",
    }


def build_timm_loss(
    model: torch.nn.Module, teacher: torch.nn.Module, device: torch.device
) -> tuple[Callable[..., torch.Tensor], bool]:
    """Return the loss of images and mixed targets, and whether this timm has a task for it."""
    criterion = timm.loss.SoftTargetCrossEntropy()
    try:
        from timm.task import TokenDistillationTask
    except ImportError:
        model.set_distilled_training(True)

        def compute_loss(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            own, distilled = model(images)
            with torch.no_grad():
                labels = teacher(images).argmax(1)
            by_teacher = torch.nn.functional.cross_entropy(distilled, labels)
            return 0.5 * criterion(own, targets) + 0.5 * by_teacher

        return compute_loss, False
    task = TokenDistillationTask(
        model,
        teacher,
        criterion=criterion,
        distill_type="hard",
        task_loss_weight=0.5,
        device=device,
        verbose=False,
    )
    return lambda images, targets: task(images, targets)["loss"], True


def build_timm_loader(setting: Setting, device: torch.device) -> Any:
    """Return timm's loader of the same images, with the augmentation that the other runs have."""
    return timm.data.create_loader(
        timm.data.create_dataset("", str(setting.images), split="train"),
        input_size=(3, setting.img_size, setting.img_size),
        batch_size=setting.batch_size,
        is_training=True,
        re_prob=0.25,
        re_mode="pixel",
        scale=LIGHT["augment.crop_scale"],
        color_jitter=0.0,
        interpolation="bicubic",
        num_workers=setting.workers,
        persistent_workers=setting.workers > 0,
        collate_fn=timm.data.FastCollateMixup(
            mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=NUM_CLASSES
        ),
        pin_memory=device.type == "cuda",
        device=device,
        use_prefetcher=True,
    )


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


PARTS: dict[str, Callable[[Setting], Figures]] = {
    "machine": describe_machine,
    "material": write_material,
    "resume": check_resume,
    "stages": measure_stages,
}


def run_part(name: str, setting: Setting) -> Figures:
    """Return the figures of a part: one of `PARTS`, or `student, mode, kind`."""
    if name in PARTS:
        return PARTS[name](setting)
    student, mode, kind = name.split(", ")
    if kind == "timm":
        return measure_timm(setting, student, mode)
    return measure_distillation(setting, student, mode, cached=kind == "cached")
