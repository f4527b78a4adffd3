"""State dicts as trainers store them: which dictionary of a checkpoint, under which prefix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from deitctl.errors import ModelError
from deitctl.models.averages import (
    AVERAGED_NAME,
    has_begun,
    holds_matrices,
    is_average,
    is_same_network,
    is_teacher_average,
    walk,
)
from deitctl.models.pickles import NUMPY_ARRAYS, StandIn
from deitctl.models.stored_classes import read_class_lists
from deitctl.models.trainer_settings import find_architecture, read_preprocessing
from deitctl.sizes import ImageSize

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
TEACHER, STUDENT = "teacher", "student"
"""Entries of DINO, iBOT and DINOv2, whose teacher is the student's average; of distillations too."""
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
    "shadow",  # of an average: {"ema": {"decay": 0.9999, "shadow": {...}}}
    STUDENT,
)
OPTIMIZER = {"state", "param_groups"}
_MAX_DEPTH = 4  # entries in entries: {"model": {"teacher": {...}}}


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
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """Values of `Preprocessing` that it states: of its trainer's settings, or of the network itself."""
    class_lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of classes that it states, by where; of a head with as many classes."""
    classifier_beside: str = ""
    """A layer of classes beside a network that has none: which of its features it takes is not stated."""
    is_own: bool = False
    """Whether deitctl wrote it: the names are its own, or those of its export to transformers."""

    @property
    def img_size(self) -> ImageSize:
        """The input size in pixels that it states, 0 for none."""
        size: ImageSize = self.preprocessing.get("img_size", 0)
        return size


def unwrap_checkpoint(loaded: Any, path: Path) -> Checkpoint:
    """Return the state dict of a loaded checkpoint, and under which entry it was.

    Raises:
        ModelError: there is none, or one of several would have to be guessed.
    """
    architecture, entries = find_architecture(loaded), list[str]()
    preprocessing, unread = read_preprocessing(loaded)
    notes, class_lists = list(unread), read_class_lists(loaded)
    if (average := _find_callbacks_average(loaded)) is not None:
        name, loaded = average
        notes.append(f"averaged weights ({name})")
        entries.append(name)
    while len(entries) < _MAX_DEPTH:
        choice = _choose_entry(loaded, path)
        if choice is None:
            break
        key, added = choice
        notes += added
        entries.append(key)
        loaded = dict(loaded)[key]
    if not _has_tensors(loaded):
        raise _refuse_objects(loaded, path)
    state = {k: v for k, v in loaded.items() if isinstance(v, Tensor)}
    rest = [k for k in loaded if k not in state]
    if any(isinstance(loaded[k], dict | list | tuple | StandIn) for k in rest):
        listed = quote(k for k in rest if isinstance(loaded[k], dict | list | tuple | StandIn))
        raise ModelError(
            f"{path} is not a dictionary of tensors alone: it has {listed} too.",
            "Save the state dict by itself: torch.save(model.state_dict(), 'weights.pth').",
        )
    return Checkpoint(
        state, ".".join(entries), tuple(notes), architecture, preprocessing, class_lists
    )


def _find_callbacks_average(loaded: Any) -> tuple[str, dict[str, Any]] | None:
    """Return the average that one of Lightning's callbacks keeps, and where; None without one."""
    if not isinstance(loaded, dict) or not isinstance(loaded.get("callbacks"), dict):
        return None
    for callback, stored in loaded["callbacks"].items():
        for key, value in stored.items() if isinstance(stored, dict) else ():
            is_named = isinstance(key, str) and AVERAGED_NAME.search(key)
            # StochasticWeightAveraging counts beside its average.
            if is_named and has_begun(stored) and _has_tensors(value):
                network = loaded.get("state_dict")
                if is_average(value, network):
                    return f"callbacks.{str(callback)[:40]}.{key}", value
    return None


def _choose_entry(loaded: Any, path: Path) -> tuple[str, list[str]] | None:
    """Return the entry to take and what to say of it; None if `loaded` is no wrapper."""
    if not isinstance(loaded, dict):
        return None
    answers: dict[int, bool] = {}
    holders = [k for k, v in loaded.items() if isinstance(k, str) and _holds_state(v, answers)]
    choice = _prefer_entry(loaded, holders, path)
    if choice is None:
        return None
    key, note = choice
    return key, [*([note] if note else []), *_describe_others(loaded, holders, key, note)]


def _describe_others(
    loaded: Mapping[str, Any], holders: list[str], key: str, note: str
) -> list[str]:
    """Say which networks and averages beside the entry that is taken are not."""
    if note and key == "state_dict":  # the note names what lies beside it
        return []
    # The network of an average and the other of a student and its teacher go without saying.
    usual = {key, *ENTRIES, TEACHER} if note else {key}
    networks = [k for k in holders if k not in usual and is_same_network(loaded[k], loaded[key])]
    unfit = [
        k
        for k, value in loaded.items()
        if isinstance(k, str)
        and k not in {key, *networks}
        and (k in AVERAGED or AVERAGED_NAME.search(k))
        and holds_matrices(value)
    ]
    return [
        *([f"also there: {quote(networks)}"] if networks else []),
        *([f"without {quote(unfit)}, which is no average of all of it"] if unfit else []),
    ]


def _prefer_entry(
    loaded: Mapping[str, Any], holders: list[str], path: Path
) -> tuple[str, str] | None:
    """Return which of the entries that hold state dicts to take, and what to say of it."""
    plain = next((k for k in ENTRIES if k in holders), None)
    if plain == "state_dict" and (reason := _find_swapped_average(loaded)):
        return plain, reason
    for key in (*AVERAGED, *filter(AVERAGED_NAME.search, holders)):
        # An average of some of the parameters is no network.
        if (
            key in holders
            and key != plain
            and (plain is None or is_average(loaded[key], loaded[plain]))
        ):
            return key, f"averaged weights ({key})"
    if TEACHER in holders and STUDENT in holders:
        key = TEACHER if is_teacher_average(loaded[TEACHER], loaded[STUDENT]) else STUDENT
        return key, f"the {key}'s weights"
    if plain is not None:
        return plain, ""
    # Beside a state dict there may be a metric: {"vit": {...}, "best_accuracy": tensor(0.9)}.
    if not holders or any(isinstance(v, Tensor) and v.ndim > 1 for v in loaded.values()):
        return None
    if len(holders) > 1:
        raise ModelError(
            f"{path} holds several models: {quote(holders)}.",
            "Save the one that is meant: torch.save(torch.load(FILE)"
            f"[{holders[0]!r}], 'weights.pth').",
        )
    return holders[0], f"the entry {holders[0]!r}"


def _find_swapped_average(loaded: Mapping[str, Any]) -> str:
    """Return what to say where `state_dict` is the average and the network itself lies beside it."""
    ema = loaded.get("ema_state_dict")
    if isinstance(ema, dict) and "steps" in ema and any(str(k).startswith("module.") for k in ema):
        # EMAHook.before_save_checkpoint swaps the two.
        return "averaged weights (state_dict: MMEngine keeps the others in ema_state_dict)"
    if "current_model_state" in loaded and "averaging_state" in loaded:
        return "averaged weights (state_dict: Lightning keeps the others in current_model_state)"
    return ""


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


def _has_tensors(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(isinstance(k, str) for k in value)
        and any(isinstance(v, Tensor) for v in value.values())
    )


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
        what = f"its entries are {quote(loaded)}"
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
        for member in walk(value)
        for k, v in member.items()
        if isinstance(v, StandIn) and type(v).__name__ in NUMPY_ARRAYS
    ]
    return quote(arrays, 2)


def quote(names: Iterable[Any], most: int = 4) -> str:
    """Return the first names, quoted, and how many more there are."""
    listed = [repr(name)[:60] for name in names]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" * (len(listed) > most))
