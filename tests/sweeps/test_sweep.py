"""A sweep: order, differences, going on after any end, failures; and one whose runs are really trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import deitctl
from deitctl.config import TrainConfig
from deitctl.errors import ConfigError
from deitctl.events import SilentReporter
from deitctl.records import to_object
from deitctl.sweeps.result import RunOutcome, SweepResult, summarize_trials
from deitctl.sweeps.spread import Spread
from deitctl.sweeps.sweep import Sweep
from deitctl.sweeps.trials import Trial
from deitctl.training.run_dir import Run

Make, Train = Callable[..., Sweep], Callable[..., list[str]]
LR = "optim.lr=1e-3,3e-3"


def score(config: TrainConfig) -> float:
    """A seed moves all trials alike; the higher rate is 4 points better, and 1 more with seed 1."""
    gain = 4.0 + (config.seed == 1) if config.recipe.optim.lr > 2e-3 else 0.0
    return 60.0 + 10 * config.seed + gain


def test_seeds_are_interleaved_and_the_table_is_paired(make_sweep: Make, train: Train) -> None:
    sweep = make_sweep(LR)
    assert train(sweep, score) == [
        "lr=0.001_seed=0",
        "lr=0.003_seed=0",
        "lr=0.001_seed=1",
        "lr=0.003_seed=1",
    ]
    result = sweep.summarize()
    first, second = result.trials
    assert (first.score, first.difference) == (Spread.of([60.0, 70.0]), None)
    assert second.score is not None
    assert second.difference is not None
    # seed by seed the trials differ by 4 and 5, though each of them spreads by 10
    assert (second.difference.mean, second.difference.standard_error) == (4.5, 0.5)
    assert result.best == "lr=0.003"
    assert (result.num_runs, result.num_finished, result.metric) == (4, 4, "top1")
    assert json.loads((sweep.output / "sweep.json").read_text()) == to_object(result)


def test_a_sweep_goes_on_and_keeps_what_is_finished(make_sweep: Make, train: Train) -> None:
    sweep = make_sweep(LR)
    sweep.write_waiting()
    train(make_sweep(LR, num_seeds=1), score)
    stamps = {path: path.stat().st_mtime_ns for path in sweep.output.glob("*/result.json")}
    assert train(make_sweep(LR), score) == ["lr=0.001_seed=1", "lr=0.003_seed=1"]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert train(make_sweep(LR), score) == []
    assert train(make_sweep("optim.lr=1e-3,3e-3,9e-3", num_seeds=1), score) == ["lr=0.009_seed=0"]


def test_runs_of_other_settings_are_refused_unless_nothing_of_them_is_trained(
    make_sweep: Make, train: Train
) -> None:
    make_sweep(LR).write_waiting()
    longer = {"recipe.epochs": 3}
    train(make_sweep(LR, settings=longer, num_seeds=1), score)
    assert (
        Run.open(make_sweep(LR, settings=longer).output / "lr=0.001_seed=0")[1].recipe.epochs == 3
    )
    with pytest.raises(ConfigError, match=r"epochs is 3, not 2.*another --output"):
        make_sweep(LR)


def test_a_run_that_fails_is_recorded_and_the_others_go_on(
    make_sweep: Make, train: Train, reporter
) -> None:
    sweep = make_sweep(LR, reporter=reporter)
    train(sweep, score, fails={"lr=0.003_seed=0": 1})
    result = sweep.summarize()
    assert [(run.status, run.error) for run in result.runs] == [
        ("finished", None),
        ("failed", "code 1"),
        ("finished", None),
        ("finished", None),
    ]
    assert (result.num_failed, result.trials[1].score) == (1, Spread.of([75.0]))
    assert result.best == "lr=0.001"  # of both seeds; one lucky seed does not make a trial the best
    assert "lr=0.003_seed=0 failed: code 1" in reporter.warnings
    assert train(make_sweep(LR), score) == ["lr=0.003_seed=0"]


def test_the_plain_model_is_trained_on_equal_terms_with_the_distilled_ones(
    make_sweep: Make,
) -> None:
    sweep = make_sweep("distill.mode=none,soft,hard", num_seeds=1)
    plain, soft, hard = (run.config for run in sweep.runs)
    assert plain.distill is None
    assert soft.distill is not None
    assert hard.distill is not None
    assert (soft.distill.mode, soft.distill.alpha, soft.distill.tau) == ("soft", 0.1, 3.0)
    assert (hard.distill.mode, hard.distill.alpha, hard.distill.tau) == ("hard", 0.5, 1.0)
    assert plain.recipe == soft.recipe == hard.recipe
    assert plain.model == soft.model == "deit_tiny"


def test_a_sweep_without_a_teacher_refuses_settings_of_one(make_sweep: Make) -> None:
    plain = make_sweep("optim.lr=1e-3,3e-3", settings={"distill.mode": "none"})
    assert all(run.config.distill is None for run in plain.runs)
    with pytest.raises(
        ConfigError, match=r"'distill\.tau' cannot be set: a teacher is for `distill`"
    ):
        make_sweep(LR, settings={"distill.mode": "none", "distill.tau": 3})


def test_every_trial_is_trained_on_the_same_folds_and_differences_are_fold_by_fold(
    make_sweep: Make, train: Train
) -> None:
    def by_fold(config: TrainConfig) -> float:
        assert (config.folds, config.seed) == (3, 0)
        return 10.0 * config.fold + (config.fold if config.recipe.optim.lr > 2e-3 else 0)

    sweep = make_sweep(LR, settings={"folds": 3}, num_seeds=1)
    started = train(sweep, by_fold)
    assert started[:2] == ["lr=0.001_seed=0_fold=1", "lr=0.003_seed=0_fold=1"]
    result = sweep.summarize()
    first, second = result.trials
    assert first.score == Spread.of([10.0, 20.0, 30.0])
    assert second.difference is not None
    assert (second.difference.mean, second.difference.n) == (2.0, 3)
    assert second.difference.interval is not None
    assert (result.num_folds, result.num_runs, result.num_images) == (3, 6, 1442)
    assert [run.fold for run in result.runs] == [1, 1, 2, 2, 3, 3]


def test_folds_are_not_varied_and_multiply_seeds(make_sweep: Make) -> None:
    sweep = make_sweep(LR, settings={"folds": 2}, num_seeds=2)
    first = [(run.seed, run.fold) for run in sweep.runs if run.trial is sweep.trials[0]]
    assert first == [(0, 1), (0, 2), (1, 1), (1, 2)]
    one = make_sweep(LR, settings={"folds": 2, "fold": 2}, num_seeds=1)
    assert (one.runs[0].root.name, one.runs[0].config.fold) == ("lr=0.001_seed=0", 2)
    with pytest.raises(ConfigError, match="fold cannot be varied. Use --folds K"):
        make_sweep("fold=1,2", settings={"folds": 2})


def test_a_run_that_waits_takes_another_setting_of_the_machine(make_sweep: Make) -> None:
    make_sweep(LR).write_waiting()
    sweep = make_sweep(LR, settings={"loss_spike_factor": 0.0})
    sweep.write_waiting()
    assert {Run.open(run.root)[1].loss_spike_factor for run in sweep.runs} == {0.0}


def test_trials_of_the_same_mean_are_tied(make_sweep: Make, train: Train) -> None:
    sweep = make_sweep("optim.lr=1e-3,3e-3,9e-3", num_seeds=3)
    # in another order of the seeds, so that sums are rounded otherwise
    rates = {1e-3: (0.1, 0.2, 0.3), 3e-3: (0.3, 0.2, 0.1), 9e-3: (0.0, 0.1, 0.2)}
    train(sweep, lambda config: rates[config.recipe.optim.lr][config.seed])
    result = sweep.summarize()
    assert (result.best, result.tied) == ("lr=0.001", ["lr=0.003"])


def test_what_is_finished_or_failed_does_not_count_as_speed(make_sweep: Make, train: Train) -> None:
    class Count(SilentReporter):
        skipped, advanced = 0, 0

        @contextmanager
        def task(self, label: str, total: int | None, unit: str = "") -> Iterator[Count]:
            self.total = total
            yield self

        def skip(self, amount: int) -> None:
            self.skipped += amount

        def advance(self, amount: int = 1, **fields: object) -> None:
            self.advanced += amount

    train(make_sweep(LR, num_seeds=1), score)
    again = Count()
    # the processes log no epoch, so that none is trained as far as the sweep can see
    train(make_sweep(LR, reporter=again), score, fails={"lr=0.003_seed=1": 1})
    assert (again.total, again.skipped, again.advanced) == (8, 8, 0)


def test_a_student_named_with_a_token_has_none_without_distillation(make_sweep: Make) -> None:
    settings = {"model": "deit_tiny_distilled"}
    plain, hard = make_sweep("distill.mode=none,hard", settings=settings, num_seeds=1).runs
    assert (plain.config.model, hard.config.model) == ("deit_tiny", "deit_tiny_distilled")


def test_several_teachers_are_varied(make_sweep: Make) -> None:
    teachers = ("test_resnet", "test_vit")
    settings = {"distill.finetune_teacher": "scratch"}
    sweep = make_sweep(preset="deit-table3", teachers=teachers, settings=settings, num_seeds=1)
    assert [trial.name for trial in sweep.trials][:3] == [
        "mode=none",
        "dist_token=false_mode=soft_teacher=test_resnet",
        "dist_token=false_mode=soft_teacher=test_vit",
    ]
    assert len(sweep.trials) == 9
    by_teacher = make_sweep(preset="deit-table2", teachers=teachers, settings=settings)
    configs = [run.config.distill for run in by_teacher.runs]
    assert {(d.mode, d.dist_token) for d in configs if d is not None} == {("hard", True)}
    with pytest.raises(ConfigError, match="--teacher A --teacher B"):
        make_sweep(preset="deit-table2")


def test_heads_and_agreements_of_distilled_runs_are_summarized() -> None:
    heads = {"cls": 70.0, "dist": 72.0, "avg-logits": 74.0}
    agreement = {head: top1 + 10 for head, top1 in heads.items()}
    outcomes = []
    trial = Trial({"distill.mode": "hard"}, "mode=hard")
    for seed in range(2):
        by_head = {head: top1 + 2 * seed for head, top1 in heads.items()}
        result = {
            "seconds": 3.0,
            "best": {"top1": 74.0 + 2 * seed},
            "heads": by_head,
            "teacher": {"name": "t", "top1": 90.0},
            "teacher_agreement": agreement,
            "head_agreement": 95.0,
        }
        info = SimpleNamespace(
            result=result, status="finished", teacher="t", metric="top1", last_score=70.0 + seed
        )
        outcomes.append(RunOutcome(trial, seed, Path(f"r{seed}"), info, ""))  # type: ignore[arg-type]
    (row,) = summarize_trials([trial], outcomes, "top1")
    assert row.heads == {h: Spread.of([v, v + 2]) for h, v in heads.items()}
    assert row.teacher_agreement["dist"] == Spread.of([82.0, 82.0])
    assert (row.head_agreement, row.teacher_top1) == (Spread.of([95.0] * 2), Spread.of([90.0] * 2))
    for outcome in outcomes:  # the first of two is not the teacher
        outcome.info.result["more_teachers"] = [{"name": "u", "top1": 80.0}]  # type: ignore[union-attr,index]
    assert summarize_trials([trial], outcomes, "top1")[0].teacher_top1 is None
    assert row.last_epoch == Spread.of([70.0, 71.0])
    assert (row.score, row.teacher, row.runs) == (Spread.of([74.0, 76.0]), "t", ["r0", "r1"])


def test_settings_that_are_varied_and_set_are_refused(make_sweep: Make) -> None:
    with pytest.raises(ConfigError, match=r"epochs is varied, and set to one value"):
        make_sweep("epochs=1,2")
    with pytest.raises(ConfigError, match="two ways of choosing"):
        make_sweep(LR, random=2, optuna=2)
    with pytest.raises(ConfigError, match="'deit-table3'"):
        make_sweep(preset="deit-table")


def test_optuna_goes_on_with_the_trials_that_it_has(make_sweep: Make, train: Train) -> None:
    space, options = "optim.lr=1e-4..1e-2:log", {"optuna": 3, "num_seeds": 2}
    unbroken = make_sweep(space, **options)
    names = train(unbroken, score)
    assert len(names) == 6
    assert (
        names[0].partition("_seed")[0] == names[1].partition("_seed")[0]
    )  # a trial is whole first
    for path in unbroken.output.glob("*/result.json"):
        if path.parent.name in names[3:]:
            path.unlink()
    assert train(make_sweep(space, **options), score) == names[3:]
    longer = make_sweep(space, optuna=4, num_seeds=2)
    assert len(train(longer, score)) == 2
    assert [trial.name for trial in longer.trials][:3] == [t.name for t in unbroken.trials]
    with pytest.raises(ConfigError, match="varies something else"):
        make_sweep("optim.lr=1e-4..1e-1:log", **options)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("{", "cannot be read.*Delete it"),
        (
            '{"method": "optuna", "trials": [{"values": {"recipe.optim.lr": 5}}]}',
            "is not varied so",
        ),
        ('{"method": "optuna", "trials": [{"values": {}}]}', "is not varied so"),
    ],
)
def test_a_damaged_record_of_optuna_is_one_line(
    record: str, says: str, make_sweep: Make, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sweep.json").write_text(record)
    with pytest.raises(ConfigError, match=says):
        make_sweep("optim.lr=1e-4..1e-2:log", optuna=3)


def test_runs_are_really_trained_and_a_plan_writes_nothing(tmp_path: Path, reporter) -> None:
    colors = {"red": (200, 30, 30), "blue": (30, 30, 200)}
    for split in ("train", "val"):
        for name, color in colors.items():
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for n in range(4):
                noise = np.random.default_rng(n).integers(0, 40, (32, 32, 3))
                pixels = (np.array(color) + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{n}.png")

    def sweep(**options: bool) -> SweepResult:
        return deitctl.sweep(
            tmp_path / "photos",
            model="test_vit",
            pretrained=False,
            img_size=32,
            batch_size=4,
            workers=0,
            vary={"epochs": [1]},
            output=tmp_path / "out",
            reporter=reporter,
            **options,
        )

    assert [run.status for run in sweep(dry_run=True).runs] == ["waiting"]
    assert not (tmp_path / "out").exists()
    result = sweep()
    assert [(run.status, run.error) for run in result.runs] == [("finished", None)]
    assert result.trials[0].score is not None
    assert result.trials[0].score.mean == result.runs[0].score
    assert (
        "Training test_vit on 8 images" in (tmp_path / "out/logs/epochs=1_seed=0.log").read_text()
    )
    assert sweep(collect=True) == result
