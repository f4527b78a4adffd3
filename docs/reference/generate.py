"""Writes docs/reference/json.md from the result dataclasses: `python docs/reference/generate.py`."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from deitctl.checks.check import CheckResult
from deitctl.cli.models import ModelList
from deitctl.config import Option
from deitctl.distillation.precompute import CacheTeacherResult, VerifyCacheResult
from deitctl.distillation.rank import TeacherRanking
from deitctl.evaluation.multilabel_result import MultilabelImageResult, MultilabelResult
from deitctl.evaluation.result import EvalResult, ImageResult
from deitctl.evaluation.results import EvalResults
from deitctl.explanation.explanation import Explanation
from deitctl.exporters.export import ExportResult
from deitctl.exporters.verify import VerifyResult
from deitctl.hub.push import PushResult
from deitctl.inference.classifier import Prediction
from deitctl.models.model_config import ValueRange
from deitctl.packing.pack import PackResult
from deitctl.packing.verify import PackVerification
from deitctl.profiling.bench_result import BenchResult
from deitctl.profiling.environment import Environment
from deitctl.profiling.recipe_info import RecipeDetails, RecipeList
from deitctl.records import SCHEMA_VERSION, describe_fields
from deitctl.sweeps.result import SweepResult
from deitctl.sweeps.run_list import RunComparison, RunList
from deitctl.training.folds import FoldsResult
from deitctl.training.plan import TrainPlan
from deitctl.training.replay import Replay
from deitctl.training.reproduce import Reproduction
from deitctl.training.result import TrainResult

PAGE = Path(__file__).with_name("json.md")
RESULTS: dict[str, type] = {
    "train, distill; RUN/result.json": TrainResult,
    "train --folds, distill --folds; OUTPUT/folds.json": FoldsResult,
    "train --dry-run, distill --dry-run": TrainPlan,
    "train --replay": Replay,
    "reproduce": Reproduction,
    "rank-teachers": TeacherRanking,
    "cache-teacher": CacheTeacherResult,
    "cache-teacher --verify": VerifyCacheResult,
    "sweep; sweep.json": SweepResult,
    "runs": RunList,
    "runs --compare": RunComparison,
    "eval of one model and protocol": EvalResult,
    "eval of one model on images of several labels each": MultilabelResult,
    "eval of several models or protocols": EvalResults,
    "a line of eval --predictions": ImageResult,
    "a line of eval --predictions of several labels": MultilabelImageResult,
    "bench": BenchResult,
    "check": CheckResult,
    "pack": PackResult,
    "pack --verify": PackVerification,
    "predict, for each input": Prediction,
    "explain, for each input": Explanation,
    "export": ExportResult,
    "verify": VerifyResult,
    "push": PushResult,
    "models": ModelList,
    "recipes": RecipeList,
    "recipes NAME": RecipeDetails,
    "doctor": Environment,
}
"""What prints or writes a result, and its class."""
COMMON = {
    "bytes": "Size.",
    "data": "Data, as it was named.",
    "device": "torch's name of the device.",
    "epochs": "Passes over the training images.",
    "error": "Why there is no result; null if there is one.",
    "first": "The class that the head predicts.",
    "forward": "Forward pass.",
    "image": "File of the drawing.",
    "img_size": "Side of the input in pixels.",
    "input": "File, folder's file or address.",
    "method": "Method of the attention map.",
    "model": "Model, as it was named.",
    "name": "Name.",
    "num_classes": "Classes of the data.",
    "num_images": "Images.",
    "num_train_images": "Training images.",
    "num_val_images": "Validation images.",
    "num_workers": "Loader processes.",
    "precision": "`fp32`, `tf32`, `bf16` or `fp16`.",
    "recipe": "Name of the recipe.",
    "seconds": "Duration.",
    "teacher": "Of the teacher; null without one.",
}
"""Meaning of keys that are the same everywhere."""
PLAIN = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    Path: "string",
    Any: "any",
}
HEAD = f"""# JSON

Written by `python docs/reference/generate.py` from the result dataclasses, which are what the Python API returns.

Every command prints a table on a terminal and JSON elsewhere, or as `--format` says: one object, or for `predict` and
`explain` one object a line (`predict --format json`: an array). Keys are snake_case. `top1`, `top5`, recall, precision
and agreements are in percent, the bins of `reliability` in 0 to 1; times are in seconds and sizes in bytes, unless the
name ends in a unit (`_mib`, `_px`). A number that JSON does not have (NaN, infinity) is null. The outermost object also
has `schema_version`, now {SCHEMA_VERSION}, which goes up when a key changes its meaning or goes away. New keys do not
count, so ignore those that you do not know.

`eval` prints what the function for its arguments returns: `deitctl.evaluate` for one model under one protocol, an
`EvalResult`, or of several labels an image a `MultilabelResult`, which has `map` and no `top1`; `evaluate_models` for
several, an `EvalResults`, which has one of either each in `evaluations`. These keys tell them apart.
"""


def build_page() -> str:
    """Return the page."""
    sections, pending = [], list(RESULTS.values())
    titles = {kind: title for title, kind in RESULTS.items()}
    while pending:
        kind = pending.pop(0)
        sections.append(_build_section(kind, titles.get(kind)))
        for nested in _find_dataclasses(kind):
            if nested not in titles:
                titles[nested] = ""
                pending.append(nested)
    listing = [
        f"- `{title}`: [{kind.__name__}](#{kind.__name__.lower()})"
        for title, kind in RESULTS.items()
    ]
    return "\n".join([HEAD, *listing, "", *sections]).rstrip() + "\n"


def _build_section(kind: type, title: str | None) -> str:
    lines = [f"## {kind.__name__}", ""]
    if title:
        lines += [f"Of `{title}`.", ""]
    lines += ["| key | type | meaning |", "|---|---|---|"]
    options = get_type_hints(kind, include_extras=True)
    for name, hint, meaning in describe_fields(kind):
        for extra in get_args(options[name]):
            meaning = extra.help if isinstance(extra, Option) else meaning
        kinds = [k for k in (hint, *get_args(hint)) if dataclasses.is_dataclass(k)]
        if not meaning and kinds:  # what a nested result is, its class says
            meaning = (kinds[0].__doc__ or "").partition("\n")[0]
        cell = (meaning or COMMON.get(name, "")).replace("|", "\\|")
        lines.append(f"| `{name}` | {_name_type(hint)} | {cell} |")
    return "\n".join([*lines, ""])


def _name_type(hint: Any) -> str:
    """Return the JSON type of an annotation, with a link for a dataclass."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in PLAIN:
        return PLAIN[hint]
    if hint is ValueRange:
        return "array of two numbers and a boolean"
    if dataclasses.is_dataclass(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    if origin in (Union, types.UnionType):
        return " or ".join("null" if arg is type(None) else _name_type(arg) for arg in args)
    if origin is Literal:
        return "string"
    if hasattr(origin, "keys"):
        return f"object of {_name_type(args[1])}"
    if origin is not None and args[-1] is not Ellipsis and len(args) > 1:
        return f"array of {len(args)} {_name_type(args[0])}s"
    return f"array of {_name_type(args[0])}"


def _find_dataclasses(hint: Any) -> list[type]:
    """Return the dataclasses within an annotation, or within the JSON fields of one."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = [field for _, field, _ in describe_fields(hint)]
    else:
        hints = [hint]
    nested: list[type] = []
    for part in hints:
        if isinstance(part, type) and dataclasses.is_dataclass(part):
            nested.append(part)
        for arg in get_args(part):
            nested += (
                [arg]
                if dataclasses.is_dataclass(arg)
                else _find_dataclasses(arg)
                if get_args(arg)
                else []
            )
    return nested


if __name__ == "__main__":
    PAGE.write_text(build_page(), encoding="utf-8")
