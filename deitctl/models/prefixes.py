"""Names of a checkpoint's network in timm's form, without wrappers, prefixes and what training adds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from deitctl.errors import ModelError
from deitctl.models.averages import (
    AVERAGED_NAME,
    CLASSIFIER,
    is_average,
    is_classifier,
    is_teacher_average,
)
from deitctl.models.state_dicts import Checkpoint, quote
from deitctl.models.trainer_settings import pair_channels
from deitctl.models.transformers_names import PATCH_EMBEDDING, rename_transformers

_TIMM_PATCHES = "patch_embed.proj.weight"
_WRAPPER = r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)"
# DistributedDataParallel's is removed at the start alone: a few networks have a part of that name.
_WRAPPERS = re.compile(rf"^((module|{_WRAPPER})\.)+|(?<![^.]){_WRAPPER}\.")
_COMMON_PREFIXES = ("module.", "model.", "net.", "network.", "backbone.", "timm_model.", "student.")
_TEACHER = re.compile(r"(^|[._])teachers?\d*[._]")
_STUDENT = re.compile(r"(^|[._])student[._]")
_LEAST_OF_A_NETWORK = 20  # tensors; a loss beside a network has a few
_NORMALIZATION = re.compile(r"(?:.*\.)?(?:pixel_|image_|img_)?(mean|std)")

# What self-supervised training adds to a network. A projection has layers (`head.0`, `head.mlp.0`,
# `head.last_layer`), timm's other models have `head.fc`.
_EXTRAS = re.compile(
    r"(mask_token|masked_embed|embeddings\.mask_token|decoder(_\w+)?|pooler|dino_head|ibot_head"
    r"|criterion|loss(_fn)?|head\.(\d+|mlp\d?|last_layer\d?))(\.|$)|(.*\.)?total_(ops|params)$"
)


def clean_names(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """Return a checkpoint whose network has timm's names: prefixes, other libraries' names and what
    training adds are removed, and reported.

    Raises:
        ModelError: it holds several networks, of which one would have to be guessed, or one that
            computes something else than its tensors' names say.
    """
    state = _remove_wrappers(checkpoint.state, path)
    if checkpoint.is_own:
        if anchors := [p for p in _find_prefixes(state) if p[1] == PATCH_EMBEDDING]:
            state, _ = _take_prefix(state, *anchors[0])
            state = rename_transformers(state, str(path))
        return replace(checkpoint, state=state)
    notes = list(checkpoint.notes)
    state, dropped = _drop_counters(state)
    taken, beside = _choose_student(state)
    dropped |= beside
    taken, preprocessing = _take_normalization(taken, path)
    prefixes, parents = _find_prefixes(taken), [""]
    if not prefixes:
        state, beside = _strip_common_prefixes(taken)
        dropped |= beside
    else:
        prefix, anchor = _choose_prefix(prefixes, taken, path)
        parents = _list_parents(prefix) or [""]
        if len(prefixes) > 1 or beside:
            notes.append(f"the weights under {prefix!r}")
        state, beside = _take_prefix(taken, prefix, anchor)
        dropped |= beside
        if anchor == PATCH_EMBEDDING:
            state = rename_transformers(state, str(path))
            notes.append("transformers' names")
        _refuse_other_heads(prefix, state, checkpoint.architecture, path)
        _refuse_other_classifiers(prefix, state, {k: taken[k] for k in beside}, path)
        if (head := _find_sequential_head(state)) is not None:
            state = {re.sub(rf"^head\.{head}\.", "head.", k): v for k, v in state.items()}
            notes.append(f"head.{head} taken as the head of the class token")
        state, extras = _drop_extras(state)
        dropped |= extras
    if dropped:
        notes.append(f"without {_list_parts(dropped, parents)}")
    if preprocessing and "mean" in checkpoint.preprocessing:
        raise ModelError(
            f"{path} normalizes twice: its network has a mean and std, and so have its settings.",
            "Save the network that follows the normalization by itself, with torch.save.",
        )
    stated = {**checkpoint.preprocessing, **preprocessing}
    left = {name: taken[name] for name in sorted(dropped & taken.keys())}
    return replace(
        checkpoint,
        state=state,
        notes=tuple(notes),
        preprocessing=stated,
        classifier_beside=_describe_classifier(left) if "head.weight" not in state else "",
    )


def _find_sequential_head(state: Mapping[str, Tensor]) -> int | None:
    """Return the place of the one linear layer in a head without others, as dropout before it makes it."""
    head = {name: value for name, value in state.items() if name.startswith("head.")}
    for place in (0, 1):
        if head.keys() == {f"head.{place}.weight", f"head.{place}.bias"}:
            weight, bias = head[f"head.{place}.weight"], head[f"head.{place}.bias"]
            width = state["norm.weight"].shape if "norm.weight" in state else ()
            if weight.shape == (*bias.shape, *width):
                return place
    return None


def _describe_classifier(left: Mapping[str, Tensor]) -> str:
    """Return name and shape of what may be a classifier among the tensors left out; empty without one."""
    for name, value in left.items():
        if is_classifier(name, value) or (value.ndim == 2 and re.fullmatch(r"\d+\.weight", name)):
            return f"{name} {list(value.shape)}"
    return ""


def _remove_wrappers(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    removed = {_WRAPPERS.sub("", name): value for name, value in state.items()}
    if len(removed) < len(state):
        raise ModelError(
            f"{path} holds several networks: names are equal without their wrappers (module, "
            "_orig_mod).",
            "Save the one that is meant by itself, with torch.save.",
        )
    return removed


def _drop_counters(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], set[str]]:
    """Leave out steps and metrics: whole numbers, and what lies in modules of scalars and them alone."""
    if len(state) < _LEAST_OF_A_NETWORK:
        return dict(state), set()
    networks = {
        name[:end]
        for name, value in state.items()
        if value.ndim and value.is_floating_point()
        for end in (match.start() for match in re.finditer(r"\.", name))
    }
    counters: set[str] = set()
    for name, value in state.items():
        parent, _, last = name.rpartition(".")
        is_whole = not value.is_floating_point() and last != "num_batches_tracked"
        if (is_whole and not value.ndim) or (
            parent not in networks and (is_whole or (parent and not value.ndim))
        ):
            counters.add(name)
    return {k: v for k, v in state.items() if k not in counters}, counters


def _take_normalization(
    state: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], dict[str, tuple[float, ...]]]:
    """Take out the mean and std with which a network normalizes its own images in 0..1."""
    buffers = {
        name: match[1]
        for name, value in state.items()
        if (match := _NORMALIZATION.fullmatch(name)) and value.numel() in (1, 3)
    }
    rest = {name: value for name, value in state.items() if name not in buffers}
    if not buffers or any(state[name].is_meta for name in buffers):
        return rest, {}
    values: dict[str, set[tuple[float, ...]]] = {"mean": set(), "std": set()}
    for name, kind in buffers.items():
        values[kind].add(tuple(state[name].flatten().tolist()))
    (mean, *other_means), (std, *other_stds) = (list(v) or [()] for v in values.values())
    pair = None if other_means or other_stds else pair_channels(mean, std)
    if pair is None:
        raise ModelError(
            f"{path} normalizes images inside the network ({quote(buffers)}), and not by one mean and "
            "std of three channels.",
            "Save the network that follows by itself, with torch.save.",
        )
    return rest, {"mean": pair[0], "std": pair[1]}


def _choose_student(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], set[str]]:
    """Return what is trained of a student and its teacher, or DINO's teacher, and the others' names."""
    teacher = {name: value for name, value in state.items() if _TEACHER.search(name)}
    rest = {name: value for name, value in state.items() if name not in teacher}
    if not teacher or len(rest) < _LEAST_OF_A_NETWORK:
        return dict(state), set()
    student = {name: value for name, value in rest.items() if _STUDENT.search(name)} or rest
    if is_teacher_average(teacher, student):
        return teacher, set(rest)
    return rest, set(teacher)


def _find_prefixes(state: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Return the prefixes of ViTs, each with the name that its patch embedding has there."""
    return [
        (name[: -len(anchor)], anchor)
        for anchor in (_TIMM_PATCHES, PATCH_EMBEDDING)
        for name in state
        if name == anchor or name.endswith(f".{anchor}")
    ]


def _strip_common_prefixes(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], set[str]]:
    """Remove the prefixes that nearly all names have, with what little lies beside them."""
    dropped: set[str] = set()
    while state:
        for prefix in _COMMON_PREFIXES:
            beside = {name for name in state if not name.startswith(prefix)}
            is_most = len(beside) <= 0.1 * len(state)
            if is_most and not any(is_classifier(name, state[name]) for name in beside):
                break
        else:
            break
        dropped |= beside
        state = {k.removeprefix(prefix): v for k, v in state.items() if k not in beside}
    return state, dropped


def _choose_prefix(
    prefixes: list[tuple[str, str]], state: Mapping[str, Tensor], path: Path
) -> tuple[str, str]:
    """Return the network to take of several: an average, else the one that is trained."""

    def rank(candidate: tuple[str, str]) -> int:
        prefix = candidate[0].lower()
        if match := AVERAGED_NAME.search(prefix):
            root = candidate[0][: match.end()]
            inside = {k: v for k, v in state.items() if k.startswith(root)}
            rest = {k: v for k, v in state.items() if k not in inside}
            return 0 if is_average(inside, rest) else 4
        if re.search(r"base_encoder|encoder_q|online|student", prefix):
            return 1
        return 5 if re.search(r"momentum|target|encoder_k", prefix) else 2

    if len(prefixes) == 1:
        return prefixes[0]
    ranks = sorted((rank(candidate), candidate) for candidate in prefixes)
    if ranks[0][0] == ranks[1][0]:
        raise ModelError(
            f"{path} holds several networks: {quote(p or 'without a prefix' for p, _ in prefixes)}.",
            "Save the one that is meant by itself, with torch.save.",
        )
    return ranks[0][1]


def _refuse_other_heads(
    prefix: str, state: Mapping[str, Tensor], architecture: str, path: Path
) -> None:
    """Refuse MoCo v3's small ViT: its weights look like deit_small's, and it has twice the heads."""
    norm, positions = state.get("norm.weight"), state.get("pos_embed")
    if norm is None or norm.shape != (384,):
        return
    # Its positions are sines and cosines, and zeros for the class token; so are MAE's.
    is_fixed = (
        positions is not None
        and not positions.is_meta
        and positions.ndim == 3
        and positions.any()
        and not positions[:, 0].any()
        and not any(name.startswith(("decoder", "mask_token")) for name in state)
    )
    if "base_encoder." in prefix or architecture == "vit_small" or is_fixed:
        raise ModelError(
            f"{path} holds MoCo v3's ViT-small, which has 12 attention heads where deit_small has "
            "6: with its weights deit_small would compute something else.",
            "Its ViT-base is read.",
        )


def _refuse_other_classifiers(
    prefix: str, state: Mapping[str, Tensor], beside: Mapping[str, Tensor], path: Path
) -> None:
    """Refuse a network whose logits are computed from its own, or from what is no class token."""
    others = [
        parent + name
        for parent in _list_parents(prefix)
        for name in (k.removeprefix(parent) for k in beside if k.startswith(parent))
        if CLASSIFIER.fullmatch(name) and beside[parent + name].ndim == 2
    ]
    pooler = next((name for name in state if name.startswith("pooler.")), "")
    if pooler and ("head.weight" in state or others):
        raise ModelError(
            f"{path} classifies what transformers' pooler makes of the class token ({pooler}), and no "
            "DeiT has that layer.",
            "Train it with ViTModel(config, add_pooling_layer=False), or ViTForImageClassification.",
        )
    if others and "head.weight" in state:
        raise ModelError(
            f"{path} has two classifiers: the network's own, and {quote(others)} beside it.",
            "Save the network with the one that is meant, as its head.weight and head.bias.",
        )


def _take_prefix(
    state: Mapping[str, Tensor], prefix: str, anchor: str
) -> tuple[dict[str, Tensor], set[str]]:
    """Return the network under a prefix, and the names of what lies beside it."""
    # transformers has its classifiers beside the network: `vit.embeddings...`, `classifier.weight`.
    parent = prefix.rpartition(".")[0].rpartition(".")[0] if prefix else ""
    beside = f"{parent}." if parent else ""
    taken: dict[str, Tensor] = {}
    dropped: set[str] = set()
    for name, value in state.items():
        if name.startswith(prefix):
            taken[name[len(prefix) :]] = value
        elif anchor == PATCH_EMBEDDING and re.fullmatch(
            re.escape(beside) + r"(\w+_)?classifier\.(weight|bias)", name
        ):
            taken[name[len(beside) :]] = value
        else:
            dropped.add(name)
    return taken, dropped


def _drop_extras(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], set[str]]:
    """Leave out decoders, mask tokens and projection heads, which no classifier has."""
    extras = {k for k in state if _EXTRAS.match(k)}
    return {k: v for k, v in state.items() if k not in extras}, extras


def _list_parts(names: Iterable[str], parents: Iterable[str]) -> str:
    """Return the first parts of names below what holds the network: `decoder_blocks, mask_token`."""
    longest_first = sorted(parents, key=len, reverse=True)
    below = (
        next((name.removeprefix(p) for p in longest_first if name.startswith(p)), name)
        for name in names
    )
    listed = sorted({name.partition(".")[0] for name in below})
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" * (len(listed) > 6))


def _list_parents(prefix: str) -> list[str]:
    """Return the modules around one, the outermost first: `""`, `model.` for `model.backbone.`."""
    return ["", *(prefix[: dot.end()] for dot in re.finditer(r"\.", prefix))][:-1]
