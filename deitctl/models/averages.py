"""What two networks of one checkpoint are to each other: an average of the other, or its teacher."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor

AVERAGED_NAME = re.compile(
    r"(^|[._-])(ema|avg|averaged?|swa|shadow|polyak)([._-]|$)", re.IGNORECASE
)
"""Of entries, `ema_weights`, and of modules in a network, `ema_model.`: whole words alone."""

CLASSIFIER = re.compile(
    r"(^|\.)((head|heads|head_dist|fc|linear|probe)(\.(fc|head))?|\w*classifier(\.\d+)?)\.weight$"
)
"""Weights of layers of classes; projections of self-supervised training are deeper: `head.mlp.0`."""


def is_average(candidate: Any, network: Any) -> bool:
    """Return whether a state dict, or a wrapper of one, can be another's average: all of its network.

    Before it has averaged anything, torch's `AveragedModel` holds the network that a training began with.
    """
    return has_begun(candidate) and is_same_network(candidate, network)


def is_same_network(a: Any, b: Any) -> bool:
    """Return whether two state dicts, or wrappers of them, are of one architecture, with classes or without."""
    return _have_same_shapes(a, b) and classifies(a) == classifies(b)


def has_begun(average: Any) -> bool:
    """Return whether no counter of an average says that it has averaged nothing yet."""
    counters = [member.get("n_averaged") for member in walk(average)]
    return all(n.any() if isinstance(n, Tensor) else n != 0 for n in counters)


def holds_matrices(value: Any) -> bool:
    """Return whether dictionaries, or lists in them, have tensors with more than one axis."""
    members = [v for m in walk(value) for v in m.values()] if isinstance(value, dict) else [value]
    return any(
        isinstance(t, Tensor) and t.ndim > 1
        for member in members
        for t in (member if isinstance(member, list | tuple) else (member,))
    )


def is_teacher_average(teacher: Any, student: Any) -> bool:
    """Return whether a teacher is its student's average, as DINO's, and not that of a distillation.

    One that classifies is another network than its student, even of the same shapes; where its
    student alone classifies it gives features.
    """
    return is_average(teacher, student) and not classifies(student)


def classifies(value: Any) -> bool:
    """Return whether a state dict, or one in a wrapper, has a layer of classes."""
    return any(is_classifier(name, tensor) for name, tensor in _list_tensors(value))


def is_classifier(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor [classes, features] is the weight of a layer of classes."""
    return tensor.ndim == 2 and CLASSIFIER.search(name) is not None


def walk(value: Any) -> Iterator[dict[Any, Any]]:
    """Yield a dictionary and those in it, each once: a file may name one a million times."""
    seen: set[int] = set()
    rest = [value]
    while rest:
        member = rest.pop()
        if isinstance(member, dict) and id(member) not in seen:
            seen.add(id(member))
            yield member
            rest.extend(member.values())


def _list_tensors(value: Any) -> Iterator[tuple[str, Tensor]]:
    for member in walk(value):
        for name, tensor in member.items():
            if isinstance(name, str) and isinstance(tensor, Tensor):
                yield name, tensor


def _have_same_shapes(a: Any, b: Any) -> bool:
    """Return whether two networks have one backbone: some of their shapes differ, as heads may."""
    first, second = (Counter(tuple(t.shape) for _, t in _list_tensors(x) if t.ndim) for x in (a, b))
    return (first & second).total() >= 0.9 * max(first.total(), second.total())
