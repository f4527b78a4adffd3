"""The proof that an exported file answers as the model does: real images, a fresh process, no code of ours in it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deitctl.data.dataset import ImageDataset
from deitctl.data.eval_transform import Pixels, eval_transform
from deitctl.data.batch_transforms import normalize
from deitctl.errors import DataError, ExportError
from deitctl.exporters.golden import Golden
from deitctl.models.heads import forward_heads, fuse_heads
from deitctl.models.model_config import ModelConfig, Preprocessing

Answers = NDArray[np.float32]
BATCH = 16

# The largest difference of a logit or a probability that passes. Logits are a few units apart and more.
ONNX_TOLERANCE = 1e-3  # other kernels, other order of summing: 3e-5 measured on DeiT-tiny; a wrong weight or pixel gives > 1e-2
OPENVINO_TOLERANCE = 1e-3  # the same: 3e-5 measured
EXECUTORCH_TOLERANCE = 1e-3  # the same
COREML_TOLERANCE = 1e-3  # the same kind of difference; never measured
TORCH_TOLERANCE = 1e-4  # the same kernels on a graph of smaller steps: 2e-6 measured
TIMM_TOLERANCE = 1e-4  # timm's code for the same steps: 2e-6 measured
TRANSFORMERS_TOLERANCE = 1e-4  # the same steps again: 3e-6 measured


class Images(NamedTuple):
    """Images as the exported network takes them, uint8 [N,S,S,3], their names and their places in the source."""

    pixels: Pixels
    names: tuple[str, ...]
    indices: tuple[int, ...] = ()


@dataclass(frozen=True)
class Verification:
    """How far an exported file is from the model."""

    num_images: int
    max_abs_diff: float
    """Over all logits and probabilities."""
    top1_agreement: float
    """Percent of the images."""
    differing: list[str]
    """Names of the images with another first class."""
    first: tuple[int, ...] = ()
    """The file's first class of each image."""


def images(dataset: ImageDataset, preprocessing: Preprocessing, count: int) -> Images:
    """Read `count` images spread evenly over a source, or all there are; unreadable ones are replaced by others.

    Raises:
        ExportError: none can be read.
    """
    total = len(dataset.labels)
    spread = [i * total // count for i in range(count)] if count < total else range(total)
    rest = sorted(set(range(total)).difference(spread))
    read = list(islice(_readable(dataset, [*spread, *rest], preprocessing), count))
    if not read:
        raise ExportError(
            f"None of {total} images to verify on can be read.", "Name others with --verify-with."
        )
    places, views = zip(*read, strict=True)
    pixels = np.ascontiguousarray(np.stack(views).transpose(0, 2, 3, 1))
    return Images(pixels, tuple(dataset.name(index) for index in places), places)


def _readable(
    dataset: ImageDataset, indices: list[int], preprocessing: Preprocessing
) -> Iterator[tuple[int, Pixels]]:
    for index in indices:
        try:
            yield index, eval_transform(dataset.read(index), preprocessing)
        except DataError:
            continue


@torch.inference_mode()
def reference(model: nn.Module, model_config: ModelConfig, head: str, pixels: Pixels) -> Answers:
    """Return what the model in eval mode on the CPU answers to images [N,S,S,3]: logits and probabilities, [2,N,K].

    The way of `predict`, not of the exported network, so that a mistake in the latter shows.
    """
    parts = []
    for batch in torch.split(torch.from_numpy(pixels).permute(0, 3, 1, 2), BATCH):
        logits = fuse_heads(
            forward_heads(model, normalize(batch, model_config.preprocessing)), head
        ).float()
        parts.append(
            torch.stack([logits, (logits / model_config.temperature(head)).softmax(dim=1)])
        )
    return torch.cat(parts, dim=1).numpy()


def verify(
    path: Path,
    program: Path,
    wanted: Answers,
    sample: Images,
    *,
    tolerance: float,
    golden: Golden | None = None,
) -> Verification:
    """Run an exported file in a fresh process and compare.

    Args:
        path: the file or folder.
        program: the script that runs it, with the arguments PATH IN.npy OUT.npy.
        wanted: the model's answers, from `reference`.
        sample: the images.
        tolerance: the largest difference that passes.
        golden: its golden sample, which is looked at first.

    Raises:
        ExportError: it does not run, or disagrees: on the golden sample, by more than `tolerance`, or in the first class
            of an image whose two best classes are further apart than the difference.
    """
    return compare(
        checked_answers(sample.pixels, path, program, golden), wanted, sample.names, tolerance
    )


def checked_answers(pixels: Pixels, path: Path, program: Path, golden: Golden | None) -> Answers:
    """Return what an exported file answers to images [N,S,S,3], once its golden sample, seen alone, is as it should be."""
    if golden is None:
        return answers_to(pixels, path, program)
    answers = answers_to(np.concatenate([golden.pixels, pixels]), path, program)
    golden.check(answers[0, 0])
    return answers[:, 1:]


def answers_to(pixels: Pixels, path: Path, program: Path) -> Answers:
    """Return what an exported file answers to images [N,S,S,3] in a fresh process, [1 or 2,N,K]."""
    with tempfile.TemporaryDirectory(prefix="deitctl-verify-") as folder:
        np.save(Path(folder) / "in.npy", pixels)
        return run(path, program, Path(folder) / "in.npy")


def compare(
    given: Answers, wanted: Answers, names: Sequence[str], tolerance: float
) -> Verification:
    """Compare the answers of a file, [1 or 2,N,K], with the model's; raise `ExportError` as `verify` does."""
    found = measure(given, wanted, names)
    best_two = np.sort(wanted[0], axis=1)[:, -2:]
    apart = best_two[:, -1] - best_two[:, 0] > found.max_abs_diff
    differs = wanted[0].argmax(axis=1) != given[0].argmax(axis=1)
    if (
        not found.max_abs_diff <= tolerance or (differs & apart).any()
    ):  # a difference that is no number fails too
        example = f" (not on {found.differing[0]})" if found.differing else ""
        raise ExportError(
            f"The exported file disagrees with the model on {found.num_images} images: answers differ by up to "
            f"{found.max_abs_diff:.3g} where {tolerance:g} is allowed, top-1 agrees on {found.top1_agreement:.1f} %{example}."
        )
    return found


def measure(given: Answers, wanted: Answers, names: Sequence[str]) -> Verification:
    """Say how far the answers of a file, [1 or 2,N,K], are from the model's; raise `ExportError` if their shapes differ."""
    if given.shape[1:] != wanted.shape[1:]:
        raise ExportError(
            f"The exported file answers with shape {given.shape[1:]}, the model with {wanted.shape[1:]}."
        )
    difference = float(np.abs(given - wanted[: len(given)]).max())
    differs = wanted[0].argmax(axis=1) != given[0].argmax(axis=1)
    differing = [name for name, other in zip(names, differs, strict=True) if other]
    first = tuple(map(int, given[0].argmax(axis=1)))
    return Verification(len(names), difference, 100 * float(1 - differs.mean()), differing, first)


def run(path: Path, program: Path, given: Path) -> Answers:
    """Run an exported file in a fresh process on what is given, and return the answers that it leaves beside it."""
    answers = given.with_name("out.npy")
    # -P: the folder of the script cannot stand in for an installed package
    command = [sys.executable, "-P", str(program), str(path.resolve()), str(given), str(answers)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1][:300]
        raise ExportError(f"The exported file does not run in a fresh process: {last}")
    result: Answers = np.load(answers)
    return result
