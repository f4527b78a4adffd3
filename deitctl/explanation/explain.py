"""Explanations of images: each token's prediction, and a drawing of where it attends.

Shapes:
    B images, R explanations of them, K classes
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from deitctl.data.band_image import has_bands
from deitctl.data.batch_transforms import normalize
from deitctl.data.class_file import Classes, apply_class_names
from deitctl.data.classes import find_class
from deitctl.device import Device, choose_device
from deitctl.errors import ConfigError, require_positive
from deitctl.events import Reporter, SilentReporter
from deitctl.explanation.attention_maps import (
    METHODS,
    TOKENS,
    TokenMaps,
    average_heads,
    compute_head_maps,
    compute_token_maps,
    require_deit,
)
from deitctl.explanation.drawing_folder import DrawingFolder
from deitctl.explanation.explanation import Explanation, TokenPrediction
from deitctl.explanation.overlay import TokenPanel
from deitctl.home import expand_home
from deitctl.inference.folder_scan import FolderScan
from deitctl.inference.input_range import InputRange
from deitctl.inference.inputs import (
    ImageLike,
    Images,
    Input,
    expand,
    is_folder,
    is_image,
    load_batches,
    local_path,
)
from deitctl.models.catalog import DEFAULT_MODEL
from deitctl.models.factory import load_model
from deitctl.models.heads import choose_head, fuse_heads, to_probs
from deitctl.models.model_config import ModelConfig
from deitctl.models.tasks import choose_labels
from deitctl.models.vit import HeadLogits, VisionTransformer
from deitctl.sizes import ImageSize

TOKEN_CHOICES = ("both", *TOKENS)
OUTPUT = Path("explained")


def explain(
    images: Images,
    *,
    model: str | Path = "",
    weights: str | Path = "",
    classes: Classes = "",
    task: str = "auto",
    method: str = "gradient",
    token: str = "both",
    class_name: str | None = None,
    output: str | os.PathLike[str] = OUTPUT,
    batch_size: int = 8,
    img_size: ImageSize = 0,
    device: str = "auto",
    only_disagreements: bool = False,
    stdin: Iterable[str] = (),
    reporter: Reporter | None = None,
) -> Iterator[Explanation]:
    """Yield one explanation an image, in order, each drawn into a new PNG in `output`.

    Of a multi-label model `gradient` explains each label of an image, the most probable first, and the
    likeliest class of an image without.

    Args:
        images: one or several, as `deitctl.predict` takes them; folders stand for their files.
        model: a DeiT, as `deitctl.load` takes it.
        weights: its weights, if `model` is a name.
        classes: names of its classes, see `deitctl.load`.
        task: see `deitctl.load`.
        method: one of `deitctl.explanation.attention_maps.METHODS`.
        token: `cls`, `dist`, or `both` that the model has.
        class_name: the class that `gradient` explains, in any spelling; None for each head's own
            prediction, or each label.
        output: folder of the drawings; no file in it is replaced.
        batch_size: images at a time.
        img_size: input size in pixels; 0 for the model's own.
        device: see `deitctl.load`; always in fp32.
        only_disagreements: leave out images whose two heads predict the same class.
        stdin: lines with paths, for the path `-`.
        reporter: shows downloads, and how many images were left out.

    Raises:
        ModelError: no such model, or no DeiT.
        ConfigError: an option that does not exist, or that this model or method does not support.
    """
    for option, value, choices in (("method", method, METHODS), ("token", token, TOKEN_CHOICES)):
        if value not in choices:
            raise ConfigError(
                f"There is no {option} {value!r}.", f"There are: {', '.join(choices)}."
            )
    require_positive(batch_size=batch_size)
    if class_name is not None and method != "gradient":
        raise ConfigError(
            f"{method} does not depend on a class.", "--class needs --method gradient."
        )
    reporter = reporter or SilentReporter()
    loaded = load_model(
        str(model) or DEFAULT_MODEL, weights=str(weights), img_size=img_size, reporter=reporter
    )
    deit = require_deit(loaded.model)
    where = str(weights) or str(model) or DEFAULT_MODEL
    model_config = apply_class_names(loaded.model_config, classes, where, reporter).with_task(task)
    model_config = replace(model_config, head=choose_head("auto", model_config.head, deit))
    if deit.head_dist is None and (token == "dist" or only_disagreements):
        raise ConfigError(
            f"{model_config.architecture} has no distillation token.",
            "Leave --token and --only-disagreements out to explain its class token.",
        )
    # Always fp32: relevance multiplies over all blocks, and so would the rounding of bf16.
    chosen, folder = choose_device(device, "fp32"), expand_home(output)
    chosen.to_device(deit).requires_grad_(False)  # only the attention needs gradients
    explainer = _Explainer(
        deit,
        model_config,
        chosen,
        method,
        ("cls", "dist") if token == "both" else (token,),
        None if class_name is None else find_class(model_config, class_name),
    )
    several = cast(Iterable[ImageLike], [images] if is_image(images) else images)
    # Options are checked above, when the caller calls; images are read when the iterator is
    # advanced.
    scan = FolderScan(reads_arrays=has_bands(model_config.preprocessing.in_chans))
    return _explain_stream(
        explainer,
        _expand_outside(folder, several, stdin, scan, reporter),
        batch_size,
        DrawingFolder(folder, names_class=model_config.is_multilabel),
        only_disagreements,
        reporter,
    )


def _expand_outside(
    folder: Path,
    images: Iterable[ImageLike],
    stdin: Iterable[str],
    scan: FolderScan,
    reporter: Reporter,
) -> Iterator[ImageLike]:
    """Expand folders, except for earlier drawings in an output folder inside of them.

    Report what is passed over there.
    """
    output = folder.resolve()
    for image in images:
        name = str(image) if isinstance(image, str | Path) else ""
        is_outer = is_folder(name) and not Path(local_path(name)).resolve().is_relative_to(output)
        for item in expand([image], stdin, scan):
            # `explain .` a second time would otherwise explain its own drawings.
            if not (is_outer and Path(str(item)).resolve().is_relative_to(output)):
                yield item
    if passed_over := scan.describe():
        reporter.warn(passed_over)


def _explain_stream(
    explainer: _Explainer,
    images: Iterable[ImageLike],
    batch_size: int,
    drawings: DrawingFolder,
    only_disagreements: bool,
    reporter: Reporter,
) -> Iterator[Explanation]:
    num_disagreements = num_agreements = 0
    preprocessing = explainer.model_config.preprocessing
    bands = preprocessing.in_chans if has_bands(preprocessing.in_chans) else 0
    value_range = InputRange(preprocessing.value_range, reporter, bands)
    for batch in load_batches(images, preprocessing, batch_size, value_range=value_range):
        explained = explainer.explain([item for item in batch if item.pixels is not None])
        for item in batch:
            if item.pixels is None:
                yield replace(explainer.template, input=item.name, error=item.error)
                continue
            explanations = next(explained)
            first, _ = explanations[0]
            if first.error is not None:
                yield first
            elif first.disagree or not only_disagreements:
                num_disagreements += 1
                for explanation, panels in explanations:
                    yield drawings.draw(item, explanation, panels)
            else:
                num_agreements += 1
    if only_disagreements:
        num_images = num_disagreements + num_agreements
        reporter.note(
            f"The heads disagree on {num_disagreements} of {num_images} images; "
            "the others are left out."
        )


@dataclass(frozen=True)
class _Explainer:
    """A DeiT on a device, and the options of its explanations."""

    model: VisionTransformer
    model_config: ModelConfig
    device: Device
    method: str
    tokens: tuple[str, ...]
    class_index: int | None

    @property
    def template(self) -> Explanation:
        index = self.class_index
        label = None if index is None else self.model_config.label(index)
        return Explanation(input="", image=None, method=self.method, class_name=label)

    def explain(self, items: list[Input]) -> Iterator[list[tuple[Explanation, list[TokenPanel]]]]:
        """Yield the explanations of each readable input, without drawings, and what to draw: one or more."""
        if not items:
            return
        pixels = np.stack([item.pixels for item in items if item.pixels is not None])
        batch = self.device.to_device(torch.from_numpy(pixels))
        with self.device.computing():
            images = normalize(batch, self.model_config.preprocessing)
            heads = self._compute_heads(images)
            scores = self._compute_scores(heads)
            rows, classes = self._choose_rows(heads)
            maps, head_maps = self._compute_maps(images[rows], classes)
        explained: list[list[tuple[Explanation, list[TokenPanel]]]] = [[] for _ in items]
        for r, n in enumerate(rows):
            explanation = replace(self.template, input=items[n].name)
            if not all(bool(s[n].isfinite().all()) for s in scores.values()):
                # NaN logits would be drawn as an ordinary, meaningless map.
                error = f"{items[n].name}: the model's scores are not numbers."
                explained[n].append((replace(explanation, error=error), []))
                continue
            index = None if classes is None else classes[r]
            predictions = {
                token: self._predict(scores[token][n], index)
                for token in self.tokens
                if token in scores
            }
            panels = [
                TokenPanel(
                    TOKENS[token],
                    self._format_caption(prediction, token, index),
                    _to_array(maps, token, r),
                    None if head_maps is None else _to_array(head_maps, token, r),
                )
                for token, prediction in predictions.items()
            ]
            explanation = replace(
                explanation,
                class_name=None if index is None else self.model_config.label(index),
                tokens=predictions,
                disagree=self._disagree(scores, n),
            )
            explained[n].append((explanation, panels))
        yield from explained

    def _choose_rows(self, heads: HeadLogits) -> tuple[list[int], list[int] | None]:
        """Return of which image each explanation is, [R], and of which class, [R] or None.

        One an image; of several labels, where the method depends on a class, one a label.
        """
        num_images = len(heads.cls)
        if self.class_index is not None:
            return list(range(num_images)), [self.class_index] * num_images
        config = self.model_config
        if not config.is_multilabel or self.method != "gradient":
            return list(range(num_images)), None
        logits = fuse_heads(heads, config.head, config.task)
        probs = to_probs(logits / config.temperature(config.head), config.task).numpy()
        labels = choose_labels(probs, config.list_thresholds(config.head))
        pairs = [
            (n, index)
            for n, order in enumerate(np.argsort(-probs, axis=1, kind="stable").tolist())
            for index in [i for i in order if labels[n, i]] or order[:1]
        ]
        rows, classes = zip(*pairs, strict=True)
        return list(rows), list(classes)

    def _predict(self, scores: Tensor, index: int | None) -> TokenPrediction:
        """Return a token's most probable class, and the probability of class `index`, of scores [K]."""
        best = int(scores.argmax())
        of_class = None if index is None else float(scores[index])
        return TokenPrediction(best, self.model_config.label(best), float(scores[best]), of_class)

    def _disagree(self, scores: Mapping[str, Tensor], n: int) -> bool | None:
        if "dist" not in scores:
            return None
        if not self.model_config.is_multilabel:
            return bool(scores["cls"][n].argmax() != scores["dist"][n].argmax())
        cls, dist = (
            choose_labels(scores[token][n].numpy(), self.model_config.list_thresholds(token))
            for token in ("cls", "dist")
        )
        return bool((cls != dist).any())

    def _format_caption(self, prediction: TokenPrediction, token: str, index: int | None) -> str:
        label = prediction.label
        if self.model_config.descriptions is not None:
            label = label.split(",")[0]  # ImageNet's list synonyms
        best = f"{label} ({100 * prediction.score:.1f} %)"
        if prediction.class_score is None or index is None:
            return best
        score = f"{100 * prediction.class_score:.1f} %"
        if self.model_config.is_multilabel:
            threshold = self.model_config.list_thresholds(token)[index]
            return f"{score}, threshold {100 * threshold:.1f} %"
        return f"{score}; first: {best}"

    @torch.inference_mode()
    def _compute_heads(self, images: Tensor) -> HeadLogits:
        """Return each head's logits, [B,K]."""
        cls, dist = self.model(images)
        return HeadLogits(cls.float().cpu(), None if dist is None else dist.float().cpu())

    def _compute_scores(self, heads: HeadLogits) -> dict[str, Tensor]:
        """Return each head's probabilities, [B,K]."""
        config = self.model_config
        return {
            token: to_probs(logits / config.temperature(token), config.task)
            for token, logits in heads._asdict().items()
            if logits is not None
        }

    def _compute_maps(
        self, images: Tensor, classes: list[int] | None
    ) -> tuple[TokenMaps, TokenMaps | None]:
        if self.method == "last-layer":
            head_maps = compute_head_maps(self.model, images)
            return average_heads(head_maps), head_maps
        targets = None if classes is None else torch.tensor(classes, device=images.device)
        return compute_token_maps(self.model, images, method=self.method, classes=targets), None


def _to_array(maps: TokenMaps, token: str, n: int) -> np.ndarray:
    array: np.ndarray = getattr(maps, token)[n].float().cpu().numpy()
    return array
