"""Names of the images in shards: of an image and its shard alone, so that further shards change none.

Letters: N images, S shards.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from deitctl.data.arrays import StringArray
from deitctl.data.stores.address import get_folder, get_name

COUNTED = re.compile(r"[A-Za-z]{0,9}[-_ ]?\d+")
"""Of a key that a writer has counted, as `000123`; another may count from 0 anew in each shard."""


def name_images(
    shards: Sequence[str],
    numbers: NDArray[np.int32],
    list_files: Callable[[], Iterable[tuple[str, str | None]]],
) -> StringArray:
    """Return the name of each image, no two the same.

    It is the path of its file where that is recorded, else its member's, below the name of its shard if a
    writer has counted it. Where an earlier image has that name, as a copy has, the names of its shard and
    its member tell it apart.

    Args:
        shards: path or address of each, [S].
        numbers: of the shard of each image, [N].
        list_files: yields the name of each image's member, and the path of its file if that is recorded; [N].
    """
    stems = name_shards(shards)

    def iterate() -> Iterator[str]:
        for number, (member, file) in zip(numbers.tolist(), list_files(), strict=True):
            is_counted = not file and COUNTED.fullmatch(member.partition(".")[0])
            yield f"{stems[number]}/{member}" if is_counted else file or member

    names = StringArray.from_strings(iterate())
    if is_unique(names):
        return names
    used, again, apart = set[str](), Counter[str](), list[str]()
    for name, number, (member, _) in zip(names, numbers.tolist(), list_files(), strict=True):
        if name in used:
            name = own = f"{stems[number]}/{member}"
            while name in used:
                again[own] += 1
                name = f"{own}#{again[own] + 1}"
        used.add(name)
        apart.append(name)
    return StringArray.from_strings(apart)


def name_shards(shards: Sequence[str]) -> list[str]:
    """Return the name of each shard without `.tar`, below as many of its folders as tell it from the others."""
    names = [get_name(shard).removesuffix(".tar") for shard in shards]
    folders = [get_folder(shard) for shard in shards]
    while len(set(names)) < len(names) and any(map(get_name, folders)):
        names = [
            posixpath.join(get_name(folder), name)
            for folder, name in zip(folders, names, strict=True)
        ]
        folders = [get_folder(folder) for folder in folders]
    return names


def is_unique(names: StringArray) -> bool:
    """Whether no two names are the same."""
    # Sixty-four bits each, not a set of strings: a tenth of the memory.
    hashes = np.fromiter(map(hash, names), np.int64, len(names))
    return len(np.unique(hashes)) == len(names)
