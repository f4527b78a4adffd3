"""The jobs that answer: an evaluation, and predictions of a folder."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.rivals import material, sides
from benchmarks.rivals.jobs import BF16, FASTER, LIKELY, TINY, Job, Setup, named
from benchmarks.rivals.sides import Contestant

PREDICT_BATCH = 16  # deitctl predict's own
# deitctl eval's own; validate.py's is 256, and one such batch is its warm-up
SMALL_BATCH = ("-b", "64")
FASTER_ANSWERS = ((BF16, ("--model-dtype", "bfloat16")), *FASTER[1:])


def evaluate(setup: Setup) -> Job:
    """Score deit_tiny on full-size photos."""
    count = setup.size.photos
    data = material.photos(setup.photos, setup.out / f"data/photos-{count}", count)
    ours = [
        sides.deitctl(
            f"deitctl eval --precision {precision}",
            (
                "eval",
                data,
                "--model",
                TINY,
                "--weights",
                setup.weights,
                "--precision",
                precision,
                "--format",
                "json",
            ),
            sides.read_eval,
        )
        for precision in ("fp32", "bf16")
    ]
    classes = setup.timm / "timm/data/_info/imagenet_synsets.txt"  # else folder 0 is class 0

    def rival(flags: Sequence[str], _: int) -> Contestant:
        words = (
            *(
                "--data-dir",
                data,
                "--model",
                f"{TINY}_patch16_224",
                "--checkpoint",
                setup.weights,
                "--device",
                "cpu",
            ),
            *("--class-map", classes, "--log-freq", 1, *flags),
        )
        name = named("timm validate.py", flags)
        return sides.script(name, setup.timm / "validate.py", words, sides.read_validate(count))

    question = (
        f"{TINY} scored on {count} photos of short side {material.SHORT_SIDE}, in class folders."
    )
    return Job(
        name="eval",
        question=question,
        rounds=setup.size.rounds,
        ours=lambda _: ours,
        rival=rival,
        candidates=(*FASTER_ANSWERS, (SMALL_BATCH,)),
        best=(*LIKELY, *SMALL_BATCH),
    )


def predict(setup: Setup) -> Job:
    """Name what is in a folder of full-size photos."""
    count = setup.size.predict
    data = material.photos(setup.photos, setup.out / f"data/photos-{count}", count)
    ours = [
        sides.deitctl(
            f"deitctl predict --precision {precision}",
            (
                "predict",
                data,
                "--model",
                TINY,
                "--weights",
                setup.weights,
                "--precision",
                precision,
                "--format",
                "jsonl",
                "--batch-size",
                PREDICT_BATCH,
            ),
            sides.read_predict(count, PREDICT_BATCH),
        )
        for precision in ("fp32", "bf16")
    ]

    def rival(flags: Sequence[str], _: int) -> Contestant:
        words = (
            *(
                "--data-dir",
                data,
                "--model",
                f"{TINY}_patch16_224",
                "--checkpoint",
                setup.weights,
                "--device",
                "cpu",
            ),
            *(
                "-b",
                PREDICT_BATCH,
                "--topk",
                5,
                "--include-index",
                "--log-freq",
                1,
                "--no-console-results",
            ),
            *("--results-dir", "{run}", "--results-file", "answers.csv", *flags),
        )
        name = named("timm inference.py", flags)
        return sides.script(
            name, setup.timm / "inference.py", words, sides.read_inference(count, PREDICT_BATCH)
        )

    question = f"The five best classes of {count} photos, batch {PREDICT_BATCH}."
    return Job(
        name="predict",
        question=question,
        rounds=setup.size.rounds,
        ours=lambda _: ours,
        rival=rival,
        candidates=FASTER_ANSWERS,
    )
