"""README.md of an exported folder: the model card that a hub shows. It says what is known and invents nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from deitctl import __version__
from deitctl.exporters.compare_outputs import Verification
from deitctl.models.catalog import Architecture
from deitctl.models.checkpoint_io import CONFIG
from deitctl.models.model_config import ModelConfig

README = "README.md"
UNKNOWN = "Not known: what was exported does not say. Add it before you publish this."
MOST_NAMED = 20
"""Classes that are named."""
_OURS = "<!-- deitctl "


@dataclass(frozen=True, kw_only=True)
class History:
    """What is known of where weights are from: a run's own files, or the catalog's line about published ones."""

    run: Mapping[str, Any] = field(default_factory=dict)
    """run.toml"""
    result: Mapping[str, Any] = field(default_factory=dict)
    """result.json"""
    published: Architecture | None = None


def readme(
    model_config: ModelConfig,
    history: History,
    *,
    title: str,
    library: str,
    usage: str,
    head: str,
    found: Verification,
    remark: str = "",
    names_in: str = CONFIG,
    normalizes: bool = False,
) -> str:
    """Return the model card as Markdown.

    Args:
        model_config: the model's config.
        history: where its weights are from; what it does not say, the text calls not known.
        title: name of the model.
        library: what loads the folder, `timm` or `transformers`.
        usage: Python that does.
        head: the rule by which that library joins two heads.
        found: the proof of the export.
        remark: what more there is to say of it.
        names_in: the file of the folder that has the names of all classes.
        normalizes: whether the network takes the image's bytes and gives probabilities.
    """
    pre = model_config.preprocessing
    resize = (
        f"to {pre.resize_to} x {pre.resize_to}"
        if pre.crop_mode == "squash"
        else f"the short side to {pre.resize_to}"
    )
    then = ". The network takes that as uint8 and does the rest itself:" if normalizes else ","
    text = f"""---
library_name: {library}
pipeline_tag: image-classification
tags:
- image-classification
---
# {_plain(title)}

`{model_config.architecture}`, {model_config.num_classes:,} classes, images of {pre.img_size} x {pre.img_size} pixels.

## Use

```python
{usage}```

## Classes

{_classes(model_config, names_in)}

## Data

{_data(history)}

## Recipe

{_recipe(history)}

## Figures

{_figures(history, head)}

## Preprocessing

Resize ({pre.interpolation}) {resize}, cut the center of {pre.img_size} x {pre.img_size}{then} divide by 255, subtract the mean
{list(pre.mean)}, divide by {list(pre.std)}; channels are RGB.

## Export

Written by deitctl {__version__} and compared in a fresh process with the model that it was written from, on {found.num_images:,}
images: logits differ by up to {found.max_abs_diff:.2g}, the first class is the same on {found.top1_agreement:.1f} %.
{remark}"""
    text = f"{text.rstrip()}\n"
    return f"{text}\n{_seal(text)}\n"


def is_untouched(text: str) -> bool:
    """Say whether a README.md is as `readme` wrote it: one that somebody has edited is not to be overwritten."""
    start = text.rfind(f"\n{_OURS}")
    return start >= 0 and text[start + 1 :].strip() == _seal(text[:start])


def _seal(text: str) -> str:
    return f"{_OURS}{hashlib.sha256(text.encode()).hexdigest()[:16]} -->"


def _classes(model_config: ModelConfig, names_in: str) -> str:
    if model_config.class_names is None:
        return f"{model_config.num_classes:,}, whose names are not known."
    named = ", ".join(
        _code(model_config.label(i)) for i in range(min(model_config.num_classes, MOST_NAMED))
    )
    more = model_config.num_classes - MOST_NAMED
    return named + (f" and {more:,} more; all are in {names_in}." if more > 0 else ".")


def _data(history: History) -> str:
    if history.published is not None:
        return f"These are the published weights {_code(history.published.hub_id)}; their page says what they learned from."
    data = history.run.get("data")
    if not isinstance(data, str):
        return UNKNOWN
    seen = history.result.get("images_seen")
    return f"Trained on {_code(_name(data))}" + (
        f", {seen:,} images seen in all." if isinstance(seen, int) else "."
    )


def _recipe(history: History) -> str:
    recipe = _table(history.run, "recipe")
    if not recipe:
        return (
            f"That of {_code(history.published.hub_id)}."
            if history.published is not None
            else UNKNOWN
        )
    import tomli_w

    distill = _table(history.run, "distill")
    shown: dict[str, Any] = {k: _name(str(history.run.get(k, ""))) for k in ("model", "weights")}
    shown["seed"] = history.run.get("seed", 0)
    shown["recipe"] = recipe
    if distill:  # a path says where something was on one machine, and who has it
        places = {
            k: _name(str(v)) for k, v in distill.items() if k in ("teacher", "teacher_weights")
        }
        shown["distill"] = {k: v for k, v in {**distill, **places}.items() if k != "teacher_cache"}
    lists = re.compile(r"\[\n\s+([^\[\]]*?),\n\]")  # tomli-w gives each number a line
    toml = lists.sub(
        lambda found: f"[{' '.join(found[1].split())}]", tomli_w.dumps(shown).replace("```", "")
    )
    return f"As in deitctl's `run.toml`:\n\n```toml\n{toml}```"


def _figures(history: History, head: str) -> str:
    if history.published is not None and history.published.top1 is not None:
        return f"Published top-1 on ImageNet: {history.published.top1} %. It was not measured for this export."
    best = _table(history.result, "best")
    if not best:
        return "None: the run has not ended." if history.run else UNKNOWN
    lines = [
        "On the run's validation images, fp32, the weights that are here:",
        "",
        "| | top-1 | top-5 |",
        "|---|---|---|",
        f"| epoch {best.get('epoch')} of {history.result.get('epochs')} | {_percent(best.get('top1'))} | {_percent(best.get('top5'))} |",
    ]
    if heads := _table(history.result, "heads"):
        lines += ["", "| answered by | top-1 |", "|---|---|"]
        lines += [
            f"| {_code(k)}{' (as this folder does)' * (k == head)} | {_percent(v)} |"
            for k, v in heads.items()
        ]
    if teacher := _table(history.result, "teacher"):
        lines += [
            "",
            f"Its teacher, {_code(_name(str(teacher.get('name'))))}, has {_percent(teacher.get('top1'))} top-1 there.",
        ]
    return "\n".join(
        [
            *lines,
            "",
            "The epoch was chosen by these images: no figure is of images that had no say.",
        ]
    )


def _table(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the object under a key; none where the file has something else there."""
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _name(ref: str) -> str:
    """Return a data set's or a model's name; of an absolute path its last part alone: the card is for everybody."""
    path = PurePath(ref)
    return path.name if path.is_absolute() or ref.startswith(("~", "..")) else ref


def _percent(value: Any) -> str:
    return f"{value:.2f} %" if isinstance(value, int | float) else "not known"


def _code(text: str) -> str:
    """Set a text from a file as code, so that nothing in it is markup."""
    return f"`{_plain(text).replace('`', chr(39))}`"


def _plain(text: str) -> str:
    return " ".join(text.split())
