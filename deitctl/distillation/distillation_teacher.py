"""The teacher of a run: its cache of targets, its preflight, and its network while it is needed."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from deitctl.config import DistillConfig, Recipe, TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.draws import count_epoch_views, count_views
from deitctl.data.fingerprint import RunFingerprints, fingerprint_model
from deitctl.data.loader import TeacherView
from deitctl.data.own_functions import identify_function
from deitctl.data.sources import BUILT_IN
from deitctl.data.transforms import VIEWS_VERSION
from deitctl.data.unlabeled import select_labeled
from deitctl.device import Device
from deitctl.distillation.cached_teacher import CachedTeacher, Filling
from deitctl.distillation.callable_teacher import CallableTeacher
from deitctl.distillation.features import FEATURES_VERSION, MAX_FEATURES, FeatureCodec
from deitctl.distillation.finetune import HEAD_VERSION, TrainRun
from deitctl.distillation.joint_targets import Cache, JointCodec, join_caches
from deitctl.distillation.preflight import (
    RECORD,
    Preflight,
    check_teacher,
    read_preflight,
    record_views,
    require_above_chance,
    summarize_preflight,
    warn_about_echo,
    write_preflight,
)
from deitctl.distillation.resolve import ResolvedTeacher, plan_finetuning, resolve_teacher
from deitctl.distillation.target_cache import (
    STAMP,
    TARGETS_VERSIONS,
    TargetCache,
    open_cache,
    read_stamp,
    require_cache_folder,
)
from deitctl.distillation.targets import TargetCodec
from deitctl.distillation.teacher import Teacher, freeze_teacher
from deitctl.distillation.teacher_bands import require_teacher_bands
from deitctl.distillation.teacher_weights import (
    WITHOUT_WEIGHTS,
    hash_json,
    identify_teacher,
    is_present,
)
from deitctl.distillation.view_sample import ViewLogits, draw_images, read_views, run_on_views
from deitctl.distributed import SINGLE_PROCESS, World
from deitctl.errors import ModelError, TeacherError
from deitctl.events import Reporter, SilentReporter
from deitctl.home import can_write, choose_cache_path, expand_home
from deitctl.models.model_config import Preprocessing
from deitctl.models.tasks import MULTILABEL
from deitctl.paths import refuse_links
from deitctl.recipes import (
    FULL_FINETUNE_IMAGES,
    get_finetune_recipe,
    stamp_recipe,
    stamp_views,
)
from deitctl.records import to_json

NO_CACHE = "off"
FEATURES = "features"
"""Kind of targets, and their folder below a named cache."""


def build_label_codec(
    distill: DistillConfig, train: ImageDataset, *, is_averaged: bool
) -> TargetCodec:
    """Return the form in which a teacher's labels are stored: its logits where they are averaged with others'."""
    mode = "logits" if is_averaged else distill.label_mode
    return TargetCodec(mode, len(train.class_names), distill.logits_topk, train.is_multilabel)


class DistillationTeacher:
    """A run's teacher. The network is loaded only when a target is missing, so perhaps never."""

    def __init__(
        self,
        config: TrainConfig,
        train: ImageDataset,
        val: ImageDataset,
        student_preprocessing: Preprocessing,
        *,
        device: Device,
        train_run: TrainRun,
        reporter: Reporter,
        own: CallableTeacher | None = None,
        is_averaged: bool = False,
        world: World = SINGLE_PROCESS,
        fingerprints: RunFingerprints | None = None,
    ) -> None:
        """Name the teacher; nothing is loaded or written before `prepare`.

        Args:
            config: the student's run; its `distill` is not None.
            train: the training images.
            val: the validation images, on which the teacher is scored in its own preprocessing.
            student_preprocessing: the preprocessing of mixed images.
            device: where the teacher runs.
            train_run: fine-tunes the teacher, see `TrainRun`.
            reporter: receives the teacher's accuracy and how its classes match.
            own: the caller's function, in place of the named teacher.
            is_averaged: whether its logits are stored, to be averaged with those of others.
            world: the processes that train together; every one of them constructs the teacher.
            fingerprints: of the images, which several teachers share; None: its own.
        """
        assert config.distill is not None
        self.config, self.distill, self.train, self.val = config, config.distill, train, val
        self.student_preprocessing, self.device = student_preprocessing, device
        self.train_run, self.own, self.is_averaged = train_run, own, is_averaged
        self.reporter, self.world = reporter, world
        self.fingerprints = fingerprints or RunFingerprints(train, val, reporter, world)
        self._network: Teacher | None = None
        self._resolved: tuple[ResolvedTeacher, str] | None = None
        """Of the network that is loaded, with the fingerprint of its weights."""
        self.num_sampled = 0
        """Targets that the check on training views has cached."""
        self._views: tuple[ViewLogits, bool] | None = None
        """Of the check on training views, and whether these are probabilities."""
        d = self.distill
        self.label_codec = (
            build_label_codec(d, train, is_averaged=is_averaged) if d.label_mode else None
        )
        self.feature_codec: FeatureCodec | None = None
        """Of a mode with features, once their number is known."""
        self.label_cache: TargetCache | None = None
        self.feature_cache: TargetCache | None = None
        self.total_views = d.views or count_views(
            train,
            seed=config.seed,
            epochs=config.recipe.epochs,
            repeats=config.recipe.augment.repeated_aug,
            sampling=config.recipe.sampling,
        )

    @cached_property
    def labeled(self) -> ImageDataset:
        """The training images that have labels, on which a teacher is trained."""
        return select_labeled(self.train)

    def prepare(self, *, on_views: bool = True) -> DistillationTeacher:
        """Open the cache of targets, check the teacher unless the cache has the record of its check,
        and return self; collective.

        Args:
            on_views: whether it is checked on training views too, whose targets may be cached.

        Raises:
            TeacherError: a teacher that is not available or near chance, or a stale cache.
        """
        d, val, reporter, world = self.distill, self.val, self.reporter, self.world
        self._require_usable()
        self.fingerprints.share()
        self._open_caches()
        preflight = self._read_preflight()
        is_checked = preflight is not None and preflight.val_fingerprint == self.fingerprints.val
        # The check is collective: all processes take part, or none.
        if all(world.all_gather_object(is_checked)) and preflight is not None:
            require_above_chance(d, preflight, val)
            if preflight.label_agreement is None and on_views:  # of an earlier version
                preflight = self._measure_views(preflight)
            reporter.note(summarize_preflight(preflight, "checked earlier"))
            self.preflight = preflight
        else:
            self.preflight = self._check(on_views=on_views)
        if not self.is_averaged:
            agreement = self.preflight.label_agreement
            warn_about_echo(d, self.preflight.name, agreement, reporter)
        return self

    def plan(self) -> list[tuple[str, Recipe | None]]:
        """Return how the teacher is going to be trained on the data first, and the recipe: `no` and
        None if it is not; a list of one, as an ensemble has several. Raise what `prepare` would before it
        computes; nothing is written or downloaded.
        """
        self._require_usable()
        is_complete = False
        if (named := self._find_named_cache()) is not None:
            roots = self._list_roots(named)
            if missing := [root for root in roots if not (root / STAMP).exists()]:
                require_cache_folder(missing[0])
            elif is_present(self.distill):  # what has to be downloaded cannot be compared
                self._open_caches()
                assert self.cache is not None
                is_complete = self.cache.count_missing(self.total_views) == 0
        preflight = self._read_preflight()
        is_checked = preflight is not None and preflight.val_fingerprint == self.fingerprints.val
        if is_checked and preflight is not None:
            require_above_chance(self.distill, preflight, self.val)
        try:
            if self.own is not None:
                return [("no", None)]
            return [plan_finetuning(self.config, self.labeled, self.reporter)]
        except (TeacherError, ModelError):
            if is_checked and is_complete and preflight is not None:  # it is not loaded at all
                return [(preflight.finetuned, None)]
            raise

    @property
    def teachers(self) -> tuple[DistillationTeacher, ...]:
        """Itself, as an ensemble has several."""
        return (self,)

    @property
    def cache(self) -> Cache | None:
        """The cache of what is learned; None where nothing is cached."""
        return join_caches(self.label_cache, self.feature_cache)

    @property
    def uses_views(self) -> bool:
        """Whether the teacher labels views before they are mixed, which can be cached."""
        return self.distill.teacher_input == "unmixed"

    @property
    def val_predictions(self) -> Tensor | None:
        """The teacher's predictions of the validation images, see `Preflight.list_predictions`; None of a
        teacher that lacks the data's classes."""
        if not self.preflight.has_classes:
            return None
        return self.preflight.list_predictions(len(self.train.class_names))

    @property
    def num_features(self) -> tuple[int, ...]:
        """Numbers of an image's features of each teacher that gives them."""
        return () if self.feature_codec is None else (self.feature_codec.num_features,)

    @property
    def preflights(self) -> list[Preflight]:
        """Its check, as an ensemble has several."""
        return [self.preflight]

    @property
    def is_complete(self) -> bool:
        """Whether all targets of the run's views are cached."""
        return self.cache is not None and not self.cache.count_missing(self.total_views)

    @property
    def lacks_weights(self) -> bool:
        """Whether its weights cannot be read, so that cached targets are all there is."""
        if self.own is not None:
            return False
        return identify_teacher(self.distill, self.reporter).endswith(WITHOUT_WEIGHTS)

    @property
    def is_loaded(self) -> bool:
        """Whether the network is in memory."""
        return self._network is not None

    def build_stamp(self) -> dict[str, Any]:
        """Return all that the labels of views depend on; a cache is named and verified by it."""
        d = self.distill
        stamp = self._stamp_views() | {
            "targets_version": TARGETS_VERSIONS[self._label_kind],
            "num_classes": len(self.train.class_names),
            "mode": self._label_kind,
        }
        if self._label_kind == "soft" and self.label_codec is not None:
            stamp |= {"tau": d.tau, "logits_topk": self.label_codec.num_kept}
        return stamp | ({"task": MULTILABEL} if self.train.is_multilabel else {})

    def build_feature_stamp(self) -> dict[str, Any]:
        """Return all that the features of views depend on; as `build_stamp`."""
        pool = self.distill.features.pool
        stamp = self._stamp_views() | {"features_version": FEATURES_VERSION, "feature_pool": pool}
        if not self._is_trained_first():  # as with another mode or --finetune-teacher
            stamp |= {"finetune_teacher": "none", "finetune_recipes": None}
        return stamp

    @property
    def _label_kind(self) -> str:
        return "" if self.label_codec is None else self.label_codec.mode

    def _is_trained_first(self) -> bool:
        """Return whether the network is trained on the data before it teaches; True where that cannot be known."""
        d = self.distill
        if self.own is not None or d.finetune_teacher == "none":
            return False
        if d.finetune_teacher != "auto":
            return True
        # Features alone are those of the weights as they are, whatever classes they have.
        if not d.label_mode or self._resolved is not None:
            return self._resolved is not None and self._resolved[0].finetuned != "no"
        try:
            return plan_finetuning(self.config, self.labeled, SilentReporter())[0] != "no"
        except (TeacherError, ModelError):
            return True

    def _stamp_views(self) -> dict[str, Any]:
        """Return what every target of views depends on."""
        # Left out: the device, so that targets computed on a GPU serve a CPU; the number of views,
        # each of which is a file of its own; and the student's input size, because views are
        # rendered anew at the teacher's.
        d = self.distill
        stamp = {
            "views_version": VIEWS_VERSION,
            "teacher": self.own.identify() if self.own else identify_teacher(d, self.reporter),
            "precision": self.device.precision,
            "batch_norm_fused": True,
            "teacher_img_size": d.teacher_img_size or None,
            "finetune_teacher": d.finetune_teacher,
            "finetune_recipes": self._stamp_finetuning(),
            "train_images": self.fingerprints.train,
            "view_seed": d.view_seed,
            "view_augmentation": stamp_views(self.config.recipe.augment),
        }
        if self.train.augmentation is not None:
            stamp["own_augmentation"] = identify_function(self.train.augmentation)
        return stamp

    def _stamp_finetuning(self) -> str | None:
        """Return what a teacher that is trained on the data first is trained by; None if it never is."""
        d, built_in = self.distill, self.config.data == BUILT_IN
        # Features alone are those of the weights as they are, whatever classes they have.
        if d.finetune_teacher == "none" or (not d.label_mode and d.finetune_teacher == "auto"):
            return None
        from_scratch = d.finetune_teacher == "scratch"
        parts: tuple[str, ...] = () if from_scratch else ("head", "full")
        if from_scratch or built_in:
            parts += ("scratch",)
        recipes = (get_finetune_recipe(part, built_in=built_in) for part in parts)
        return hash_json(
            [[stamp_recipe(recipe) for recipe in recipes], FULL_FINETUNE_IMAGES, HEAD_VERSION]
        )

    def _find_named_cache(self) -> Path | None:
        """Return the folder of targets that the user named, which need not exist."""
        is_named = self.uses_views and self.distill.teacher_cache not in ("", NO_CACHE)
        return expand_home(self.distill.teacher_cache) if is_named else None

    @property
    def _is_cached(self) -> bool:
        return self.uses_views and self.distill.teacher_cache != NO_CACHE

    def _list_roots(self, named: Path) -> list[Path]:
        """Return the folders of what is learned in a folder that the user named."""
        labels = [named] if self.distill.label_mode else []
        return labels + ([named / FEATURES] if self.distill.uses_features else [])

    def _choose_root(self, kind: str, stamp: dict[str, Any]) -> Path:
        """Return the folder of labels or features, by the user's name or its own; the stamp of a teacher that
        is not here becomes that of the folder."""
        d, named = self.distill, self._find_named_cache()
        if named is None:
            # `:` and `<` of a function's name are not for every file system
            teacher = re.sub(r"[^\w.@+-]+", "-", Path(d.teacher).name)
            name = f"{teacher}-{kind}-{hash_json(to_json(stamp))}"
            root = choose_cache_path(f"teacher_targets/{name}", self.reporter)
            # A cache may be a stranger's; its folder of all targets may be moved by a link.
            refuse_links(root.parent, [name])
            return root
        root = named / FEATURES if kind == FEATURES else named
        if stamp["teacher"].endswith(WITHOUT_WEIGHTS) and (root / STAMP).exists():
            # A complete cache serves machines that do not have the teacher.
            earlier = read_stamp(root)
            names = ("teacher", *(("finetune_teacher", "finetune_recipes") * (kind == FEATURES)))
            stamp |= {name: earlier.get(name) for name in names}
            self.reporter.warn(
                f"The weights of {d.teacher} are not available: "
                f"its targets in {root} are used unverified."
            )
        return root

    def _open_labels(self) -> TargetCache | None:
        if not self._is_cached or self.label_codec is None:
            return None
        stamp = self.build_stamp()
        root = self._choose_root(self._label_kind, stamp)
        return open_cache(root, stamp, self.label_codec, len(self.train.labels))

    def _open_features(self) -> None:
        """Open the cache of features, of which the network alone knows how many there are; collective."""
        stamp = self.build_feature_stamp() if self._is_cached else {}
        root = self._choose_root(FEATURES, stamp) if self._is_cached else None
        num_features = self._read_num_features(root)
        if not all(self.world.all_gather_object(num_features > 0)):
            if self._network is None:
                self._load(self.train_run)
            num_features = self.get_network().num_features
        self.feature_codec = FeatureCodec(num_features)
        if root is not None:
            stamp["num_features"] = num_features
            self.feature_cache = open_cache(root, stamp, self.feature_codec, len(self.train.labels))

    def _require_usable(self) -> None:
        """Raise for a teacher that cannot see the images, or has not what is to be learned."""
        require_teacher_bands(self.distill, self.train, is_own=self.own is not None)
        if self.own is not None and self.distill.uses_features:
            raise TeacherError(
                f"{self.own.name} returns logits and no features.",
                "Use mode hard or soft, or a teacher by name.",
            )

    def _open_caches(self) -> None:
        """Open the caches of what is learned; collective."""
        if self.distill.label_mode:
            self.label_cache = self._open_labels()
        if self.distill.uses_features:
            self._open_features()

    @staticmethod
    def _read_num_features(root: Path | None) -> int:
        """Return the number of features that a cache has; 0 where there is none."""
        if root is None or not (root / STAMP).exists():
            return 0
        number = read_stamp(root).get("num_features")
        return number if type(number) is int and 0 < number <= MAX_FEATURES else 0

    def _read_preflight(self) -> Preflight | None:
        if self.cache is None:
            return None
        path = self.cache.root / RECORD
        preflight = read_preflight(path, len(self.train.class_names), len(self.val.labels))
        if preflight is None or not preflight.has_classes:
            return preflight
        return preflight if preflight.is_multilabel == self.val.is_multilabel else None

    def _check(self, *, on_views: bool) -> Preflight:
        """Score the teacher on the validation images; collective."""
        resolved, weights_fingerprint = self._resolved or self._load(self.train_run)
        preflight = check_teacher(
            resolved,
            self.val,
            weights_fingerprint=weights_fingerprint,
            val_fingerprint=self.fingerprints.val,
            device=self.device,
            workers=self.device.choose_num_workers(
                self.config.workers, in_memory=self.val.is_in_memory
            ),
            reporter=self.reporter,
            world=self.world,
        )
        require_above_chance(self.distill, preflight, self.val)
        if on_views:
            preflight = self._measure_views(preflight)
        self.reporter.note(summarize_preflight(preflight, str(resolved.match or "")))
        if self.cache is not None and self.world.is_main:
            self._keep_preflight(self.cache.root / RECORD, preflight)
        return preflight

    def _measure_views(self, preflight: Preflight) -> Preflight:
        """Return a record with how often the decision is the label on training views; collective."""
        if not self.distill.label_mode:
            return preflight
        return record_views(preflight, *self.sample_views(), self.train)

    def sample_views(self) -> tuple[ViewLogits, bool]:
        """Return the logits of a sample of training views, and whether these are of probabilities; collective.

        A network that is not loaded is left so where the cache has the views' targets.
        """
        if self._views is None:
            self._views = self._compute_views()
        return self._views

    def _compute_views(self) -> tuple[ViewLogits, bool]:
        images = draw_images(self.train, self.distill.view_seed)
        keys = [(0, index) for index in images.tolist()]
        cached = None
        if self.label_cache is not None and self.label_codec is not None and not self.is_loaded:
            cached = read_views(self.label_cache, self.label_codec, keys, self.distill.tau)
        if all(self.world.all_gather_object(cached is not None)) and cached is not None:
            return cached
        if not self.is_loaded:
            self._load(self.train_run)
        views = run_on_views(
            self.get_network(),
            self.train,
            self.config,
            keys,
            mixed=None if self.uses_views else self.student_preprocessing,
            device=self.device,
            reporter=self.reporter,
            world=self.world,
        )
        self._keep_decisions(views)
        return views, True

    def _keep_decisions(self, views: ViewLogits) -> None:
        """Cache the hard labels of sampled views, so that they are not computed again.

        Not soft ones: their last digits depend on the batch, and a student of cached targets equals one of
        computed targets.
        """
        cache, codec = self.label_cache, self.label_codec
        if cache is None or codec is None or codec.mode != "hard":
            return
        own = slice(self.world.rank, None, self.world.size)
        keys, records = views.keys[own], codec.encode(views.decisions[own])
        missing = [n for n, (view, image) in enumerate(keys) if not cache.has_target(view, image)]
        cache.write([keys[n] for n in missing], records[missing])
        # Those that lack features are computed again, and counted then.
        complete = [
            n for n in missing if self.cache is not None and self.cache.has_target(*keys[n])
        ]
        self.num_sampled = sum(self.world.all_gather_object(len(complete)))

    def _keep_preflight(self, path: Path, preflight: Preflight) -> None:
        if path.parent.exists() and not can_write(path.parent):
            self.reporter.warn(
                f"{path.parent} cannot be written: the teacher is checked again at each start."
            )
        else:
            write_preflight(path, preflight)

    def _load(self, train_run: TrainRun | None) -> tuple[ResolvedTeacher, str]:
        """Load and freeze the network; return it with the fingerprint of its weights."""
        resolved = resolve_teacher(
            self.config,
            self.labeled,
            self.fingerprints.labeled,
            train_run,
            self.reporter,
            own=self.own,
            is_main=self.world.is_main,
        )
        weights = fingerprint_model(resolved.loaded.model)
        earlier = self._read_preflight()
        if (
            self.cache is not None
            and earlier is not None
            and earlier.weights_fingerprint != weights
        ):
            raise TeacherError(
                f"The teacher targets in {self.cache.root} are stale: they are of weights "
                f"{earlier.weights_fingerprint}, {self.distill.teacher} has {weights}.",
                "Delete that folder, or name another --teacher-cache.",
            )
        wants_labels, pool = bool(self.distill.label_mode), self.distill.features.pool
        self._network = freeze_teacher(
            resolved.loaded,
            resolved.match.rows if resolved.match is not None and wants_labels else None,
            self.student_preprocessing,
            self.device,
            pool if self.distill.uses_features else "",
        )
        self._resolved = resolved, weights
        return self._resolved

    def load(self) -> None:
        """Load the network in all processes if any of them needs it; collective.

        It comes before `get_network()`, which is not collective and so cannot fine-tune a teacher
        in several processes.
        """
        is_needed = not self.uses_views
        if self.uses_views and self.world.size > 1:  # one process alone loads it when it needs it
            is_needed = self.cache is None or self.cache.count_missing(self.total_views) > 0
        if self._network is None and any(self.world.all_gather_object(is_needed)):
            self._load(self.train_run)

    def get_network(self) -> Teacher:
        """Return the network, loading it if it is not in memory; not collective, see `load`.

        Raises:
            TeacherError: its weights are not those that the cached targets are of.
        """
        if self._network is None:
            # Of several processes one may need it in the middle of a step, where it must not wait
            # for the others.
            self._load(self.train_run if self.world.size == 1 else None)
        assert self._network is not None
        return self._network

    def release(self) -> None:
        """Remove the network from memory; `get_network` loads it again."""
        self._network = self._resolved = None

    def list_views(self) -> tuple[TeacherView, ...]:
        """Return the view that the loader renders for it."""
        own, cache = self.preflight.preprocessing, self.cache
        cached = None if cache is None else (cache.has_target,)
        return (TeacherView(own.img_size, own.in_chans, cached),)

    def build_cached_teacher(self) -> CachedTeacher:
        """Return the source of targets of views."""
        return CachedTeacher(
            JointCodec(self.label_codec, self.feature_codec),
            self.distill.tau,
            self.cache,
            self.get_network,
            self.device,
            self.distill.views,
            count_epoch_views(self.train, self.config.recipe),
            name_image=self.train.name,
        )

    def fill_cache(
        self, *, batch_size: int, workers: int, pause: Callable[[], None] = lambda: None
    ) -> Filling:
        """Compute all missing targets of the run's views, see `CachedTeacher.fill`; collective."""
        return self.build_cached_teacher().fill(
            self.train,
            self.config.recipe.augment,
            self.distill.view_seed,
            self.total_views,
            batch_size=batch_size,
            workers=workers,
            reporter=self.reporter,
            world=self.world,
            pause=pause,
        )
