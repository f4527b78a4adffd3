"""Published weights: `$DEITCTL_WEIGHTS`, the hub's cache, download from the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deitctl.errors import DeitctlError, WeightsNotFound
from deitctl.events import Reporter
from deitctl.home import expand_home, is_in_private_folder
from deitctl.models.catalog import OFFICIAL_URL, Architecture
from deitctl.paths import read_text

WEIGHTS_VARIABLE = "DEITCTL_WEIGHTS"
FILE = "model.safetensors"  # the name of weights in hub repositories


def find_local_weights(arch: Architecture) -> Path | None:
    """Return the weights of `arch` in `$DEITCTL_WEIGHTS` or the hub's cache, or None."""
    folder = os.environ.get(WEIGHTS_VARIABLE)
    if folder:
        # Several names, so that files from the hub, from timm and from the authors can be put there
        # as they are.
        names = (
            arch.weights_file,
            f"{arch.name}.safetensors",
            f"{arch.alias}.safetensors",
            arch.url,
            f"{arch.name}.pth",
        )
        for name in names:
            if (path := expand_home(folder) / name).is_file():
                return path
    return find_cached(arch.hub_id, FILE)


def find_cached(repo_id: str, filename: str) -> Path | None:
    """Return a hub repository's file in the hub's cache, or None."""
    if (path_in_cache := _find_in_cache(repo_id, filename)) is not None:
        return path_in_cache
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repo_id, filename)
    return Path(cached) if isinstance(cached, str) else None


def _find_in_cache(repo_id: str, filename: str) -> Path | None:
    """Find a file in the hub's cache without importing huggingface_hub, which takes 0.3 s."""
    # The variables and their order are huggingface_hub's constants.py.
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    cache = (
        os.environ.get("HF_HUB_CACHE")
        or os.environ.get("HUGGINGFACE_HUB_CACHE")
        or os.path.join(home, "hub")
    )
    root = Path(os.path.expanduser(os.path.expandvars(cache)))
    repo = root / f"models--{repo_id.replace('/', '--')}"
    try:
        path = repo / "snapshots" / read_text(repo / "refs" / "main", 200).strip() / filename
    except (OSError, ValueError):
        return None
    return path if path.is_file() else None


def fetch_weights(arch: Architecture, reporter: Reporter) -> Path:
    """Return a file with the published weights of `arch`, downloading it if need be.

    Raises:
        WeightsNotFound: neither local nor downloadable; the message says what to put where.
    """
    path = find_local_weights(arch)
    if path is None:
        with _explaining(arch):
            path = download(arch.hub_id, FILE, reporter)
    return path


def find_weights(arch: Architecture) -> Path | None:
    """Return what `fetch_weights` would, None where it would download; raise as it does."""
    path = find_local_weights(arch)
    if path is None:
        with _explaining(arch):
            require_published(arch.hub_id, FILE)
    return path


@contextmanager
def _explaining(arch: Architecture) -> Iterator[None]:
    """Let a failed download say which file is needed, and where to put it."""
    try:
        yield
    except WeightsNotFound as error:
        raise WeightsNotFound(
            f"The weights of {arch.alias} are not on this machine and cannot be downloaded "
            f"({error.message}).",
            f"Fetch {OFFICIAL_URL}{arch.url} or https://huggingface.co/{arch.hub_id}, "
            f"then pass --weights FILE, or put it as {arch.weights_file} "
            f"into the folder that ${WEIGHTS_VARIABLE} names.",
        ) from error


def download(repo_id: str, filename: str, reporter: Reporter) -> Path:
    """Download a hub repository's file into the hub's cache, or raise `WeightsNotFound`."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils.tqdm import disable_progress_bars

    try:
        cached = try_to_load_from_cache(repo_id, filename)
    except ValueError as error:
        raise WeightsNotFound(
            f"{repo_id!r} is no repository of the hub: its names are owner/name"
        ) from error
    if isinstance(cached, str):
        return Path(cached)
    if cached is not None:  # an earlier request showed it, of this revision
        raise WeightsNotFound(f"the hub has no readable {repo_id}/{filename}")
    require_hub()
    disable_progress_bars()  # the reporter shows progress
    with (
        _translating(repo_id, filename),
        reporter.task(f"download {repo_id}", None, "bytes"),
    ):
        path = Path(hf_hub_download(repo_id, filename))
    if is_in_private_folder(path):
        reporter.note(
            f"The weights are in {path.parent}, which is lost with a container: $HF_HOME or "
            f"${WEIGHTS_VARIABLE} names a folder that is kept."
        )
    return path


def require_published(repo_id: str, filename: str) -> None:
    """Raise `WeightsNotFound`, as `download` does, unless the hub has a file; nothing is downloaded."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    require_hub()
    with _translating(repo_id, filename):
        get_hf_file_metadata(hf_hub_url(repo_id, filename))


def fetch_header(
    repo_id: str, filename: str
) -> tuple[dict[str, tuple[str, list[int]]], dict[str, str]]:
    """Return type and shape of the tensors in a hub repository's safetensors file, and its metadata.

    Nothing but its header is fetched.

    Raises:
        WeightsNotFound: the hub has no such file, or cannot be reached.
    """
    from huggingface_hub import HfApi

    require_hub()
    with _translating(repo_id, filename):
        header = HfApi().parse_safetensors_file_metadata(repo_id, filename)
    return {
        name: (info.dtype, info.shape) for name, info in header.tensors.items()
    }, header.metadata


@contextmanager
def _translating(repo_id: str, filename: str) -> Iterator[None]:
    """Turn the errors of the hub's client into `WeightsNotFound`."""
    from huggingface_hub.errors import HfHubHTTPError, SafetensorsParsingError

    try:
        yield
    except (HfHubHTTPError, SafetensorsParsingError) as error:
        raise WeightsNotFound(f"the hub has no readable {repo_id}/{filename}") from error
    except DeitctlError:
        raise
    except Exception as error:  # the client's transport errors differ between its versions
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise WeightsNotFound(f"the download failed: {reason}") from error


def require_hub() -> None:
    """Raise `WeightsNotFound` unless the hub responds in 5 s; its client retries for minutes."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        raise WeightsNotFound("HF_HUB_OFFLINE is set")
    try:
        # Any answer will do, 403 too: it shows that there is a network.
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception as error:  # the client's transport errors differ between its versions
        raise WeightsNotFound(f"no connection to {constants.ENDPOINT}") from error
