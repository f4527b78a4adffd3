"""What an optimizer remembers, of any kind: its tensors and numbers, as a checkpoint keeps them.

What a parameter's state is made of is not written down anywhere. It is seen on a copy of the parameter,
of which the optimizer takes a step.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from deitctl import rng
from deitctl.errors import ModelError
from deitctl.training.saved_state import MAX_NUMBER, refuse, require_tensors

PROBE_STEPS = 2
"""Some optimizers begin with their second step."""
NON_NEGATIVE = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf", "sum", "grad_sum_sq")
"""Means and sums of squares, and a norm."""


class Named(Protocol):
    """What is trained, of parameters that have names: a model, or a `TrainState`."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters with their names."""


class Place(NamedTuple):
    """Where a tensor is kept: `optimizer.state[parameter][key]`, or its entry `number` if that is a list."""

    parameter: Tensor
    key: str
    number: int | None
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Count(NamedTuple):
    """Where a number is kept: under `key` in the state of a parameter, or in a parameter group."""

    owner: Tensor | dict[str, Any]
    key: str
    example: Any
    """A value that it may have, of its type; of a group also a tensor of one number."""
    is_optional: bool = False

    @property
    def value(self) -> bool | int | float | None:
        """The example as JSON has it."""
        return self.example.item() if isinstance(self.example, Tensor) else self.example


@dataclass
class Form:
    """What the state of an optimizer is made of, by `parameter.key`, or `parameter.key.index` in a list."""

    tensors: dict[str, Place] = field(default_factory=dict)
    numbers: dict[str, Count] = field(default_factory=dict)
    groups: dict[str, Count] = field(default_factory=dict)
    """What groups count, LAMB's steps for example, under the name of their first parameter."""

    def add(self, name: str, parameter: Tensor, state: Mapping[str, Any]) -> None:
        """Add a parameter's state."""
        for key, value in state.items():
            entries = enumerate(value) if isinstance(value, list | tuple) else [(None, value)]
            for index, entry in entries:
                full = f"{name}.{key}" if index is None else f"{name}.{key}.{index}"
                if isinstance(entry, Tensor):
                    self.tensors[full] = Place(
                        parameter,
                        key,
                        index,
                        entry.shape,
                        entry.stride(),
                        entry.dtype,
                        entry.device,
                    )
                else:
                    self.numbers[full] = Count(parameter, key, entry)


@contextmanager
def seeded(optimizer: torch.optim.Optimizer, *seed: int | str) -> Iterator[None]:
    """Let what an optimizer draws (`kron` does) be a function of the seed, for a block."""
    own = getattr(optimizer, "rng", None)
    if own is None:
        yield
        return
    own.seed(rng.derive_seed(*seed))
    with rng.scope(*seed):
        yield


def list_states(trained: Named, optimizer: torch.optim.Optimizer) -> Form:
    """Return the present state."""
    names, form = _name_parameters(trained), Form()
    for parameter, state in optimizer.state.items():
        form.add(names[parameter], parameter, state)
    for group in optimizer.param_groups:
        for key, value in _list_counters(optimizer, group).items():
            form.groups[f"{names[group['params'][0]]}.{key}"] = Count(group, key, value)
    return form


def _name_parameters(trained: Named) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in trained.named_parameters()}


def get_tensor(optimizer: torch.optim.Optimizer, place: Place) -> Tensor:
    """Return a tensor of the present state."""
    value = optimizer.state[place.parameter][place.key]
    return value if place.number is None else value[place.number]  # type: ignore[no-any-return]


def expect_states(
    trained: Named, optimizer: torch.optim.Optimizer, without: Collection[str]
) -> Form:
    """Return the state that an optimizer has after its first steps.

    Args:
        trained: the model, or the state that holds it.
        optimizer: of its trained parameters.
        without: names of those that have no state, because they had no gradient yet.
    """
    names, form = _name_parameters(trained), Form()
    for group in optimizer.param_groups:
        seen: dict[Any, dict[str, Any]] = {}
        for parameter in group["params"]:
            alike = (parameter.shape, parameter.stride(), parameter.dtype)
            if alike not in seen:
                seen[alike], counters = _probe(optimizer, group, parameter)
            if (name := names[parameter]) not in without:
                form.add(name, parameter, seen[alike])
        has_begun = any(names[p] not in without for p in group["params"])
        for key, value in counters.items():
            name = f"{names[group['params'][0]]}.{key}"
            form.groups[name] = Count(group, key, value, is_optional=not has_begun)
    return form


def count_state_bytes(
    trained: Named, optimizer: torch.optim.Optimizer, later: Iterable[nn.Parameter] = ()
) -> int:
    """Return the bytes of the state that an optimizer will have, also of parameters that it gets `later`."""
    form = expect_states(trained, optimizer, ())
    names, group = _name_parameters(trained), optimizer.param_groups[0]
    for parameter in later:
        form.add(names[parameter], parameter, _probe(optimizer, group, parameter)[0])
    return sum(p.shape.numel() * p.dtype.itemsize for p in form.tensors.values())


def _probe(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], parameter: nn.Parameter
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state of a copy of a parameter, and what its group counts, after a step or two."""
    with rng.scope("probe"):
        twin = nn.Parameter(_copy_whole(parameter))
        # As it is pickled: its class's `__setstate__` makes it whole, without its arguments.
        probe = copy.copy(optimizer)
        probe.state = defaultdict(dict)
        probe.param_groups = [{**group, "params": [twin]}]
        for key in _list_counters(optimizer, group):
            del probe.param_groups[0][key]
        for _ in range(PROBE_STEPS):
            twin.grad = torch.randn_like(twin)
            probe.step()
    return probe.state[twin], _list_counters(probe, probe.param_groups[0])


def _copy_whole(parameter: nn.Parameter) -> Tensor:
    """Return a copy of a parameter; of one that is divided among processes a tensor of its whole shape."""
    if not hasattr(parameter, "full_tensor"):  # which torch's divided tensors have
        return parameter.detach().clone()
    return torch.ones(parameter.shape, dtype=parameter.dtype, device=parameter.device)


def _list_counters(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an optimizer has added to a group, beside its arguments and ours."""
    ours = ("params", "lr_scale", "initial_lr")
    return {k: v for k, v in group.items() if k not in optimizer.defaults and k not in ours}


@dataclass(frozen=True)
class SavedOptimizer:
    """An optimizer's state as a checkpoint has it."""

    path: Path
    """Of its tensors."""
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]
    groups: Mapping[str, Any]
    without: Collection[str]
    """As in `expect_states`."""

    def require_fit(self, trained: Named, optimizer: torch.optim.Optimizer, step: int) -> Form:
        """Return the form that it has; raise `ModelError` unless `step` steps of the optimizer leave it.

        Before anything is changed: native code takes a tensor of another shape for the memory behind it.
        """
        form = expect_states(trained, optimizer, set(self.without))
        kinds = {name: (place.shape, place.dtype) for name, place in form.tensors.items()}
        require_tensors(self.path, self.tensors, kinds)
        for name, tensor in self.tensors.items():
            key = form.tensors[name].key
            if key == "step":
                self._require_step(name, float(tensor), step)
            elif key in NON_NEGATIVE and tensor.numel() and float(tensor.min()) < 0:
                raise self._refuse(f"holds a negative mean square in {name!r}")
        for numbers, expected in ((self.numbers, form.numbers), (self.groups, form.groups)):
            for name in expected.keys() | numbers.keys():
                self._require_number(name, expected.get(name), numbers, step)
        return form

    def _require_number(
        self, name: str, count: Count | None, numbers: Mapping[str, Any], step: int
    ) -> None:
        if count is None:
            raise self._refuse(f"has the unknown {name!r:.100}")
        if name not in numbers:
            if count.is_optional:
                return
            raise self._refuse(f"lacks {name!r:.100}")
        value, example = numbers[name], count.example
        if example is None or isinstance(example, bool):  # of which kind a parameter is, no count
            fits = value is example
        else:
            kinds = int if isinstance(example, int) else (int, float)
            fits = isinstance(value, kinds) and not isinstance(value, bool)
            fits = fits and abs(value) <= MAX_NUMBER  # NaN is not
        if not fits:
            raise self._refuse(f"says {name!r} is {value!r:.60}")
        if count.key == "step":
            self._require_step(name, float(value), step)

    def _require_step(self, name: str, value: float, step: int) -> None:
        if not (0 <= value <= step and value.is_integer()):
            raise self._refuse(f"says {name!r} is {value:g} after {step} steps")

    def _refuse(self, reason: str) -> ModelError:
        return refuse(self.path, reason, self.path.parent)

    def load(self, optimizer: torch.optim.Optimizer, form: Form) -> None:
        """Put the state into the optimizer; `form` is what `require_fit` returned."""
        for name, place in form.tensors.items():
            # Memory of torch's own, aligned, in the layout and on the device that the optimizer wants:
            # another one would make a fused step copy it every time.
            value = torch.empty_strided(
                place.shape, place.stride, dtype=place.dtype, device=place.device
            )
            value.copy_(self.tensors[name])
            state = optimizer.state[place.parameter]
            if place.number is None:
                state[place.key] = value
            else:
                state.setdefault(place.key, []).append(value)
        for name, number in self.numbers.items():
            owner, key, _, _ = form.numbers[name]
            optimizer.state[owner][key] = number  # type: ignore[index]
        for name, number in self.groups.items():
            group, key, example, _ = form.groups[name]
            is_tensor = isinstance(example, Tensor)
            group[key] = torch.full_like(example, number) if is_tensor else number  # type: ignore[index]
