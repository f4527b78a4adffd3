"""The catalog says what timm says, for every architecture."""

from __future__ import annotations

import pytest
import timm
from timm.data import ImageNetInfo

from deitctl.models.catalog import (
    ARCHITECTURES,
    BY_ALIAS,
    DEFAULT_MODEL,
    find,
    get_distilled,
    get_plain,
    load_imagenet_classes,
)

EVERY = pytest.mark.parametrize("arch", ARCHITECTURES, ids=lambda a: a.alias)


@EVERY
def test_published_weights_are_timms(arch):
    cfg = timm.get_pretrained_cfg(f"{arch.name}.{arch.tag}", allow_unregistered=False)
    assert arch.hub_id == cfg.hf_hub_id
    assert cfg.url.rpartition("/")[2] == arch.url
    assert cfg.num_classes == 1000


@EVERY
def test_preprocessing_is_timms(arch):
    cfg, pre = (
        timm.get_pretrained_cfg(f"{arch.name}.{arch.tag}"),
        arch.to_model_config().preprocessing,
    )
    assert cfg.input_size == (3, pre.img_size, pre.img_size)
    assert pre.crop_pct == cfg.crop_pct
    assert (pre.mean, pre.std) == (cfg.mean, cfg.std)
    assert (pre.interpolation, pre.crop_mode) == (cfg.interpolation, cfg.crop_mode)


def test_timm_has_no_other_deit():
    theirs = set(timm.list_pretrained("deit*"))
    assert theirs == {f"{a.name}.{a.tag}" for a in ARCHITECTURES}


def test_classes_are_timms():
    info = ImageNetInfo()
    ids, names = load_imagenet_classes()
    assert list(ids) == info.label_names()
    assert list(names) == [info.index_to_description(i) for i in range(1000)]


def test_aliases_and_timms_names_are_found():
    for arch in ARCHITECTURES:
        assert find(arch.alias) is arch
        assert find(f"{arch.name}.{arch.tag}") is arch
        assert find(arch.name).name == arch.name
    assert find("deit3_small_patch16_224").tag == "fb_in1k"


@pytest.mark.parametrize(
    "name", ["resnet50", "deit", "", "deit_tiny_patch16_224.augreg", "deit_tiny.fb_in1k"]
)
def test_other_names_are_not_found(name):
    assert find(name) is None


def test_aliases_are_unique():
    assert len(BY_ALIAS) == len(ARCHITECTURES)
    assert DEFAULT_MODEL in BY_ALIAS


@EVERY
def test_get_distilled_and_get_plain_are_inverse(arch):
    assert get_plain(get_distilled(arch)).alias == get_plain(arch).alias
    assert not get_plain(arch).distilled
    if arch.alias.startswith("deit_"):
        assert get_distilled(arch).distilled
        assert get_distilled(arch).img_size == arch.img_size
    else:
        assert get_distilled(arch) is arch  # DeiT-III has no distillation token


def test_published_accuracies_are_those_of_the_table():
    """README_deit.md of the released code, evaluated by timm (see Architecture.top1)."""
    top1 = {a.alias: a.top1 for a in ARCHITECTURES if a.top1}
    assert len(top1) == 8
    assert top1["deit_base_384_distilled"] == 85.438
    assert top1["deit_tiny"] == 72.19
