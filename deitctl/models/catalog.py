"""The DeiT family by name: architectures, input sizes, published weights. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from deitctl.models.model_config import ModelConfig, Preprocessing

OFFICIAL_URL = "https://dl.fbaipublicfiles.com/deit/"


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
    img_size: int = 224
    distilled: bool = False
    layer_scale: bool = False
    no_embed_class: bool = False
    """DeiT-III: the class token has no position embedding."""
    crop_pct: float = 0.9
    top1: float | None = None
    """Published top-1 on ImageNet, percent (timm's result at `crop_pct`)."""

    @property
    def hub_id(self) -> str:
        return f"timm/{self.name}.{self.tag}"

    @property
    def weights_file(self) -> str:
        """File name in `$DEITCTL_WEIGHTS`."""
        return f"{self.name}.{self.tag}.safetensors"

    def to_model_config(self) -> ModelConfig:
        """Return the config of the published ImageNet weights."""
        ids, descriptions = load_imagenet_classes()
        return ModelConfig(
            architecture=self.name,
            num_classes=1000,
            class_names=ids,
            descriptions=descriptions,
            preprocessing=Preprocessing(img_size=self.img_size, crop_pct=self.crop_pct),
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
    size: str, dim: int, num_heads: int, depth: int, patch: int, img_size: int, in22k: bool
) -> Architecture:
    pretraining = "21k" if in22k else "1k"  # the authors' file names say 21k for ImageNet-22k
    version = "_v1" if size == "huge" and in22k else ""
    return Architecture(
        alias=f"deit3_{size}" + ("_384" if img_size == 384 else "") + ("_in22k" if in22k else ""),
        name=f"deit3_{size}_patch{patch}_{img_size}",
        tag="fb_in22k_ft_in1k" if in22k else "fb_in1k",
        url=f"deit_3_{size}_{img_size}_{pretraining}{version}.pth",
        embed_dim=dim,
        num_heads=num_heads,
        depth=depth,
        patch_size=patch,
        img_size=img_size,
        layer_scale=True,
        no_embed_class=True,
        crop_pct=0.9 if img_size == 224 and not in22k else 1.0,
    )


# DeiT: Touvron et al. 2021, Table 1; top-1 as timm measures it at crop_pct. DeiT-III: 2204.07118,
# Table 1.
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
    *(
        _build_deit3(size, dim, num_heads, depth, patch, img_size, in22k)
        for size, dim, num_heads, depth, patch, img_sizes in (
            ("small", 384, 6, 12, 16, (224, 384)),
            ("medium", 512, 8, 12, 16, (224,)),
            ("base", 768, 12, 12, 16, (224, 384)),
            ("large", 1024, 16, 24, 16, (224, 384)),
            ("huge", 1280, 16, 32, 14, (224,)),
        )
        for img_size in img_sizes
        for in22k in (False, True)
    ),
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
    """Return the variant with a distillation token, or `arch` itself where there is none."""
    return BY_ALIAS.get(f"{arch.alias}_distilled", arch)


def get_plain(arch: Architecture) -> Architecture:
    """Return the variant without a distillation token."""
    return BY_ALIAS[arch.alias.removesuffix("_distilled")]


@lru_cache(maxsize=1)
def load_imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return ImageNet-1k's WordNet ids and names, in the order of the published models' logits."""
    # A copy of our own, although timm has the names: its import takes 5 s.
    text = resources.files("deitctl").joinpath("assets/imagenet1k.tsv").read_text(encoding="utf-8")
    ids, names = zip(*(line.split("\t", 1) for line in text.splitlines()), strict=True)
    return ids, names
