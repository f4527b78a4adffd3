"""Tars of images in class folders, and tars of one class each: the classes are in the names.

ImageNet-21k's own download is a folder of `n01440764.tar`, ImageNet-1k's a tar of such tars.
"""

from __future__ import annotations

import posixpath
import re
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from deitctl.data.arrays import StringArray
from deitctl.data.find_layout import find_layout
from deitctl.data.index import Listing
from deitctl.data.layout import Layout
from deitctl.data.readers.folder import split_classes
from deitctl.data.readers.passed_over import leave_out, require_labels
from deitctl.data.readers.shard_contents import ShardContents, join_spans
from deitctl.data.readers.shard_names import NUMBER
from deitctl.data.shard_files import Spans
from deitctl.data.trees import NameTree
from deitctl.errors import DataError

WORDNET_ID = re.compile(r"n\d{8}")


def list_class_folders(
    contents: Sequence[ShardContents],
    parts: Mapping[str, Sequence[int]],
    shards: Sequence[str],
    data: str,
) -> dict[str, Listing]:
    """Return the images of tars by split, with the classes that folders and tars name.

    Args:
        contents: of each tar.
        parts: numbers of the tars of each split.
        shards: path of each.
        data: name of the data, for messages.

    Raises:
        DataError: there are no class folders, or what is a part and what is a class is not clear.
    """
    # NUL sorts before every character of a name, so sorted keys are in the order of a walk, folder
    # by folder.
    order = [number for numbers in parts.values() for number in numbers]
    keys, spans = list[str](), join_spans(contents, order)
    for split, numbers in parts.items():
        stems = [posixpath.basename(shards[number]).removesuffix(".tar") for number in numbers]
        of_classes = _are_class_tars(stems, [contents[number] for number in numbers], data)
        for number, stem in zip(numbers, stems, strict=True):
            for name in contents[number].names:
                if of_classes and not name.startswith(f"{stem}/"):
                    name = f"{stem}/{name}"
                keys.append((f"{split}/{name}" if split else name).replace("/", "\0"))
    unread = sum((Counter(shard.unread) for shard in contents), Counter[str]())
    tree = NameTree(key.replace("\0", "/") for key in keys)
    layout = find_layout(tree, data)
    require_labels(layout, tree, data)
    unread.update(layout.loose)
    in_order, listings = sorted(range(len(keys)), key=keys.__getitem__), dict[str, Listing]()
    for split, folder in layout.parts.items():
        if not tree.list(folder).folders:
            raise DataError(
                f"{data} has no class folders with images in it.",
                "Put the images of each class into a folder with its name, and pack those.",
            )
        unread.update(tree.list(folder).images)
        listing = _build_listing(keys, in_order, spans, folder)
        listings[split] = leave_out(listing, layout.list_not_read(split))
    return _describe(listings, layout, unread, parts)


def _describe(
    listings: dict[str, Listing],
    layout: Layout,
    unread: Mapping[str, int],
    parts: Mapping[str, Sequence[int]],
) -> dict[str, Listing]:
    """Return listings with what was decided about the layout, in words, and what is not read."""
    if layout.in_classes:
        listings = split_classes(listings[""])
    first = next(iter(listings))
    words = f"{layout.describe(names_root=False)}\n{layout.warn()}".rstrip()
    listings = {split: replace(listing, layout=words) for split, listing in listings.items()}
    return listings | {first: replace(listings[first], unread=dict(unread))}


def _are_class_tars(stems: Sequence[str], contents: Sequence[ShardContents], data: str) -> bool:
    """Whether each of some tars holds the images of one class, which its name says.

    Raises:
        DataError: they are shards of images without labels.
    """
    if all(map(WORDNET_ID.fullmatch, stems)):
        return True
    is_flat = all("/" not in name for shard in contents for name in shard.names)
    if len(stems) < 2 or not is_flat or not any(len(shard.names) for shard in contents):
        return False
    if len({NUMBER.sub("", stem) for stem in stems}) < len(stems):  # x-000000, x-000001
        raise DataError(
            f"{data} has images but no labels: neither a .cls, .json or .txt beside each, nor class folders.",
            "Images without labels are for --unlabelled; labels go into a .cls beside each image, "
            "KEY.jpg and KEY.cls.",
        )
    return True


def _build_listing(keys: Sequence[str], order: Sequence[int], spans: Spans, folder: str) -> Listing:
    """List the images in the class folders of a folder, which may be "" for all of the tars."""
    chosen, labels = array("q"), array("q")
    classes: dict[str, int] = {}
    prefix = folder.replace("/", "\0") + "\0" if folder else ""
    names = list[str]()
    for at in order:
        name = keys[at][len(prefix) :]
        if keys[at].startswith(prefix) and "\0" in name:  # else beside the class folders
            chosen.append(at)
            labels.append(classes.setdefault(name.partition("\0")[0], len(classes)))
            names.append(name.replace("\0", "/"))
    return Listing(
        StringArray.from_strings(names),
        np.array(labels, np.int64),
        tuple(classes),
        spans.take(np.array(chosen, np.int64)),
    )
