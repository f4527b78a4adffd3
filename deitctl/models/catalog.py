"""The DeiT family by name: architectures, input sizes, published weights. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources

from deitctl.models.model_config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ModelConfig,
    Preprocessing,
    fit_channels,
)
from deitctl.sizes import ImageSize, height_width

OFFICIAL_URL = "https://dl.fbaipublicfiles.com/deit/"
TOP1_SOURCE = (
    "https://github.com/huggingface/pytorch-image-models/blob/main/results/results-imagenet.csv"
)

SHAPE: dict[str, type] = {
    "patch_size": int,
    "depth": int,
    "embed_dim": int,
    "num_heads": int,
    "mlp_ratio": float,
    "qkv_bias": bool,
    "in_chans": int,
}
"""Fields of an `Architecture` that a user may choose, and their types; timm's arguments have the same
names."""

TIMM_TAGS = {
    # The paper's teacher (DeiT section 5.2), by its authors: ImageNet-1k alone, 83.0 %.
    "regnety_160": "deit_in1k",
    # The paper's smaller teachers (Table 2) were not published: others of ImageNet-1k alone.
    "regnety_120": "pycls_in1k",
    "regnety_080": "ra3_in1k",
    "regnety_040": "ra3_in1k",
    "regnety_002": "pycls_in1k",  # the teacher of `digits`
}
"""Weights that a timm name without a tag means; timm's own default may be of more data."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Hyperparameters of a DeiT (DeiT Table 1, DeiT-III Table 1) and its published weights."""

    alias: str
    name: str
    """timm's name of the architecture."""
    tag: str
    """timm's name of the weights; their hub repository is `timm/{name}.{tag}`."""
    url: str
    """The authors' file, relative to `OFFICIAL_URL`."""
    embed_dim: int
    num_heads: int
    depth: int = 12
    patch_size: int = 16
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    in_chans: int = 3
    img_size: ImageSize = 224
    distilled: bool = False
    layer_scale: bool = False
    no_embed_class: bool = False
    """DeiT-III: the class token has no position embedding."""
    crop_pct: float = 0.9
    top1: float
    """Top-1 on ImageNet at `img_size` and `crop_pct`, percent, as timm measures it (TOP1_SOURCE)."""

    @property
    def hidden_dim(self) -> int:
        """Width of the hidden layer of the MLP; timm rounds down."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = height_width(self.img_size)
        return height // self.patch_size, width // self.patch_size

    @property
    def full_name(self) -> str:
        """timm's name of the architecture and its weights."""
        return f"{self.name}.{self.tag}"

    @property
    def hub_id(self) -> str:
        return f"timm/{self.full_name}"

    @property
    def weights_file(self) -> str:
        """File name in `$DEITCTL_WEIGHTS`."""
        return f"{self.full_name}.safetensors"

    @property
    def num_params(self) -> int:
        """Parameters of the published model, with its thousand classes."""
        dim, num_heads = self.embed_dim, 2 if self.distilled else 1
        num_patches = self.grid[0] * self.grid[1]
        num_positions = num_patches if self.no_embed_class else num_patches + num_heads
        embedding = 3 * self.patch_size**2 * dim + dim + (num_heads + num_positions) * dim
        # Weights of query, key, value, projection (4) and MLP (8); biases (9) and two norms (4).
        block = 12 * dim**2 + (13 + 2 * self.layer_scale) * dim
        return embedding + self.depth * block + 2 * dim + num_heads * (dim + 1) * 1000

    def to_model_config(self) -> ModelConfig:
        """Return the config of the published ImageNet weights."""
        ids, descriptions = load_imagenet_classes()
        return ModelConfig(
            architecture=self.name,
            num_classes=1000,
            class_names=ids,
            descriptions=descriptions,
            preprocessing=Preprocessing(
                img_size=self.img_size,
                crop_pct=self.crop_pct,
                mean=fit_channels(IMAGENET_MEAN, self.in_chans),
                std=fit_channels(IMAGENET_STD, self.in_chans),
            ),
            head="avg-logits" if self.distilled else "cls",
        )


def _build_deit(
    size: str, dim: int, num_heads: int, img_size: int, distilled: bool, file_hash: str, top1: float
) -> Architecture:
    token = "_distilled" if distilled else ""
    name = f"deit_{size}{token}_patch16_{img_size}"
    return Architecture(
        alias=f"deit_{size}" + ("_384" if img_size == 384 else "") + token,
        name=name,
        tag="fb_in1k",
        url=f"{name}-{file_hash}.pth",
        embed_dim=dim,
        num_heads=num_heads,
        img_size=img_size,
        distilled=distilled,
        crop_pct=1.0 if img_size == 384 else 0.9,
        top1=top1,
    )


def _build_deit3(
    size: str, dim: int, num_heads: int, depth: int, patch: int, img_size: int, *top1: float
) -> tuple[Architecture, ...]:
    """Return a size's models of ImageNet-1k and of ImageNet-22k, whose accuracies are given."""
    return tuple(
        Architecture(
            alias=f"deit3_{size}"
            + ("_384" if img_size == 384 else "")
            + ("_in22k" if in22k else ""),
            name=f"deit3_{size}_patch{patch}_{img_size}",
            tag="fb_in22k_ft_in1k" if in22k else "fb_in1k",
            url=f"deit_3_{size}_{img_size}_{file_suffix}.pth",
            embed_dim=dim,
            num_heads=num_heads,
            depth=depth,
            patch_size=patch,
            img_size=img_size,
            layer_scale=True,
            no_embed_class=True,
            crop_pct=0.9 if img_size == 224 and not in22k else 1.0,
            top1=percent,
        )
        for in22k, file_suffix, percent in zip(
            # the authors' file names say 21k for ImageNet-22k
            (False, True),
            ("1k", "21k_v1" if size == "huge" else "21k"),
            top1,
            strict=True,
        )
    )


# DeiT: Touvron et al. 2021, Table 1. DeiT-III: 2204.07118, Table 1.
ARCHITECTURES = (
    # size, D, heads, pixels, distilled, hash of the authors' file, top-1
    _build_deit("tiny", 192, 3, 224, False, "a1311bcf", 72.190),
    _build_deit("tiny", 192, 3, 224, True, "b40b3cf7", 74.538),
    _build_deit("small", 384, 6, 224, False, "cd65a155", 79.856),
    _build_deit("small", 384, 6, 224, True, "649709d9", 81.204),
    _build_deit("base", 768, 12, 224, False, "b5f2ef4d", 81.980),
    _build_deit("base", 768, 12, 224, True, "df68dfff", 83.384),
    _build_deit("base", 768, 12, 384, False, "8de9b5d1", 83.108),
    _build_deit("base", 768, 12, 384, True, "d0272ac0", 85.438),
    # size, D, heads, depth, patch, pixels, top-1 of ImageNet-1k, of ImageNet-22k
    *_build_deit3("small", 384, 6, 12, 16, 224, 81.382, 83.082),
    *_build_deit3("small", 384, 6, 12, 16, 384, 83.432, 84.846),
    *_build_deit3("medium", 512, 8, 12, 16, 224, 83.090, 84.550),
    *_build_deit3("base", 768, 12, 12, 16, 224, 83.800, 85.728),
    *_build_deit3("base", 768, 12, 12, 16, 384, 85.088, 86.742),
    *_build_deit3("large", 1024, 16, 24, 16, 224, 84.772, 86.990),
    *_build_deit3("large", 1024, 16, 24, 16, 384, 85.820, 87.736),
    *_build_deit3("huge", 1280, 16, 32, 14, 224, 85.204, 87.180),
)

BY_ALIAS = {a.alias: a for a in ARCHITECTURES}
DEFAULT_MODEL = "deit_small_distilled"  # 81.2 % on ImageNet in 90 MB


def find(name: str) -> Architecture | None:
    """Return the DeiT of an alias or of timm's name, with or without tag; None without one."""
    if name in BY_ALIAS:
        return BY_ALIAS[name]
    base, _, tag = name.partition(".")
    return next((a for a in ARCHITECTURES if a.name == base and tag in ("", a.tag)), None)


def get_distilled(arch: Architecture) -> Architecture:
    """Return the variant with a distillation token, of the same shape, or `arch` where there is none."""
    variant = BY_ALIAS.get(f"{arch.alias}_distilled")
    return arch if variant is None else _take_shape(variant, arch)


def get_plain(arch: Architecture) -> Architecture:
    """Return the variant without a distillation token, of the same shape."""
    return _take_shape(BY_ALIAS[arch.alias.removesuffix("_distilled")], arch)


def _take_shape(variant: Architecture, arch: Architecture) -> Architecture:
    """Return a variant with the shape of `arch`, which may be a user's own."""
    return replace(variant, **{name: getattr(arch, name) for name in SHAPE})


@lru_cache(maxsize=1)
def load_imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return ImageNet-1k's WordNet ids and names, in the order of the published models' logits."""
    # A copy of our own, although timm has the names: its import takes 5 s.
    text = resources.files("deitctl").joinpath("assets/imagenet1k.tsv").read_text(encoding="utf-8")
    ids, names = zip(*(line.split("\t", 1) for line in text.splitlines()), strict=True)
    return ids, names
