"""What columns of tables are called: of images, of classes, of parts of the data."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deitctl.names import canonicalize_name

PATH, LABEL, SPLIT = "path", "label", "split"
_IMAGE_NAMES = ["image", "img", "photo", "pic", "pic" + "ture", "file"]
PATH_NAMES = frozenset(
    [
        *["filename", "fname", "fn", "filepath", "relativepath", "relpath", "path"],
        *_IMAGE_NAMES,
        *(f"{noun}{part}" for noun in _IMAGE_NAMES for part in ("path", "name", "filename")),
        *(f"{noun}{part}" for noun in ("image", "img") for part in ("file", "filepath")),
    ]
)
PATH_KEYS = frozenset(
    [
        *["id", "idcode", "key", "uid", "imageindex"],
        *(f"{n}{k}" for n in _IMAGE_NAMES for k in ("id", "key")),
    ]
)
"""Names of identifiers, which stand for a file where no other column does."""
_CLASS_NAMES = ("label", "class", "category", "target", "tag")
LABEL_NAMES = frozenset(
    [
        *_CLASS_NAMES,
        *(f"{noun}name" for noun in _CLASS_NAMES),
        *["classlabel", "labelclass", "labeltext", "groundtruth", "gt", "y", "truth"],
        *["species", "breed", "diagnosis", "dx", "variety", "variant", "disease", "cultivar"],
    ]
)
LABEL_KEYS = frozenset(
    f"{noun}{key}"
    for noun in _CLASS_NAMES
    for key in ("id", "idx", "index", "number", "num", "code")
)
"""Names of numbers of classes, which stand for the class where no other column does."""
_SUBJECTS = (
    "choice emotion expression annotation finding grade level severity condition pathology outcome "
    "celltype"
)
LABEL_WORDS = frozenset([*_SUBJECTS.split(), *(f"{subject}s" for subject in _SUBJECTS.split())])
LABEL_ENDINGS = ("label", "labels", "class", "classes", "category", "categories")
"""Names, and ends of names, of columns that are taken for the class where nothing else is."""
SPLIT_NAMES = frozenset(["split", "subset", "partition", "set", "dataset", "fold", "phase", "part"])
SOURCE_NAMES = frozenset(["dataset", "part"])
"""Those of them that often hold something else."""
FLAGS = {
    **dict.fromkeys(("istrain", "istraining", "istrainingimage"), ("train", "val")),
    **dict.fromkeys(("isval", "isvalid", "isvalidation"), ("val", "train")),
    "istest": ("test", "train"),
    **dict.fromkeys(("train", "training"), ("train", "val")),
    **dict.fromkeys(("val", "validation"), ("val", "train")),
    **dict.fromkeys(("test", "testing"), ("test", "train")),
}
"""Columns of yes or no: the part of a row with yes, and with no."""
PLURALS = (("s$", ""), ("es$", ""), ("ies$", "y"))
MAX_NAMED = 12
PATHS, LABELS = PATH_NAMES | PATH_KEYS, LABEL_NAMES | LABEL_KEYS
SPLITS = SPLIT_NAMES | {name for name in FLAGS if name.startswith("is")}
_KNOWN = PATHS | LABELS | SPLITS | frozenset(FLAGS)


def reduce_name(name: str) -> str:
    """Return a column's name without case, spaces and signs: `Image ID`, `image_id` and `imageId` are one.

    A plural is the singular.
    """
    reduced = re.sub(r"[\W_]+", "", canonicalize_name(name).casefold())
    if not reduced.endswith("s"):
        return reduced
    singulars = (re.sub(pattern, ending, reduced) for pattern, ending in PLURALS)
    return next((singular for singular in (reduced, *singulars) if singular in _KNOWN), reduced)


def rate_header(fields: Sequence[str]) -> int:
    """Return how many of the columns path, label and split a header names."""
    reduced = {reduce_name(name) for name in fields}
    return sum(bool(names & reduced) for names in (PATHS, LABELS, SPLITS))


def rate_paths(fields: Sequence[str]) -> bool:
    """Return whether a header names a column of image files."""
    return bool(PATHS.intersection(map(reduce_name, fields)))


def list_candidates(names: Sequence[str]) -> list[int]:
    """Return the places of the columns whose values say what they are: splits, and columns of 0 and 1."""
    reduced = list(map(reduce_name, names))
    may_be_one_hot = LABELS.isdisjoint(reduced)
    return [at for at, name in enumerate(reduced) if may_be_one_hot or name in SPLITS]


def name_columns(names: Sequence[str]) -> str:
    """Return the names of columns for a message."""
    first = ", ".join(f"'{name:.40}'" for name in names[:MAX_NAMED])
    return first + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")


def is_label_word(name: str) -> bool:
    """Whether a column is taken for that of classes where nothing else is, by its reduced name."""
    return name in LABEL_WORDS or (
        name.endswith(LABEL_ENDINGS) and not name.startswith(("pred", "num"))
    )
