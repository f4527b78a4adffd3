"""What a user points at: files, folders, addresses, lists on standard input; read ahead, in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from deitctl.data.decode import EXTENSIONS, decode, read_image
from deitctl.data.eval_transform import Pixels, eval_transform, has_extreme_aspect
from deitctl.errors import DataError
from deitctl.models.model_config import Preprocessing
from deitctl.paths import walk

STDIN = "-"


class Input(NamedTuple):
    """One input, ready for the model: uint8 [3,S,S], whole [3,H,W], or None and why not."""

    name: str
    pixels: Pixels | None
    error: str | None


def expand(arguments: Iterable[str], stdin: Iterable[str]) -> Iterator[str]:
    """Yield the name of every input: folders recursively in sorted order, `-` as the lines of standard input."""
    for argument in arguments:
        if argument == STDIN:
            yield from (line.rstrip("\r\n") for line in stdin if line.strip())
        elif is_folder(argument):
            yield from _images_below(local_path(argument))
        else:
            yield argument


def is_url(name: str) -> bool:
    """Say whether a name is a web address."""
    return name.lower().startswith(("http://", "https://"))


def is_folder(name: str) -> bool:
    """Say whether a name is a folder here."""
    return not is_url(name) and os.path.isdir(local_path(name))


def local_path(name: str) -> str:
    """Return the path that a name means: as it is, or out of a `file://` address, which file browsers hand out."""
    if not name.lower().startswith("file://"):
        return name
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        parts = urlsplit(name)
    except ValueError:  # half of an IPv6 address
        return name
    return (
        url2pathname(parts.path) if parts.netloc in ("", "localhost") else name
    )  # of another host: nothing is there


def _images_below(folder: str) -> Iterator[str]:
    found = False
    for current, folders, files in walk(folder, follow=False):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        files.sort()  # in place: a folder may have a million
        for file in files:
            if os.path.splitext(file)[1].lower() in EXTENSIONS and not file.startswith("."):
                found = True
                yield os.path.join(current, file)
    if not found:
        yield folder  # becomes a record that says so


def whole_image(image: Image.Image, pre: Preprocessing) -> Pixels:
    """Return an image as it is, uint8 [3,H,W], for a file that resizes it; raise `DataError` if it is too long for one."""
    if has_extreme_aspect(image.width, image.height, pre):
        raise DataError(
            f"An image of {image.width} x {image.height} pixels is too long for a file that resizes whole images.",
            "A file without --any-size takes it.",
        )
    return np.asarray(image).transpose(2, 0, 1)


def batches(
    names: Iterable[str],
    preprocessing: Preprocessing,
    batch_size: int,
    view: Callable[[Image.Image, Preprocessing], Pixels] = eval_transform,
) -> Iterator[list[Input]]:
    """Yield inputs in order, `batch_size` at a time, the next batch being decoded by threads meanwhile.

    Args:
        names: see `expand`.
        preprocessing: the model's.
        batch_size: how many at a time.
        view: what of an image the model is given.
    """

    def load(name: str) -> Input:
        try:
            if is_folder(name):
                raise DataError(
                    f"{name} is a folder without images (in a list of names only files are read)."
                )
            if (
                "://" in name
                and not is_url(name)
                and local_path(name) == name
                and not os.path.exists(name)
            ):
                raise DataError(f"{name} is not read: addresses are http, https or file.")
            image = _from_web(name) if is_url(name) else read_image(Path(local_path(name)))
            return Input(name, view(image, preprocessing), None)
        except DataError as error:
            return Input(name, None, str(error))

    yield from read_ahead(iter(names), load, batch_size)


def _from_web(url: str) -> Image.Image:
    from deitctl.inference.download import (
        fetch,
    )  # the web's protocols take longer to import than an image to decode

    return decode(fetch(url), url)


def read_ahead(
    names: Iterator[str], load: Callable[[str], Input], batch_size: int
) -> Iterator[list[Input]]:
    """Apply `load` in threads, one batch ahead of the one that is yielded; memory holds two batches at most."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        pending = [pool.submit(load, name) for name in islice(names, batch_size)]
        while pending:
            following = (
                []
                if batch_size == 1
                else [pool.submit(load, name) for name in islice(names, batch_size)]
            )
            yield [future.result() for future in pending]
            # one at a time means that each answer is wanted before the next name may be known
            pending = following or [pool.submit(load, name) for name in islice(names, batch_size)]
