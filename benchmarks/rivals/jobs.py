"""The jobs: for each the data, and the contestants with flags that ask both sides for the same work.

A rival comes as it is, with no more flags than the job needs, and at its best on this machine (`explore.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rivals import material, sides
from benchmarks.rivals.sides import Contestant

TINY, SMALL = "deit_tiny", "deit_small"
BATCH_SHOWN = 16  # of predict and inference.py, whose own are 16 and 256
VAL_OF_SPEED = 20  # pictures that are validated after an epoch where speed is asked for


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything; pictures are multiples of the batch and of ten classes."""

    rounds: int
    teacher: str = "regnety_160"
    student: str = SMALL
    distil: tuple[int, int, int]
    """Pictures an epoch, batch, epochs."""
    train: tuple[int, int, int]
    photos: int
    eval_batch: int = 256  # validate.py's own
    predict: int
    img_size: int = 64
    finetune: tuple[int, int]
    """Epochs, seeds."""
    scratch: tuple[int, int]


SIZES = {
    "full": Size(
        rounds=3, distil=(80, 16, 2), train=(320, 64, 3), photos=1000, predict=400, finetune=(6, 3), scratch=(8, 3)
    ),
    "quick": Size(
        rounds=1, distil=(40, 20, 2), train=(160, 32, 2), photos=300, predict=200, finetune=(3, 1), scratch=(3, 1)
    ),
    "smoke": Size(  # does everything start, and is it read?
        rounds=1, teacher="regnety_002", student=TINY, distil=(20, 10, 2), train=(20, 10, 2), photos=48, eval_batch=24,
        predict=48, img_size=32, finetune=(1, 1), scratch=(1, 1),
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What was said on the command line."""

    out: Path
    timm: Path
    pictures: Path
    photos: Path
    weights: Path
    size: Size
    also: tuple[tuple[str, ...], ...] = ()
    """Further flags of ours, each a contestant more where accuracy is asked for."""


@dataclass(frozen=True)
class Job:
    """Contestants of one question; `rival(flags)` is the rival with flags of its own, which `explore` tries."""

    name: str
    question: str
    rounds: int
    ours: Callable[[int], list[Contestant]]
    """By the round's number, which is the seed."""
    rival: Callable[[Sequence[str], int], Contestant]
    candidates: tuple[tuple[tuple[str, ...], ...], ...]
    """Flags of the rival that might make it faster, tried in this order; of each group one at most is taken."""
    best: tuple[str, ...]
    """Those that are taken where nothing was tried."""
    explored_by: str
    """The job whose exploration counts: this one, or one of the same program."""

    def contestants(self, number: int, best: Sequence[str]) -> list[Contestant]:
        """List who takes turns in round `number`."""
        rivals = [self.rival((), number), self.rival(best, number)]
        return self.ours(number) + [r for i, r in enumerate(rivals) if i == 0 or best]


BF16 = ("--amp", "--amp-dtype", "bfloat16")
ONE_LOADER, TWO_LOADERS = ("-j", "1"), ("-j", "2")
FASTER = ((BF16,), (ONE_LOADER, TWO_LOADERS), (("--channels-last",),), (("--torchcompile",),))
FASTER_ANSWERS = ((BF16, ("--model-dtype", "bfloat16")), *FASTER[1:])

PAPER = (  # of deit/main.py, in train.py's words; what it repeats of a picture is for distributed training alone there
    *("--opt", "adamw", "--weight-decay", "0.05", "--warmup-epochs", "1", "--warmup-lr", "1e-6", "--min-lr", "1e-5"),
    *("--aa", "rand-m9-mstd0.5-inc1", "--mixup", "0.8", "--cutmix", "1.0", "--reprob", "0.25", "--smoothing", "0.1"),
    *("--drop-path", "0.1", "--train-interpolation", "bicubic", "--model-ema", "--model-ema-decay", "0.99996"),
)
OUR_PAPER = ("--recipe", "paper", "--set", "augment.repeats=1", "--set", "optim.warmup_epochs=1")

FINETUNE = (  # deitctl's recipe of that name; by step and with a warmed-up average, where train.py gains by it
    *("--opt", "adamw", "--weight-decay", "0.05", "--warmup-epochs", "1", "--warmup-lr", "1e-6", "--min-lr", "1e-6"),
    *("--scale", "0.35", "1.0", "--color-jitter", "0.3", "--smoothing", "0.1", "--train-interpolation", "bicubic"),
    *("--sched-on-updates", "--model-ema", "--model-ema-decay", "0.999", "--model-ema-warmup"),
)
SCRATCH = (  # deitctl's `small`, with a warm-up of two epochs
    *("--opt", "adamw", "--weight-decay", "0.05", "--warmup-epochs", "2", "--warmup-lr", "1e-6", "--min-lr", "1e-5"),
    *("--clip-grad", "1.0", "--scale", "0.25", "1.0", "--aa", "rand-m7-mstd0.5-inc1", "--reprob", "0.1"),
    *("--mixup", "0.2", "--cutmix", "0.5", "--mixup-prob", "0.5", "--smoothing", "0.1", "--drop-path", "0.1"),
    *("--train-interpolation", "bicubic", "--sched-on-updates"),
    *("--model-ema", "--model-ema-decay", "0.998", "--model-ema-warmup"),
)


def _train_py(
    setup: Setup, name: str, data: Path, model: str, batch: int, epochs: int, lr: float, words: Sequence[object]
) -> Contestant:
    common = (
        *("--data-dir", data, "--train-split", "train", "--val-split", "val", "--num-classes", 10, "--device", "cpu"),
        *("--model", model, "-b", batch, "--epochs", epochs, "--lr", lr, "--log-interval", 1, "--output", "{run}"),
    )
    return sides.script(name, setup.timm / "train.py", (*common, *words), sides.read_timm_training(batch))


def _named(rival: str, flags: Sequence[str]) -> str:
    return f"{rival} {' '.join(flags)}" if flags else f"{rival}, as it comes"


def distil(setup: Setup) -> Job:
    """Learn from a teacher: one that looks at every step, one whose words are kept, train.py's."""
    pictures, batch, epochs = setup.size.distil
    data = material.subset(setup.pictures, setup.out / f"data/{pictures}", {"train": pictures, "val": VAL_OF_SPEED})
    teacher = material.random_teacher(
        setup.size.teacher, material.class_names(data), setup.out / f"data/{setup.size.teacher}"
    )
    ours = (
        *("distill", data, "--teacher", teacher, "--student", setup.size.student, "--adapt", "none", "--force-teacher"),
        *(*OUR_PAPER, "--batch-size", batch, "--epochs", epochs, "--output", "{run}", "--format", "json"),
    )
    live = sides.deitctl("deitctl distill --views 0", (*ours, "--teacher-sees", "mixed"), sides.read_our_training)
    kept = sides.deitctl("deitctl distill --views 1", (*ours, "--views", 1), sides.read_our_training)

    def rival(flags: Sequence[str], _: int) -> Contestant:
        words = (
            *(*PAPER, "--kd-model-name", f"local-dir:{teacher}", "--kd-distill-type", "token"),
            *("--kd-token-distill-type", "hard", "--task-loss-weight", 0.5, *flags),
        )
        model = f"{setup.size.student}_distilled_patch16_224"
        return _train_py(setup, _named("timm train.py", flags), data, model, batch, epochs, 5e-4 * batch / 512, words)

    question = (
        f"{setup.size.student} learns from {setup.size.teacher} (random weights) at 224: {pictures} pictures, batch {batch}, "
        f"{epochs} epochs. With one view the teacher is asked in the first epoch alone; images/s are of the others."
    )
    return Job(
        "distil", question, setup.size.rounds, lambda _: [live, kept], rival, FASTER, (*BF16, *ONE_LOADER), "distil"
    )


def train(setup: Setup) -> Job:
    """Train without a teacher, with the paper's augmentation."""
    pictures, batch, epochs = setup.size.train
    data = material.subset(setup.pictures, setup.out / f"data/{pictures}", {"train": pictures, "val": VAL_OF_SPEED})
    words = (
        "train", data, "--model", TINY, *OUR_PAPER, "--batch-size", batch, "--epochs", epochs, "--output", "{run}",
        "--format", "json",
    )  # fmt: skip
    ours = sides.deitctl("deitctl train", words, sides.read_our_training)

    def rival(flags: Sequence[str], _: int) -> Contestant:
        lr, model = 5e-4 * batch / 512, f"{TINY}_patch16_224"
        return _train_py(setup, _named("timm train.py", flags), data, model, batch, epochs, lr, (*PAPER, *flags))

    question = f"{TINY} at 224 with the paper's augmentation: {pictures} pictures, batch {batch}, {epochs} epochs."
    return Job("train", question, setup.size.rounds, lambda _: [ours], rival, FASTER, (*BF16, *ONE_LOADER), "train")


def evaluate(setup: Setup) -> Job:
    """Score deit_tiny on full-size photos."""
    count, batch = setup.size.photos, setup.size.eval_batch
    data = material.photos(setup.photos, setup.out / f"data/photos-{count}", count)
    ours = [
        sides.deitctl(
            f"deitctl eval --precision {precision}",
            ("eval", data, "--model", TINY, "--weights", setup.weights, "--precision", precision, "--format", "json"),
            sides.read_eval,
        )
        for precision in ("fp32", "bf16")
    ]
    classes = (
        setup.timm / "timm/data/_info/imagenet_synsets.txt"
    )  # folders are ImageNet's classes, not the first of them

    def rival(flags: Sequence[str], _: int) -> Contestant:
        words = (
            *("--data-dir", data, "--model", f"{TINY}_patch16_224", "--checkpoint", setup.weights, "--device", "cpu"),
            *("--class-map", classes, "-b", batch, "--log-freq", 1, *flags),
        )
        name = _named("timm validate.py", flags)
        return sides.script(name, setup.timm / "validate.py", words, sides.read_validate(count))

    question = f"{TINY} scored on {count} photos of short side {material.SHORT_SIDE}, in class folders."
    return Job("eval", question, setup.size.rounds, lambda _: ours, rival, FASTER_ANSWERS, (*BF16, *ONE_LOADER), "eval")


def predict(setup: Setup) -> Job:
    """Name what is in a folder of full-size photos."""
    count = setup.size.predict
    data = material.photos(setup.photos, setup.out / f"data/photos-{count}", count)
    words = (
        "predict",
        data,
        "--model",
        TINY,
        "--weights",
        setup.weights,
        "--format",
        "jsonl",
        "--batch-size",
        BATCH_SHOWN,
    )
    ours = sides.deitctl("deitctl predict", words, sides.read_predict(count, BATCH_SHOWN))

    def rival(flags: Sequence[str], _: int) -> Contestant:
        words = (
            *("--data-dir", data, "--model", f"{TINY}_patch16_224", "--checkpoint", setup.weights, "--device", "cpu"),
            *("-b", BATCH_SHOWN, "--topk", 5, "--include-index", "--log-freq", 1, "--no-console-results"),
            *("--results-dir", "{run}", "--results-file", "answers.csv", *flags),
        )
        name = _named("timm inference.py", flags)
        return sides.script(name, setup.timm / "inference.py", words, sides.read_inference(count, BATCH_SHOWN))

    question = f"The five best classes of {count} photos, batch {BATCH_SHOWN}."
    return Job(
        "predict", question, setup.size.rounds, lambda _: [ours], rival, FASTER_ANSWERS, (*BF16, *ONE_LOADER), "predict"
    )


def finetune(setup: Setup) -> Job:
    """Start from published weights and learn ten classes that carry no name the weights know."""
    epochs, seeds = setup.size.finetune
    start = ("--pretrained", "--pretrained-path", setup.weights)
    ours = ("--recipe", "finetune", "--weights", setup.weights)
    return _accuracy(setup, "finetune", "from ImageNet's weights", epochs, seeds, 4e-4, ours, (*FINETUNE, *start))


def scratch(setup: Setup) -> Job:
    """Start from nothing."""
    epochs, seeds = setup.size.scratch
    ours = ("--recipe", "small", "--no-pretrained", "--set", "optim.warmup_epochs=2")
    return _accuracy(setup, "scratch", "from scratch", epochs, seeds, 4e-3, ours, SCRATCH)


def _accuracy(
    setup: Setup, name: str, start: str, epochs: int, seeds: int, lr: float, said: Sequence[object], theirs: Sequence[object]
) -> Job:  # fmt: skip
    """Equal epochs of the same pictures on both sides; each round is a seed."""
    img_size, batch = setup.size.img_size, 64
    data = material.subset(setup.pictures, setup.out / "data/unnamed", {"train": 0, "val": 0}, "class-")

    def ours(seed: int) -> list[Contestant]:
        words = (
            *("train", data, "--model", TINY, "--img-size", img_size, *said, "--batch-size", batch, "--epochs", epochs),
            *("--seed", seed, "--output", "{run}", "--format", "json"),
        )
        return [
            sides.deitctl(" ".join(("deitctl train", *more)), (*words, *more), sides.read_our_training)
            for more in ((), *setup.also)
        ]

    def rival(flags: Sequence[str], seed: int) -> Contestant:
        words = (*theirs, "--img-size", img_size, "--model-kwargs", f"img_size={img_size}", "--seed", seed, *flags)
        return _train_py(
            setup, _named("timm train.py", flags), data, f"{TINY}_patch16_224", batch, epochs, lr * batch / 512, words
        )

    question = f"{TINY} {start} on 1,000 pictures of ten classes at {img_size}: {epochs} epochs, {seeds} seed(s)."
    return Job(name, question, seeds, ours, rival, FASTER, (*BF16, *ONE_LOADER), "train")


JOBS = {
    "distil": distil,
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "finetune": finetune,
    "scratch": scratch,
}
