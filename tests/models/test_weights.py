"""Published weights are looked for in order, and what to fetch is said when they are not here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from deitctl.errors import WeightsNotFound
from deitctl.models.catalog import find
from deitctl.models.weights import download, fetch_weights, find_local_weights, require_hub

ARCH = find("deit_tiny")


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224.fb_in1k.safetensors",
        "deit_tiny_patch16_224.safetensors",
        "deit_tiny.safetensors",
        "deit_tiny_patch16_224-a1311bcf.pth",
        "deit_tiny_patch16_224.pth",
    ],
)
def test_weights_folder_is_searched_by_every_name(name, tmp_path, monkeypatch, reporter):
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setenv("DEITCTL_WEIGHTS", str(tmp_path))
    assert fetch_weights(ARCH, reporter) == tmp_path / name


def test_without_a_folder_and_a_network_both_sources_are_named(reporter):
    assert find_local_weights(ARCH) is None
    with pytest.raises(WeightsNotFound) as caught:
        fetch_weights(ARCH, reporter)
    said = str(caught.value)
    assert "https://dl.fbaipublicfiles.com/deit/deit_tiny_patch16_224-a1311bcf.pth" in said
    assert "https://huggingface.co/timm/deit_tiny_patch16_224.fb_in1k" in said
    assert "--weights FILE" in said
    assert "$DEITCTL_WEIGHTS" in said


def test_offline_mode_fails_at_once(reporter):
    with pytest.raises(WeightsNotFound, match="HF_HUB_OFFLINE"):
        require_hub()
    with pytest.raises(WeightsNotFound, match="HF_HUB_OFFLINE"):
        download("owner/name", "config.json", reporter)


@pytest.fixture
def cached():
    """Lay weights into a folder as the hub's cache has them."""

    def lay(cache, content=b"x"):
        repo = cache / "models--timm--deit_tiny_patch16_224.fb_in1k"
        snapshot = repo / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("0" * 40)
        (snapshot / "model.safetensors").write_bytes(content)

    return lay


def test_the_hubs_cache_is_used(tmp_path, monkeypatch, reporter, cached):
    from huggingface_hub import constants

    cached(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert fetch_weights(ARCH, reporter).read_bytes() == b"x"


@pytest.mark.parametrize(
    ("variable", "below"),
    [
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ],
)
def test_the_hubs_cache_is_searched_without_importing_its_library(
    variable, below, tmp_path, cached
):
    cached(tmp_path / below)
    code = (
        "import sys; from deitctl.models.catalog import find; from deitctl.models.weights import find_local_weights\n"
        "ours = find_local_weights(find('deit_tiny')); assert 'huggingface_hub' not in sys.modules\n"
        "from huggingface_hub import try_to_load_from_cache\n"
        "assert str(ours) == try_to_load_from_cache(find('deit_tiny').hub_id, 'model.safetensors'), ours"
    )
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_", "XDG_"))
    }
    environment = {**clean, variable: str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
