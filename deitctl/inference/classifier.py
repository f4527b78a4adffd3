"""Classification by a loaded model: `load`, `predict` and their results. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitctl.data.band_image import has_bands
from deitctl.data.class_file import Classes
from deitctl.data.eval_transform import Pixels, eval_transform
from deitctl.errors import DataError, ModelError, require_positive
from deitctl.events import Reporter, SilentReporter
from deitctl.inference.folder_scan import FolderScan
from deitctl.inference.input_range import InputRange
from deitctl.inference.inputs import (
    STDIN,
    ImageLike,
    Images,
    Input,
    expand,
    is_folder,
    is_image,
    load_batches,
    to_unresized_array,
)
from deitctl.inference.onnx_classifier import SUFFIX, load_onnx_classifier
from deitctl.models.catalog import DEFAULT_MODEL
from deitctl.models.model_config import ModelConfig, parse_value_range
from deitctl.models.tasks import choose_labels
from deitctl.records import hidden
from deitctl.sizes import ImageSize

Scores = NDArray[np.float32]


class Backend(Protocol):
    """A network in the runtime that computes it; letters: B images, S pixels a side, K classes."""

    @property
    def model_config(self) -> ModelConfig: ...

    @property
    def resizes_images(self) -> bool:
        """Whether it takes one image of any size, [1,3,H,W], instead of a batch [B,3,S,S]."""

    def logits(self, pixels: Pixels) -> Scores:
        """Return logits [B,K] of images uint8 [B,3,S,S], heads fused, before the temperature."""

    def scores(self, pixels: Pixels) -> Scores:
        """Return calibrated probabilities [B,K] of images uint8 [B,3,S,S], see `to_probs`."""


@dataclass(frozen=True)
class ScoredClass:
    """A class and its probability."""

    index: int
    """Position in the logits."""
    label: str
    """Name for people."""
    score: float
    """Probability, 0..1."""


@dataclass(frozen=True)
class ScoredLabel(ScoredClass):
    """A class of a multi-label model, and its probability."""

    threshold: float
    """Probability from which the class is predicted."""


@dataclass(frozen=True)
class Prediction:
    """The classes of one image, or the reason why there are none."""

    input: str
    """Path or URL as given, or `image N` for the Nth without one."""
    predictions: tuple[ScoredClass, ...]
    """Most probable first; of equal scores, the lower index first. Of a multi-label model each has a
    `threshold`."""
    error: str | None
    """Why the image could not be classified."""
    pixels: Pixels | None = hidden(default=None, repr=False, compare=False)
    """The model's input, uint8 [3,S,S], if it was requested."""
    labels: tuple[ScoredLabel, ...] | None = None
    """Of a multi-label model, the classes whose probability reaches their threshold, most probable
    first; null for a model of one class an image."""


class Classifier:
    """A loaded classifier, as `deitctl.load` returns it. Use it for as many images as you like."""

    def __init__(
        self, backend: Backend, *, value_range: str = "auto", reporter: Reporter | None = None
    ) -> None:
        """Take a network.

        Args:
            backend: the network.
            value_range: see `load`.
            reporter: warned where a range is chosen for inputs.
        """
        self.backend = backend
        self._user_range = parse_value_range(value_range)
        self._reporter = reporter or SilentReporter()
        self._input_range: InputRange | None = None

    @property
    def model_config(self) -> ModelConfig:
        """Architecture, classes, preprocessing and head rule."""
        return self.backend.model_config

    def settle_range(self, images: Iterable[ImageLike]) -> int:
        """Choose the value range of all predictions from now on, by a sample of images.

        Without it, each call of a method chooses one for its own images. A model that was trained on
        images of more than 8 bits has its range, and nothing is chosen.

        Returns:
            How many images there are.
        """
        self._input_range = self._begin_range()
        return self._input_range.settle(images)

    def _begin_range(self) -> InputRange:
        own = self.model_config.preprocessing.value_range
        return InputRange(self._user_range or own, self._reporter, self.num_bands)

    @property
    def num_bands(self) -> int:
        """Bands of the images that it takes; 0 for those of gray and RGB."""
        in_chans = self.model_config.preprocessing.in_chans
        return in_chans if has_bands(in_chans) else 0

    def scan_folders(self) -> FolderScan:
        """Return what finds its images in folders."""
        return FolderScan(reads_arrays=bool(self.num_bands))

    @overload
    def predict(  # type: ignore[overload-overlap]  # str is an iterable of str, but means one path
        self, images: ImageLike, topk: int = 5, *, batch_size: int = 16
    ) -> Prediction: ...
    @overload
    def predict(
        self, images: Iterable[ImageLike], topk: int = 5, *, batch_size: int = 16
    ) -> list[Prediction]: ...
    def predict(
        self, images: Images, topk: int = 5, *, batch_size: int = 16
    ) -> Prediction | list[Prediction]:
        """Classify an image, or several.

        Args:
            images: a path, URL, bytes, Pillow image, uint8 array [H,W,3] or tensor [3,H,W] that is
                uint8 or float in 0..1; or an iterable of them, in which a folder's path stands for
                every image below it.
            topk: classes in each prediction, at most.
            batch_size: images at a time.

        Returns:
            One prediction for one image, else a list in input order. In a list, an image that
            cannot be read has an `error`.

        Raises:
            DataError: the one image cannot be read or classified, or is a folder: pass `[folder]`.
            ConfigError: `topk` or `batch_size` is not an integer of 1 or more.
        """
        results = list(
            self.stream(
                _expand_images(images, self.scan_folders()), topk=topk, batch_size=batch_size
            )
        )
        if not is_image(images):
            return results
        if (error := results[0].error) is not None:
            raise DataError(error)
        return results[0]

    def logits(self, images: Images, *, batch_size: int = 16) -> Scores:
        """Return logits [B,K] of images, or [K] of one: heads fused, before the temperature.

        Raises:
            DataError: an image cannot be read.
            ConfigError: `batch_size` is not an integer of 1 or more.
        """
        require_positive(batch_size=batch_size)
        rows: list[Scores] = []
        for batch in self._load_batches(_expand_images(images, self.scan_folders()), batch_size):
            pixels = [item.pixels for item in batch if item.pixels is not None]
            if len(pixels) < len(batch):
                raise DataError(next(item.error for item in batch if item.error is not None))
            rows += [*self.backend.logits(np.stack(pixels))]
        if is_image(images):
            return rows[0]
        return np.stack(rows) if rows else np.zeros((0, self.model_config.num_classes), np.float32)

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        topk: int = 5,
        batch_size: int = 16,
        keep_pixels: bool = False,
    ) -> Iterator[Prediction]:
        """Yield a prediction for each image, in order and in constant memory.

        Args:
            images: see `predict`, without folders.
            topk: classes in each prediction, at most.
            batch_size: images at a time.
            keep_pixels: fill `Prediction.pixels`.

        Raises:
            ConfigError: `topk` or `batch_size` is not an integer of 1 or more.
        """
        # not in the generator below, which would fail with the first prediction only
        require_positive(topk=topk, batch_size=batch_size)
        return self._predict_batches(self._load_batches(images, batch_size), topk, keep_pixels)

    def _load_batches(self, images: Iterable[ImageLike], batch_size: int) -> Iterator[list[Input]]:
        preprocessing = self.model_config.preprocessing
        value_range = self._input_range or self._begin_range()
        if value_range is not self._input_range and isinstance(images, list):
            value_range.settle(images)  # an iterator would be used up
        if self.backend.resizes_images:
            return load_batches(images, preprocessing, 1, to_unresized_array, value_range)
        return load_batches(images, preprocessing, batch_size, value_range=value_range)

    def _predict_batches(
        self, batches: Iterator[list[Input]], topk: int, keep_pixels: bool
    ) -> Iterator[Prediction]:
        for batch in batches:
            readable = [item.pixels for item in batch if item.pixels is not None]
            all_scores: Iterator[Scores] = (
                iter(self.backend.scores(np.stack(readable))) if readable else iter(())
            )
            for item in batch:
                if item.pixels is None:
                    yield Prediction(item.name, (), item.error)
                    continue
                scores = next(all_scores)
                if not np.isfinite(scores).all():
                    error = f"{item.name}: the model's scores are not numbers."
                    yield Prediction(item.name, (), error)
                    continue
                pixels = self._get_model_input(item.pixels) if keep_pixels else None
                yield self._describe(item.name, scores, topk, pixels)

    def _describe(self, name: str, scores: Scores, topk: int, pixels: Pixels | None) -> Prediction:
        """Return the prediction of an image with probabilities [K]."""
        config = self.model_config
        order = np.argsort(-scores, kind="stable")
        if not config.is_multilabel:
            best = order[:topk].tolist()
            classes = (ScoredClass(i, config.label(i), float(scores[i])) for i in best)
            return Prediction(name, tuple(classes), None, pixels)
        thresholds = config.list_thresholds(config.head)
        likeliest, predicted = (
            tuple(ScoredLabel(i, config.label(i), float(scores[i]), thresholds[i]) for i in indices)
            for indices in (
                order[:topk].tolist(),
                order[choose_labels(scores, thresholds)[order]].tolist(),
            )
        )
        return Prediction(name, likeliest, None, pixels, predicted)

    def _get_model_input(self, pixels: Pixels) -> Pixels:
        if not self.backend.resizes_images:
            return pixels
        # what the file computes for itself, apart from one or two of 255 levels
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        return eval_transform(image, self.model_config.preprocessing)


def _expand_images(images: Images, scan: FolderScan) -> Iterable[ImageLike]:
    """Return one image in a list, or several with folders expanded."""
    if not is_image(images):
        expanded = expand(cast(Iterable[ImageLike], images), scan=scan)
        # Of a list, a sample is looked at before the first.
        return list(expanded) if isinstance(images, list | tuple) else expanded
    # One input has one prediction, as its type says: a folder, which has many, stands in a list.
    if isinstance(images, str | Path) and is_folder(str(images)):
        raise DataError(
            f"{images} is a folder, not an image.",
            f"For every image in it pass a list: [{str(images)!r}].",
        )
    return [cast(ImageLike, images)]


def load(
    model: str | Path = "",
    *,
    weights: str | Path = "",
    classes: Classes = "",
    task: str = "auto",
    threshold: float | None = None,
    head: str = "auto",
    img_size: ImageSize = 0,
    device: str = "auto",
    precision: str = "auto",
    value_range: str = "auto",
    reporter: Reporter | None = None,
) -> Classifier:
    """Load a classifier once, for many predictions.

    Args:
        model: alias, timm name, hub name, run folder, weights file, or an ONNX file of `export`;
            empty for the default.
        weights: weights file or model folder, for a model that is a name.
        classes: names of the classes, for weights that come without them: in the order of the
            logits, or a file of them, see `read_class_names`; empty for the model's own.
        task: `auto` (the model's own), `classification` or `multilabel`: of weights that were trained on
            several labels an image and do not say so.
        threshold: the probability, 0..1, from which each class of a multi-label model is predicted;
            None for the model's own, 0.5 where it has none.
        head: `auto` (the model's own), `cls`, `dist`, `avg-logits` or `avg-probs`.
        img_size: input size in pixels; 0 for the model's own.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: `auto` (fp32), `fp32`, `tf32`, `bf16` or `fp16`.
        value_range: `LOW,HIGH`: black and white of images of more than 8 bits, whose values outside
            are clipped; `auto`: what their files state, else the model's, else one for all inputs.
        reporter: shows downloads.

    Raises:
        ModelError: no such model, weights that do not fit, or a head that it does not have.
        ConfigError: no such device, precision or task, a threshold of a model of one class an image, or
            a file that does not name classes.
    """
    ref, weights = str(model) or DEFAULT_MODEL, str(weights)
    if ref.lower().endswith(SUFFIX):
        return Classifier(
            load_onnx_classifier(
                ref,
                weights=weights,
                head=head,
                img_size=img_size,
                device=device,
                precision=precision,
                classes=classes,
                task=task,
                threshold=threshold,
                reporter=reporter or SilentReporter(),
                allow_resizing=True,
            ),
            value_range=value_range,
            reporter=reporter,
        )
    if weights.lower().endswith(SUFFIX):
        raise ModelError(f"{weights} is a model with its weights.", f"Use --model {weights} alone.")
    # imports torch, which takes seconds that an ONNX file saves
    from deitctl.inference.torch_classifier import load_torch_classifier

    return Classifier(
        load_torch_classifier(
            ref,
            weights=weights,
            classes=classes,
            task=task,
            threshold=threshold,
            head=head,
            img_size=img_size,
            device=device,
            precision=precision,
            reporter=reporter or SilentReporter(),
        ),
        value_range=value_range,
        reporter=reporter,
    )


def predict(
    images: Images,
    *,
    model: str | Path = "",
    weights: str | Path = "",
    classes: Classes = "",
    task: str = "auto",
    threshold: float | None = None,
    topk: int = 5,
    head: str = "auto",
    batch_size: int = 16,
    img_size: ImageSize = 0,
    device: str = "auto",
    precision: str = "auto",
    value_range: str = "auto",
    stdin: Iterable[str] = (),
    keep_pixels: bool = False,
    reporter: Reporter | None = None,
) -> Iterator[Prediction]:
    """Load a model, then yield a prediction for each image, in order.

    Args:
        images: one or several, see `Classifier.predict`; a folder stands for its files.
        model: see `load`, and so are the arguments that are not here.
        topk: classes in each prediction, at most.
        batch_size: images at a time.
        stdin: lines with paths, for the path `-`.
        keep_pixels: fill `Prediction.pixels`.

    Raises:
        ModelError: no such model, or weights that do not fit.
        ConfigError: a number out of range, no such device or precision.
    """
    require_positive(topk=topk, batch_size=batch_size)  # before the model is loaded
    classifier = load(
        model,
        weights=weights,
        classes=classes,
        task=task,
        threshold=threshold,
        head=head,
        img_size=img_size,
        device=device,
        precision=precision,
        value_range=value_range,
        reporter=reporter,
    )
    several = cast(Iterable[ImageLike], [images] if is_image(images) else images)
    if isinstance(several, list):
        classifier.settle_range(
            expand(
                [i for i in several if not (isinstance(i, str) and i == STDIN)],
                scan=classifier.scan_folders(),
            )
        )
    scan = classifier.scan_folders()
    predictions = classifier.stream(
        expand(several, stdin, scan),
        topk=topk,
        batch_size=batch_size,
        keep_pixels=keep_pixels,
    )
    return _report_unread(predictions, scan, reporter or SilentReporter())


def _report_unread(
    predictions: Iterator[Prediction], scan: FolderScan, reporter: Reporter
) -> Iterator[Prediction]:
    """Yield the predictions, then say what was passed over in folders."""
    yield from predictions
    if passed_over := scan.describe():
        reporter.warn(passed_over)
