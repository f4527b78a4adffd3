"""Every variant of distillation with equal recipe, epochs, views and seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.distillation import compare as module
from deitctl.distillation.compare import VARIANTS, Comparison, Spread, compare
from deitctl.errors import ConfigError
from deitctl.events import SilentReporter
from deitctl.records import to_json
from deitctl.training.configure import build_config
from deitctl.training.launch import train_or_find

Pair = tuple[ImageDataset, ImageDataset]
Run = Callable[..., Comparison]
SILENT = SilentReporter()


@pytest.fixture
def make_config(little: Pair, digits_teacher: Path) -> Callable[..., TrainConfig]:
    """Configure one epoch on 60 digits; the first arguments are those of `MakeConfig`."""

    def make(teacher: str, mode: str, dist_token: bool, **settings: object) -> TrainConfig:
        values = {
            "data": "digits",
            "model": "deit_tiny",
            "distill.teacher": teacher or str(digits_teacher),
            "distill.mode": mode,
            "distill.dist_token": dist_token,
            "distill.views": 1,
            "distill.allow_weak_teacher": True,
            "recipe.epochs": 1,
            "recipe.batch_size": 16,
            "workers": 0,
            "precision": "fp32",
            **{name.replace("__", "."): value for name, value in settings.items()},
        }
        return build_config(values, distilled=True, datasets=little, reporter=SILENT)[0]

    return make


@pytest.fixture
def run_compare(make_config: Callable[..., TrainConfig], little: Pair, tmp_path: Path) -> Run:
    """Compare; keywords of `compare`, and settings of the configurations."""

    def run(settings: Mapping[str, object] | None = None, **options: Any) -> Comparison:
        def make(teacher: str, mode: str, dist_token: bool) -> TrainConfig:
            return make_config(teacher, mode, dist_token, **(settings or {}))

        def train_run(config: TrainConfig) -> Mapping[str, Any]:
            return train_or_find(config, little, SILENT, require_equal=True)

        options = {"output": tmp_path / "out", "num_images": len(little[1].labels), **options}
        return compare(make, train_run, **options)

    return run


def test_all_rows_of_table_3_have_their_heads(run_compare: Run) -> None:
    done = run_compare()
    rows = {row.variant: row for row in done.rows}
    assert list(rows) == list(VARIANTS)
    for name in ("none", "soft", "hard"):
        assert set(rows[name].top1) == {"cls"}
    for name in ("token-soft", "token-hard"):
        assert set(rows[name].top1) == {"cls", "dist", "avg-logits"}
        assert set(rows[name].teacher_agreement) == {"cls", "dist", "avg-logits"}
        assert rows[name].head_agreement is not None
    assert (rows["none"].teacher, rows["none"].teacher_agreement) == (None, {})
    record = json.loads((done.output / "comparison.json").read_text())
    assert record == {"schema_version": 1, **to_json(done)}


def test_runs_differ_in_the_variant_and_the_seed_alone(run_compare: Run) -> None:
    done = run_compare(variants=["none", "token-hard"], num_seeds=2)
    configs = []
    for row in done.rows:
        for seed, run in enumerate(row.runs):
            text = (Path(run) / "run.toml").read_text()
            assert f"seed = {seed}\n" in text
            recipe = text[text.index("[recipe]") :]
            configs.append(recipe.split("[distill]")[0].strip())
    assert len(set(configs)) == 1
    assert all(spread.std is not None for row in done.rows for spread in row.top1.values())


def test_finished_runs_are_reused(run_compare: Run) -> None:
    first = run_compare(variants=["hard"])
    stamp = (Path(first.rows[0].runs[0]) / "model.safetensors").stat().st_mtime_ns
    again = run_compare(variants=["hard", "none"])
    assert again.rows[0].top1 == first.rows[0].top1
    assert (Path(first.rows[0].runs[0]) / "model.safetensors").stat().st_mtime_ns == stamp


def test_runs_of_another_comparison_are_refused(run_compare: Run) -> None:
    run_compare(variants=["none"])
    with pytest.raises(ConfigError, match=r"another configuration: recipe\.optim\.lr.*--output"):
        run_compare({"recipe__optim__lr": 1e-3}, variants=["none"])


def test_several_teachers_are_table_2(
    run_compare: Run, digits_teacher: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "model.safetensors"):
        (other / name).write_bytes((digits_teacher / name).read_bytes())
    done = run_compare(teachers=[str(digits_teacher), str(other)], variants=["none", "hard"])
    assert [(row.variant, row.teacher and Path(row.teacher).name) for row in done.rows] == [
        ("none", None),
        ("hard", "teacher"),
        ("hard", "other"),
    ]
    assert done.rows[1].top1 == done.rows[2].top1  # the same teacher, the same student
    with pytest.raises(ConfigError, match="several teachers"):
        run_compare({"distill__teacher_weights": str(other)}, teachers=["a", "b"])


def test_a_misspelled_variant_is_refused(run_compare: Run) -> None:
    with pytest.raises(ConfigError, match=r"'token-hart'.*'token-hard'"):
        run_compare(variants=["token-hart"])


def test_spread_by_hand() -> None:
    assert Spread.of([1.0, 3.0]) == Spread(2.0, 2.0**0.5)
    assert Spread.of([5.0]) == Spread(5.0, None)
    assert str(Spread.of([1.0, 3.0])) == "2.00 ± 1.41"
    assert str(Spread.of([5.0])) == "5.00"


def test_variants_configure_mode_and_token(make_config: Callable[..., TrainConfig]) -> None:
    settings = {}
    for name, variant in VARIANTS.items():
        config = module._configure(make_config, variant, "", SILENT)
        d = config.distill
        settings[name] = None if d is None else (d.mode, d.dist_token, d.alpha, d.tau)
    assert settings == {
        "none": None,
        "soft": ("soft", False, 0.1, 3.0),
        "hard": ("hard", False, 0.5, 1.0),
        "token-soft": ("soft", True, 0.1, 3.0),
        "token-hard": ("hard", True, 0.5, 1.0),
    }


def test_settings_that_are_compared_are_refused(run_compare: Run) -> None:
    with pytest.raises(ConfigError, match=r"distill\.mode .* are what is compared"):
        run_compare({"distill__mode": "soft"})


def test_a_setting_that_replaces_the_compared_teachers_is_refused(
    run_compare: Run, digits_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"distill\.teacher = .*teacher replaces --teacher test"):
        run_compare({"distill__teacher": str(digits_teacher)}, teachers=["test_resnet", "test_vit"])
    monkeypatch.chdir(digits_teacher.parent)  # a relative path is the same teacher
    assert run_compare(teachers=["teacher"], variants=["hard"]).rows[0].teacher


def test_a_student_that_is_a_distilled_run_has_one_head_without_distillation(
    run_compare: Run, tmp_path: Path
) -> None:
    first = run_compare(output=tmp_path / "first", variants=["token-hard"]).rows[0].runs[0]
    done = run_compare(
        {"model": first}, output=tmp_path / "second", variants=["none", "token-hard"]
    )
    assert [set(row.top1) for row in done.rows] == [{"cls"}, {"cls", "dist", "avg-logits"}]


def test_teachers_of_the_same_name_are_refused_before_anything_is_trained(
    run_compare: Run, digits_teacher: Path, tmp_path: Path
) -> None:
    names = []
    for folder in "ab":
        names.append(tmp_path / folder / "best")
        names[-1].mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            (names[-1] / file).write_bytes((digits_teacher / file).read_bytes())
    with pytest.raises(ConfigError, match="same last name"):
        run_compare(teachers=[str(n) for n in names])
