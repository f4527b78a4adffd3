"""What a job is: a question, contestants that do the same work, and how much of it.

A rival comes as it is, with no more flags than the job needs, and at its best on this machine (`rounds.explore`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rivals.sides import Contestant

TINY, SMALL = "deit_tiny", "deit_small"
BF16 = ("--amp", "--amp-dtype", "bfloat16")
ONE_LOADER, TWO_LOADERS = ("-j", "1"), ("-j", "2")
FASTER = ((BF16,), (ONE_LOADER, TWO_LOADERS), (("--channels-last",),), (("--torchcompile",),))
"""Flags of a rival that might make it faster, in the order in which they are tried; at most one of a group is taken."""
LIKELY = (*BF16, *ONE_LOADER)
"""Those that are taken where nothing was tried."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything; images are multiples of the batch and of ten classes."""

    rounds: int
    """Of each job but those of accuracy, whose rounds are seeds."""
    teacher: str = "regnety_160"
    student: str = SMALL
    distill: tuple[int, int, int]
    """Images an epoch, batch, epochs."""
    train: tuple[int, int, int]
    photos: int
    predict: int
    img_size: int = 64
    finetune: tuple[int, int]
    """Epochs, seeds."""
    scratch: tuple[int, int]
    learn: tuple[int, int]
    teacher_epochs: int = 8


SIZES = {
    "full": Size(
        rounds=2,
        distill=(80, 16, 3),
        train=(320, 64, 2),
        photos=1000,
        predict=400,
        finetune=(4, 3),
        scratch=(6, 3),
        learn=(30, 3),
    ),
    "quick": Size(
        rounds=1,
        distill=(20, 10, 2),
        train=(160, 32, 2),
        photos=300,
        predict=200,
        finetune=(2, 1),
        scratch=(3, 1),
        learn=(10, 1),
    ),
    "smoke": Size(  # does everything start, and is it read?
        rounds=1,
        teacher="regnety_002",
        student=TINY,
        distill=(20, 10, 2),
        train=(20, 10, 2),
        photos=48,
        predict=48,
        img_size=32,
        finetune=(1, 1),
        scratch=(1, 1),
        learn=(1, 1),
        teacher_epochs=1,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What was said on the command line."""

    out: Path
    timm: Path
    images: Path
    photos: Path
    weights: Path
    size: Size
    also: tuple[tuple[str, ...], ...] = ()
    """Further flags of ours, each a contestant more of the jobs that train."""
    also_timm: tuple[tuple[str, ...], ...] = ()
    """The same of train.py, on top of its best flags."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Contestants of one question."""

    name: str
    question: str
    rounds: int
    ours: Callable[[int], list[Contestant]]
    """By the round's number, which is the seed."""
    rival: Callable[[Sequence[str], int], Contestant]
    """By flags, and by the round's number."""
    candidates: tuple[tuple[tuple[str, ...], ...], ...] = FASTER
    best: tuple[str, ...] = LIKELY
    only_best: bool = False
    """Whether the rival comes with its best flags alone."""
    explored_by: str = ""
    """The job of the same program whose exploration counts; empty: this one."""
    also: tuple[tuple[str, ...], ...] = ()
    """Flags of more contestants of the rival's, on top of its best."""

    def contestants(self, number: int, best: Sequence[str]) -> list[Contestant]:
        """List who takes turns in round `number`."""
        flags = dict.fromkeys(
            [
                *(() if self.only_best else ((),)),
                tuple(best),
                *((*best, *more) for more in self.also),
            ]
        )
        return self.ours(number) + [self.rival(some, number) for some in flags]


def named(rival: str, flags: Sequence[str]) -> str:
    """Name a contestant by its script and the flags that make it faster."""
    return f"{rival} {' '.join(flags)}" if flags else f"{rival}, as it comes"
