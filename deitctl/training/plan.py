"""What a training would do, without doing it."""

from __future__ import annotations

from deitctl.config import TrainConfig
from deitctl.data.open import open_for_training
from deitctl.data.samplers import steps_per_epoch
from deitctl.device import choose_device
from deitctl.distillation.target_cache import TargetCodec
from deitctl.events import Reporter, SilentReporter
from deitctl.models.factory import build_model
from deitctl.models.introspect import compute_early_size
from deitctl.training.optim import peak_learning_rate
from deitctl.training.sizes import warn_about_sizes


def plan_training(config: TrainConfig, *, reporter: Reporter | None = None) -> dict[str, object]:
    """Return the numbers that a configuration comes to: images, steps, rates, parameters, device.

    `reporter` hears what the run would say of its sizes.
    """
    silent = SilentReporter()
    train, val = open_for_training(config.data, seed=config.data_seed, reporter=silent)
    device = choose_device(config.device, config.precision)
    recipe = config.recipe
    distilled = None if config.distill is None else config.distill.dist_token
    student = build_model(
        config.model,
        class_names=train.class_names,
        img_size=recipe.img_size,
        drop_path_rate=recipe.drop_path_rate,
        pretrained=False,
        weights="",
        distilled=distilled,
        reporter=silent,
    )
    steps = steps_per_epoch(len(train.labels), recipe.batch_size)
    parameters = sum(p.numel() for p in student.model.parameters())
    plan: dict[str, object] = {
        "model": student.model_config.architecture,
        "parameters": parameters,
        "input": student.model_config.preprocessing.img_size,
        "classes": len(train.class_names),
        "training images": len(train.labels),
        "validation images": len(val.labels),
        "recipe": recipe.name,
        "starts from": config.weights
        or ("published weights" if recipe.pretrained else "random weights"),
        "epochs": recipe.epochs,
        "steps per epoch": steps,
        "steps": steps * recipe.epochs,
        "batch size": min(recipe.batch_size, len(train.labels)),
        "peak learning rate": peak_learning_rate(
            recipe.optim, min(recipe.batch_size, len(train.labels))
        ),
        "weights, gradients, moments and average, MiB": round(
            parameters * 4 * (5 if recipe.ema_decay else 4) / 2**20, 1
        ),
        "device": str(device.torch_device),
        "precision": str(device.dtype).removeprefix("torch."),
        "loader processes": device.loader_workers(config.workers),
    }
    early = (
        compute_early_size(student.model, student.model_config, recipe)
        if recipe.early_epochs
        else 0
    )
    if early:
        plan["early epochs"] = f"{recipe.early_epochs} at {early} pixels"
    warn_about_sizes(
        recipe,
        len(train.labels),
        student.model,
        student.model_config.preprocessing.img_size,
        early,
        reporter or silent,
    )
    if config.distill is not None:
        d = config.distill
        weight = d.alpha * d.tau**2 if d.mode == "soft" else d.alpha
        if d.mode == "soft" and d.reduction == "mean":
            weight /= len(train.class_names)
        plan |= {
            "teacher": d.teacher,
            "distillation": d.mode,
            "effective weight of the teacher's term": weight,
        }
        plan |= _cost_of_the_teacher(config, len(train.labels), len(train.class_names), steps)
    return plan


def _cost_of_the_teacher(
    config: TrainConfig, num_images: int, classes: int, steps: int
) -> dict[str, object]:
    """Say how often the teacher looks at an image, with and without its words being kept, and what they take on disk."""
    distill, recipe = config.distill, config.recipe
    assert distill is not None
    every_step = steps * recipe.epochs * min(recipe.batch_size, num_images)
    if distill.teacher_input == "mixed":
        return {
            "the teacher looks at": "mixed images, every step",
            "images it looks at": every_step,
        }
    views = distill.views or recipe.epochs * recipe.augment.repeated_aug
    form = TargetCodec(distill.mode, classes, distill.logits_topk)
    return {
        "the teacher looks at": f"{distill.views} views of each image, once"
        if distill.views
        else "every new view, once",
        "images it looks at": min(num_images * views, every_step)
        if distill.teacher_cache != "off"
        else every_step,
        "without its words being kept": every_step,
        "words on disk, MiB": round(2 * form.width * num_images * views / 2**20, 2),
    }
