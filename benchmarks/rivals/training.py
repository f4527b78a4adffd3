"""The jobs that train: with a teacher, without one, and to an accuracy. Flags ask both sides for the same work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.rivals import material, sides
from benchmarks.rivals.jobs import TINY, Job, Setup, named
from benchmarks.rivals.sides import Contestant

VAL_OF_SPEED = 20  # images that are validated after an epoch where speed is asked for

PAPER = (  # of deit/main.py, in train.py's words; what it repeats of an image is for distributed training alone there
    *(
        "--opt",
        "adamw",
        "--weight-decay",
        "0.05",
        "--warmup-epochs",
        "1",
        "--warmup-lr",
        "1e-6",
        "--min-lr",
        "1e-5",
    ),
    *(
        "--aa",
        "rand-m9-mstd0.5-inc1",
        "--mixup",
        "0.8",
        "--cutmix",
        "1.0",
        "--reprob",
        "0.25",
        "--smoothing",
        "0.1",
    ),
    *(
        "--drop-path",
        "0.1",
        "--train-interpolation",
        "bicubic",
        "--model-ema",
        "--model-ema-decay",
        "0.99996",
    ),
)
OUR_PAPER = (
    "--recipe",
    "paper",
    "--set",
    "augment.repeated_aug=1",
    "--set",
    "optim.warmup_epochs=1",
)

FINETUNE = (  # deitctl's recipe of that name; by step and with a warmed-up average, where train.py gains by it
    *(
        "--opt",
        "adamw",
        "--weight-decay",
        "0.05",
        "--warmup-epochs",
        "1",
        "--warmup-lr",
        "1e-6",
        "--min-lr",
        "1e-6",
    ),
    *(
        "--scale",
        "0.35",
        "1.0",
        "--color-jitter",
        "0.3",
        "--smoothing",
        "0.1",
        "--train-interpolation",
        "bicubic",
    ),
    *("--sched-on-updates", "--model-ema", "--model-ema-decay", "0.999", "--model-ema-warmup"),
)
SCRATCH = (  # deitctl's `small`, with a warm-up of two epochs
    *(
        "--opt",
        "adamw",
        "--weight-decay",
        "0.05",
        "--warmup-epochs",
        "2",
        "--warmup-lr",
        "1e-6",
        "--min-lr",
        "1e-5",
    ),
    *(
        "--clip-grad",
        "1.0",
        "--scale",
        "0.25",
        "1.0",
        "--aa",
        "rand-m7-mstd0.5-inc1",
        "--reprob",
        "0.1",
    ),
    *(
        "--mixup",
        "0.2",
        "--cutmix",
        "0.5",
        "--mixup-prob",
        "0.5",
        "--smoothing",
        "0.1",
        "--drop-path",
        "0.1",
    ),
    *("--train-interpolation", "bicubic", "--sched-on-updates"),
    *("--model-ema", "--model-ema-decay", "0.998", "--model-ema-warmup"),
)
DIGITS = ("--hflip", 0, "--scale", 0.7, 1)  # on top of SCRATCH: digits are not mirrored
OUR_DIGITS = (
    "--set",
    "optim.warmup_epochs=2",
    "--set",
    "augment.hflip=0",
    "--set",
    "augment.crop_scale=[0.7, 1.0]",
)


def _train_py(
    setup: Setup,
    name: str,
    data: Path,
    model: str,
    batch: int,
    epochs: int,
    lr: float,
    words: Sequence[object],
) -> Contestant:
    common = (
        *(
            "--data-dir",
            data,
            "--train-split",
            "train",
            "--val-split",
            "val",
            "--num-classes",
            10,
            "--device",
            "cpu",
        ),
        *(
            "--model",
            model,
            "-b",
            batch,
            "--epochs",
            epochs,
            "--lr",
            lr,
            "--log-interval",
            1,
            "--output",
            "{run}",
        ),
    )
    return sides.script(
        name, setup.timm / "train.py", (*common, *words), sides.read_timm_training(batch)
    )


def _ours(command: str, words: Sequence[object], more: Sequence[str]) -> Contestant:
    return sides.deitctl(" ".join((command, *more)), (*words, *more), sides.read_our_training)


def distill(setup: Setup) -> Job:
    """Learn from a teacher: one that looks at every step, one whose words are kept, train.py's."""
    images, batch, epochs = setup.size.distill
    data = material.subset(
        setup.images, setup.out / f"data/{images}", {"train": images, "val": VAL_OF_SPEED}
    )
    teacher = material.random_teacher(
        setup.size.teacher, material.class_names(data), setup.out / f"data/{setup.size.teacher}"
    )
    ours = (
        *(
            "distill",
            data,
            "--teacher",
            teacher,
            "--student",
            setup.size.student,
            "--finetune-teacher",
            "none",
            "--allow-weak-teacher",
        ),
        *(
            *OUR_PAPER,
            "--batch-size",
            batch,
            "--epochs",
            epochs,
            "--output",
            "{run}",
            "--format",
            "json",
        ),
    )
    ways = [
        (*way, *more)
        for way in (("--teacher-input", "mixed"), ("--views", "1"))
        for more in ((), *setup.also)
    ]
    contestants = [sides.speed_alone(_ours("deitctl distill", ours, way)) for way in ways]

    def rival(flags: Sequence[str], _: int) -> Contestant:
        words = (
            *(*PAPER, "--kd-model-name", f"local-dir:{teacher}", "--kd-distill-type", "token"),
            *("--kd-token-distill-type", "hard", "--task-loss-weight", 0.5, *flags),
        )
        model = f"{setup.size.student}_distilled_patch16_224"
        lr, name = 5e-4 * batch / 512, named("timm train.py", flags)
        return sides.speed_alone(_train_py(setup, name, data, model, batch, epochs, lr, words))

    question = (
        f"{setup.size.student} learns from {setup.size.teacher} (random weights) at 224: {images} images, "
        f"batch {batch}, {epochs} epochs. With one view the teacher runs in the first epoch alone; "
        "images/s are of the others."
    )
    return Job(
        name="distill",
        question=question,
        rounds=setup.size.rounds,
        ours=lambda _: contestants,
        rival=rival,
    )


def train(setup: Setup) -> Job:
    """Train without a teacher, with the paper's augmentation."""
    images, batch, epochs = setup.size.train
    data = material.subset(
        setup.images, setup.out / f"data/{images}", {"train": images, "val": VAL_OF_SPEED}
    )
    words = (
        "train",
        data,
        "--model",
        TINY,
        *OUR_PAPER,
        "--batch-size",
        batch,
        "--epochs",
        epochs,
        "--output",
        "{run}",
        "--format",
        "json",
    )
    contestants = [
        sides.speed_alone(_ours("deitctl train", words, more)) for more in ((), *setup.also)
    ]

    def rival(flags: Sequence[str], _: int) -> Contestant:
        lr, model, name = 5e-4 * batch / 512, f"{TINY}_patch16_224", named("timm train.py", flags)
        return sides.speed_alone(
            _train_py(setup, name, data, model, batch, epochs, lr, (*PAPER, *flags))
        )

    question = f"{TINY} at 224 with the paper's augmentation: {images} images, batch {batch}, {epochs} epochs."
    return Job(
        name="train",
        question=question,
        rounds=setup.size.rounds,
        ours=lambda _: contestants,
        rival=rival,
    )


def learn(setup: Setup) -> Job:
    """Learn a real data set to the end from a teacher that knows it; each round is a seed."""
    size = setup.size
    epochs, seeds = size.learn
    img_size, batch = size.img_size, 64
    data = material.digits(setup.out / "data/digits")
    folder = setup.out / f"data/digits-{size.teacher}-{img_size}-{size.teacher_epochs}"
    teacher = material.taught_teacher(size.teacher, data, img_size, size.teacher_epochs, folder)

    def ours(seed: int) -> list[Contestant]:
        words = (
            *("distill", data, "--teacher", teacher, "--student", TINY, "--img-size", img_size),
            *(
                "--recipe",
                "small",
                "--no-pretrained",
                "--finetune-teacher",
                "none",
                "--allow-weak-teacher",
                *OUR_DIGITS,
            ),
            *(
                "--batch-size",
                batch,
                "--epochs",
                epochs,
                "--seed",
                seed,
                "--output",
                "{run}",
                "--format",
                "json",
            ),
        )
        ways = (("--teacher-input", "mixed"), ("--views", "1"), *setup.also)
        return [_ours("deitctl distill", words, way) for way in ways]

    def rival(flags: Sequence[str], seed: int) -> Contestant:
        sized = ("--img-size", img_size, "--model-kwargs", f"img_size={img_size}")
        teaching = (
            "--kd-model-name",
            f"local-dir:{teacher}",
            "--kd-distill-type",
            "token",
            "--task-loss-weight",
            0.5,
        )
        words = (
            *SCRATCH,
            *DIGITS,
            *sized,
            *teaching,
            "--kd-token-distill-type",
            "hard",
            "--seed",
            seed,
            *flags,
        )
        model = f"{TINY}_distilled_patch16_224"
        return _train_py(
            setup,
            named("timm train.py", flags),
            data,
            model,
            batch,
            epochs,
            4e-3 * batch / 512,
            words,
        )

    question = (
        f"{TINY} from scratch learns from a {setup.size.teacher} that knows them: 1,442 digits at {img_size}, "
        f"{epochs} epochs, scored on 355; each round is a seed."
    )
    return Job(
        name="learn",
        question=question,
        rounds=seeds,
        ours=ours,
        rival=rival,
        only_best=True,
        explored_by="distill",
        also=setup.also_timm,
    )


def finetune(setup: Setup) -> Job:
    """Start from published weights and learn ten classes that carry no name the weights know."""
    epochs, seeds = setup.size.finetune
    start = ("--pretrained", "--pretrained-path", setup.weights)
    ours = ("--recipe", "finetune", "--weights", setup.weights)
    return _accuracy(
        setup, "finetune", "from ImageNet's weights", epochs, seeds, 4e-4, ours, (*FINETUNE, *start)
    )


def scratch(setup: Setup) -> Job:
    """Start from nothing."""
    epochs, seeds = setup.size.scratch
    ours = ("--recipe", "small", "--no-pretrained", "--set", "optim.warmup_epochs=2")
    return _accuracy(setup, "scratch", "from scratch", epochs, seeds, 4e-3, ours, SCRATCH)


def _accuracy(
    setup: Setup,
    name: str,
    start: str,
    epochs: int,
    seeds: int,
    lr: float,
    said: Sequence[object],
    theirs: Sequence[object],
) -> Job:
    """Equal epochs of the same images on both sides; each round is a seed."""
    img_size, batch = setup.size.img_size, 64
    data = material.subset(
        setup.images, setup.out / "data/unnamed", {"train": 0, "val": 0}, "class-"
    )

    def ours(seed: int) -> list[Contestant]:
        words = (
            *(
                "train",
                data,
                "--model",
                TINY,
                "--img-size",
                img_size,
                *said,
                "--batch-size",
                batch,
                "--epochs",
                epochs,
            ),
            *("--seed", seed, "--output", "{run}", "--format", "json"),
        )
        return [_ours("deitctl train", words, more) for more in ((), *setup.also)]

    def rival(flags: Sequence[str], seed: int) -> Contestant:
        words = (
            *theirs,
            "--img-size",
            img_size,
            "--model-kwargs",
            f"img_size={img_size}",
            "--seed",
            seed,
            *flags,
        )
        return _train_py(
            setup,
            named("timm train.py", flags),
            data,
            f"{TINY}_patch16_224",
            batch,
            epochs,
            lr * batch / 512,
            words,
        )

    question = f"{TINY} {start} on 1,000 images of ten classes at {img_size}: {epochs} epochs; each round is a seed."
    return Job(
        name=name,
        question=question,
        rounds=seeds,
        ours=ours,
        rival=rival,
        only_best=True,
        explored_by="train",
        also=setup.also_timm,
    )
