"""Values that the shell completes, where they are known."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import typer

MAX_RUNS = 1000
"""Entries of `runs/` that are looked at."""


def _complete(values: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return complete_from(values(), incomplete)

    return complete


def complete_from(values: Iterable[str], incomplete: str) -> list[str]:
    """Return the values that begin as the word does."""
    return [value for value in values if value.startswith(incomplete)]


def _list_models() -> list[str]:
    from deitctl.models.catalog import ARCHITECTURES

    return [*(arch.alias for arch in ARCHITECTURES), *list_runs()]


def _list_teachers() -> list[str]:
    from deitctl.models.catalog import TIMM_TAGS

    return [*TIMM_TAGS, *_list_models()]


def complete_data(incomplete: str) -> list[str]:
    """Return data sets that have a name, and files beside them that begin so; the shell completes other paths."""
    from deitctl.data.named.names import list_names

    names = complete_from(list_names(), incomplete)
    if not (incomplete and names):
        return []
    with os.scandir() as entries:
        return [*names, *complete_from((e.name for e in islice(entries, MAX_RUNS)), incomplete)]


def list_runs() -> Iterator[str]:
    """Yield the runs in `runs/`."""
    try:
        with os.scandir("runs") as entries:
            for entry in islice(entries, MAX_RUNS):
                if os.path.isfile(os.path.join(entry.path, "run.toml")):
                    yield f"runs/{entry.name}"
    except OSError:
        return


def _list_recipes() -> list[str]:
    from deitctl.recipes import RECIPES

    return list(RECIPES)


def complete_set(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return settings with `=` for `--set`; those of a teacher where the command can have one."""
    from deitctl.settings import list_settings

    # those with an option of their own come last: the option is shorter
    settings = sorted(list_settings(), key=lambda setting: bool(setting.option.panel))
    names = (
        s.name for s in settings if ctx.info_name != "train" or not s.name.startswith("distill.")
    )
    return complete_from((f"{name.removeprefix('recipe.')}=" for name in names), incomplete)


def complete_vary(incomplete: str) -> list[str]:
    """Return settings with `=` for `--vary`, those of the machine left out."""
    from deitctl.config import MACHINE_SETTINGS
    from deitctl.settings import list_settings

    names = [s.name.removeprefix("recipe.") for s in list_settings()]
    return complete_from([f"{name}=" for name in names if name not in MACHINE_SETTINGS], incomplete)


# The keys of exporters.formats.FORMATS, whose import takes torch: seconds at each Tab. A test compares the two.
EXPORT_FORMATS = (
    "onnx",
    "torch",
    "timm",
    "transformers",
    "openvino",
    "web",
    "coreml",
    "executorch",
    "aoti",
)
# The keys of sweeps.presets.PRESETS, likewise.
PRESETS = ("deit-table3", "deit-table2", "deit-in-small", "beyond-in-small")
HEADS = ("auto", "cls", "dist", "avg-logits", "avg-probs")
TASKS = ("auto", "classification", "multilabel")
DEVICES = ("auto", "cuda", "cuda:0", "mps", "cpu")
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")

complete_model = _complete(_list_models)
complete_teacher = _complete(_list_teachers)
complete_resume = _complete(lambda: ["auto", *list_runs()])
complete_run = _complete(list_runs)
complete_recipe = _complete(_list_recipes)
complete_device = _complete(lambda: DEVICES)


def complete_values(*values: str) -> Callable[[str], list[str]]:
    """Return a completion of fixed values."""
    return _complete(lambda: values)
