"""State dicts as trainers store them: which dictionary of a checkpoint, under which prefix."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from deitctl.errors import ModelError
from deitctl.models.pickles import NUMPY_ARRAYS, StandIn
from deitctl.models.transformers_names import PATCH_EMBEDDING, rename_transformers

AVERAGED = (
    "state_dict_ema",  # timm's train.py
    "model_ema",  # deit's main.py
    "ema_state_dict",  # MMEngine
    "model_state_dict_ema",
    "ema_model_state_dict",
    "ema_model",
    "ema",
)
"""Entries of exponential moving averages. timm takes the first two before all others, as here."""
_AVERAGED_NAME = re.compile(r"(^|[._])(ema|avg|averaged?|swa)([._]|$)")
"""Others: `ema_weights`, `swa_state`; of a network in a module `ema_model.`."""
TEACHER, STUDENT = "teacher", "student"
"""Entries of DINO, iBOT and DINOv2, whose teacher is the student's average."""
ENTRIES = (
    "state_dict",  # timm, Lightning, MoCo v3, MMEngine
    "model",  # deit, MAE
    "model_state_dict",  # PyTorch's tutorial
    "model_state",
    "net",
    "network",
    "module",  # DeepSpeed
    "params",
    "weights",
    STUDENT,
)
OPTIMIZER = {"state", "param_groups"}
_MAX_DEPTH = 4  # entries in entries: {"model": {"teacher": {...}}}
_WRAPPERS = r"^((module|_orig_mod)\.)+"  # DistributedDataParallel and torch.compile
_COMMON_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "student.")

# What self-supervised training adds to a network, and what counters leave in it. A projection has
# layers (`head.0`, `head.mlp.0`, `head.last_layer`), timm's other models have `head.fc`.
_EXTRAS = re.compile(
    r"(mask_token|masked_embed|embeddings\.mask_token|decoder(_\w+)?|pooler|dino_head|ibot_head"
    r"|head\.(\d+|mlp\d?|last_layer\d?))(\.|$)|(.*\.)?total_(ops|params)$"
    r"|(n_averaged|num_updates|steps?|initted)$"
)
_TIMM_PATCHES = "patch_embed.proj.weight"


@dataclass(frozen=True)
class Checkpoint:
    """What was taken from a file of weights."""

    state: dict[str, Tensor]
    entry: str = ""
    """The dictionary that was taken where there was a choice: `model_ema`."""
    notes: tuple[str, ...] = ()
    """What was decided, in words to say once."""
    architecture: str = ""
    """The name that its trainer stored, timm's mostly; empty for none."""
    is_own: bool = False
    """Whether deitctl wrote it: the names are its own, or those of its export to transformers."""


def unwrap_checkpoint(loaded: Any, path: Path) -> Checkpoint:
    """Return the state dict of a loaded checkpoint, and under which entry it was.

    Raises:
        ModelError: there is none, or one of several would have to be guessed.
    """
    architecture, entries = _find_architecture(loaded), list[str]()
    notes: list[str] = []
    while len(entries) < _MAX_DEPTH:
        choice = _choose_entry(loaded, path)
        if choice is None:
            break
        key, note = choice
        if note:
            notes.append(note)
        entries.append(key)
        loaded = dict(loaded)[key]
    if not _has_tensors(loaded):
        raise _refuse_objects(loaded, path)
    state = {k: v for k, v in loaded.items() if isinstance(v, Tensor)}
    rest = [k for k in loaded if k not in state]
    if any(isinstance(loaded[k], dict | list | tuple | StandIn) for k in rest):
        listed = _quote(k for k in rest if isinstance(loaded[k], dict | list | tuple | StandIn))
        raise ModelError(
            f"{path} is not a dictionary of tensors alone: it has {listed} too.",
            "Save the state dict by itself: torch.save(model.state_dict(), 'weights.pth').",
        )
    return Checkpoint(state, ".".join(entries), tuple(notes), architecture)


def _choose_entry(loaded: Any, path: Path) -> tuple[str, str] | None:
    """Return the entry to take and what to say of it; None if `loaded` is no wrapper."""
    if not isinstance(loaded, dict):
        return None
    answers: dict[int, bool] = {}
    holders = [k for k, v in loaded.items() if isinstance(k, str) and _holds_state(v, answers)]
    plain = next((k for k in ENTRIES if k in holders), None)
    for key in (*AVERAGED, *filter(_AVERAGED_NAME.search, holders)):
        # An average of some of the parameters is no network.
        if key in holders and (plain is None or _have_same_shapes(loaded[key], loaded[plain])):
            return key, f"averaged weights ({key})"
    if TEACHER in holders and STUDENT in holders:
        # Of a distillation the teacher is another network; of DINO it is the average.
        key = TEACHER if _have_same_shapes(loaded[TEACHER], loaded[STUDENT]) else STUDENT
        return key, f"the {key}'s weights"
    if plain is not None:
        return plain, ""
    if not holders or _has_tensors(loaded):
        return None
    if len(holders) > 1:
        raise ModelError(
            f"{path} holds several models: {_quote(holders)}.",
            "Save the one that is meant: torch.save(torch.load(FILE)"
            f"[{holders[0]!r}], 'weights.pth').",
        )
    return holders[0], f"the entry {holders[0]!r}"


def _holds_state(value: Any, answers: dict[int, bool]) -> bool:
    """Return whether a value is a state dict or a wrapper of one.

    `answers` has those of dictionaries by their id: a file may name one a million times.
    """
    if not isinstance(value, dict) or value.keys() >= OPTIMIZER:
        return False
    if id(value) not in answers:
        answers[id(value)] = False  # while its own members are looked at
        members = (value[k] for k in (*AVERAGED, *ENTRIES, TEACHER) if k in value)
        answers[id(value)] = _has_tensors(value) or any(_holds_state(m, answers) for m in members)
    return answers[id(value)]


def _walk(value: Any) -> Iterator[dict[Any, Any]]:
    """Yield a dictionary and those in it, each once."""
    seen: set[int] = set()
    rest = [value]
    while rest:
        member = rest.pop()
        if isinstance(member, dict) and id(member) not in seen:
            seen.add(id(member))
            yield member
            rest.extend(member.values())


def _has_tensors(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(isinstance(k, str) for k in value)
        and any(isinstance(v, Tensor) for v in value.values())
    )


def _have_same_shapes(a: Any, b: Any) -> bool:
    """Return whether two dictionaries hold the same backbone: some of their shapes differ, as heads may."""
    first, second = _count_shapes(a), _count_shapes(b)
    return (first & second).total() >= 0.9 * second.total()


def _count_shapes(value: Any) -> Counter[tuple[int, ...]]:
    tensors = (v for member in _walk(value) for v in member.values() if isinstance(v, Tensor))
    return Counter(tuple(tensor.shape) for tensor in tensors)


def _find_architecture(loaded: Any) -> str:
    """Return the architecture's name that timm (`arch`) or deit (`args.model`) stored."""
    if not isinstance(loaded, dict):
        return ""
    args = loaded.get("args")
    args = args.state if isinstance(args, StandIn) else args
    candidates = [loaded.get("arch"), args.get("model") if isinstance(args, dict) else None]
    names = [n for n in candidates if isinstance(n, str) and re.fullmatch(r"[\w.]{1,80}", n)]
    return names[0] if names else ""


def _refuse_objects(loaded: Any, path: Path) -> ModelError:
    if isinstance(loaded, dict) and loaded.keys() >= OPTIMIZER:
        return ModelError(
            f"{path} holds the state of an optimizer, and no model.",
            "Name the file of weights that was written beside it.",
        )
    arrays = _find_arrays(loaded)
    if arrays:
        return ModelError(
            f"{path} holds NumPy arrays ({arrays}), not torch's tensors.",
            "Convert them: {name: torch.from_numpy(array) for name, array in ...}, then torch.save.",
        )
    if isinstance(loaded, dict) and loaded:
        what = f"its entries are {_quote(loaded)}"
    elif isinstance(loaded, dict):
        what = "it is empty"
    elif isinstance(loaded, Tensor):
        what = f"it is one tensor of shape {tuple(loaded.shape)}"
    else:
        what = f"it is a {type(loaded).__name__}"
    return ModelError(
        f"{path} is not a dictionary of tensors: {what}.",
        "Save one: torch.save(model.state_dict(), 'weights.pth').",
    )


def _find_arrays(value: Any) -> str:
    """Return names of NumPy arrays in dictionaries."""
    arrays = [
        k
        for member in _walk(value)
        for k, v in member.items()
        if isinstance(v, StandIn) and type(v).__name__ in NUMPY_ARRAYS
    ]
    return _quote(arrays, 2)


def _quote(names: Iterable[Any], most: int = 4) -> str:
    listed = [repr(name)[:60] for name in names]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" * (len(listed) > most))


def clean_names(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """Return a checkpoint whose network has timm's names: prefixes, other libraries' names and what
    self-supervised training adds are removed, and reported.

    Raises:
        ModelError: it holds several networks, of which one would have to be guessed.
    """
    state = {re.sub(_WRAPPERS, "", k): v for k, v in checkpoint.state.items()}
    notes = list(checkpoint.notes)
    prefixes = [
        (name[: -len(anchor)], anchor)
        for anchor in (_TIMM_PATCHES, PATCH_EMBEDDING)
        for name in state
        if name == anchor or name.endswith(f".{anchor}")
    ]
    if checkpoint.is_own:
        if any(anchor == PATCH_EMBEDDING for _, anchor in prefixes):
            state, _ = _take_prefix(state, prefixes[0][0], PATCH_EMBEDDING)
            state = rename_transformers(state, str(path))
    elif not prefixes:
        state = _strip_common_prefixes(state)
    else:
        prefix, anchor = _choose_prefix(prefixes, state, path)
        if len(prefixes) > 1:
            notes.append(f"the weights under {prefix!r}")
        _refuse_other_heads(prefix, state, path)
        state, dropped = _take_prefix(state, prefix, anchor)
        if anchor == PATCH_EMBEDDING:
            state = rename_transformers(state, str(path))
            notes.append("transformers' names")
        state, extras = _drop_extras(state)
        if dropped | extras:
            notes.append(f"without {_list_parts(dropped | extras)}")
    return replace(checkpoint, state=state, notes=tuple(notes))


def _strip_common_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while state:
        prefix = next((p for p in _COMMON_PREFIXES if all(k.startswith(p) for k in state)), None)
        if prefix is None:
            break
        state = {k[len(prefix) :]: v for k, v in state.items()}
    return state


def _choose_prefix(
    prefixes: list[tuple[str, str]], state: Mapping[str, Tensor], path: Path
) -> tuple[str, str]:
    """Return the network to take of several: an average, else the one that is trained."""

    def rank(candidate: tuple[str, str]) -> int:
        prefix = candidate[0].lower()
        if "teacher" in prefix or _AVERAGED_NAME.search(prefix):
            # A teacher that classifies is another network than the student.
            classifies = f"{candidate[0]}head.weight" in state
            return 4 if "teacher" in prefix and classifies else 0
        if re.search(r"base_encoder|encoder_q|online|student", prefix):
            return 1
        return 5 if re.search(r"momentum|target|encoder_k", prefix) else 2

    ranks = sorted((rank(candidate), candidate) for candidate in prefixes)
    if len(ranks) > 1 and ranks[0][0] == ranks[1][0]:
        raise ModelError(
            f"{path} holds several networks: {_quote(p or 'without a prefix' for p, _ in prefixes)}.",
            "Save the one that is meant by itself, with torch.save.",
        )
    return ranks[0][1]


def _refuse_other_heads(prefix: str, state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse MoCo v3's small ViT: its weights look like deit_small's, and it has twice the heads."""
    if "base_encoder." in prefix and state.get(f"{prefix}norm.weight", Tensor()).shape == (384,):
        raise ModelError(
            f"{path} holds MoCo v3's ViT-small, which has 12 attention heads where deit_small has "
            "6: with its weights deit_small would compute something else.",
            "Its ViT-base is read.",
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


def _list_parts(names: Iterable[str]) -> str:
    """Return the first parts of names, once each: `decoder_blocks, mask_token`."""
    listed = sorted({re.sub(r"^(model|net|backbone)\.", "", n).partition(".")[0] for n in names})
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" * (len(listed) > 6))
