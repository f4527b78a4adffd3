"""Sweeps by name: the comparisons of the paper, and small ones that any machine can train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deitctl.errors import ConfigError, did_you_mean

MODE, TOKEN, TEACHER = "distill.mode", "distill.dist_token", "distill.teacher"
LOSS = "distill.features.loss"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A sweep by name."""

    help: str
    """What it compares, in a few words."""
    variations: Sequence[str] = ()
    """As `--vary`: every combination is a trial."""
    rows: Sequence[Mapping[str, Any]] = ()
    """Trials where not every combination is one: values by dotted name, a teacher by its number among
    the teachers, from 0 on, several by a tuple of them."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of all runs by dotted name, unless the caller sets them."""
    teachers: Sequence[str] = ()
    """Unless the caller names some."""
    min_teachers: int = 0
    """Teachers that it needs."""


SOFT = {MODE: "soft", "distill.alpha": 0.9}
"""The paper's lambda of 0.1 leaves nine tenths to labels, which a run on few images has learned soon."""
IN_SMALL = {
    "data": "digits",
    "fraction": 0.1,  # 144 images: a convnet learns them, and a transformer lacks its inductive bias
    "recipe.pretrained": False,
    "recipe.epochs": 600,  # a student of labels alone is at its end after 200, with a teacher it is not
    "model": "deit_tiny",
    "model_args.embed_dim": 96,
    "model_args.depth": 4,
    "model_args.num_heads": 3,
    "distill.finetune_teacher": "scratch",  # on the same images
    "distill.teacher_img_size": 32,
    "distill.views": 64,
}
"""See docs/results/distillation.md for what was tried."""

PRESETS: dict[str, Preset] = {
    "deit-table3": Preset(
        help="every variant of distillation",
        variations=("distill.dist_token=false,true", "distill.mode=none,soft,hard"),
    ),
    # hard distillation through the token, which is the default, by teacher
    "deit-table2": Preset(help="several teachers", min_teachers=2),
    "deit-in-small": Preset(
        help="both on a tenth of the digits, in an hour of two cores",
        rows=(
            {MODE: "none"},
            {**SOFT, TOKEN: False, TEACHER: 0},
            {MODE: "hard", TOKEN: False, TEACHER: 0},
            *(
                {**kind, TOKEN: True, TEACHER: n}
                for n in range(3)
                for kind in (SOFT, {MODE: "hard"})
            ),
        ),
        settings=IN_SMALL,
        # An accurate convnet; then a weaker one and a transformer of like accuracy.
        teachers=("resnet10t", "regnety_002", "deit_tiny"),
        min_teachers=3,
    ),
    "beyond-in-small": Preset(
        help="features, two teachers and images without labels, likewise",
        rows=(
            {MODE: "none"},
            *({MODE: "features", LOSS: loss, TEACHER: 0} for loss in ("vkd", "cosine", "mse")),
            {MODE: "features+hard", LOSS: "vkd", TEACHER: 0},
            {**SOFT, MODE: "features+soft", LOSS: "vkd", "distill.tau": 3.0, TEACHER: 0},
            {**SOFT, TOKEN: True, TEACHER: (0, 1)},
            *(
                # an epoch is one of all images: as many steps as the others
                {**way, TOKEN: True, TEACHER: 0, "distill.unlabelled": "rest", "recipe.epochs": 60}
                for way in (SOFT, {MODE: "hard"})
            ),
        ),
        settings=IN_SMALL,
        teachers=("resnet10t", "resnet14t"),
        min_teachers=2,
    ),
}
"""By name. The last three rows of Table 3 are the heads of its last trial."""


def name_teachers(
    rows: Sequence[Mapping[str, Any]], teachers: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the rows of a preset with the teachers' names in place of their numbers."""

    def name(number: int | tuple[int, ...]) -> str:
        numbers = number if isinstance(number, tuple) else (number,)
        return "+".join(teachers[n] for n in numbers)

    return [{k: name(v) if k == TEACHER else v for k, v in row.items()} for row in rows]


def find_preset(name: str) -> Preset:
    """Return a preset; raise `ConfigError` if there is none of that name."""
    if name not in PRESETS:
        raise ConfigError(
            f"There is no preset {name!r}.",
            did_you_mean(name, PRESETS) or f"There are: {', '.join(PRESETS)}.",
        )
    return PRESETS[name]
