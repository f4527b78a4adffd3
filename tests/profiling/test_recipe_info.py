"""What recipes cost is what torch counts, and what they are is said with its sources."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deitctl.errors import ConfigError, ModelError
from deitctl.models import catalog
from deitctl.models.flops import compute_deit_flops
from deitctl.models.timm_models import create_model, get_native_size
from deitctl.models.vit import VisionTransformer
from deitctl.profiling.flops import count_flops
from deitctl.profiling.recipe_info import count_by_name, describe_recipe, list_recipes
from deitctl.recipes import RECIPES, TABLES
from deitctl.records import to_object

IMAGENET = 1_281_167


@pytest.mark.parametrize("name", ["paper", "deit3", "deit3-384", "plain-90", "digits-convnet"])
def test_the_cost_of_an_image_is_what_torch_counts(name: str):
    table, cost = TABLES[name], describe_recipe(name).cost
    size = describe_recipe(name).img_size
    arch = catalog.find(table.model)
    with torch.device("meta"):
        if arch is None:
            args = {k: v for k, (v, _) in table.model_args.items()}
            model = create_model(
                table.model, num_classes=table.num_classes, img_size=size, model_args=args
            )
        else:
            model = VisionTransformer(arch, num_classes=1000, img_size=size)
    assert cost.image_flops == pytest.approx(count_flops(model, size).step, rel=0.01)


def test_a_training_costs_its_images_times_its_epochs():
    step = compute_deit_flops(catalog.BY_ALIAS["deit_small"], num_classes=1000, img_size=224).step
    cost = describe_recipe("paper").cost
    assert cost.train_flops == pytest.approx(300 * IMAGENET * step)
    assert (cost.num_images, cost.relative_to_paper, cost.teacher_flops) == (IMAGENET, 1, None)


def test_costs_beside_the_papers():
    ratio = {r.name: r.cost.relative_to_paper for r in list_recipes().recipes}
    assert ratio["deit3"] == pytest.approx(800 / 300)
    assert ratio["plain-90"] == pytest.approx(90 / 300)
    assert ratio["patient"] == pytest.approx(1200 / 300)
    early, full = (
        compute_deit_flops(catalog.BY_ALIAS["deit_small"], num_classes=1000, img_size=px).step
        for px in (128, 224)
    )
    assert ratio["paper-fast"] == pytest.approx(0.7 * early / full + 0.3)
    assert ratio["finetune"] is None


def test_a_probe_costs_no_backward_pass_but_the_heads():
    forward = compute_deit_flops(catalog.BY_ALIAS["deit_small"], num_classes=1000, img_size=224)
    assert describe_recipe("probe").cost.image_flops < 1.01 * forward.forward


def test_a_teacher_is_counted_for_every_view_or_for_the_cached_ones():
    live, cached = (describe_recipe(n, teacher="deit_tiny").cost for n in ("paper", "small"))
    forward = compute_deit_flops(catalog.BY_ALIAS["deit_tiny"], num_classes=1000, img_size=224)
    assert live.teacher_flops == 300 * IMAGENET * forward.forward
    assert cached.teacher_flops == 8 * 1_000 * forward.forward


def test_a_recipe_is_shown_for_a_model_with_the_settings_of_its_size():
    details = describe_recipe("deit3", model="deit3_large")
    values = {s.name: (s.value, s.is_default) for s in details.settings}
    assert values["drop_path_rate"] == (0.45, False)
    assert values["optim.sched"] == ("cosine", True)
    assert (details.img_size, details.cost.model) == (192, "deit3_large")
    assert [size.size for size in details.sizes] == ["Ti", "S", "M", "B", "L", "H"]


def test_every_recipe_is_listed_with_its_own_model_and_fits_json():
    listing = to_object(list_recipes())
    assert [r["name"] for r in listing["recipes"]] == list(RECIPES)
    for name in RECIPES:
        details = json.loads(json.dumps(to_object(describe_recipe(name))))
        assert all(s["source"] for s in details["settings"])


def test_names_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="'deit3'"):
        describe_recipe("deit33")
    with pytest.raises(ModelError, match="no model 'nothing'"):
        describe_recipe("paper", model="nothing")


def test_a_timm_model_is_counted_at_its_own_size_and_in_the_recipes_shape():
    details = describe_recipe("finetune", model="test_vit")
    assert details.img_size == get_native_size("test_vit") != 224
    shape = {k: v for k, (v, _) in TABLES["plain-90"].model_args.items()}
    own, plain = (
        count_by_name(
            "vit_tiny_patch16_224", 32, 2, train_backbone=True, model_args={"depth": 1, **args}
        ).forward
        for args in ({}, shape)
    )
    tokens = 2 * 2  # and the class token
    assert plain < own * (tokens + 0.5) / (tokens + 1)


def test_a_recipe_file_is_shown_on_top_of_its_base(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "deit3"\ndrop_path_rate = 0.3\n[optim]\nlr = 1e-3\n')
    details = describe_recipe(str(path), model="deit3_base")
    shown = {s.name: (s.value, s.source) for s in details.settings}
    assert shown["drop_path_rate"] == (0.3, str(path))
    assert shown["optim.lr"] == (1e-3, str(path))
    assert (shown["img_size"][0], details.name, details.published) == (192, "mine", [])
