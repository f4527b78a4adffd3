"""State dicts for a DeiT: infer the architecture, adapt to other sizes, classes and tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from deitctl.config import MAX_CHANS
from deitctl.errors import ModelError
from deitctl.models.adapt import adapt_input_conv, adapt_shape
from deitctl.models.catalog import ARCHITECTURES, Architecture, find, get_distilled, get_plain
from deitctl.models.own_shape import has_own_shape
from deitctl.models.recognize import VITS, describe, recognize, suggest
from deitctl.models.vit import VisionTransformer, resize_pos_embed
from deitctl.sizes import ImageSize, format_size, height_width, make_size, short_side

_KINDS = ("weight", "bias")


def normalize_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename layer scales of the authors' DeiT-III files, `gamma_1`, to timm's `ls1.gamma`."""
    return {
        k.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): v
        for k, v in state.items()
    }


def infer_architecture(
    shapes: Mapping[str, Sequence[int]],
    where: str,
    stored: str = "",
    *,
    own: Sequence[Architecture] = (),
    img_size: ImageSize = 0,
) -> Architecture:
    """Return the DeiT whose parameters have these shapes, with the input size that is stated if one is.

    Args:
        shapes: by timm's names.
        where: names the file.
        stored: the architecture that its trainer named in it, for the message.
        own: architectures of a shape that is not in the catalog, which the weights may be of.
        img_size: of the input in pixels, as the file states it; 0 where it does not.

    Raises:
        ModelError: there is none; the message says what the weights are of.
    """
    try:
        dim, channels, patch, _ = shapes["patch_embed.proj.weight"]
        depth = 1 + max(int(k.split(".")[1]) for k in shapes if k.startswith("blocks."))
        num_positions = shapes["pos_embed"][1]
    except (KeyError, ValueError, IndexError):
        raise ModelError(
            f"{where} does not hold a DeiT, but {describe(shapes)}.",
            suggest(recognize(shapes), stored),
        ) from None
    # By parameters, not by the file's name or a config, either of which may be wrong.
    distilled = "dist_token" in shapes
    layer_scale = "blocks.0.ls1.gamma" in shapes
    hidden = shapes.get("blocks.0.mlp.fc1.weight", (4 * dim,))[0]
    has_bias = "blocks.0.attn.qkv.bias" in shapes or "blocks.0.attn.qkv.weight" not in shapes
    sizes = (dim, depth, patch, channels, hidden, has_bias, distilled, layer_scale)
    # A user's own shape first: the number of heads, which no parameter shows, is that one's.
    catalog = [a if channels == 3 else replace(a, in_chans=channels) for a in ARCHITECTURES]
    candidates = [a for a in (*own, *catalog) if _list_sizes(a) == sizes]
    if not candidates:
        vit = VITS.get((dim, depth, patch)) if not (distilled or layer_scale) else None
        kind = recognize(shapes)
        raise ModelError(
            f"{where} is an unknown DeiT: width {dim}, depth {depth}, patches of {patch} pixels"
            f"{f'; it is {kind}' if kind else ''}.",
            f"It may be timm's: --model {stored.partition('.')[0] or vit} --weights FILE."
            if vit or stored
            else "See `deitctl models`. A model of a shape of its own is known by its folder: its "
            "config.json says how many heads it has.",
        )
    if channels > MAX_CHANS:
        raise ModelError(
            f"{where} is a DeiT for images of {channels} channels: up to {MAX_CHANS} are read."
        )
    _require_names(shapes, depth, candidates[0], where, stored)
    # DeiT-III has layer scale and no positions for its class token
    num_prefix_tokens = 0 if layer_scale else 1 + distilled
    num_patches = num_positions - num_prefix_tokens
    stated = candidates[0] if candidates[0] in own else None
    stated_sizes = [img_size, *([stated.img_size] if stated else [])]
    fitting = [size for size in stated_sizes if size and count_patches(size, patch) == num_patches]
    _require_consistent_shapes(shapes, dim, num_prefix_tokens, where, bool(fitting))
    if stated is None:
        side = math.isqrt(num_patches) * patch
        stated = min(candidates, key=lambda a: abs(short_side(a.img_size) - side))
    return replace(stated, img_size=fitting[0]) if fitting and fitting[0] == img_size else stated


def count_patches(img_size: ImageSize, patch_size: int) -> int:
    """Return the number of patches of an input, 0 where they do not fill it; sizes in pixels."""
    sides = height_width(img_size)
    return 0 if any(s % patch_size for s in sides) else math.prod(sides) // patch_size**2


def _list_sizes(arch: Architecture) -> tuple[int | bool, ...]:
    """Return what the parameters show of an architecture."""
    return (
        arch.embed_dim,
        arch.depth,
        arch.patch_size,
        arch.in_chans,
        arch.hidden_dim,
        arch.qkv_bias,
        arch.distilled,
        arch.layer_scale,
    )


def _require_names(
    shapes: Mapping[str, Sequence[int]], depth: int, arch: Architecture, where: str, stored: str
) -> None:
    """Refuse a ViT that has more parameters than a DeiT, and hence computes something else, or fewer."""
    layers = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    scales = ["ls1.gamma", "ls2.gamma"] if arch.layer_scale else []
    expected = {f"{layer}.{kind}" for layer in ("patch_embed.proj", "norm") for kind in _KINDS}
    for block in range(depth):
        expected |= {f"blocks.{block}.{layer}.{kind}" for layer in layers for kind in _KINDS}
        expected |= {f"blocks.{block}.{scale}" for scale in scales}
    if not arch.qkv_bias:
        expected -= {f"blocks.{block}.attn.qkv.bias" for block in range(depth)}
    heads = {f"{head}.{kind}" for head in ("head", "head_dist") for kind in _KINDS}
    tokens = {"cls_token", "pos_embed"} | ({"dist_token"} if arch.distilled else set())
    unknown = [name for name in shapes if name not in expected | heads | tokens]
    if unknown:
        raise ModelError(
            f"{where} does not hold a DeiT, but {recognize(shapes) or 'another ViT'}: "
            f"it has {', '.join(name[:60] for name in unknown[:3])} too.",
            suggest(recognize(shapes), stored),
        )
    if missing := sorted(expected - shapes.keys()):
        kind = recognize(shapes)
        raise ModelError(
            f"{where} is not a complete DeiT: it lacks {', '.join(missing[:3])}"
            f"{f'; it is {kind}' if kind else ''}."
        )


def _require_consistent_shapes(
    shapes: Mapping[str, Sequence[int]],
    dim: int,
    num_prefix_tokens: int,
    where: str,
    has_stated_grid: bool,
) -> None:
    """Refuse a missing token, a grid that is neither the stated one nor square, or a head of another
    width."""
    pos_embed, head = tuple(shapes["pos_embed"]), tuple(shapes.get("head.weight", (1, dim)))
    num_patches = pos_embed[1] - num_prefix_tokens
    if (
        tuple(shapes.get("cls_token", ())) != (1, 1, dim)
        or pos_embed != (1, num_patches + num_prefix_tokens, dim)
        or num_patches < 1
        or len(head) != 2
        or head[0] < 1
        or head[1] != dim
    ):
        raise ModelError(
            f"{where} is not a complete DeiT: its tokens, positions and head do not fit together."
        )
    if not has_stated_grid and math.isqrt(num_patches) ** 2 != num_patches:
        raise ModelError(
            f"{where} has positions of {num_patches} patches, which make no square, and does not state "
            "its input's height and width.",
            "Name the folder that it was trained in, whose config.json does.",
        )


def count_classes(state: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of a state dict's head, None without a head."""
    weight = state.get("head.weight")
    return None if weight is None else len(weight)


def infer_img_size(state: Mapping[str, Tensor], arch: Architecture) -> ImageSize:
    """Return the input size in pixels that a state dict's position embeddings are for."""
    rows, columns = _infer_grid(state, arch)
    return make_size(rows * arch.patch_size, columns * arch.patch_size)


def _infer_grid(state: Mapping[str, Tensor], arch: Architecture) -> tuple[int, int]:
    """Return the rows and columns of patches that positions are for: as stated, else as many of both."""
    num_prefix_tokens = 0 if arch.no_embed_class else 1 + ("dist_token" in state)
    num_patches = state["pos_embed"].shape[1] - num_prefix_tokens
    side = math.isqrt(num_patches)
    return arch.grid if math.prod(arch.grid) == num_patches else (side, side)


def complete_heads(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Return a state dict whose distillation token has a head, and whether that head was missing.

    transformers' `DeiTForImageClassification` classifies by the class token alone. Its head is copied.
    """
    if "dist_token" not in state or "head_dist.weight" in state or "head.weight" not in state:
        return dict(state), False
    copies = {f"head_dist.{k}": state[f"head.{k}"] for k in _KINDS if f"head.{k}" in state}
    return {**state, **copies}, True


def take_head_rows(state: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    """Select rows of the heads: a classifier of a subset of the classes, without training."""
    index = torch.tensor(list(rows))
    return {k: v[index] if _is_head(k) else v for k, v in state.items()}


def drop_heads(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without its heads."""
    return {k: v for k, v in state.items() if not _is_head(k)}


def _is_head(name: str) -> bool:
    return name.rpartition(".")[0] in ("head", "head_dist")


def load_adapted(
    model: VisionTransformer,
    state: Mapping[str, Tensor],
    where: str,
    *,
    source: Architecture | None = None,
    img_size: ImageSize = 0,
) -> list[str]:
    """Load a state dict into a DeiT of another input size, class count, set of tokens or shape.

    Args:
        model: into which it goes.
        state: by timm's names.
        where: names the file.
        source: the architecture of the weights where it is known; None: that of the catalog, or the
            model's own.
        img_size: of their input in pixels, as the file states it; 0 where it does not.

    Returns:
        The changes, as sentences.

    Raises:
        ModelError: the weights are of another architecture.
    """
    adapted, changes = _adapt_state_dict(model, state, where, source, img_size)
    try:
        if model.pos_embed.is_meta:
            # Copied, because the file is memory-mapped and may change.
            copies = {k: v.to(torch.float32, copy=True) for k, v in adapted.items()}
            # assign: a meta tensor has no memory to copy into.
            model.load_state_dict(copies, strict=True, assign=True)
        else:
            model.load_state_dict(adapted, strict=True)
    except RuntimeError as error:
        detail = str(error).split("\n\t")[1 if "\n\t" in str(error) else 0][:160]
        raise ModelError(f"{where} does not fit {model.arch.alias}: {detail}") from error
    return changes


def _adapt_state_dict(
    model: VisionTransformer,
    state: Mapping[str, Tensor],
    where: str,
    source: Architecture | None,
    img_size: ImageSize,
) -> tuple[dict[str, Tensor], list[str]]:
    """Return a state dict that fits `model`, and the changes as sentences.

    Heads of another class count keep the model's initialization. A distillation token that the
    weights lack starts as a copy of the class token, with its position and head, so that both heads
    are trained from the first step. The paper trains it from scratch.
    """
    (state, lacks_head), changes = complete_heads(state), list[str]()
    if lacks_head and model.arch.distilled:
        changes.append("the distillation head starts as a copy of the class head")
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    is_stated = source is not None or bool(img_size)
    if not is_stated and (guessed := _guess_size(shapes, model)):
        img_size = guessed
        changes.append(f"its positions are taken to be those of {format_size(guessed)} pixels")
    own = [source] if source else _list_variants(model)
    source = infer_architecture(shapes, where, own=own, img_size=img_size)
    if not has_same_backbone(source, model.arch):
        if not has_own_shape(model.arch):
            raise ModelError(
                f"{where} holds {source.alias}, not {model.arch.alias}.",
                f"Use --model {source.alias}.",
            )
        state, reshaped = adapt_shape(state, source, model.arch, where)
        changes += reshaped
    if source.in_chans != model.arch.in_chans:
        weight = state["patch_embed.proj.weight"]
        state["patch_embed.proj.weight"] = adapt_input_conv(weight, model.arch.in_chans)
        changes.append(
            f"the first layer's weights for {source.in_chans} channels are adapted to "
            f"{model.arch.in_chans}"
        )
    pos_embed, old_grid = state["pos_embed"], _infer_grid(state, source)
    if model.arch.distilled and not source.distilled:
        state["dist_token"] = state["cls_token"]
        pos_embed = torch.cat([pos_embed[:, :1], pos_embed], dim=1)
        for name in ("weight", "bias"):
            if f"head.{name}" in state:
                state[f"head_dist.{name}"] = state[f"head.{name}"]
        # DeiT-III gives prefix tokens no positions, but has no distilled variant: the cat above is
        # for DeiT alone.
        changes.append("the distillation token starts as a copy of the class token")
    elif source.distilled and not model.arch.distilled:
        state = {k: v for k, v in state.items() if not k.startswith(("dist_token", "head_dist"))}
        # Positions are in the order class, distillation, patches: timm's, [1,P+G*G,D].
        pos_embed = torch.cat([pos_embed[:, :1], pos_embed[:, 2:]], dim=1)
        changes.append("the distillation token is left out")

    if old_grid != model.grid:
        num_prefix_tokens = 0 if model.arch.no_embed_class else model.num_prefix_tokens
        pos_embed = resize_pos_embed(
            pos_embed, model.grid, num_prefix_tokens=num_prefix_tokens, old_grid=old_grid
        )
        rows, columns = model.grid
        taken = ""
        if not is_stated and math.prod(old_grid) == math.prod(model.grid):
            taken = (
                f" from {old_grid[0]}x{old_grid[1]}, which they are taken to be: the file states no "
                "height and width"
            )
        changes.append(f"position embeddings are resized to {rows}x{columns} patches{taken}")
    state["pos_embed"] = pos_embed
    if (num_classes := count_classes(state)) != model.num_classes:
        # Both heads: with one of the old class count the two could not be fused.
        state = drop_heads(state) | {k: v for k, v in model.state_dict().items() if _is_head(k)}
        changes.append(
            f"the head is new: {model.num_classes} classes, "
            f"the weights have {num_classes or 'none of them'}"
        )
    return state, changes


def _list_variants(model: VisionTransformer) -> list[Architecture]:
    """Return a model's architecture with and without a distillation token, of its published size.

    The height and width are the model's, not those of the weights that it is to take.
    """
    size = (
        ARCHITECTURES[0].img_size
        if (named := find(model.arch.full_name)) is None
        else named.img_size
    )
    arch = replace(model.arch, img_size=size)
    return [get_distilled(arch), get_plain(arch)]


def _guess_size(shapes: Mapping[str, Sequence[int]], model: VisionTransformer) -> ImageSize:
    """Return the model's size where positions make no square and are as many as its own; else 0."""
    num_prefix_tokens = 0 if model.arch.no_embed_class else 1 + ("dist_token" in shapes)
    pos_embed, weight = shapes.get("pos_embed", ()), shapes.get("patch_embed.proj.weight", ())
    if len(pos_embed) != 3 or len(weight) != 4:
        return 0
    num_patches = pos_embed[1] - num_prefix_tokens
    if num_patches < 1 or math.isqrt(num_patches) ** 2 == num_patches:
        return 0
    rows, columns = model.grid
    is_same = rows * columns == num_patches
    return make_size(rows * weight[-1], columns * weight[-1]) if is_same else 0


def has_same_backbone(a: Architecture, b: Architecture) -> bool:
    """Return whether weights of `a` fit `b`, apart from tokens, heads, channels and input size."""
    a, b = (replace(arch, distilled=False, in_chans=3) for arch in (a, b))
    return (_list_sizes(a), a.num_heads) == (_list_sizes(b), b.num_heads)


def resize_architecture(arch: Architecture, img_size: ImageSize) -> Architecture:
    """Return `arch` for another input size, of multiples of the patch size, or raise `ModelError`."""
    patch, sides = arch.patch_size, height_width(img_size)
    if any(side < patch or side % patch for side in sides):
        nearest = make_size(*(max(1, round(side / patch)) * patch for side in sides))
        raise ModelError(
            f"{arch.alias} has patches of {patch} pixels, which do not fill {format_size(img_size)}.",
            f"Use --img-size {format_size(nearest)}.",
        )
    return replace(arch, img_size=img_size)
