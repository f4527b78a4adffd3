"""Explanations of images: each token's prediction, and a drawing of where it attends."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

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
from deitctl.explanation.overlay import TokenPanel, draw_panels
from deitctl.home import expand_home
from deitctl.inference.classifier import ScoredClass
from deitctl.inference.folder_scan import FolderScan
from deitctl.inference.input_range import InputRange
from deitctl.inference.inputs import (
    ImageLike,
    Images,
    Input,
    expand,
    is_folder,
    is_image,
    is_url,
    load_batches,
    local_path,
)
from deitctl.models.catalog import DEFAULT_MODEL
from deitctl.models.factory import load_model
from deitctl.models.model_config import ModelConfig
from deitctl.models.vit import VisionTransformer
from deitctl.paths import DiskError
from deitctl.sizes import ImageSize

TOKEN_CHOICES = ("both", *TOKENS)
OUTPUT = Path("explained")


@dataclass(frozen=True)
class TokenPrediction(ScoredClass):
    """A token's most probable class."""

    class_score: float | None
    """Probability of the explained class, 0..1; null if none was named."""


@dataclass(frozen=True)
class Explanation:
    """The explanation of one image, or the reason why there is none."""

    input: str
    """Path or URL as given, or `image N` for the Nth without one."""
    image: Path | None
    """The drawing."""
    method: str
    """gradient, rollout or last-layer."""
    class_name: str | None
    """Label of the explained class; null for each head's own prediction."""
    tokens: dict[str, TokenPrediction] = field(default_factory=dict)
    """By token: `cls`, `dist`."""
    disagree: bool | None = None
    """Whether the two heads predict different classes; null for a model with one head."""
    error: str | None = None
    """Why the image could not be explained."""


def explain(
    images: Images,
    *,
    model: str | Path = "",
    weights: str | Path = "",
    classes: Classes = "",
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

    Args:
        images: one or several, as `deitctl.predict` takes them; folders stand for their files.
        model: a DeiT, as `deitctl.load` takes it.
        weights: its weights, if `model` is a name.
        classes: names of its classes, see `deitctl.load`.
        method: one of `deitctl.explanation.attention_maps.METHODS`.
        token: `cls`, `dist`, or `both` that the model has.
        class_name: the class that `gradient` explains, in any spelling; None for each head's own
            prediction.
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
    model_config = apply_class_names(loaded.model_config, classes, where, reporter)
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
    return _explain_stream(
        explainer,
        _expand_outside(folder, several, stdin, reporter),
        batch_size,
        DrawingFolder(folder),
        only_disagreements,
        reporter,
    )


def _expand_outside(
    folder: Path, images: Iterable[ImageLike], stdin: Iterable[str], reporter: Reporter
) -> Iterator[ImageLike]:
    """Expand folders, except for earlier drawings in an output folder inside of them.

    Report what is passed over there.
    """
    output, scan = folder.resolve(), FolderScan()
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
    value_range = InputRange(preprocessing.value_range, reporter)
    for batch in load_batches(images, preprocessing, batch_size, value_range=value_range):
        explained = explainer.explain([item for item in batch if item.pixels is not None])
        for item in batch:
            if item.pixels is None:
                yield replace(explainer.template, input=item.name, error=item.error)
                continue
            explanation, panels = next(explained)
            if explanation.error is not None:
                yield explanation
            elif explanation.disagree or not only_disagreements:
                num_disagreements += 1
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

    def explain(self, items: list[Input]) -> Iterator[tuple[Explanation, list[TokenPanel]]]:
        """Yield an explanation without its drawing, and what to draw, for each readable input."""
        if not items:
            return
        pixels = np.stack([item.pixels for item in items if item.pixels is not None])
        batch = self.device.to_device(torch.from_numpy(pixels))
        images = normalize(batch, self.model_config.preprocessing)
        scores = self._compute_scores(images)
        maps, head_maps = self._compute_maps(images)
        for n, item in enumerate(items):
            explanation = replace(self.template, input=item.name)
            if not all(bool(s[n].isfinite().all()) for s in scores.values()):
                # NaN logits would be drawn as an ordinary, meaningless map.
                error = f"{item.name}: the model's scores are not numbers."
                yield replace(explanation, error=error), []
                continue
            best = {token: int(s[n].argmax()) for token, s in scores.items()}
            predictions = {
                token: TokenPrediction(
                    best[token],
                    self.model_config.label(best[token]),
                    float(scores[token][n, best[token]]),
                    None if self.class_index is None else float(scores[token][n, self.class_index]),
                )
                for token in self.tokens
                if token in scores
            }
            panels = [
                TokenPanel(
                    TOKENS[token],
                    self._format_caption(prediction),
                    _to_array(maps, token, n),
                    None if head_maps is None else _to_array(head_maps, token, n),
                )
                for token, prediction in predictions.items()
            ]
            disagree = best["cls"] != best["dist"] if "dist" in best else None
            yield replace(explanation, tokens=predictions, disagree=disagree), panels

    def _format_caption(self, prediction: TokenPrediction) -> str:
        label = prediction.label
        if self.model_config.descriptions is not None:
            label = label.split(",")[0]  # ImageNet's list synonyms
        best = f"{label} ({100 * prediction.score:.1f} %)"
        if prediction.class_score is None:
            return best
        return f"{100 * prediction.class_score:.1f} %; first: {best}"

    @torch.inference_mode()
    def _compute_scores(self, images: Tensor) -> dict[str, Tensor]:
        """Return each head's probabilities, [B,K]."""
        return {
            token: (logits / self.model_config.temperature(token)).softmax(dim=1).cpu()
            for token, logits in self.model(images)._asdict().items()
            if logits is not None
        }

    def _compute_maps(self, images: Tensor) -> tuple[TokenMaps, TokenMaps | None]:
        if self.method == "last-layer":
            head_maps = compute_head_maps(self.model, images)
            return average_heads(head_maps), head_maps
        classes = None
        if self.class_index is not None:
            classes = torch.full((len(images),), self.class_index, device=images.device)
        maps = compute_token_maps(self.model, images, method=self.method, classes=classes)
        return maps, None


def _to_array(maps: TokenMaps, token: str, n: int) -> np.ndarray:
    array: np.ndarray = getattr(maps, token)[n].float().cpu().numpy()
    return array


class DrawingFolder:
    """A folder of drawings, each a new file, even beside those of a concurrent process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.counts = folder, Counter[str]()

    def draw(self, item: Input, explanation: Explanation, panels: list[TokenPanel]) -> Explanation:
        """Write a drawing and return the explanation with its path, or raise `DiskError`."""
        assert item.pixels is not None
        note = explanation.method
        if explanation.class_name is not None:
            note = f"why {explanation.class_name}? ({explanation.method})"
        if explanation.disagree:
            note += ", the two heads disagree"
        buffer = io.BytesIO()
        drawing = draw_panels(item.pixels, panels, name=os.path.basename(item.name), note=note)
        drawing.save(buffer, "PNG")
        path = self._write_new(f"{_make_stem(item.name)}.{explanation.method}", buffer.getbuffer())
        return replace(explanation, image=path)

    def _write_new(self, stem: str, content: memoryview) -> Path:
        while True:
            self.counts[stem.lower()] += 1  # file systems may ignore case
            number = self.counts[stem.lower()]
            path = self.folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                # x: of two processes that choose the same name one fails here and takes the next
                # number.
                with path.open("xb") as file:
                    try:
                        file.write(content)
                    except BaseException:  # a signal too: half a file would never be replaced
                        path.unlink()
                        raise
                return path
            except FileExistsError:
                if not self.folder.is_dir():
                    error = NotADirectoryError("it is a file")
                    raise DiskError.from_os_error(self.folder, error) from None
            except OSError as error:
                raise DiskError.from_os_error(path, error) from error


def _make_stem(name: str) -> str:
    """Return a file name's stem for a path or URL that every file system accepts."""
    last = re.split(r"[?#]", name, maxsplit=1)[0].rstrip("/") if is_url(name) else local_path(name)
    stem = os.path.splitext(os.path.basename(last))[0]
    # 80 characters and the method stay below the 255 bytes of most file systems.
    return re.sub(r"[^\w.-]+", "_", stem).strip(".-_")[:80] or "image"
