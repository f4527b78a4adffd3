"""Settings that came later leave the stamps of what was stored before as they were."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deitctl.distillation.teacher_weights import hash_json
from deitctl.recipes import get_finetune_recipe, get_recipe, stamp_recipe, stamp_views
from deitctl.recipes.stamp import LATER_SETTINGS, VIEW_SETTINGS
from deitctl.settings import override

HASHES = {
    ("head", False): "bce74d373a14f750",
    ("head", True): "4530d17b29e820e8",
    ("full", False): "2650899b7334d8c0",
    ("full", True): "48e5aaa6492a7306",
    ("scratch", False): "f8240ea8c606050d",
    ("scratch", True): "c9ad3a473569c5d6",
}
"""Of version 0.1.0, before there were later settings: teachers that were fine-tuned then are found by them."""


@pytest.mark.parametrize(("part", "built_in"), HASHES)
def test_the_recipes_of_teachers_keep_their_hashes(part: str, built_in: bool):
    recipe = get_finetune_recipe(part, built_in=built_in)
    assert hash_json(stamp_recipe(recipe)) == HASHES[part, built_in]


@pytest.mark.parametrize(
    "change",
    [
        ("augment.crop_mode", "src"),
        ("augment.three_augment", True),
        ("dpr_constant", True),
        ("pos_embed", "sincos2d"),
    ],
)
def test_a_later_setting_that_is_used_is_a_part_of_the_stamp(change: tuple[str, object]):
    recipe = get_recipe("finetune")
    changed = override(recipe, dict([change]))
    assert stamp_recipe(changed) != stamp_recipe(recipe)
    assert change[0] in LATER_SETTINGS


def test_views_without_3_augment_have_the_stamp_that_they_had():
    augment = get_recipe("paper").augment
    assert tuple(stamp_views(augment)) == VIEW_SETTINGS
    used = stamp_views(replace(augment, three_augment=True))
    assert used == {**stamp_views(augment), "three_augment": True}
