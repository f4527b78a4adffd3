"""Every way to distill, on equal terms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.distillation import compare as module
from deitctl.distillation.compare import VARIANTS, Spread, compare
from deitctl.errors import ConfigError
from deitctl.events import SilentReporter
from deitctl.training.configure import Request, Teaching, configure

Pair = tuple[ImageDataset, ImageDataset]


@pytest.fixture
def request_(
    little: Pair, digits_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Request:
    """One epoch on 60 digits."""

    def small(request: Request, reporter: SilentReporter) -> tuple[TrainConfig, ImageDataset, ImageDataset]:
        config, *_ = configure(request, reporter)
        return config, *little

    monkeypatch.setattr(module, "configure", small)
    return Request(
        model="deit_tiny",
        teaching=Teaching(teacher=str(digits_teacher), views=1, force=True),
        output=str(tmp_path / "out"),
        given={"recipe.epochs": 1, "recipe.batch_size": 16, "workers": 0, "precision": "fp32"},
    )


def test_all_rows_of_table_3_are_there_with_their_heads(request_: Request) -> None:
    done = compare(request_)
    rows = {row.variant: row for row in done.rows}
    assert list(rows) == list(VARIANTS)
    for name in ("none", "soft", "hard"):
        assert set(rows[name].top1) == {"cls"}
    for name in ("token-soft", "token-hard"):
        assert set(rows[name].top1) == {"cls", "dist", "avg-logits"}
        assert set(rows[name].with_teacher) == {"cls", "dist", "avg-logits"}
        assert rows[name].between_heads is not None
    assert (rows["none"].teacher, rows["none"].with_teacher) == ("", {})
    assert json.loads((done.output / "comparison.json").read_text()) == json.loads(
        json.dumps(done.to_dict())
    )


def test_runs_differ_in_nothing_but_the_way_and_the_seed(request_: Request) -> None:
    done = compare(request_, variants=["none", "token-hard"], seeds=2)
    configs = []
    for row in done.rows:
        for seed, run in enumerate(row.runs):
            text = (Path(run) / "run.toml").read_text()
            assert f"seed = {seed}\n" in text
            recipe = text[text.index("[recipe]") :]
            configs.append(recipe.split("[distill]")[0].strip())
    assert len(set(configs)) == 1
    assert all(spread.deviation is not None for row in done.rows for spread in row.top1.values())


def test_finished_runs_are_found_again(request_: Request, reporter: SilentReporter) -> None:
    first = compare(request_, variants=["hard"])
    stamp = (Path(first.rows[0].runs[0]) / "model.safetensors").stat().st_mtime_ns
    again = compare(request_, variants=["hard", "none"], reporter=reporter)
    assert again.rows[0].top1 == first.rows[0].top1
    assert (Path(first.rows[0].runs[0]) / "model.safetensors").stat().st_mtime_ns == stamp


def test_runs_of_another_comparison_are_refused(request_: Request) -> None:
    compare(request_, variants=["none"])
    other = replace(request_, given={**request_.given, "recipe.optim.lr": 1e-3})
    with pytest.raises(ConfigError, match=r"another recipe.*--output"):
        compare(other, variants=["none"])


def test_several_teachers_are_table_2(
    request_: Request, digits_teacher: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "model.safetensors"):
        (other / name).write_bytes((digits_teacher / name).read_bytes())
    done = compare(request_, teachers=[str(digits_teacher), str(other)], variants=["none", "hard"])
    assert [(row.variant, Path(row.teacher).name) for row in done.rows] == [
        ("none", ""),
        ("hard", "teacher"),
        ("hard", "other"),
    ]
    assert done.rows[1].top1 == done.rows[2].top1  # the same teacher, the same student
    teaching = Teaching(weights=str(other))
    with pytest.raises(ConfigError, match="several teachers"):
        compare(replace(request_, teaching=teaching), teachers=["a", "b"])


def test_a_misspelt_variant_is_named(request_: Request) -> None:
    with pytest.raises(ConfigError, match=r"'token-hart'.*'token-hard'"):
        compare(request_, variants=["token-hart"])


def test_spread_by_hand() -> None:
    assert Spread.of([1.0, 3.0]) == Spread(2.0, 2.0**0.5)
    assert Spread.of([5.0]) == Spread(5.0, None)
    assert str(Spread.of([1.0, 3.0])) == "2.00 ± 1.41"
    assert str(Spread.of([5.0])) == "5.00"


def test_variants_configure_what_their_names_say(request_: Request) -> None:
    settings = {}
    for name, variant in VARIANTS.items():
        config, _ = module._configure(request_, variant, SilentReporter())
        d = config.distill
        settings[name] = None if d is None else (d.mode, d.dist_token, d.alpha, d.tau)
    assert settings == {
        "none": None,
        "soft": ("soft", False, 0.1, 3.0),
        "hard": ("hard", False, 0.5, 1.0),
        "token-soft": ("soft", True, 0.1, 3.0),
        "token-hard": ("hard", True, 0.5, 1.0),
    }


def test_what_is_compared_cannot_be_set(request_: Request) -> None:
    with pytest.raises(ConfigError, match=r"distill\.mode=soft is what is compared"):
        compare(replace(request_, changes=["distill.mode=soft"]))


def test_a_student_that_is_a_distilled_run_has_one_head_without_distillation(
    request_: Request, little: Pair, tmp_path: Path
) -> None:
    first = (
        compare(replace(request_, output=str(tmp_path / "first")), variants=["token-hard"])
        .rows[0]
        .runs[0]
    )
    done = compare(
        replace(request_, model=first, output=str(tmp_path / "second")),
        variants=["none", "token-hard"],
    )
    assert [set(row.top1) for row in done.rows] == [{"cls"}, {"cls", "dist", "avg-logits"}]


def test_teachers_of_the_same_name_are_refused_before_anything_is_trained(
    request_: Request, tmp_path: Path
) -> None:
    names = []
    for folder in "ab":
        names.append(tmp_path / folder / "best")
        names[-1].mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            (names[-1] / file).write_bytes((Path(request_.teaching.teacher) / file).read_bytes())  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="same last name"):
        compare(request_, teachers=[str(n) for n in names])
