"""Values that the shell completes, where they are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def _complete(values: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [value for value in values() if value.startswith(incomplete)]

    return complete


def _list_models() -> list[str]:
    from deitctl.models.catalog import ARCHITECTURES

    return [arch.alias for arch in ARCHITECTURES]


def _list_recipes() -> list[str]:
    from deitctl.recipes import RECIPES

    return list(RECIPES)


def _list_set_keys() -> list[str]:
    from deitctl.settings import list_settings

    # those with an option of their own come last: the option is shorter
    settings = sorted(list_settings(), key=lambda setting: bool(setting.option.panel))
    return [f"{setting.name.removeprefix('recipe.')}=" for setting in settings]


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
HEADS = ("auto", "cls", "dist", "avg-logits", "avg-probs")
DEVICES = ("auto", "cuda", "cuda:0", "mps", "cpu")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

complete_model = _complete(_list_models)
complete_recipe = _complete(_list_recipes)
complete_export_format = _complete(lambda: EXPORT_FORMATS)
complete_set = _complete(_list_set_keys)
complete_head = _complete(lambda: HEADS)
complete_device = _complete(lambda: DEVICES)
complete_precision = _complete(lambda: PRECISIONS)


def complete_values(*values: str) -> Callable[[str], list[str]]:
    """Return a completion of fixed values."""
    return _complete(lambda: values)
