"""Draw where a DeiT looks in images, and say what each of its tokens answers."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deitctl.data.batch_transforms import normalize
from deitctl.data.classes import find_class
from deitctl.device import Device, choose_device
from deitctl.errors import ConfigError
from deitctl.events import Reporter, SilentReporter
from deitctl.explanation.attention_maps import (
    METHODS,
    TOKENS,
    TokenMaps,
    head_maps,
    mean_of_heads,
    require_deit,
    token_maps,
)
from deitctl.explanation.overlay import TokenView, panels
from deitctl.inference.classifier import ScoredClass
from deitctl.inference.inputs import Input, expand, is_folder, is_url, load_batches, local_path
from deitctl.models.catalog import DEFAULT_MODEL
from deitctl.models.factory import load_model
from deitctl.models.model_config import ModelConfig
from deitctl.models.vit import VisionTransformer
from deitctl.paths import DiskError

CHOICES = ("both", *TOKENS)
OUTPUT = Path("explained")


@dataclass(frozen=True)
class TokenAnswer:
    """A token's first class, and the probability, 0..1, that it gives the class asked about."""

    first: ScoredClass
    asked: float | None


@dataclass(frozen=True)
class Explanation:
    """Where the explanation of one input lies and what its tokens say, or why there is none."""

    input: str
    image: Path | None
    method: str
    asked: str | None
    """The label of the class asked about."""
    tokens: dict[str, TokenAnswer]
    disagree: bool | None
    """Whether the two heads put different classes first; None for a model with one."""
    error: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the command line's json and jsonl."""
        tokens = {
            token: {
                "index": a.first.index,
                "label": a.first.label,
                "score": a.first.score,
                "class_score": a.asked,
            }
            for token, a in self.tokens.items()
        }
        return {
            "input": self.input,
            "image": None if self.image is None else str(self.image),
            "method": self.method,
            "class": self.asked,
            "tokens": tokens,
            "disagree": self.disagree,
            "error": self.error,
        }


def explain(
    inputs: Iterable[str],
    *,
    model: str = "",
    weights: str = "",
    method: str = "gradient",
    token: str = "both",
    class_name: str | None = None,
    output: str | os.PathLike[str] = OUTPUT,
    batch_size: int = 8,
    img_size: int = 0,
    device: str = "auto",
    only_disagreements: bool = False,
    stdin: Iterable[str] = (),
    reporter: Reporter | None = None,
) -> Iterator[Explanation]:
    """Yield one explanation an input, in order, each drawn into a PNG of its own in `output`; no file is ever replaced.

    Args:
        inputs: files, folders (recursive), web addresses, `-` for the lines of `stdin`.
        model: a DeiT as `predict` takes it.
        weights: its weights, where `model` is a name.
        method: one of `deitctl.explanation.attention_maps.METHODS`.
        token: `cls`, `dist`, or `both` that the model has.
        class_name: the class that `gradient` explains, however spelled; each head's own first one unless told.
        output: folder for the images.
        batch_size: images at a time.
        img_size: another input size, pixels.
        device: where; always in fp32.
        only_disagreements: leave out inputs whose two heads put the same class first.
        stdin: lines that name inputs.
        reporter: where a download is shown.

    Raises:
        ModelError: no such model, or none whose attention can be read.
        ConfigError: an option that does not exist or that this model or method has no use for.
    """
    for what, given, known in (("method", method, METHODS), ("token", token, CHOICES)):
        if given not in known:
            raise ConfigError(f"There is no {what} {given!r}.", f"There are: {', '.join(known)}.")
    if batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size}: a batch has 1 image or more.")
    if class_name is not None and method != "gradient":
        raise ConfigError(
            f"{method} looks the same whatever class is asked about.",
            "--class needs --method gradient.",
        )
    loaded = load_model(
        model or DEFAULT_MODEL,
        weights=weights,
        img_size=img_size,
        reporter=reporter or SilentReporter(),
    )
    deit = require_deit(loaded.model)
    if deit.head_dist is None and (token == "dist" or only_disagreements):
        raise ConfigError(
            f"{loaded.model_config.architecture} has no distillation token.",
            "Its class token can be explained: leave --token and --only-disagreements out.",
        )
    where, folder = choose_device(device, "fp32"), Path(output).expanduser()
    where.to_device(deit).requires_grad_(
        False
    )  # gradients of the attention are wanted, none of the weights
    asked = None if class_name is None else find_class(loaded.model_config, class_name)
    explainer = _Explainer(
        deit,
        loaded.model_config,
        where,
        method,
        ("cls", "dist") if token == "both" else (token,),
        asked,
    )
    names = _not_below(folder, inputs, stdin)
    return _stream(
        explainer,
        names,
        batch_size,
        Sheets(folder),
        only_disagreements,
        reporter or SilentReporter(),
    )


def _not_below(folder: Path, inputs: Iterable[str], stdin: Iterable[str]) -> Iterator[str]:
    """Yield every input's name, without what earlier explanations left in a folder that is walked."""
    ours = folder.resolve()
    for argument in inputs:
        walked = is_folder(argument) and not Path(local_path(argument)).resolve().is_relative_to(
            ours
        )
        for name in expand([argument], stdin):
            if not (walked and Path(name).resolve().is_relative_to(ours)):
                yield name


def _stream(
    explainer: _Explainer,
    names: Iterable[str],
    batch_size: int,
    sheets: Sheets,
    only_disagreements: bool,
    reporter: Reporter,
) -> Iterator[Explanation]:
    drawn, agreed = 0, 0
    for batch in load_batches(names, explainer.model_config.preprocessing, batch_size):
        explained = explainer.explain([item for item in batch if item.pixels is not None])
        for item in batch:
            if item.pixels is None:
                yield explainer.failed(item.name, item.error)
                continue
            record, views = next(explained)
            if record.error is not None:
                yield record
            elif record.disagree or not only_disagreements:
                drawn += 1
                yield sheets.draw(item, record, views)
            else:
                agreed += 1
    if only_disagreements:
        reporter.note(
            f"The heads disagree on {drawn} of {drawn + agreed} images; the others are left out."
        )


@dataclass(frozen=True)
class _Explainer:
    """A model and what is asked of it."""

    model: VisionTransformer
    model_config: ModelConfig
    device: Device
    method: str
    tokens: tuple[str, ...]
    asked: int | None

    @property
    def asked_label(self) -> str | None:
        return None if self.asked is None else self.model_config.label(self.asked)

    def failed(self, name: str, why: str | None) -> Explanation:
        return Explanation(name, None, self.method, self.asked_label, {}, None, why)

    def explain(self, items: list[Input]) -> Iterator[tuple[Explanation, list[TokenView]]]:
        """Yield a record without its image, and what is to be drawn, for each readable input."""
        if not items:
            return
        pixels = np.stack([item.pixels for item in items if item.pixels is not None])
        images = normalize(
            self.device.to_device(torch.from_numpy(pixels)), self.model_config.preprocessing
        )
        scores = self._scores(images)
        maps, heads = self._maps(images)
        for n, item in enumerate(items):
            if not all(bool(s[n].isfinite().all()) for s in scores.values()):
                why = f"{item.name}: the model answers with values that are not numbers."
                yield self.failed(item.name, why), []
                continue
            first = {token: int(s[n].argmax()) for token, s in scores.items()}
            disagree = first["cls"] != first["dist"] if "dist" in first else None
            answers = {
                t: TokenAnswer(
                    ScoredClass(
                        first[t], self.model_config.label(first[t]), float(scores[t][n, first[t]])
                    ),
                    None if self.asked is None else float(scores[t][n, self.asked]),
                )
                for t in self.tokens
                if t in scores
            }
            views = [
                TokenView(
                    TOKENS[t],
                    self._says(a),
                    _array(maps, t, n),
                    None if heads is None else _array(heads, t, n),
                )
                for t, a in answers.items()
            ]
            yield (
                Explanation(
                    item.name, None, self.method, self.asked_label, answers, disagree, None
                ),
                views,
            )

    def _says(self, answer: TokenAnswer) -> str:
        label = (
            answer.first.label
            if self.model_config.descriptions is None
            else answer.first.label.split(",")[0]
        )
        said = f"{label} ({100 * answer.first.score:.1f} %)"
        return said if answer.asked is None else f"{100 * answer.asked:.1f} %; first: {said}"

    @torch.inference_mode()
    def _scores(self, images: Tensor) -> dict[str, Tensor]:
        """Return each head's probabilities, [B,K]."""
        heads = self.model(images)._asdict()
        return {
            token: (logits / self.model_config.temperature(token)).softmax(dim=1).cpu()
            for token, logits in heads.items()
            if logits is not None
        }

    def _maps(self, images: Tensor) -> tuple[TokenMaps, TokenMaps | None]:
        if self.method == "last-layer":
            heads = head_maps(self.model, images)
            return mean_of_heads(heads), heads
        classes = (
            None
            if self.asked is None
            else torch.full((len(images),), self.asked, device=images.device)
        )
        return token_maps(self.model, images, method=self.method, classes=classes), None


def _array(maps: TokenMaps, token: str, n: int) -> Any:
    return getattr(maps, token)[n].float().cpu().numpy()


class Sheets:
    """The folder that explanations are drawn into: every one is a new file, also beside those of another run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.taken = folder, Counter[str]()

    def draw(self, item: Input, record: Explanation, views: list[TokenView]) -> Explanation:
        """Write an input's image and return its record with where it lies; raise `DeitctlError` if it cannot be."""
        assert item.pixels is not None
        note = record.method if record.asked is None else f"why {record.asked}? ({record.method})"
        if record.disagree:
            note += ", the two heads disagree"
        file = io.BytesIO()
        panels(item.pixels, views, name=os.path.basename(item.name), note=note).save(file, "PNG")
        stem = f"{_stem(item.name)}.{record.method}"
        path = self._write_new(stem, file.getbuffer())
        return replace(record, image=path)

    def _write_new(self, stem: str, content: memoryview) -> Path:
        while True:
            self.taken[stem.lower()] += 1
            number = self.taken[stem.lower()]
            path = self.folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as file:
                    try:
                        file.write(content)
                    except BaseException:  # a signal too: half an image would stay for good
                        path.unlink()
                        raise
                return path
            except FileExistsError:
                if not self.folder.is_dir():
                    raise DiskError.from_os_error(
                        self.folder, NotADirectoryError("it is a file")
                    ) from None
            except OSError as error:
                raise DiskError.from_os_error(path, error) from error


def _stem(name: str) -> str:
    """Return a file name's stem that every file system takes, for a path or an address."""
    last = re.split(r"[?#]", name, maxsplit=1)[0].rstrip("/") if is_url(name) else local_path(name)
    stem = os.path.splitext(os.path.basename(last))[0]
    return re.sub(r"[^\w.-]+", "_", stem).strip(".-_")[:80] or "image"
