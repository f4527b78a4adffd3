"""What two networks of one checkpoint are to each other: an average of the other, or its teacher."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor

AVERAGED_NAME = re.compile(r"(^|[._])(ema|avg|averaged?|swa)([._]|$)")
"""Of entries, `ema_weights`, and of modules in a network, `ema_model.`: whole words alone."""

CLASSIFIER = re.compile(
    r"(^|\.)((head|heads|head_dist|fc|linear|probe)(\.(fc|head))?|\w*classifier(\.\d+)?)\.weight$"
)
"""Weights of layers of classes; projections of self-supervised training are deeper: `head.mlp.0`."""


def is_average(candidate: Any, network: Any) -> bool:
    """Return whether a state dict, or a wrapper of one, can be another's average: all of its network."""
    return _have_same_shapes(candidate, network) and classifies(candidate) == classifies(network)


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
