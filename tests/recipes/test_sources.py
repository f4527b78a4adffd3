"""Every number of every recipe has a source, which stands beside it as data."""

from __future__ import annotations

import pytest

from deitctl.config import DistillConfig, Recipe
from deitctl.recipes import TABLES
from deitctl.recipes.defaults import DEFAULT_SOURCES, list_sourced
from deitctl.settings import convert, from_dict, list_settings, to_dict

KINDS = {setting.name: setting.kind for setting in list_settings(Recipe)}
DISTILL_KINDS = {setting.name: setting.kind for setting in list_settings(DistillConfig)}


@pytest.mark.parametrize("name", TABLES)
def test_every_setting_of_a_recipe_has_a_source_and_the_value_that_is_trained_with(name: str):
    table = TABLES[name]
    sourced, recipe = list_sourced(table), to_dict(table.build())
    assert sourced.keys() == KINDS.keys() - {"name"}
    for key, (value, source) in sourced.items():
        group, _, setting = key.rpartition(".")
        trained = (recipe[group] if group else recipe)[setting]
        assert trained == (list(value) if isinstance(value, tuple) else value), key
        assert len(source) > 5, key


@pytest.mark.parametrize("name", TABLES)
def test_values_have_the_types_of_their_settings(name: str):
    table = TABLES[name]
    parts = [table.settings, *(size.settings for size in table.sizes)]
    for settings in parts:
        for key, (value, source) in settings.items():
            assert convert(value, KINDS[key], key) == value
            assert source
    for key, (value, source) in table.distill.items():
        assert convert(value, DISTILL_KINDS[key], key) == value
        assert source
    assert all(source for _, source in table.model_args.values())
    assert from_dict(Recipe, to_dict(table.build()), name) == table.build()


@pytest.mark.parametrize("name", TABLES)
def test_every_published_result_says_where(name: str):
    for result in TABLES[name].published:
        assert 50 < result.top1 < 100
        assert (
            "deit/" in result.source or "big_vision/" in result.source or "docs/" in result.source
        )


def test_the_sources_of_defaults_are_those_of_the_settings_that_have_one():
    defaults = {
        s.name for s in list_settings(Recipe) if isinstance(s.default, str | int | float | tuple)
    }
    assert set(DEFAULT_SOURCES) == defaults
