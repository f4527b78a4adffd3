"""Compares teachers before one is chosen: what each says about the data, and what asking it costs.

Letters: M views, K classes, P teachers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from deitctl.config import TrainConfig
from deitctl.data.classes import describe_lack
from deitctl.data.dataset import ImageDataset
from deitctl.data.draws import count_views
from deitctl.device import Device, choose_run_device
from deitctl.distillation.feature_score import FeatureSource, FitHead, score_features
from deitctl.distillation.features import FeatureCodec
from deitctl.distillation.preflight import (
    NO_CLASSES,
    Preflight,
    check_teacher,
    require_above_chance,
)
from deitctl.distillation.resolve import ResolvedTeacher, resolve_teacher
from deitctl.distillation.targets import TargetCodec
from deitctl.distillation.teacher import Teacher, freeze_teacher
from deitctl.distillation.teacher_bands import require_teacher_bands
from deitctl.distillation.view_sample import (
    BATCH_SIZE,
    ECHO,
    ViewLogits,
    draw_images,
    measure_agreement,
    measure_label_agreement,
    run_on_views,
)
from deitctl.distributed import SINGLE_PROCESS
from deitctl.errors import DeitctlError, TeacherError
from deitctl.events import Reporter, SilentReporter
from deitctl.models.features import count_features
from deitctl.models.model_config import Preprocessing
from deitctl.sizes import ImageSize

Configure = Callable[[str, str], TrainConfig]
"""Returns the student's run with a teacher by its name and weights file."""
CountFlops = Callable[[nn.Module, ImageSize, int], int]
"""Returns the floating-point operations of an image by model, input size and channels."""
Gives = Literal["labels", "features"]
TIMED = 2
"""Batches by whose faster one the speed is measured."""


@dataclass(frozen=True, kw_only=True)
class RankedTeacher:
    """A teacher, what it says about the data, and what asking it costs."""

    teacher: str
    """As it was named."""
    error: str | None = None
    """Why it cannot teach this data; null if it can. The others are null then."""
    gives: Gives | None = None
    """`labels`, or `features` alone of a teacher that lacks classes of the data, or has no classifier. Those from
    `top1` to `teacher_agreement` are null then."""
    lacks: str | None = None
    """Why it gives features alone, `has 1 of 2 classes: no rose`; null of one that gives labels."""
    head_score: float | None = None
    """Of a teacher of features alone: what a classifier has on the validation images that is fitted in closed form
    to its features of the sampled views, percent: balanced accuracy, of several labels mean average precision."""
    top1: float | None = None
    """Top-1 accuracy on the validation images among the data's classes, percent; null where images have
    several labels, as the next."""
    balanced_accuracy: float | None = None
    """Mean recall over the classes, percent."""
    map: float | None = None
    """Mean average precision over the classes, percent; null where an image has one label."""
    is_weak: bool | None = None
    """Whether it is at or near chance, so that `distill` refuses it."""
    label_agreement: float | None = None
    """Percent of sampled training views on which its decision is the image's label, of several labels all of
    them and no other."""
    is_echo: bool | None = None
    """Whether that is above 99 %: its hard labels repeat the true labels."""
    view_disagreement: float | None = None
    """Percent of pairs of views of one image that get different decisions; null of a single view."""
    mean_entropy: float | None = None
    """Mean entropy of its probabilities on the views at temperature 1, nats, of several labels the mean over
    the classes."""
    teacher_agreement: dict[str, float] | None = None
    """By other teacher: percent of views on which both decide alike."""
    class_match: str | None = None
    """How the data's classes match its own: `same`, `permuted`, `subset`, `numbers`; `none` of features."""
    num_features: int | None = None
    """Numbers of an image's features; null of a function or model that gives none."""
    num_params: int | None = None
    """Parameters."""
    img_size_px: ImageSize | None = None
    """Its input."""
    gflops: float | None = None
    """Floating-point operations of a forward pass of one image, in 10^9; a multiplication with an addition is
    two."""
    ms_per_image: float | None = None
    """Forward pass of one of a batch of 32 on this machine, milliseconds."""
    cache_bytes: int | None = None
    """Size of the cache of what it gives in this mode, of all views of all training images."""


@dataclass(frozen=True, kw_only=True)
class TeacherRanking:
    """Teachers in the order in which they are worth trying."""

    data: str
    """Data set, as it was named."""
    recipe: str
    """Recipe whose augmentation the views have."""
    mode: str
    """What is to be learned, see `--mode`."""
    is_multilabel: bool
    """Whether images have several labels."""
    num_val_images: int
    """Validation images that each was scored on."""
    num_images: int
    """Training images that were sampled."""
    num_views: int
    """Sampled views of each."""
    num_cached_views: int
    """Views of an image that a cache of such a run holds."""
    device: str
    """Where the speed was measured."""
    teachers: list[RankedTeacher]
    """Those that give labels and repeat not the true ones, by balanced accuracy, of several labels mAP; in
    hard modes then those that do; those near chance; those that give features alone, by `head_score`; those that
    failed.
    Equals go by operations."""


def rank_teachers(
    teachers: Sequence[str],
    datasets: tuple[ImageDataset, ImageDataset],
    configure: Configure,
    count_flops: CountFlops,
    fit_head: FitHead,
    *,
    num_images: int,
    num_views: int,
    reporter: Reporter | None = None,
) -> TeacherRanking:
    """Score teachers on the validation images and a sample of training views; none is trained.

    A teacher that fails is a row with the reason.

    Args:
        teachers: each a model, or `NAME=FILE` of an architecture and its weights.
        datasets: the training and validation images.
        configure: see `Configure`.
        count_flops: see `CountFlops`.
        fit_head: see `FitHead`.
        num_images: training images to sample, at most.
        num_views: views of each.
        reporter: receives progress.
    """
    reporter = reporter or SilentReporter()
    train, val = datasets
    rows: list[RankedTeacher] = []
    views_of: dict[str, ViewLogits] = {}
    config: TrainConfig | None = None
    for ref in dict.fromkeys(teachers):
        try:
            config = configure(*split_weights(ref))
            candidate = _Candidate(ref, config, datasets, reporter)
            with candidate.device.computing():
                row, views = candidate.measure(
                    count_flops, fit_head, num_images=num_images, num_views=num_views
                )
        except DeitctlError as error:
            row, views = RankedTeacher(teacher=ref, error=str(error)), None
        rows.append(row)
        if views is not None:
            views_of[ref] = views
    config = config or configure("", "")
    assert config.distill is not None
    rows = [replace(row, teacher_agreement=_compare(row.teacher, views_of)) for row in rows]
    is_hard = config.distill.label_mode == "hard"
    device = choose_run_device(config)
    return TeacherRanking(
        data=config.data,
        recipe=config.recipe.name,
        mode=config.distill.mode,
        is_multilabel=train.is_multilabel,
        num_val_images=len(val.labels),
        num_images=len(draw_images(train, config.distill.view_seed, num_images)),
        num_views=num_views,
        num_cached_views=_count_views(config, train),
        device=str(device.torch_device),
        teachers=sorted(rows, key=lambda row: _order(row, is_hard=is_hard)),
    )


def split_weights(ref: str) -> tuple[str, str]:
    """Return name and weights file of `NAME=FILE`; the file is empty of all others."""
    name, equals, file = ref.partition("=")
    return (name, file) if equals and name and file and not Path(ref).exists() else (ref, "")


def _order(row: RankedTeacher, *, is_hard: bool) -> tuple[int, float, float]:
    """Return the key by which teachers are sorted."""
    if row.error is not None:
        group = 4
    elif row.gives == "features":
        group = 3
    elif row.is_weak:
        group = 2
    else:
        group = int(is_hard and bool(row.is_echo))
    scores = (row.balanced_accuracy, row.map, row.head_score)
    return group, -next((score for score in scores if score), 0), row.gflops or 0


def _compare(teacher: str, views_of: dict[str, ViewLogits]) -> dict[str, float] | None:
    """Return a teacher's agreement with each of the others, percent; None of one without decisions."""
    if teacher not in views_of:
        return None
    own, agreement = views_of[teacher], {}
    for other, views in views_of.items():
        theirs = set(views.keys)
        common = [key for key in own.keys if key in theirs]
        if other != teacher and common:
            mine, others = (_take(v, common) for v in (own, views))
            agreement[other] = measure_agreement(mine, others)
    return agreement


def _take(views: ViewLogits, keys: Sequence[tuple[int, int]]) -> Tensor:
    """Return the decisions [M,K] of some views."""
    places = {key: n for n, key in enumerate(views.keys)}
    return views.decisions[[places[key] for key in keys]]


def measure_view_disagreement(views: ViewLogits) -> float | None:
    """Return the percentage of pairs of views of one image with different decisions; None without a pair.

    Unlike the share of images whose views are not all alike, it does not grow with the number of views.
    """
    _, decision = torch.unique(views.decisions, dim=0, return_inverse=True)
    pairs = differing = 0
    by_image = sorted(zip((index for _, index in views.keys), decision.tolist(), strict=True))
    for _, group in groupby(by_image, key=lambda pair: pair[0]):
        values = [value for _, value in group]
        count = len(values)
        pairs += count * (count - 1) // 2
        alike = sum(values.count(v) * (values.count(v) - 1) // 2 for v in set(values))
        differing += count * (count - 1) // 2 - alike
    return 100 * differing / pairs if pairs else None


def measure_ms(network: Teacher, device: Device) -> float:
    """Return the milliseconds of a forward pass, of one image of a batch."""
    pre = network.model_config.preprocessing
    shape = (BATCH_SIZE, pre.in_chans, *pre.hw)
    pixels = device.to_device(torch.zeros(shape, dtype=torch.uint8))
    seconds = []
    for _ in range(1 + TIMED):
        start = time.perf_counter()
        with torch.no_grad(), device.autocast():
            output = network.forward_views(pixels)
        for tensor in output:
            if tensor is not None:
                tensor.cpu()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return (
        1000 * min(seconds[1:]) / BATCH_SIZE
    )  # the first allocates memory, and may choose kernels


def _count_views(config: TrainConfig, train: ImageDataset) -> int:
    """Return the views of an image that a run's cache holds, as `DistillationTeacher.total_views`."""
    assert config.distill is not None
    return config.distill.views or count_views(
        train,
        seed=config.seed,
        epochs=config.recipe.epochs,
        repeats=config.recipe.augment.repeated_aug,
        sampling=config.recipe.sampling,
    )


class _Candidate:
    """A teacher that is compared with others."""

    def __init__(
        self,
        ref: str,
        config: TrainConfig,
        datasets: tuple[ImageDataset, ImageDataset],
        reporter: Reporter,
    ) -> None:
        assert config.distill is not None
        self.ref, self.config, self.distill, self.reporter = ref, config, config.distill, reporter
        self.train, self.val = datasets
        self.device: Device = choose_run_device(config)
        require_teacher_bands(self.distill, self.train, is_own=False)

    def measure(
        self, count_flops: CountFlops, fit_head: FitHead, *, num_images: int, num_views: int
    ) -> tuple[RankedTeacher, ViewLogits | None]:
        """Return the teacher's row, without its agreement with others, and its logits of the views."""
        # By features, for which no teacher lacks classes: its logits are used if it has them.
        features = replace(self.distill, mode="features", finetune_teacher="none")
        config = replace(self.config, distill=features)
        resolved = resolve_teacher(config, self.train, "", None, self.reporter)
        loaded = resolved.loaded
        pre = loaded.model_config.preprocessing
        num_params = sum(p.numel() for p in loaded.model.parameters())
        num_features = count_features(loaded.model, pre, self.distill.features.pool)
        gflops = count_flops(loaded.model, pre.img_size, pre.in_chans) / 1e9
        rows = resolved.match.rows if resolved.match else None
        pool = self.distill.features.pool if rows is None else ""
        network = freeze_teacher(loaded, rows, Preprocessing(), self.device, pool)
        row = RankedTeacher(
            teacher=self.ref,
            gives="features" if rows is None else "labels",
            class_match=resolved.match.kind if resolved.match else NO_CLASSES,
            num_features=num_features,
            num_params=num_params,
            img_size_px=pre.img_size,
            gflops=round(gflops, 4),
            ms_per_image=round(measure_ms(network, self.device), 3),
            cache_bytes=self._count_bytes(num_features, has_labels=rows is not None),
        )
        images = draw_images(self.train, self.distill.view_seed, num_images)
        keys = [(view, index) for index in images.tolist() for view in range(num_views)]
        if rows is None:
            source = FeatureSource(network, self.config, self.device, self.reporter)
            score = score_features(source, self.train, self.val, keys, fit_head)
            lacks = describe_lack(
                loaded.model_config, self.train.class_names, is_multilabel=self.train.is_multilabel
            )
            return replace(row, lacks=lacks, head_score=score), None
        preflight = self._score(resolved)
        views = run_on_views(
            network, self.train, self.config, keys, device=self.device, reporter=self.reporter
        )
        agreement = measure_label_agreement(views.decisions, self.train, views.keys)
        return replace(
            row,
            top1=preflight.top1,
            balanced_accuracy=preflight.mean_recall,
            map=preflight.map,
            is_weak=self._is_weak(preflight),
            label_agreement=agreement,
            is_echo=None if agreement is None else agreement > ECHO,
            view_disagreement=measure_view_disagreement(views),
            mean_entropy=round(views.mean_entropy, 4) if views.keys else None,
        ), views

    def _score(self, resolved: ResolvedTeacher) -> Preflight:
        """Score the network on the validation images."""
        workers = self.device.choose_num_workers(
            self.config.workers, in_memory=self.val.is_in_memory
        )
        return check_teacher(
            resolved,
            self.val,
            weights_fingerprint="",
            val_fingerprint="",
            device=self.device,
            workers=workers,
            reporter=self.reporter,
            world=SINGLE_PROCESS,
        )

    def _is_weak(self, preflight: Preflight) -> bool:
        try:
            require_above_chance(
                replace(self.distill, allow_weak_teacher=False), preflight, self.val
            )
        except TeacherError:
            return True
        return False

    def _count_bytes(self, num_features: int, *, has_labels: bool) -> int:
        """Return the bytes of a cache of what is learned; of features, if the teacher has nothing else."""
        widths = []
        if self.distill.label_mode and has_labels:
            widths.append(
                TargetCodec(
                    self.distill.label_mode,
                    len(self.train.class_names),
                    self.distill.logits_topk,
                    self.train.is_multilabel,
                ).width
            )
        if self.distill.uses_features or not has_labels:
            widths.append(FeatureCodec(num_features).width)
        return 2 * sum(widths) * len(self.train.labels) * _count_views(self.config, self.train)
