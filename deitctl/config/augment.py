"""Settings of what is done to a training image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from deitctl.config.option import MAX_COUNT, Option


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to a training image; every draw is a function of (seed, sample key)."""

    crop_scale: Annotated[
        tuple[float, float],
        Option(
            "Area of the random resized crop, relative to the image; (1, 1): no crop.", gt=0, le=1
        ),
    ]
    crop_ratio: Annotated[
        tuple[float, float], Option("Aspect ratios of the crop, as torchvision has them.", gt=0)
    ] = (3 / 4, 4 / 3)
    crop_mode: Annotated[
        Literal["rrc", "src"],
        Option(
            "rrc: random resized crop; src: the image resized to the input, then DeiT-III's simple random crop."
        ),
    ] = "rrc"
    hflip: Annotated[float, Option("Probability of a left-right flip.", ge=0, le=1)]
    affine: Annotated[
        tuple[float, float, float],
        Option(
            "Largest rotation (degrees), scaling and shift (of the side) of an affine map.", ge=0
        ),
    ] = (0.0, 0.0, 0.0)
    rand_augment: Annotated[str, Option("timm's RandAugment string; empty: none.")] = ""
    three_augment: Annotated[
        bool,
        Option(
            "DeiT-III's 3-Augment: every image is turned gray, solarized or blurred; color jitter follows."
        ),
    ] = False
    color_jitter: Annotated[
        float,
        Option(
            "Strength of brightness, contrast and saturation jitter; off with RandAugment.", ge=0
        ),
    ] = 0.0
    random_erase_prob: Annotated[
        float, Option("Probability of random erasing with per-pixel noise.", ge=0, le=1)
    ] = 0.0
    mixup: Annotated[float, Option("Beta parameter of mixup; 0: none.", ge=0)] = 0.0
    cutmix: Annotated[float, Option("Beta parameter of cutmix; 0: none.", ge=0)] = 0.0
    mixup_prob: Annotated[float, Option("Probability of mixing a group of images.", ge=0, le=1)] = (
        1.0
    )
    mixup_switch_prob: Annotated[
        float, Option("Probability of cutmix where mixup and cutmix are both on.", ge=0, le=1)
    ] = 0.5
    mixup_group_size: Annotated[
        int,
        Option(
            "Neighboring images of a batch that share a draw of mixup or cutmix.",
            ge=2,
            le=MAX_COUNT,
        ),
    ] = 64
    repeated_aug: Annotated[
        int, Option("Views of an image in an epoch of 1/N of the images.", ge=1, le=MAX_COUNT)
    ] = 1
    student_affine: Annotated[
        tuple[float, float, float],
        Option("Affine map of cached views that the student alone sees; as affine.", ge=0),
    ] = (0.0, 0.0, 0.0)
