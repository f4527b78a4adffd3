"""README.md of an exported folder: the model card that a hub shows; it invents nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from deitctl import __version__
from deitctl.data.splits import ALL
from deitctl.evaluation.images import describe_images
from deitctl.exporters.compare import Verification, describe_agreement
from deitctl.models.catalog import Architecture
from deitctl.models.checkpoint_io import CONFIG
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.sizes import height_width

README = "README.md"
UNKNOWN = "Unknown: the exported model does not record it. Add it before you publish this."
MAX_LISTED = 20
"""Classes that are listed."""
_SEAL = "<!-- deitctl "


@dataclass(frozen=True, kw_only=True)
class History:
    """Where weights are from: a run's own files, or the catalog's entry of published ones."""

    run: Mapping[str, Any] = field(default_factory=dict)
    """run.toml"""
    result: Mapping[str, Any] = field(default_factory=dict)
    """result.json"""
    published: Architecture | None = None


def make_model_card(
    model_config: ModelConfig,
    history: History,
    *,
    title: str,
    library: str,
    usage: str,
    head: str,
    verification: Verification,
    labels_file: str = CONFIG,
    preprocesses: bool = False,
) -> str:
    """Return the model card as Markdown.

    Args:
        model_config: the model's config.
        history: where its weights are from; what it lacks, the text calls unknown.
        title: name of the model.
        library: what loads the folder: `timm`, `transformers` or `openvino`.
        usage: Python that does.
        head: the rule by which the folder fuses two heads.
        verification: of the export.
        labels_file: the file of the folder that lists all classes.
        preprocesses: whether the network takes uint8 images and outputs probabilities.
    """
    config, pre = model_config, model_config.preprocessing
    height, width = pre.hw
    tag, several = "", ""
    if config.is_multilabel:
        # The hub's widget reads `problem_type` of config.json; people search by the tag.
        tag, several = "- multi-label\n", ", any number of them an image"
    text = f"""---
library_name: {library}
pipeline_tag: image-classification
tags:
- image-classification
{tag}---
# {_to_line(title)}

`{config.architecture}`, {config.num_classes:,} classes{several}, images of {height} x {width} pixels.

## Usage

```python
{usage}```

## Classes

{_describe_classes(model_config, head, labels_file)}

## Training data

{_describe_data(history)}

## Training recipe

{_describe_recipe(history)}

## Accuracy

{_describe_accuracy(history, head)}

## Preprocessing

{_describe_preprocessing(model_config.preprocessing, inside=preprocesses)}

## Export

Written by deitctl {__version__} and verified against the original model in a fresh process.
{_describe_verification(verification)}"""
    text = f"{text.rstrip()}\n"
    # A hash in the text itself, so that an edit is recognized on the hub or another machine, where
    # no other record is.
    return f"{text}\n{_make_seal(text)}\n"


def is_unedited(text: str) -> bool:
    """Return whether a README.md is as `make_model_card` wrote it, and may be overwritten."""
    start = text.rfind(f"\n{_SEAL}")
    return start >= 0 and text[start + 1 :].strip() == _make_seal(text[:start])


def _make_seal(text: str) -> str:
    """Return the comment that ends an unedited text: a hash of what is before it."""
    return f"{_SEAL}{hashlib.sha256(text.encode()).hexdigest()[:16]} -->"


def _describe_verification(verification: Verification) -> str:
    images = describe_images(
        verification.num_verified,
        _to_code(_hide_folders(verification.data or "")),
        verification.split or ALL,
        verification.num_train_images,
    )
    return (
        f"On {images} logits differ by up to "
        f"{verification.max_abs_diff:.2g}, {describe_agreement(verification)}. {verification.remark}"
    )


def _describe_preprocessing(pre: Preprocessing, *, inside: bool) -> str:
    (height, width), (above, across) = pre.hw, height_width(pre.resize_to)
    resize = f"the short side to {above}" if above == across else f"to cover {above} x {across}"
    if pre.crop_mode == "squash":
        resize = f"to {above} x {across}"
    network = ". The network takes that as uint8 and does the rest itself:" if inside else ","
    channels = {1: "gray (L)", 3: "RGB"}.get(pre.in_chans, f"the {pre.in_chans} bands of a file")
    return (
        f"Resize ({pre.interpolation}) {resize}, crop the center {height} x {width}"
        f"{network} divide by 255, subtract the mean {list(pre.mean)}, "
        f"divide by {list(pre.std)}; channels are {channels}."
    )


def _describe_classes(model_config: ModelConfig, head: str, labels_file: str) -> str:
    if model_config.class_names is None:
        return f"{model_config.num_classes:,}, whose names are unknown."
    listed = [_to_code(model_config.label(i)) for i in range(model_config.num_classes)][:MAX_LISTED]
    more = model_config.num_classes - MAX_LISTED
    if model_config.is_multilabel:
        table = _list_thresholds(model_config, head, listed)
        return (
            f"{table}\n\nThere are {more:,} more; {labels_file} lists them." if more > 0 else table
        )
    names = ", ".join(listed)
    return f"{names} and {more:,} more; {labels_file} lists them all." if more > 0 else f"{names}."


def _list_thresholds(model_config: ModelConfig, head: str, names: Sequence[str]) -> str:
    """Return the table of classes and the probability from which each is predicted."""
    lines = [
        "An image has each class whose probability, a sigmoid of its own, reaches the threshold:",
        "",
        "| class | threshold |",
        "|---|---|",
    ]
    thresholds = model_config.list_thresholds(head)
    lines += [
        f"| {name.replace('|', ' ')} | {t:.4g} |"
        for name, t in zip(names, thresholds, strict=False)
    ]
    return "\n".join(lines)


def _describe_data(history: History) -> str:
    if history.published is not None:
        name = _to_code(history.published.hub_id)
        return f"The weights are {name} as published; its page states the training data."
    data = history.run.get("data")
    if not isinstance(data, str):
        return UNKNOWN
    text = f"Trained on {_to_code(_hide_folders(data))}"
    seen = history.result.get("images_seen")
    return f"{text}, {seen:,} training images seen in total." if _is_count(seen) else f"{text}."


def _describe_recipe(history: History) -> str:
    recipe = _read_table(history.run, "recipe")
    if not recipe:
        if history.published is None:
            return UNKNOWN
        return f"That of {_to_code(history.published.hub_id)}."
    import tomli_w

    values: dict[str, Any] = {
        key: _hide_folders(str(history.run.get(key, ""))) for key in ("model", "weights")
    }
    values["seed"] = history.run.get("seed", 0)
    values["recipe"] = recipe
    # The cache's path says nothing about the model, and the user's name on that machine.
    if distill := _read_table(history.run, "distill"):
        values["distill"] = {k: v for k, v in distill.items() if k != "teacher_cache"}
        for key in distill.keys() & {"teacher", "teacher_weights"}:
            values["distill"][key] = _hide_folders(str(distill[key]))
    lists = re.compile(r"\[\n\s+([^\[\]]*?),\n\]")  # tomli-w gives each number a line
    toml = lists.sub(
        lambda match: f"[{' '.join(match[1].split())}]", tomli_w.dumps(values).replace("```", "")
    )
    return f"From the run's `run.toml`:\n\n```toml\n{toml}```"


def _describe_accuracy(history: History, head: str) -> str:
    if history.published is not None and history.published.top1 is not None:
        top1 = history.published.top1
        return f"Published top-1 on ImageNet: {top1} %; not measured for this export."
    best = _read_table(history.result, "best")
    if not best:
        return "None yet: the run has not finished." if history.run else UNKNOWN
    epoch = f"epoch {_count(best.get('epoch'))} of {_count(history.result.get('epochs'))}"
    num_images = history.result.get("num_val_images")
    count = f" {num_images:,}" if _is_count(num_images) else ""
    several = _list_label_scores(best)
    metric = "mAP" if several else "top-1"
    columns = {"": epoch, **(several or {"top-1": _percent(best.get("top1"))})}
    if (interval := _read_table(best, "top1_interval")) and all(
        _is_percentage(interval.get(end)) for end in ("lower", "upper")
    ):
        columns["95 % interval"] = f"{interval['lower']:.1f} to {interval['upper']:.1f} %"
    if best.get("top5") is not None:
        columns["top-5"] = _percent(best["top5"])
    lines = [
        f"On the run's{count} validation images, held out of training, in fp32:",
        "",
        *(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), columns.values())),
    ]
    if heads := _read_table(history.result, "heads"):
        lines += ["", f"| head | {metric} |", "|---|---|"]
        lines += [
            f"| {_to_code(name)}{' (this folder)' * (name == head)} | {_percent(score)} |"
            for name, score in heads.items()
        ]
    if teacher := _read_table(history.result, "teacher"):
        name = _to_code(_hide_folders(str(teacher.get("name"))))
        score = _percent(teacher.get("map" if several else "top1"))
        lines += ["", f"The teacher, {name}, has {score} {metric} on them."]
    lines += [
        "",
        "The epoch was selected on these images; there are no figures of a separate test set.",
    ]
    return "\n".join(lines)


def _list_label_scores(best: Mapping[str, Any]) -> dict[str, str]:
    """Return the scores of several labels an image by their names; none of one label."""
    names = {"map": "mAP", "macro_f1": "macro F1", "micro_f1": "micro F1", "sample_f1": "sample F1"}
    if best.get("top1") is not None or "map" not in best:
        return {}
    return {name: _percent(best.get(key)) for key, name in names.items()}


def _read_table(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the object under a key; an empty one where the file has something else there."""
    value = values.get(key)
    return value if isinstance(value, Mapping) else {}


def _hide_folders(ref: str) -> str:
    """Return a data set's or model's name: of a path only the last part, as the card is public."""
    path = PurePath(ref)
    return path.name if path.is_absolute() or ref.startswith(("~", "..")) else ref


def _percent(value: Any) -> str:
    return f"{value:.2f} %" if _is_percentage(value) else "unknown"


def _is_percentage(value: Any) -> bool:
    # Of a run's record, which may be anything: Python cannot format an integer of a thousand digits.
    return isinstance(value, int | float) and 0 <= value <= 100


def _count(value: Any) -> str:
    return str(value) if _is_count(value) else "unknown"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 10**15


def _to_code(text: str) -> str:
    """Return a text from a file as inline code, so that nothing in it is markup."""
    return f"`{_to_line(text).replace('`', chr(39))}`"


def _to_line(text: str) -> str:
    return " ".join(text.split())
