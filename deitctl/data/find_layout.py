"""Where the class folders of a data set are: below folders around them, in parts, or around parts.

One search serves folders and tars, for every command that opens data. It lists the folders on the
way to the class folders, and the first few of those; never all images.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from deitctl.data.inside_parts import are_same, find_copies, find_masks, find_same_folders
from deitctl.data.layout import (
    Layout,
    is_around,
    is_aside,
    is_beside,
    is_mask_folder,
    is_neutral,
    is_of_masks,
    match_split,
    match_splits,
    name_some,
)
from deitctl.data.trees import NUM_PROBED, Tree, find_innermost, find_only, has_images, join_path
from deitctl.errors import DataError


def find_layout(tree: Tree, data: str) -> Layout:
    """Find the class folders of a data set.

    Args:
        tree: its folders.
        data: its name, for messages.

    Raises:
        DataError: two folders mean the same part, or what is a part and what is a class is not clear.
    """
    search = _Search(tree, data)
    root = ""
    left_out: tuple[str, ...] = ()
    while True:
        layout = search.find_parts(root) or search.find_parts_in_classes(root)
        if layout or find_copies(tree, root, data):
            break
        inner = search.find_inner(root)
        if not inner:
            break
        left_out += tuple(path for path in search.list_paths(root) if path != inner)
        root = inner
    if layout is None:
        unlabeled = search.find_unlabeled(root)
        layout = Layout(root, {} if unlabeled else {"": root}, unlabeled=unlabeled)
    if not layout.in_classes:
        layout = _look_inside(layout, tree, data)
    return replace(
        layout, left_out=left_out + layout.left_out, loose=search.count_loose_images(layout)
    )


def _look_inside(layout: Layout, tree: Tree, data: str) -> Layout:
    """Return a layout with what its parts hold besides images in class folders."""
    copies: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    for part in layout.parts.values():
        copies += find_copies(tree, part, data)
        masks += find_masks(tree, part, copies)
        same = same or find_same_folders(tree, part, data, {*copies, *masks})
    return replace(layout, copies=copies, masks=masks, same_folders=same)


class _Search:
    def __init__(self, tree: Tree, data: str) -> None:
        self.tree, self.data = tree, data

    def find_parts(self, root: str) -> Layout | None:
        """Return the parts that a folder holds; None if it holds none."""
        folders = self.tree.list(root).folders
        named = match_splits(folders)
        if not named:
            return None
        places = self._enter_parts({name: join_path(root, name) for name in named}, named)
        deep = [name for name in named if self.tree.list(places[name]).folders]
        flat = [n for n in named if n not in deep and self.tree.list(places[n]).images]
        others = [
            n for n in folders if n not in named and has_images(self.tree, join_path(root, n))
        ]
        # `train2017`, `val2017` and `annotations`
        are_unlabeled = len({named[n] for n in flat}) > 1 and all(map(is_aside, others))
        if not deep and len(flat) < len(folders) and not are_unlabeled:
            return None  # classes: `test` and `control`, `valid` and `invalid`
        if around := [n for n in deep if self._holds_parts(places[n])]:
            if len(folders) == 1:
                return None
            raise DataError(
                f"{self.data} has parts of the data in {join_path(root, around[0])}/, which is itself "
                "named as a part.",
                f"Put the parts beside each other, or {self._suggest(join_path(root, around[0]))}.",
            )
        is_only = others and len({named[name] for name in (*deep, *flat)}) == 1
        if is_only and not self._is_part(root, deep, others):
            return None
        parts = self._choose(deep, named)
        return Layout(
            root,
            {split: places[name] for split, name in parts.items()},
            unlabeled={named[n]: places[n] for n in flat if named[n] not in parts},
            left_out=(
                *(places[n] for n in flat if named[n] in parts),
                *(join_path(root, n) for n in others),
            ),
        )

    def _enter_parts(
        self, places: Mapping[str, str], named: Mapping[str, str]
    ) -> Mapping[str, str]:
        """Enter folders that hold nothing but another around the class folders."""
        # a class called `photo` is not a folder around images
        folders = [
            [name for name in self.tree.list(path).folders if not is_mask_folder(name)]
            for path in places.values()
        ]
        class_names = {name for names in folders if len(names) > 1 for name in names}
        entered = {n: self._enter(path, named[n], class_names) for n, path in places.items()}
        # `train/flowers/rose`: whatever the inner folder is called, if every part has one
        inner = {name: find_only(self.tree, path) for name, path in entered.items()}
        holding = [name for name, path in entered.items() if self.tree.list(path).folders]
        if holding and all(
            (path := inner[name]) and self.tree.list(path).folders for name in holding
        ):
            return {**entered, **{name: inner[name] for name in holding}}
        return entered

    def _enter(self, path: str, split: str, class_names: Collection[str]) -> str:
        """Enter `train/train/` and `train/images/`, as unpacking makes them."""
        while inner := self._find_photos(path):
            name = inner.rsplit("/", 1)[-1]
            is_doubled = match_split(name) == split or name == path.rsplit("/", 1)[-1]
            if not (is_doubled or (is_neutral(name) and name not in class_names)):
                break
            path = inner
        return path

    def _find_photos(self, path: str) -> str:
        """Return the one folder in another, beside which may be one of boxes, `labels/`."""
        folders, images = self.tree.list(path)
        drawn = [name for name in folders if is_mask_folder(name)]
        if len(folders) != len(drawn) + 1 or images:
            return ""
        if any(has_images(self.tree, join_path(path, name)) for name in drawn):
            return ""
        return next(join_path(path, name) for name in folders if name not in drawn)

    def _is_part(self, root: str, deep: Sequence[str], others: Sequence[str]) -> bool:
        """Whether the only folder that is named as a part is one, and not a class of that name.

        Raises:
            DataError: it may be either.
        """
        if all(map(is_aside, others)):
            return True
        if any(self.tree.has_image(join_path(root, name)) for name in deep):
            return False
        part = deep[0]
        inside = {self.tree.list(join_path(root, name)).folders for name in (part, *others)}
        if len(inside) == 1 and len(inside.pop()) == 1:
            return False  # `train/side/`, `bus/side/`, `car/side/`
        raise DataError(
            f"{self.data} has {join_path(root, part)}/ of folders, as a part of the data has, beside "
            f"{name_some(f'{name}/' for name in others)}, which may be classes.",
            f"If {part} is a part, {self._suggest(join_path(root, part))}, and name other parts train, "
            "val and test; if it is a class, move its images up, out of its folders.",
        )

    def _holds_parts(self, path: str) -> bool:
        """Whether a folder holds two parts of class folders."""
        named = match_splits(self.tree.list(path).folders)
        deep = {split for n, split in named.items() if self.tree.list(join_path(path, n)).folders}
        return len(deep) > 1

    def _choose(self, names: Sequence[str], named: Mapping[str, str]) -> dict[str, str]:
        """Return the folder of each part; raise `DataError` if two mean the same."""
        parts: dict[str, str] = {}
        for split in ("train", "val", "test"):
            same = sorted(
                (name for name in names if named[name] == split), key=lambda n: (len(n), n)
            )
            if len(same) > 1:
                raise DataError(
                    f"{self.data} has a {same[0]} and a {same[1]} split, which both mean {split}.",
                    "Put their images into one, or rename the one that is something else.",
                )
            if same:
                parts[split] = same[0]
        return parts

    def find_parts_in_classes(self, root: str) -> Layout | None:
        """Return the layout of class folders that hold the parts: `cat/train/`, `cat/val/`.

        Raises:
            DataError: some hold parts and others not, or each is a data set of its own.
        """
        folders = self.tree.list(root).folders
        if all(is_around(name) or is_of_masks(name) for name in folders):
            return None  # `images/train/` and `labels/train/`
        paths = self.list_paths(root)[:NUM_PROBED]
        for path in paths:
            inner = find_innermost(self.tree, path)
            if len(folders) > 1 and not self.tree.has_image(inner) and self._holds_parts(inner):
                others = [p for p in self.list_paths(root) if p != path and not _is_beside(p)]
                if not any(has_images(self.tree, p) for p in others):
                    return None  # the only data set, beside other things
                raise DataError(
                    f"{self.data} holds several folders, and {inner}/ is a data set with parts of "
                    "its own.",
                    f"Take one of them: {self._suggest(inner)}.",
                )
        probed = [
            name
            for name in folders[:NUM_PROBED]
            if len(set((self._list_parts(join_path(root, name)) or {}).values())) > 1
        ]
        if not probed or len(folders) == 1:  # one is a folder around the data
            return None
        first = join_path(root, probed[0])
        wrong = [name for name in folders if self._list_parts(join_path(root, name)) is None]
        if wrong:
            raise DataError(
                f"{self.data} has parts of the data in the class folder {first}/, and none in "
                f"{join_path(root, wrong[0])}/.",
                "Give every class folder the same parts, or put train/, val/ and test/ around the "
                "class folders.",
            )
        return Layout(root, {"": root}, in_classes=True)

    def _list_parts(self, path: str) -> dict[str, str] | None:
        """Return the parts that a class folder holds; None if it holds none, or anything else."""
        if self.tree.has_image(path):
            return None
        folders = self.tree.list(path).folders
        named = {name: split for name in folders if (split := match_split(name))}
        if not named or len(named) < len(folders):
            return None
        self._choose(list(named), named)  # which refuses two folders of one part
        return named

    def find_inner(self, root: str) -> str:
        """Return the folder around the class folders or parts if there is one, else "".

        Raises:
            DataError: a folder may be around the class folders or be one of them.
        """
        folders = self.tree.list(root).folders
        if sum(not is_beside(name) for name in folders) > NUM_PROBED:
            return ""
        inner = [path for path in self.list_paths(root) if has_images(self.tree, path)]
        if len(inner) > 1:
            return self._choose_inner(inner)
        if not inner:
            return ""
        entries = self.tree.list(inner[0])
        if entries.images:  # beside parts or classes they are loose, else it is a class
            holding = [n for n in entries.folders if has_images(self.tree, join_path(inner[0], n))]
            return inner[0] if len(holding) > 1 or match_splits(holding) else ""
        return inner[0] if entries.folders else ""

    def _choose_inner(self, paths: Sequence[str]) -> str:
        """Return that of several folders with images which is around the data, else ""."""
        neutral = [path for path in paths if is_around(_get_name(path)) and not _is_beside(path)]
        others = [path for path in paths if path not in neutral]
        if neutral and others and all(is_of_masks(_get_name(path)) for path in others):
            self._refuse_masks(paths)
        deep = [p for p in paths if not _is_beside(p) and self._holds_folders(p, p in neutral)]
        if not deep or are_same(self.tree, paths):
            return ""
        around = next((path for path in deep if path in neutral), deep[0])
        others = [path for path in paths if path != around]
        if all(
            _is_beside(path)
            or (around in neutral and path not in deep and match_split(_get_name(path)))
            for path in others
        ):
            return around
        inside = self.tree.list(around).folders
        is_depth = all(any(map(str.isdecimal, name)) for name in inside)  # photo/2019/
        is_tested = any(match_split(_get_name(path)) == "test" for path in others)
        if is_depth or self.tree.has_image(around) or not (around in neutral or is_tested):
            return ""
        raise DataError(
            f"{self.data} has {around}/ of the folders {name_some(f'{n}/' for n in inside)} beside "
            f"{name_some(f'{path}/' for path in others)}: which of both are the classes is not clear.",
            f"If those in {around}/ are, {self._suggest(around)}; if {_get_name(around)} is a class, "
            "move its images up, out of its folders.",
        )

    def _refuse_masks(self, paths: Sequence[str]) -> None:
        """Refuse images beside their masks, unless each has folders, which may be classes."""
        if all(map(self._is_flat, paths)):
            raise DataError(
                f"{self.data} has images and no class folders: {name_some(f'{p}/' for p in paths)} "
                "are no names of classes, but of images and what is drawn in them.",
                "Put the images of each class into a folder with its name, or pass a table of "
                "path,label as DATA.",
            )

    def _is_flat(self, path: str) -> bool:
        """Whether the images in a folder lie directly in it, or in parts without class folders."""
        inside = self.tree.list(path).folders
        is_parted = bool(inside) and len(match_splits(inside)) == len(inside)
        return self.tree.has_image(path) or (
            is_parted and all(self.tree.has_image(join_path(path, name)) for name in inside)
        )

    def _holds_folders(self, path: str, has_loose: bool) -> bool:
        """Whether a folder holds several folders with images, and no image unless it may."""
        path = find_innermost(self.tree, path)
        if not has_loose and self.tree.has_image(path):
            return False
        return sum(has_images(self.tree, p) for p in self.list_paths(path)[:NUM_PROBED]) > 1

    def find_unlabeled(self, root: str) -> dict[str, str]:
        """Return the one folder of images, `images/`, whose name is no class; empty for others."""
        paths = [p for p in self.list_paths(root)[: NUM_PROBED + 1] if has_images(self.tree, p)]
        only = paths[0] if len(paths) == 1 else ""
        is_flat = bool(only) and not self.tree.list(only).folders
        return {"": only} if is_flat and is_neutral(only.rsplit("/", 1)[-1]) else {}

    def _suggest(self, path: str) -> str:
        """Return how one folder of the data is named as DATA."""
        if not os.path.isdir(self.data):
            return f"unpack {path}/ and pass it as DATA"
        return f"pass `{shlex.quote(os.path.join(self.data, path))}` as DATA"

    def list_paths(self, root: str) -> list[str]:
        """Return the folders in a folder, by their paths."""
        return [join_path(root, name) for name in self.tree.list(root).folders]

    def count_loose_images(self, layout: Layout) -> dict[str, int]:
        """Count the images on the way to the class folders, by extension."""
        above = [""]
        for name in filter(None, layout.root.split("/")):
            above.append(join_path(above[-1], name))
        places = [path for path in above if path not in layout.parts.values()]
        return dict(sum((Counter(self.tree.list(path).images) for path in places), Counter()))


def _get_name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _is_beside(path: str) -> bool:
    return is_beside(_get_name(path))
