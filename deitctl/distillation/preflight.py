"""A teacher is checked before it teaches, and called only when there is something that it has not said yet."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deitctl.config import DistillConfig, TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.fingerprint import LENGTH, fingerprint_dataset, fingerprint_model
from deitctl.data.open import BUILT_IN
from deitctl.data.transforms import VIEWS_VERSION
from deitctl.device import Device
from deitctl.distillation.cached_teacher import CachedTeacher
from deitctl.distillation.resolve import (
    WITHOUT_WEIGHTS,
    ResolvedTeacher,
    TrainRun,
    freeze_teacher,
    resolve_teacher,
    teacher_identity,
)
from deitctl.distillation.target_cache import (
    STAMP,
    TARGETS_VERSION,
    TargetCache,
    TargetCodec,
    open_cache,
    read_stamp,
)
from deitctl.distillation.teacher import Teacher
from deitctl.distributed import SINGLE_PROCESS, World
from deitctl.errors import TeacherError
from deitctl.evaluation.evaluate import evaluate
from deitctl.evaluation.result import Evaluation
from deitctl.events import Reporter
from deitctl.models.heads import choose_head
from deitctl.models.model_config import Preprocessing
from deitctl.paths import cache_root, read_json, write_json
from deitctl.recipes import ADAPT_FULL_FROM, adaptation
from deitctl.settings import to_dict
from deitctl.training.run_dir import Run

RECORD = "teacher.json"
NO_CACHE = "off"
VIEW_SETTINGS = ("crop_scale", "crop_ratio", "hflip", "affine", "rand_augment", "color_jitter")
"""What of the augmentation makes a view; the rest happens to batches and stays fresh."""
EVAL_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What was found before the first step; accuracies in percent, among the data's classes."""

    name: str
    top1: float
    top5: float
    mean_recall: float
    """Mean over the classes of the share that is recognized: chance is 100 / classes, however uneven they are."""
    num_images: int
    matched: str
    """`same`, `permuted` or `subset` of the teacher's classes."""
    rows: tuple[int, ...]
    """For each class of the data, the teacher's logit."""
    adapted: str
    folder: str
    preprocessing: dict[str, Any]
    head: str
    weights: str
    """Fingerprint of the weights that answer."""
    validation: str
    """Fingerprint of the validation images."""
    answers: tuple[int, ...]
    """The teacher's class of each validation image, -1 for one that cannot be read."""

    def to_dict(self) -> dict[str, Any]:
        """Return what a run's record and log say of its teacher."""
        return {
            k: v
            for k, v in asdict(self).items()
            if k != "answers" and (k != "rows" or self.matched != "same")
        }


class DistillationTeacher:
    """A run's teacher: what is known of it, its words, and its network when it is needed."""

    def __init__(
        self,
        config: TrainConfig,
        train: ImageDataset,
        val: ImageDataset,
        seen: Preprocessing,
        *,
        device: Device,
        train_run: TrainRun,
        reporter: Reporter,
        world: World = SINGLE_PROCESS,
    ) -> None:
        """Open the teacher's cache, and check the teacher unless the cache remembers that it was.

        Args:
            config: the student's run; its `distill` is not None.
            train: the training images.
            val: the validation images, on which the teacher is scored in its own preprocessing.
            seen: the student's preprocessing.
            device: where the teacher will run.
            train_run: see `resolve_teacher`.
            reporter: is told the teacher's accuracy and what was matched.
            world: the processes that train together; all of them ask the teacher.

        Raises:
            TeacherError: a teacher that cannot be had, that is near chance without `force`, or a stale cache.
        """
        assert config.distill is not None
        self.config, self.distill, self.train, self.val, self.seen = (
            config,
            config.distill,
            train,
            val,
            seen,
        )
        self.device, self.train_run, self.reporter, self.world = device, train_run, reporter, world
        self._network: Teacher | None = None
        self._together = True
        """Whether all processes are at the same place, so that they may train a teacher together."""
        self.data = fingerprint_dataset(train, reporter)
        self.validation = fingerprint_dataset(val, reporter)
        d = self.distill
        self.form = TargetCodec(
            d.mode, len(train.class_names), d.logits_topk if d.mode == "soft" else 0
        )
        self.cache = self._open_cache()
        self.total_views = d.views or config.recipe.epochs * config.recipe.augment.repeated_aug
        remembered = self._remembered()
        if not all(world.all_gather_object(remembered is not None)):  # all check, or none does
            remembered = None
        self.preflight = remembered or self._check()
        if remembered is not None:
            _require_knowledge(self.distill, self.preflight, val)
            reporter.note(_sentence(self.preflight, "checked earlier"))

    @property
    def looks_at_views(self) -> bool:
        """Whether the teacher is asked about views, not about mixed images."""
        return self.distill.teacher_input == "unmixed"

    def stamp(self) -> dict[str, Any]:
        """Return everything that the teacher's words about views depend on."""
        d, augment = self.distill, self.config.recipe.augment
        stamp = {
            "version of the views": VIEWS_VERSION,
            "version of the words": TARGETS_VERSION,
            "teacher": teacher_identity(d, self.reporter),
            "teacher's arithmetic": f"{self.device.precision}, batch norms folded",
            "teacher's input size": d.teacher_img_size or "its own",
            "adaptation": d.finetune_teacher,
            "recipes of the adaptation": ""
            if d.finetune_teacher == "none"
            else _adaptation_recipes(self.config.data == BUILT_IN),
            "training data": self.data,
            "classes": len(self.train.class_names),
            "view seed": d.view_seed,
            "view augmentation": {name: getattr(augment, name) for name in VIEW_SETTINGS},
            "mode": d.mode,
        }
        return stamp | ({"tau": d.tau, "topk": self.form.kept} if d.mode == "soft" else {})

    def _open_cache(self) -> TargetCache | None:
        d = self.distill
        if not self.looks_at_views or d.teacher_cache == NO_CACHE:
            return None
        stamp = self.stamp()
        root = (
            Path(d.teacher_cache).expanduser()
            if d.teacher_cache
            else cache_root() / "words" / cache_folder_name(d, stamp)
        )
        if (
            d.teacher_cache
            and stamp["teacher"].endswith(WITHOUT_WEIGHTS)
            and (root / STAMP).exists()
        ):
            stamp["teacher"] = read_stamp(root).get("teacher")
            self.reporter.warn(
                f"The weights of {d.teacher} are not here: its words in {root} are taken on trust."
            )
        return open_cache(root, stamp, self.form, len(self.train.labels))

    def _remembered(self) -> Preflight | None:
        """Return what the cache knows of the teacher, if it was checked on the same validation images."""
        record = self._record()
        return record if record is not None and record.validation == self.validation else None

    def _record(self) -> Preflight | None:
        if self.cache is None:
            return None
        try:
            values = read_json(self.cache.root / RECORD)
            record = Preflight(
                **{**values, "rows": tuple(values["rows"]), "answers": tuple(values["answers"])}
            )
            return record if self._is_sound(record) else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _is_sound(self, record: Preflight) -> bool:
        """Say whether a record read from a file could have been written by `_check`; any other is made anew."""
        texts = (
            record.name,
            record.matched,
            record.adapted,
            record.folder,
            record.head,
            record.weights,
            record.validation,
        )
        figures = (record.top1, record.top5, record.mean_recall)
        classes, whole = (
            len(self.train.class_names),
            (*record.rows, *record.answers, record.num_images),
        )
        return (
            all(isinstance(t, str) for t in texts)
            and all(isinstance(f, int | float) and 0 <= f <= 100 for f in figures)
            and all(isinstance(n, int) for n in whole)
            and len(record.rows) == classes
            and len(record.answers) == len(self.val.labels)
            and all(-1 <= a < classes for a in record.answers)
            and isinstance(record.preprocessing, dict)
            and isinstance(record.preprocessing.get("img_size"), int)
        )

    def network(self) -> Teacher:
        """Return the teacher itself, loading it when it is first asked for; refuse one that is not the cache's."""
        if self._network is None:
            self._take(self._find())
        assert self._network is not None
        return self._network

    def load_together(self) -> None:
        """Of several processes, load the teacher in all while they are at the same place, if any may need it.

        From here on each may load it when it needs it, which happens within a step, and must not wait for the others.
        """
        if self.world.size > 1:
            missing = self.cache is None or self.cache.count_missing(self.total_views) > 0
            if self._network is None and any(
                self.world.all_gather_object(missing and self.looks_at_views)
            ):
                self.network()
            self._together = False

    @property
    def is_loaded(self) -> bool:
        """Whether the network is in memory."""
        return self._network is not None

    def release(self) -> None:
        """Let the network go; it is loaded again should anybody ask."""
        self._network = None

    def listener(self) -> CachedTeacher:
        """Return who answers about views."""
        repeats = self.config.recipe.augment.repeated_aug
        return CachedTeacher(
            self.form,
            self.distill.tau,
            self.cache,
            self.network,
            self.device,
            self.distill.views,
            repeats,
        )

    def answers(self) -> Tensor:
        """Return the teacher's class of each validation image, [N], -1 for one that it could not see."""
        return torch.tensor(self.preflight.answers)

    def _find(self) -> ResolvedTeacher:
        train_run = self.train_run if self._together else _found
        return resolve_teacher(
            self.distill,
            self.config,
            self.train,
            self.data,
            train_run,
            self.reporter,
            main=self.world.is_main,
        )

    def _take(self, found: ResolvedTeacher) -> str:
        """Keep a found teacher's network; return the fingerprint of its weights."""
        weights = fingerprint_model(found.loaded.model)
        earlier = self._record()
        if earlier is not None and earlier.weights != weights and self.cache is not None:
            raise TeacherError(
                f"The teacher's words in {self.cache.root} are stale: they are of weights {earlier.weights}, "
                f"{self.distill.teacher} now has {weights}.",
                "Delete that folder, or name another --teacher-cache.",
            )
        self._network = freeze_teacher(found.loaded, found.match.rows, self.seen, self.device)
        return weights

    def _check(self) -> Preflight:
        """Score the teacher on the validation images, in its own preprocessing, and write down what was found."""
        found = self._find()
        weights = self._take(found)
        model_config = found.loaded.model_config
        head = choose_head("auto", model_config.head, found.loaded.model)
        score = evaluate(
            found.loaded.model,
            self.val,
            model_config.preprocessing,
            rows=found.match.rows,
            head=head,
            device=self.device,
            batch_size=EVAL_BATCH,
            workers=self.device.loader_workers(self.config.workers),
            reporter=self.reporter,
            label=f"check teacher {self.distill.teacher}",
            world=self.world,
        )
        answers = torch.full((len(self.val.labels),), -1)
        answers[score.indices] = score.among
        record = Preflight(
            name=self.distill.teacher,
            top1=score.top1 if score.top1_among is None else score.top1_among,
            top5=score.top5 if score.top5_among is None else score.top5_among,
            mean_recall=mean_recall(score),
            num_images=score.num_images,
            matched=found.match.kind,
            rows=found.match.rows,
            adapted=found.adapted,
            folder=found.folder,
            preprocessing=asdict(model_config.preprocessing),
            head=head,
            weights=weights,
            validation=self.validation,
            answers=tuple(answers.tolist()),
        )
        self.reporter.note(_sentence(record, str(found.match)))
        _require_knowledge(self.distill, record, self.val)
        if self.cache is not None and self.world.is_main:
            write_json(self.cache.root / RECORD, asdict(record))
        return record


def _found(config: TrainConfig) -> None:
    """Stand in for training a teacher where it must have been trained already."""
    if Run(Path(config.output_dir)).result() is None:
        raise TeacherError(
            f"The fitted teacher {config.output_dir} is gone.",
            "Run it again: it will be fitted again.",
        )


def _adaptation_recipes(built_in: bool) -> str:
    recipes = [to_dict(adaptation(how, built_in=built_in)) for how in ("head", "full")]
    return hashlib.sha256(
        json.dumps([recipes, ADAPT_FULL_FROM], sort_keys=True).encode()
    ).hexdigest()[:LENGTH]


def cache_folder_name(distill: DistillConfig, stamp: dict[str, Any]) -> str:
    """Name the folder of a cache by the teacher and by everything the words depend on."""
    digest = hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:LENGTH]
    return f"{Path(distill.teacher).name}-{distill.mode}-{digest}"


def mean_recall(score: Evaluation) -> float:
    """Return the mean over classes of the percentage of their images that are recognized among the data's classes."""
    right = (score.among == score.labels).double()
    return 100 * float(
        torch.stack([right[score.labels == c].mean() for c in set(score.labels.tolist())]).mean()
    )


def _require_knowledge(distill: DistillConfig, record: Preflight, val: ImageDataset) -> None:
    """Refuse a teacher whose mean recall is not clearly above chance: by as much again or a tenth, and two errors."""
    classes = len(set(val.labels.tolist()))
    chance = 1 / classes
    error = math.sqrt(chance * (1 - chance) / max(1, record.num_images))
    bar = chance + max(min(chance, 0.1), 2 * error)
    if record.mean_recall / 100 < min(bar, 1.0) and not distill.allow_weak_teacher:
        raise TeacherError(
            f"{distill.teacher} scores {record.top1:.1f} % on the validation set (mean over classes "
            f"{record.mean_recall:.1f} %), at or near chance ({100 * chance:.1f} %): it has nothing to teach.",
            "Check its weights and classes, or pass --force-teacher.",
        )


def _sentence(record: Preflight, how: str) -> str:
    fitted = {"no": "", "scratch": "trained here, "}.get(
        record.adapted, f"fitted to the data ({record.adapted}), "
    )
    return (
        f"Teacher {record.name}: top-1 {record.top1:.2f} %, top-5 {record.top5:.2f} % on {record.num_images} validation "
        f"images, {fitted}{how}, at {record.preprocessing['img_size']} pixels with its own preprocessing."
    )
