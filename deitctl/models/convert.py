"""Making a checkpoint fit a DeiT: what architecture it is, other input sizes, other classes, with or without the token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from deitctl.errors import ModelError
from deitctl.models.catalog import ARCHITECTURES, Architecture
from deitctl.models.vit import VisionTransformer, resize_pos_embed

HEADS = ("head", "head_dist")


def normalize_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the layer scales of the authors' DeiT-III files (`gamma_1`) to timm's (`ls1.gamma`)."""
    return {
        k.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): v
        for k, v in state.items()
    }


def infer_architecture(shapes: Mapping[str, Sequence[int]], where: str) -> Architecture:
    """Return the DeiT whose parameters have these shapes; raise `ModelError` if none has."""
    try:
        dim, _, patch, _ = shapes["patch_embed.proj.weight"]
        depth = 1 + max(int(k.split(".")[1]) for k in shapes if k.startswith("blocks."))
        tokens = shapes["pos_embed"][1]
    except (KeyError, ValueError, IndexError):
        raise ModelError(
            f"{where} does not hold a DeiT.", "Name its architecture: --model NAME --weights FILE."
        ) from None
    distilled = "dist_token" in shapes
    layer_scale = "blocks.0.ls1.gamma" in shapes
    grid = math.isqrt(tokens)  # one or two prefix tokens never make the next square
    fitting = [
        a
        for a in ARCHITECTURES
        if (a.embed_dim, a.depth, a.patch_size, a.distilled, a.layer_scale)
        == (dim, depth, patch, distilled, layer_scale)
    ]
    if not fitting:
        raise ModelError(
            f"{where} is no DeiT that deitctl knows: width {dim}, depth {depth}, patches of {patch}.",
            "See `deitctl models`.",
        )
    _require_usable(shapes, dim, 0 if layer_scale else 1 + distilled, where)
    return min(fitting, key=lambda a: abs(a.img_size - grid * patch))


def _require_usable(shapes: Mapping[str, Sequence[int]], dim: int, prefix: int, where: str) -> None:
    """Refuse shapes that the surgery below would trip over: patches in no square, no token, a head of other features."""
    head = tuple(shapes.get("head.weight", (1, dim)))
    fine = (
        tuple(shapes.get("cls_token", ())) == (1, 1, dim)
        and len(head) == 2
        and head[0] > 0
        and head[1] == dim
    )
    patches = shapes["pos_embed"][1] - prefix
    fine = fine and tuple(shapes["pos_embed"]) == (1, patches + prefix, dim)
    if not fine or patches < 1 or math.isqrt(patches) ** 2 != patches:
        raise ModelError(
            f"{where} does not hold a whole DeiT: its tokens, positions and head do not go together."
        )


def count_classes(state: Mapping[str, Tensor]) -> int | None:
    """Return how many classes the class head of a state dict has, None without a head."""
    weight = state.get("head.weight")
    return None if weight is None else len(weight)


def infer_img_size(state: Mapping[str, Tensor], arch: Architecture) -> int:
    """Return the input size in pixels that the position embeddings of a state dict are for."""
    prefix = 0 if arch.no_embed_class else 1 + ("dist_token" in state)
    return math.isqrt(state["pos_embed"].shape[1] - prefix) * arch.patch_size


def take_head_rows(state: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    """Keep the rows of the heads that belong to `rows`, in that order: a classifier of fewer classes, not a new one."""
    index = torch.tensor(list(rows))
    return {k: v[index] if k.rpartition(".")[0] in HEADS else v for k, v in state.items()}


def without_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave the heads out, which know other classes."""
    return {k: v for k, v in state.items() if k.rpartition(".")[0] not in HEADS}


def load_into(model: VisionTransformer, state: Mapping[str, Tensor], where: str) -> list[str]:
    """Load a state dict into a DeiT of another input size, class count or with another set of tokens.

    Heads of another class count are left as initialized. A distillation token that the weights lack starts as a copy
    of the class token, with its position and head, so that the first step already gets two sensible answers
    (a choice of ours: the paper trains it from scratch).

    Returns:
        What was changed, in sentences.

    Raises:
        ModelError: the weights are of another architecture.
    """
    state, changes = dict(state), []
    found = infer_architecture({k: tuple(v.shape) for k, v in state.items()}, where)
    if body_shape(found) != body_shape(model.arch):
        raise ModelError(
            f"{where} holds {found.alias}, not {model.arch.alias}.", f"Use --model {found.alias}."
        )
    if model.arch.distilled and not found.distilled:
        state |= {"dist_token": state["cls_token"]}
        state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], state["pos_embed"]], dim=1)
        state |= {
            f"head_dist.{k}": state[f"head.{k}"] for k in ("weight", "bias") if f"head.{k}" in state
        }
        changes.append("the distillation token starts as a copy of the class token")
    elif found.distilled and not model.arch.distilled:
        state = {k: v for k, v in state.items() if not k.startswith(("dist_token", "head_dist"))}
        state["pos_embed"] = torch.cat(
            [state["pos_embed"][:, :1], state["pos_embed"][:, 2:]], dim=1
        )
        changes.append("the distillation token is left out")

    prefix = 0 if model.arch.no_embed_class else model.num_prefix_tokens
    grid = model.img_size // model.arch.patch_size
    if state["pos_embed"].shape[1] != model.pos_embed.shape[1]:
        changes.append(f"position embeddings are resized to {grid}x{grid} patches")
        state["pos_embed"] = resize_pos_embed(state["pos_embed"], grid, num_prefix_tokens=prefix)
    if (classes := count_classes(state)) != model.num_classes:
        changes.append(
            f"the head is new: {model.num_classes} classes, the weights have {classes or 'none of them'}"
        )
        state = without_head(state)
        state |= {k: v for k, v in model.state_dict().items() if k.rpartition(".")[0] in HEADS}
    try:
        if (
            model.pos_embed.is_meta
        ):  # nothing to copy into; its own tensors, because the file may change under its map
            own = {k: v.to(torch.float32, copy=True) for k, v in state.items()}
            model.load_state_dict(own, strict=True, assign=True)
        else:
            model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        detail = str(error).split("\n\t")[1 if "\n\t" in str(error) else 0][:160]
        raise ModelError(f"{where} does not fit {model.arch.alias}: {detail}") from error
    return changes


def body_shape(arch: Architecture) -> tuple[int, int, int, bool]:
    """Return what two architectures must share for their weights to fit, whatever their tokens and input size."""
    return arch.embed_dim, arch.depth, arch.patch_size, arch.layer_scale


def resize_architecture(arch: Architecture, img_size: int) -> Architecture:
    """Return `arch` for another input size; raise `ModelError` if patches do not fill it."""
    if img_size < arch.patch_size or img_size % arch.patch_size:
        near = max(1, round(img_size / arch.patch_size)) * arch.patch_size
        raise ModelError(
            f"{arch.alias} cuts images into patches of {arch.patch_size} pixels, which do not fill {img_size}.",
            f"Use --img-size {near}.",
        )
    return replace(arch, img_size=img_size)
