"""What a step needs besides the state, the same for every step of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from deitctl.config import DistillConfig, Recipe
from deitctl.data.batch_table import TableDraws
from deitctl.device import Device
from deitctl.distillation.cached_teacher import CachedTeacher
from deitctl.distillation.ensemble import CachedEnsemble, EnsembleNetwork
from deitctl.distillation.teacher import Teacher
from deitctl.distributed import SINGLE_PROCESS, World
from deitctl.models.compiled import Compiler
from deitctl.models.model_config import Preprocessing
from deitctl.training.objective import Objective, Supervised, find_task_loss
from deitctl.training.schedule import compute_lr_with_restarts
from deitctl.training.state import TrainState

MIN_MICRO_BATCH = 2  # mixing needs pairs of images


@dataclass(frozen=True)
class TrainContext:
    """What a step needs besides the state, the same for every step of a run."""

    recipe: Recipe
    """Its `batch_size` is that of the largest batch, see `fit_batch_size`."""
    preprocessing: Preprocessing
    num_classes: int
    steps_per_epoch: int
    seed: int
    device: Device
    objective: Objective
    """What a step minimizes."""
    distill: DistillConfig | None = None
    cached_teacher: CachedTeacher | CachedEnsemble | None = None
    """Gives targets of views, to be mixed as the images are (`--teacher-input unmixed`)."""
    teacher: Teacher | EnsembleNetwork | None = None
    """Gives targets of the mixed images themselves, as in the paper (`--teacher-input mixed`)."""
    has_unlabeled: bool = False
    """Whether some training images have no labels."""
    world: World = SINGLE_PROCESS
    stop_on_bad_image: bool = False
    preferred_micro_batch_size: int = 0
    """See `Device.preferred_micro_batch_size`; 0: any."""
    compiler: Compiler | None = None
    """Makes one graph of transforms, teacher, student and losses; None: they are not one."""

    @property
    def view_chans(self) -> int:
        """Channels of the views: RGB's where a teacher sees them in color and its student in gray."""
        own = self.preprocessing.in_chans
        return max(own, self.teacher.in_chans) if self.teacher else own

    @property
    def uses_student_affine(self) -> bool:
        """Whether the student sees views moved a little, because the same views come again."""
        return (
            self.distill is not None
            and self.distill.teacher_input == "unmixed"
            and self.distill.views > 0
        )

    @property
    def table_draws(self) -> TableDraws:
        """How the tables of batches are drawn."""
        return TableDraws(self.seed, self.uses_student_affine)

    def without_teacher(self) -> TrainContext:
        """Return the context of steps that learn the true labels alone, by the same loss."""
        objective = self.objective
        if self.distill is not None:
            objective = Supervised(find_task_loss(objective))
        return replace(self, objective=objective, distill=None, cached_teacher=None, teacher=None)

    def mark_targets(self) -> Callable[[], None]:
        """Return what stores the teacher's targets that were computed so far, see `CachedTeacher.mark`."""
        return (lambda: None) if self.cached_teacher is None else self.cached_teacher.mark()

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        return compute_lr_with_restarts(
            self.recipe, step=step, steps_per_epoch=self.steps_per_epoch
        )

    def schedule_steps(self, step: int) -> int:
        """Return the steps of the schedule that a step is in."""
        return self.recipe.schedule_of(step // self.steps_per_epoch)[1] * self.steps_per_epoch

    def micro_batch_size(self, state: TrainState) -> int:
        """Return the images of a micro-batch: requested, forced by memory, or fastest; 0 for all."""
        return state.progress.micro_batch_size or self.preferred_micro_batch_size

    def largest_micro_batch(self, state: TrainState) -> int:
        """Return the most images that any process takes at a time."""
        pairs = -(-self.recipe.batch_size // 2)
        largest_shard = 2 * -(-pairs // self.world.size)
        return min(self.micro_batch_size(state) or largest_shard, largest_shard)
