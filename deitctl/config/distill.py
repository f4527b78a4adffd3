"""Settings of distillation: the teachers, and how a student learns from them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal, cast

from deitctl.config.option import EVERYDAY, MAX_COUNT, MAX_SIZE, MODEL_HELP, RECIPE, TEACHER, Option
from deitctl.sizes import ImageSize

ModeChoice = Literal["hard", "soft", "features", "features+hard", "features+soft"]
"""What a student learns from its teacher: labels, features, or both."""
FinetuneChoice = Literal["auto", "head", "full", "scratch", "none"]
"""How a teacher is trained on the data first."""
RoleChoice = Literal["auto", "labels", "features", "both"]
"""What of a teacher a student learns, as far as the mode has it; auto: all of it."""
AVERAGE_TAU = 3.0
"""Temperature at which labels that are averaged over teachers are stored for hard labels, which do not depend on it:
that of soft distillation (DeiT section 5.2), whose stored labels serve both."""
TEACHER_DEFAULT = "regnety_002 on digits; regnety_160 where --teacher-weights is given"


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """How a student learns its teacher's features, in a mode that has them."""

    loss: Annotated[
        Literal["vkd", "cosine", "mse"],
        Option(
            "vkd (orthogonal projection onto standardized features, arXiv 2403.06213), cosine or mse.",
            TEACHER,
            flag="--feature-loss",
        ),
    ] = "vkd"
    weight: Annotated[
        float,
        Option(
            "Weight of the features' loss, beside that of the labels.",
            TEACHER,
            "1.0, 0.5 beside a teacher's labels",
            flag="--feature-weight",
            ge=0,
        ),
    ] = 1.0
    pool: Annotated[
        Literal["auto", "cls", "avg"],
        Option(
            "Teacher's features: its class token, the average of its patches, or auto: what its head reads.",
            TEACHER,
            flag="--feature-pool",
        ),
    ] = "auto"
    student_pool: Annotated[
        Literal["auto", "cls", "avg"],
        Option("The same of the student; auto: the average, without patches what its head reads."),
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A teacher beside the first; its settings are those of the first in `DistillConfig`, by the same names."""

    teacher: str
    """As `DistillConfig.teacher`."""
    teacher_weights: str = ""
    """File of its weights."""
    teacher_role: RoleChoice = "auto"
    """What of it is learned."""
    teacher_classes: str = ""
    """File of the classes of these weights."""
    teacher_img_size: ImageSize = 0
    """Its input size in pixels; 0: its own."""
    finetune_teacher: FinetuneChoice = "auto"
    """How it is trained on the data first."""
    teacher_cache: str = ""
    """Folder of its targets, or `off`."""


TEACHER_SETTINGS = tuple(f"distill.{field.name}" for field in fields(TeacherConfig))
"""Settings of each teacher, of which several teachers have several values."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """A teacher, or several, and how a student learns from them."""

    teacher: Annotated[str, Option(MODEL_HELP, EVERYDAY, TEACHER_DEFAULT)]
    teacher_weights: Annotated[
        str, Option("Weights file of a teacher named by architecture.", TEACHER)
    ] = ""
    teacher_role: Annotated[
        RoleChoice,
        Option(
            "What of a teacher is learned, of several: labels, features, both, or auto: features of those without a "
            "classifier, labels of the others.",
            TEACHER,
        ),
    ] = "auto"
    mode: Annotated[
        ModeChoice,
        Option(
            "hard (DeiT Eq. 3), soft (Eq. 2), features, features+hard, features+soft, or none: without a teacher.",
            TEACHER,
            "hard",
        ),
    ]
    alpha: Annotated[
        float,
        Option(
            "Weight of the teacher's loss; that of the labels is 1 - alpha.",
            TEACHER,
            "hard 0.5, soft 0.1",
            ge=0,
            le=1,
        ),
    ]
    tau: Annotated[float, Option("Temperature of soft distillation.", TEACHER, "3.0", gt=0)]
    reduction: Annotated[
        Literal["batchmean", "mean"],
        Option(
            "KL divergence averaged over images (batchmean, Eq. 2) or images and classes (mean, the released code).",
            TEACHER,
            "batchmean",
        ),
    ]
    dist_token: Annotated[
        bool,
        Option("Distill into the class head, without a token.", TEACHER, flag="--no-dist-token"),
    ]
    finetune_teacher: Annotated[
        FinetuneChoice,
        Option(
            "Train the teacher first: its head, full (all of it) or from scratch; auto: if its classes differ; none.",
            TEACHER,
            "auto, or scratch for the teacher of digits",
        ),
    ] = "auto"
    teacher_classes: Annotated[
        str,
        Option(
            "Names of the classes of --teacher-weights that come without them, as --classes.",
            TEACHER,
        ),
    ] = ""
    teacher_img_size: Annotated[
        ImageSize,
        Option(
            "Side of the teacher's input in pixels, or HEIGHTxWIDTH; 0: its own.",
            TEACHER,
            ge=0,
            le=MAX_SIZE,
        ),
    ] = 0
    teacher_input: Annotated[
        Literal["mixed", "unmixed"],
        Option(
            "mixed: the images after mixup, as in the paper; unmixed: those before it, whose targets are mixed.",
            TEACHER,
            RECIPE,
        ),
    ]
    views: Annotated[
        int,
        Option(
            "Augmented views per image, cycled over the epochs; the teacher labels each once. 0: new ones every epoch.",
            TEACHER,
            RECIPE,
            ge=0,
            le=MAX_COUNT,
        ),
    ]
    view_seed: Annotated[
        int, Option("Seed of the views: runs of every --seed share one teacher cache.", TEACHER)
    ] = 0
    logits_topk: Annotated[
        int,
        Option(
            "Classes stored of a soft target; the others share its rest evenly.",
            TEACHER,
            "100",
            ge=1,
        ),
    ]
    teacher_cache: Annotated[
        str, Option("Folder of teacher targets, or off.", TEACHER, "named by its content")
    ] = ""
    unlabelled: Annotated[
        str,
        Option(
            "Further training images, without labels, that the teacher labels: folder, tar, shards, list; rest: those "
            "that --fraction leaves out.",
            EVERYDAY,
            "",
        ),
    ] = ""
    allow_weak_teacher: Annotated[
        bool,
        Option(
            "Continue with a teacher that scores near chance.", TEACHER, flag="--allow-weak-teacher"
        ),
    ] = False
    features: FeatureConfig = FeatureConfig()
    more_teachers: tuple[TeacherConfig, ...] = ()

    @property
    def label_mode(self) -> Literal["hard", "soft", ""]:
        """Which of the teacher's labels are learned, by the distillation head if there is one; empty:
        none are."""
        if self.mode.endswith("hard"):
            return "hard"
        return "soft" if self.mode.endswith("soft") else ""

    @property
    def uses_features(self) -> bool:
        """Whether the student learns the teacher's features."""
        return self.mode.startswith("features")

    def list_teachers(self) -> tuple[DistillConfig, ...]:
        """Return a configuration of each teacher as if it were alone, in the mode of its role.

        Those whose labels are averaged are in mode soft, of which hard labels follow; their logits are stored.
        """
        if not self.more_teachers:
            return (self,)
        alone = [replace(self, more_teachers=())]
        alone += [replace(alone[0], **vars(teacher)) for teacher in self.more_teachers]
        label_mode: str = self.label_mode
        averages = label_mode and sum(a.teacher_role != "features" for a in alone) > 1
        if averages:
            label_mode = "soft"
        tau = AVERAGE_TAU if averages and self.label_mode == "hard" else self.tau
        modes = {"labels": label_mode, "features": "features" * self.uses_features}
        modes["both"] = modes["auto"] = "+".join(filter(None, reversed(modes.values())))
        return tuple(
            replace(a, mode=cast(ModeChoice, modes[a.teacher_role]), tau=tau) for a in alone
        )
