"""Trials: the grid, the paper's Table 3 as one, draws; each with a folder's name."""

from __future__ import annotations

from typing import Any

import pytest

from deitctl.errors import ConfigError
from deitctl.sweeps.definition import SweepDefinition, define_sweep
from deitctl.sweeps.optuna_trials import suggest_trial
from deitctl.sweeps.presets import PRESETS
from deitctl.sweeps.trials import Trial, draw_trials, list_grid, make_trials
from deitctl.sweeps.variation import parse_variations


def names(trials: list[Trial]) -> list[str]:
    return [trial.name for trial in trials]


def test_a_grid_has_every_combination() -> None:
    grid = list_grid(parse_variations(["optim.lr=1e-4,3e-4", "epochs=1,2"]))
    assert names(grid) == [
        "lr=0.0001_epochs=1",
        "lr=0.0001_epochs=2",
        "lr=0.0003_epochs=1",
        "lr=0.0003_epochs=2",
    ]
    assert grid[0].values == {"recipe.optim.lr": 1e-4, "recipe.epochs": 1}


def test_the_preset_of_table_3_has_its_rows_in_its_order() -> None:
    """DeiT Table 3: none, usual, hard, token soft, token hard."""
    rows = [
        trial.values for trial in list_grid(parse_variations(PRESETS["deit-table3"].variations))
    ]
    assert [(r["distill.mode"], r.get("distill.dist_token")) for r in rows] == [
        ("none", None),
        ("soft", False),
        ("hard", False),
        ("soft", True),
        ("hard", True),
    ]


def test_a_preset_of_rows_trains_these_alone_with_the_teachers_that_are_named() -> None:
    def define(**changes: Any) -> SweepDefinition:
        options: dict[str, Any] = {
            "variations": [],
            "preset": "deit-in-small",
            "teachers": [],
            "random": 0,
            "optuna": 0,
            "num_seeds": 3,
            "seed": 0,
        }
        return define_sweep(**(options | changes))

    own = define(teachers=["a", "b", "c"], variations=parse_variations(["epochs=1,2"]))
    trials = make_trials(own.variations, own.rows)
    assert len(trials) == 2 * len(PRESETS["deit-in-small"].rows)
    assert trials[0].values == {"distill.mode": "none", "recipe.epochs": 1}
    assert {t.values["distill.teacher"] for t in trials[2:]} == {"a", "b", "c"}
    by_default = define()
    assert by_default.settings["fraction"] == 0.1
    assert by_default.rows[1]["distill.teacher"] == "resnet10t"
    # what the user names goes before the preset, and a model of their own has its own shape
    named = define(preset="beyond-in-small", named={"recipe.epochs", "model"})
    assert not any("recipe.epochs" in row for row in named.rows)
    assert not {"recipe.epochs", "model_args.depth"} & named.settings.keys()
    with pytest.raises(ConfigError, match="compares 3 teachers, not 4"):
        define(teachers=["a", "b", "c", "d"])
    with pytest.raises(ConfigError, match="has distill.mode in its trials"):
        define(variations=parse_variations(["distill.mode=hard"]))
    with pytest.raises(ConfigError, match="compares 3 teachers"):
        define(teachers=["a"])


def test_a_trial_without_a_teacher_is_one_whatever_the_teachers_settings() -> None:
    grid = list_grid(parse_variations(["distill.tau=1,3", "distill.mode=none,soft", "epochs=1,2"]))
    assert names(grid) == [
        "mode=none_epochs=1",
        "mode=none_epochs=2",
        "tau=1_mode=soft_epochs=1",
        "tau=1_mode=soft_epochs=2",
        "tau=3_mode=soft_epochs=1",
        "tau=3_mode=soft_epochs=2",
    ]


def test_settings_of_one_last_name_keep_more_of_it() -> None:
    (trial,) = list_grid(parse_variations(["distill.mode=hard", "optim.clip_mode=norm"]))
    assert trial.name == "mode=hard_clip_mode=norm"
    (trial,) = list_grid(parse_variations(["model=a", "distill.teacher=x/b", "weights=w"]))
    assert trial.name == "model=a_teacher=b_weights=w"


def test_trials_of_one_folder_are_refused() -> None:
    with pytest.raises(ConfigError, match="the same folder, teacher=best"):
        list_grid(parse_variations(["distill.teacher=a/best,b/best"]))
    with pytest.raises(ConfigError, match="the same folder"):
        list_grid(parse_variations(["distill.teacher=Best,best"]))


def test_a_grid_has_no_ranges_and_an_end() -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr=1e-05\.\.0\.001:log is a range.*--random N"):
        list_grid(parse_variations(["optim.lr=1e-5..1e-3:log"]))
    many = ",".join(map(str, range(1, 102)))
    with pytest.raises(ConfigError, match="more than 10,000"):
        list_grid(parse_variations([f"epochs={many}", f"augment.repeated_aug={many}"]))


def test_more_draws_begin_with_the_same_trials() -> None:
    variations = parse_variations(["optim.lr=1e-5..1e-3:log", "epochs=1,2"])
    few, many = draw_trials(variations, 3, seed=0), draw_trials(variations, 8, seed=0)
    assert (len(many), many[:3]) == (8, few)
    assert draw_trials(variations, 3, seed=1) != few
    assert all(1e-5 <= trial.values["recipe.optim.lr"] <= 1e-3 for trial in many)
    assert {trial.values["recipe.epochs"] for trial in many} == {1, 2}


def test_no_combination_is_drawn_twice() -> None:
    drawn = draw_trials(parse_variations(["epochs=1,2,3"]), 5, seed=0)
    assert sorted(names(drawn)) == ["epochs=1", "epochs=2", "epochs=3"]


def test_optuna_suggests_by_the_results_and_nothing_twice() -> None:
    variations = parse_variations(
        [
            "smoothing=0..0.4",
            "epochs=2..4",
            "augment.crop_scale=(0.5,1),(1,1)",
            "distill.mode=none,hard",
        ]
    )
    trials: list[Trial] = []
    scored: list[tuple] = []
    for _ in range(30):
        trial = suggest_trial(variations, scored, trials, seed=0)
        assert trial is not None
        trials.append(trial)
        scored.append((trial.values, 1 - abs(trial.values["recipe.smoothing"] - 0.3)))
    assert len(set(names(trials))) == 30
    near = [abs(t.values["recipe.smoothing"] - 0.3) for t in trials]
    assert sum(near[15:]) < sum(near[:15])
    assert suggest_trial(variations, scored[:7], trials[:7], seed=0) == trials[7]


def test_optuna_ends_where_nothing_is_left() -> None:
    variations = parse_variations(["epochs=1,2"])
    assert suggest_trial(variations, [], list_grid(variations), seed=0) is None
