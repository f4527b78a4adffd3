"""The DeiT family by name: architecture, input, published weights. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from deitctl.errors import did_you_mean
from deitctl.models.model_config import ModelConfig, Preprocessing

OFFICIAL_URL = "https://dl.fbaipublicfiles.com/deit/"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The shape of a DeiT (DeiT Table 1; DeiT-III Table 1) and where its weights are."""

    alias: str
    name: str
    """timm's name of the architecture."""
    tag: str
    """timm's name of the weights; `timm/{name}.{tag}` is their repository on the hub."""
    url: str
    """The authors' own file, below `OFFICIAL_URL`."""
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
    """Published top-1 on ImageNet, percent (timm's results for crop_pct)."""

    @property
    def hub_id(self) -> str:
        return f"timm/{self.name}.{self.tag}"

    @property
    def weights_file(self) -> str:
        """File name that is looked for in `$DEITCTL_WEIGHTS`."""
        return f"{self.name}.{self.tag}.safetensors"

    def to_model_config(self) -> ModelConfig:
        """Return the config of the published ImageNet weights."""
        ids, descriptions = imagenet_classes()
        return ModelConfig(
            architecture=self.name,
            num_classes=1000,
            class_names=ids,
            descriptions=descriptions,
            preprocessing=Preprocessing(img_size=self.img_size, crop_pct=self.crop_pct),
            head="avg-logits" if self.distilled else "cls",
        )


def _deit(
    size: str, dim: int, heads: int, res: int, distilled: bool, code: str, top1: float
) -> Architecture:
    token = "_distilled" if distilled else ""
    name = f"deit_{size}{token}_patch16_{res}"
    return Architecture(
        alias=f"deit_{size}" + ("_384" if res == 384 else "") + token,
        name=name,
        tag="fb_in1k",
        url=f"{name}-{code}.pth",
        embed_dim=dim,
        num_heads=heads,
        img_size=res,
        distilled=distilled,
        crop_pct=1.0 if res == 384 else 0.9,
        top1=top1,
    )


def _deit3(
    size: str, dim: int, heads: int, depth: int, patch: int, res: int, in22k: bool, file: str
) -> Architecture:
    return Architecture(
        alias=f"deit3_{size}" + ("_384" if res == 384 else "") + ("_in22k" if in22k else ""),
        name=f"deit3_{size}_patch{patch}_{res}",
        tag="fb_in22k_ft_in1k" if in22k else "fb_in1k",
        url=file,
        embed_dim=dim,
        num_heads=heads,
        depth=depth,
        patch_size=patch,
        img_size=res,
        layer_scale=True,
        no_embed_class=True,
        crop_pct=0.9 if res == 224 and not in22k else 1.0,
    )


ARCHITECTURES = (
    _deit("tiny", 192, 3, 224, False, "a1311bcf", 72.190),
    _deit("tiny", 192, 3, 224, True, "b40b3cf7", 74.538),
    _deit("small", 384, 6, 224, False, "cd65a155", 79.856),
    _deit("small", 384, 6, 224, True, "649709d9", 81.204),
    _deit("base", 768, 12, 224, False, "b5f2ef4d", 81.980),
    _deit("base", 768, 12, 224, True, "df68dfff", 83.384),
    _deit("base", 768, 12, 384, False, "8de9b5d1", 83.108),
    _deit("base", 768, 12, 384, True, "d0272ac0", 85.438),
    *(
        _deit3(
            size,
            dim,
            heads,
            depth,
            patch,
            res,
            in22k,
            f"deit_3_{size}_{res}_{'21k' if in22k else '1k'}{v}.pth",
        )
        for size, dim, heads, depth, patch, resolutions, v21 in (
            ("small", 384, 6, 12, 16, (224, 384), ""),
            ("medium", 512, 8, 12, 16, (224,), ""),
            ("base", 768, 12, 12, 16, (224, 384), ""),
            ("large", 1024, 16, 24, 16, (224, 384), ""),
            ("huge", 1280, 16, 32, 14, (224,), "_v1"),
        )
        for res in resolutions
        for in22k, v in ((False, ""), (True, v21))
    ),
)

BY_ALIAS = {a.alias: a for a in ARCHITECTURES}
DEFAULT_MODEL = "deit_small_distilled"  # 81.2 % on ImageNet in 90 MB


def find(name: str) -> Architecture | None:
    """Return the architecture that an alias, or timm's name with or without its tag, means; None if it is no DeiT."""
    if name in BY_ALIAS:
        return BY_ALIAS[name]
    plain, _, tag = name.partition(".")
    matches = [a for a in ARCHITECTURES if a.name == plain and tag in ("", a.tag)]
    return matches[0] if matches else None


def distilled(arch: Architecture) -> Architecture:
    """Return the model with a distillation token that goes with a plain DeiT, or `arch` where there is none."""
    return BY_ALIAS.get(f"{arch.alias}_distilled", arch)


def plain(arch: Architecture) -> Architecture:
    """Return the model without the distillation token."""
    return BY_ALIAS[arch.alias.removesuffix("_distilled")]


def suggest(name: str) -> str:
    """Name the nearest aliases to a misspelt one."""
    return did_you_mean(name, [*BY_ALIAS, *(a.name for a in ARCHITECTURES)])


@lru_cache(maxsize=1)
def imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return ImageNet-1k's WordNet ids and names, in the order of every published model's logits."""
    text = resources.files("deitctl").joinpath("assets/imagenet1k.tsv").read_text(encoding="utf-8")
    ids, names = zip(*(line.split("\t", 1) for line in text.splitlines()), strict=True)
    return ids, names
