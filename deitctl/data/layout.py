"""A data set's layout, and the names in one: which mean training, validation and test, which no data."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "holdout"), "test"),
    # German, French, Spanish, Portuguese, Italian
    **dict.fromkeys(("trainings", "entrainement", "entraînement", "entrenamiento"), "train"),
    **dict.fromkeys(("treino", "treinamento", "addestramento"), "train"),
    **dict.fromkeys(("validierung", "validierungs", "validacion", "validación"), "val"),
    **dict.fromkeys(("validacao", "validação", "validazione"), "val"),
    **dict.fromkeys(("prueba", "pruebas", "teste", "testes"), "test"),
}
"""What a word in a name says about the images: exact names of parts."""
_NEUTRAL = (
    "set sets subset data dataset datasets split splits part folder folders seg "
    "image images img imgs pic pics photo photos sample samples jpg jpeg png "
    "daten datensatz satz bilder menge donnees données jeu datos imagenes imágenes dados imagens"
)
NEUTRAL_WORDS = frozenset(_NEUTRAL.split())
"""Words beside such a word that say nothing more: `training_set`, `seg_train`, `test_images`."""
_ASIDE = (
    "pred predict prediction predictions unlabeled unlabelled unlabel extra extras misc other others "
    "mask masks annotation annotations label labels meta metadata docs logs output outputs results "
    "raw unused rejected backup old tmp temp sample samples demo example examples images image"
)
ASIDE_WORDS = frozenset(_ASIDE.split())
"""Words in names of folders that lie beside the parts of a data set and are none."""
_BESIDE = (
    "sample samples demo demos example examples preview previews screenshot screenshots thumbnails "
    "assets asset media static docs doc documentation figure figures fig figs plot plots readme "
    "result results output outputs out log logs run runs wandb mlruns experiment experiments "
    "model models weights checkpoint checkpoints ckpt ckpts pred predict prediction predictions "
    "inference visualization visualizations heatmaps notebook notebooks src scripts script code "
    "tests config configs utils lib app web build dist tools tmp temp label labels annotation "
    "annotations metadata meta unlabeled unlabelled"
)
BESIDE_WORDS = frozenset(_BESIDE.split())
"""Words of which names of folders beside the data consist, as in a project's folder."""
_MASKS = (
    "mask masks label labels annotation annotations segmentation segmentations gt groundtruth "
    "trimap trimaps"
)
MASK_WORDS = frozenset(_MASKS.split())
"""Words in names of folders that hold what is drawn in images, as images of the same names."""
_SERIES = (
    "fold part split set dataset batch chunk shard cv k group session subject source domain camera"
)
SERIES_WORDS = frozenset(_SERIES.split())
"""Words that a number or letter follows in names of several folders of equal contents."""
MAX_NAMES = 5
STANDARD_NAMES = ("train", "val", "test", "training", "validation", "valid")
"""Folders that need no word about what they are read as."""
MAX_DIGITS = 4
"""Of a number in the name of a part: `train2017`, `test1`."""
JUNK = frozenset(
    name.casefold()
    for name in (
        *("@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot"),  # file servers
        *("$RECYCLE.BIN", "RECYCLER", "System Volume Information", "Thumbs.db", "desktop.ini"),
        *("@tmp", "@sharesnap", "@sharebin", "@appstore", "@database", "@SynoEAStream"),
        *("@SynoResource", "@__thumb", "~snapshot", "_gsdata_"),
        *("ehthumbs.db", "lost+found", "LOST.DIR", "__MACOSX", "__pycache__"),
        *("Network Trash Folder", "Temporary Items"),
    )
)
"""Folders and files of systems and tools; hidden ones (`.thumbnails`, `._1.jpg`) need no list."""


@dataclass(frozen=True)
class Layout:
    """The folders of class folders in a data set, by their paths below it."""

    root: str
    """Where the data begin, below folders around them; empty: at the top."""
    parts: Mapping[str, str]
    """Folder of class folders by split; that of data without parts under ""."""
    in_classes: bool = False
    """Whether each class folder holds the parts, and `parts` is that of all of them."""
    unlabeled: Mapping[str, str] = field(default_factory=dict)
    """Parts with images and no class folders, which have no labels."""
    left_out: tuple[str, ...] = ()
    """Folders beside the parts that are none of them, with images in them."""
    same_folders: tuple[str, ...] = ()
    """Folders that every class folder holds, which are read as its depth."""
    copies: tuple[str, ...] = ()
    """Folders in the parts that hold the same again, and are not read."""
    masks: tuple[str, ...] = ()
    """Folders in class folders with what is drawn in the images beside them, which are not read."""
    loose: Mapping[str, int] = field(default_factory=dict)
    """Images beside the parts or beside the folder around them, by extension."""

    def list_not_read(self, part: str) -> frozenset[str]:
        """Return the folders in a part that are not read, by their paths below it."""
        prefix = f"{self.parts[part]}/" if self.parts[part] else ""
        paths = (*self.copies, *self.masks)
        return frozenset(p.removeprefix(prefix) for p in paths if p.startswith(prefix))

    def warn(self) -> str:
        """Return what was decided and may be wrong, in a line; empty where nothing was."""
        if not self.masks:
            return ""
        return (
            f"Left out as what is drawn in images: {name_some(f'{path}/' for path in self.masks)}."
        )

    def describe(self, *, names_root: bool = True) -> str:
        """Return what was decided, in a line; empty where nothing had to be.

        Args:
            names_root: whether a folder around the data is worth a word, as it is not in a tar.
        """
        sentences = []
        if not names_root:
            pass
        elif self.root and set(self.parts) == {""}:
            sentences.append(f"The class folders are those in {self.root}/.")
        elif self.root:
            sentences.append(f"The data are those in {self.root}/.")
        below = {
            split: os.path.relpath(path, self.root or ".").replace(os.sep, "/")
            for split, path in self.parts.items()
            if split
        }
        if self.in_classes:
            sentences.append("Each class folder holds the parts: CLASS/train/IMAGE is read.")
        elif any(path not in STANDARD_NAMES for path in below.values()):
            read = ", ".join(f"{split} is {path}/" for split, path in below.items())
            sentences.append(f"Parts: {read}.")
        if self.same_folders:
            names = name_some(f"{name}/" for name in self.same_folders)
            sentences.append(
                f"Every class folder holds {names}, whose images are those of the class."
            )
        for split, path in self.unlabeled.items():
            sentences.append(
                f"{path}/ has no class folders: the {split} images have no labels, and are left out."
            )
        if self.copies:
            sentences.append(
                f"Left out as copies of what is beside them: "
                f"{name_some(f'{path}/' for path in self.copies)}."
            )
        if self.left_out:
            sentences.append(f"Left out: {name_some(f'{path}/' for path in self.left_out)}.")
        return " ".join(sentences)


def name_some(names: Iterable[str]) -> str:
    """Return the first few names, for a message."""
    names = list(names)
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def is_junk(name: str) -> bool:
    """Whether a folder or file belongs to the system or to a tool and is not data."""
    return (
        name.startswith((".", "__MACOSX"))
        or name.casefold() in JUNK
        or bool(re.fullmatch(r"FOUND\.\d{3}", name, re.IGNORECASE))  # of chkdsk
    )


def match_split(name: str) -> str | None:
    """Return what a folder or the value of a column is by its name: `train`, `val`, `test` or None.

    One word says it (`train`, `Testing`, `dev`), alone or with words and numbers that say nothing
    (`training_set`, `trainData`, `seg_test`, `val2017`). A name with any other word is None: a
    `bullet_train` is a class.
    """
    matched, others = _split_name(name)
    return matched if all(map(_is_neutral, others)) else None


def find_split_word(name: str) -> str | None:
    """Return which part a word of a name means, whatever the others are: `PublicTest` is `test`."""
    return _split_name(name)[0]


def match_splits(names: Iterable[str]) -> dict[str, str]:
    """Return what some neighbors are by their names, as far as they are parts of the data.

    Neighbors explain each other: `flowers_train` and `flowers_test` have the same words beside
    `train` and `test`.
    """
    names = list(names)
    matched = {name: split for name in names if (split := match_split(name))}
    if matched:
        return matched
    alike: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        split, others = _split_name(name)
        if split:
            alike.setdefault(tuple(others), {})[name] = split
    return next((group for group in alike.values() if len(set(group.values())) > 1), {})


def is_neutral(name: str) -> bool:
    """Whether a folder's name says nothing about what is in it: `images`, `Data`, `dataset2`."""
    split, others = _split_name(name)
    return split is None and bool(others) and all(map(_is_neutral, others))


def is_aside(name: str) -> bool:
    """Whether a folder beside the parts is known to be none, and no class: `pred`, `unlabeled`."""
    return any(word in ASIDE_WORDS for word in _split_name(name)[1])


def is_around(name: str) -> bool:
    """Whether a folder's name, and no number, says that class folders or images are in it: `images`."""
    return is_neutral(name) and any(map(str.isalpha, name))


def is_beside(name: str) -> bool:
    """Whether a folder is one that lies around data, and by its name no class: `docs`, `runs`."""
    split, others = _split_name(name)
    words = [word for word in others if word in BESIDE_WORDS]
    return (
        split is None and bool(words) and all(word in words or _is_neutral(word) for word in others)
    )


def is_of_masks(name: str) -> bool:
    """Whether a folder holds what is drawn in images by its name: `masks`, `SegmentationClass`."""
    return any(word in MASK_WORDS for word in _split_name(name)[1])


def is_mask_folder(name: str) -> bool:
    """Whether a folder's name says that it holds what is drawn in images, and nothing else."""
    split, words = _split_name(name)
    if split is not None or not (is_of_masks(name) or "seg" in words):
        return words == ["ground", "truth"]
    return all(word in MASK_WORDS or _is_neutral(word) for word in words)


def is_numbered_part(name: str) -> bool:
    """Whether a folder is one of several of equal contents: `fold1`, `batch_2`, `set-A`."""
    words = _split_name(name)[1]
    is_series = len(words) == 2 and words[0] in SERIES_WORDS
    return is_series and (words[1].isdecimal() or len(words[1]) == 1)


def _split_name(name: str) -> tuple[str | None, list[str]]:
    """Return what a name says about the split, and its other words; None for no or two of them."""
    spaced = re.sub(
        r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])",
        " ",
        unicodedata.normalize("NFKC", name).strip(),
    )
    words = re.findall(r"[^\W\d_]+|\d+|[^\w\s]", spaced.casefold())
    words = [part for word in words if word not in "-.+()[]" for part in _split_word(word)]
    splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
    others = [word for word in words if word not in SPLIT_WORDS]
    return (splits[0] if len(splits) == 1 else None), others


def _split_word(word: str) -> tuple[str, ...]:
    """Part `trainset` and `testimages` into the word that counts and the one that does not."""
    for end in NEUTRAL_WORDS:
        if word.endswith(end) and word.removesuffix(end) in SPLIT_WORDS:
            return word.removesuffix(end), end
        if word.startswith(end) and word.removeprefix(end) in SPLIT_WORDS:
            return end, word.removeprefix(end)
    return (word,)


def _is_neutral(word: str) -> bool:
    return word in NEUTRAL_WORDS or (word.isdecimal() and len(word) <= MAX_DIGITS)
