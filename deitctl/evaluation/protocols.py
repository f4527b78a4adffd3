"""The preprocessings under which accuracies of DeiT have been published; they differ by tenths of a point."""

from __future__ import annotations

from dataclasses import replace

from deitctl.errors import ConfigError
from deitctl.models import catalog
from deitctl.models.model_config import ModelConfig, Preprocessing

PROTOCOLS = ("native", "deit", "timm", "hf")
RELEASED_CROP = 224 / 256  # deit/datasets.py: resize to 256/224 of the input size, then crop


def preprocessing_for(model_config: ModelConfig, protocol: str) -> Preprocessing:
    """Return the preprocessing of a protocol for a model.

    `native` is the model config's own; `deit` the released code's (crop 0.875); `timm` the one of timm's table;
    `hf` Hugging Face's DeiTImageProcessor: squashed to a square whatever the aspect ratio, then cropped.

    Raises:
        ConfigError: there is no such protocol, or timm publishes nothing for this architecture.
    """
    own = model_config.preprocessing
    if protocol == "native":
        return own
    if protocol == "deit":
        return replace(own, crop_pct=RELEASED_CROP, crop_mode="center", interpolation="bicubic")
    if protocol == "hf":
        return replace(own, crop_pct=RELEASED_CROP, crop_mode="squash", interpolation="bicubic")
    if protocol == "timm":
        arch = catalog.find(model_config.architecture)
        if arch is None:
            raise ConfigError(
                f"deitctl has no timm protocol for {model_config.architecture}.",
                "Its own is --protocol native.",
            )
        return replace(own, crop_pct=arch.crop_pct, crop_mode="center", interpolation="bicubic")
    raise ConfigError(f"There is no protocol {protocol!r}.", f"There are: {', '.join(PROTOCOLS)}.")
