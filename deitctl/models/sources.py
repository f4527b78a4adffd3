"""What a model's name stands for: a file, a folder, a repository of the hub, or published weights."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from deitctl.errors import ModelError, WeightsNotFound
from deitctl.events import Reporter, SilentReporter
from deitctl.home import expand_home
from deitctl.models import catalog, timm_models
from deitctl.models.checkpoint_io import (
    CONFIG,
    WEIGHT_FILES,
    WEIGHTS,
    find_weights_file,
    suggest_inside,
)
from deitctl.models.transformers_folder import PROCESSOR
from deitctl.models.weights import (
    download,
    fetch_weights,
    find_cached,
    find_weights,
    require_published,
)
from deitctl.paths import suggest_path

HUB_PREFIXES = ("hf-hub:", "hf_hub:", "hf:", "https://huggingface.co/", "huggingface.co/")
"""timm's two, transformers' short one, and the address of the page."""
_REPOSITORY = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<revision>[^/@]+)"  # timm's form
    r"|(?P<page>/(?:tree|blob|resolve)/(?P<branch>[^/]+)(?:/(?P<file>[^?]+))?(?:\?.*)?))?/?"
)
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
"""Of names that mean files, there or not. What a file is, its content says."""


def get_repo_id(ref: str) -> str:
    """Return the hub repository that a model's name means, `owner/name`; empty if it means none.

    `owner/name` alone means a repository where there is neither such a path nor a folder `owner`.

    Raises:
        ModelError: it names a file or a revision of a repository.
    """
    prefix = next((p for p in HUB_PREFIXES if ref.startswith(p)), "")
    match = _REPOSITORY.fullmatch(ref.removeprefix(prefix))
    if match is None:
        return ref if prefix else ""
    repo_id, revision, file = (
        match["id"],
        match["revision"] or match["branch"] or "main",
        match["file"] or "",
    )
    if not prefix:
        is_page = match["page"] is not None
        has_suffix = Path(ref).suffix in (*WEIGHT_SUFFIXES, ".onnx", ".pt2")
        if (has_suffix and not is_page) or os.path.exists(repo_id.partition("/")[0]):
            return ""
    if revision != "main":
        raise ModelError(
            f"{ref} names the revision {revision!r} of {repo_id}, and `main` is read.",
            f"Download it: hf download {repo_id} --revision {revision} --local-dir FOLDER; then "
            "--model FOLDER.",
        )
    if file not in ("", CONFIG, *WEIGHT_FILES):
        raise ModelError(
            f"{ref} is the page of one file.",
            f"Name the repository, {repo_id}, or download the file: hf download {repo_id} {file}.",
        )
    return repo_id


def is_model_folder(ref: str) -> bool:
    """Return whether `ref` is a local folder; a bare name only if the folder holds a model."""
    path = expand_home(ref)
    # A folder that happens to be called deit_tiny must not hide the architecture.
    return path.is_dir() and ("/" in ref or (path / CONFIG).is_file())


def is_weights_file(ref: str) -> bool:
    """Return whether `ref` is a local file; one with the bare name of a model is not meant by it."""
    if not expand_home(ref).is_file():
        return False
    return (
        "/" in ref
        or "." in ref
        or (catalog.find(ref) is None and not timm_models.is_timm_model(ref))
    )


def has_weights(ref: str) -> bool:
    """Return whether `ref` is a file, a folder or a repository, and so more than an architecture."""
    return is_weights_file(ref) or is_model_folder(ref) or bool(get_repo_id(ref))


def get_stem(ref: str) -> str:
    """Return what to call a model that has no other name: its file's name without suffix, or the last part."""
    name = re.split(r"[/\\]", get_repo_id(ref) or ref.rstrip("/\\"))[-1]
    while Path(name).suffix in WEIGHT_SUFFIXES:  # model_best.pth.tar
        name = Path(name).stem
    return name


def list_weight_files(ref: str, weights: str = "") -> list[Path]:
    """Return the files of a model that is a local file or folder; none for a published name."""
    start = Path(os.path.expanduser(weights or ref))
    if start.is_dir() and (weights or is_model_folder(ref)):
        names = (CONFIG, PROCESSOR, *WEIGHT_FILES)
        return [start / name for name in names if (start / name).is_file()]
    return [start] if (start.is_file() if weights else is_weights_file(ref)) else []


def fetch_model_files(ref: str, reporter: Reporter) -> list[Path]:
    """Return the files of a published model, downloading them if need be; none if that fails."""
    try:
        if (folder := resolve_folder(ref, reporter)) is not None:
            return list_weight_files(str(folder), str(folder))
        arch = catalog.find(ref)
        path = timm_models.fetch(ref, reporter) if arch is None else fetch_weights(arch, reporter)
        return [path]
    except ModelError:  # loading the model raises it again, if it comes to that
        return []


def name_weights(ref: str, weights: str = "") -> str:
    """Return timm's name of the published weights that a name means, `architecture.tag`.

    What loads no published weights (`weights`, a file, a folder, a hub repository) is returned as
    it is, and so is an unknown name.
    """
    if weights or has_weights(ref):
        return ref
    if (arch := catalog.find(ref)) is not None:
        return arch.full_name
    return timm_models.add_tag(ref)


def needs_download(ref: str) -> bool:
    """Return whether the published weights of a name are not here, and the hub has them.

    Raises:
        WeightsNotFound: they are neither here nor there.
    """
    if repo_id := get_repo_id(ref):
        if any(find_cached(repo_id, name) for name in WEIGHT_FILES):
            return False
        require_published(repo_id, CONFIG)
        return True
    if (arch := catalog.find(ref)) is not None:
        return find_weights(arch) is None
    return timm_models.needs_download(ref)


def resolve_folder(ref: str, reporter: Reporter, *, download_weights: bool = True) -> Path | None:
    """Return the model folder of `ref`, downloaded from the hub if need be; None without one.

    Without `download_weights` it may hold a repository's config alone, which is small.
    """
    path = expand_home(ref)
    if is_model_folder(ref):
        return path
    if repo_id := get_repo_id(ref):
        return _download_folder(ref, repo_id, download_weights, reporter)
    is_path = "/" in ref or "\\" in ref or path.suffix in WEIGHT_SUFFIXES
    if is_path and not path.exists():
        raise ModelError(f"There is no model file or folder {ref!r}.", suggest_path(ref))
    # The file of a model folder stands for the folder: alone it has no class names and no
    # preprocessing.
    if path.is_file() and path.name in WEIGHT_FILES and (path.parent / CONFIG).is_file():
        return path.parent
    return None


def choose_weights_file(ref: str, folder: Path) -> Path:
    """Return the weights of a model folder: the file of it that `ref` names, else the folder's first."""
    path = expand_home(ref)
    return path if path.is_file() else find_weights_file(folder)


def _download_folder(ref: str, repo_id: str, download_weights: bool, reporter: Reporter) -> Path:
    """Return the folder of a hub repository's model: timm's, transformers' or one of `deitctl push`."""
    try:
        config = download(repo_id, CONFIG, reporter)
    except WeightsNotFound as error:
        is_bare = ref == repo_id
        raise WeightsNotFound(
            f"{f'There is no model file or folder {ref!r}, and it' if is_bare else ref} cannot be "
            f"loaded{' from the hub' if is_bare else ''}: {error.message}.",
            f"It takes a repository with {CONFIG} and {WEIGHTS}: of `deitctl push`, of timm, or "
            "transformers' ViT or DeiT. "
            f"Download an exported file first: hf download {repo_id} FILE.onnx; "
            "then --model FILE.onnx.",
        ) from error
    if download_weights:
        try:
            download(repo_id, WEIGHTS, reporter)
        except WeightsNotFound:
            if not any((config.parent / name).is_file() for name in WEIGHT_FILES):
                for name in WEIGHT_FILES[1:]:
                    download(repo_id, name, reporter)
    _download_processor(repo_id, config.parent)
    return config.parent


@lru_cache(maxsize=16)  # one request, where the hub has none or cannot be reached
def _download_processor(repo_id: str, _folder: Path) -> None:
    # timm's repositories have none; where transformers' have none, that is reported.
    with suppress(WeightsNotFound):
        download(repo_id, PROCESSOR, SilentReporter())


def require_timm_name(name: str) -> None:
    """Raise `ModelError` unless timm has the model."""
    if name.lower().endswith(".onnx"):
        raise ModelError(
            f"{name} is an ONNX file, which only `deitctl predict` and `eval` can run.",
            "Name its weights.",
        )
    if name.lower().endswith(".pt2"):
        # torch.export.load falls back to unpickling, and evaluates expressions
        raise ModelError(
            f"{name} is a program that could run any code when torch loads it.",
            "Name its weights, or an ONNX file: deitctl export MODEL --to onnx.",
        )
    if not timm_models.is_timm_model(name):
        if (folder := expand_home(name)).is_dir():
            raise ModelError(
                f"There is no model {name!r}, and the folder of that name has no {CONFIG}.",
                suggest_inside(folder),
            )
        raise ModelError(
            f"There is no model {name!r}.",
            timm_models.suggest_model(name)
            or "`deitctl models` lists the DeiT family; timm's names work too.",
        )
