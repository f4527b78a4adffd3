"""Which operators have a kernel for MPS, by the table that torch is generated from (it is in torch's wheel)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torchgen
import yaml

TABLE = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
ANY_BACKEND = {
    "MPS",
    "CompositeImplicitAutograd",
    "CompositeExplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
}
"""Kernels that MPS has: its own, and those that are made of other operators."""


@cache
def read_table() -> dict[str, dict[str, Any]]:
    """Return the entry of each operator, by name and overload (`add.Tensor`)."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    entries = yaml.load(TABLE.read_text(encoding="utf-8"), Loader=loader)
    table = {entry["func"].partition("(")[0]: entry for entry in entries}
    for entry in entries:  # made of another form of the same operator
        for form in str(entry.get("autogen", "")).split(","):
            table.setdefault(form.strip(), {})
    return table


def has_kernel(name: str) -> bool:
    """Return whether MPS can compute an operator of torch's table, named as `add.Tensor`."""
    entry = read_table().get(name)
    if entry is None:
        return False
    if delegate := entry.get("structured_delegate"):
        return has_kernel(delegate)
    if "dispatch" not in entry:
        return True
    keys = {key.strip() for group in entry["dispatch"] for key in group.split(",")}
    return not keys.isdisjoint(ANY_BACKEND)


def find_missing(names: Iterable[str]) -> list[str]:
    """Return those of some operators that MPS cannot compute, named as `aten.add.Tensor`."""
    return [name for name in names if not has_kernel(_name_in_table(name))]


def _name_in_table(name: str) -> str:
    return name.removeprefix("aten.").removesuffix(".default")
