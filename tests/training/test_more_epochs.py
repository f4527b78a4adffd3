"""A finished run is trained longer: the schedule begins again, and the end is a function of the configuration."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import deitctl
from deitctl.config import Recipe, TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.errors import ConfigError, DeitctlError, Interrupted
from deitctl.events import SilentReporter, Task
from deitctl.recipes import DIGITS, FINETUNE, RESTART_LR, fit_to_data
from deitctl.settings import write_toml
from deitctl.training.configure import check
from deitctl.training.earlier_runs import (
    add_epochs,
    find_unfinished,
    require_same,
    suggest_more_epochs,
)
from deitctl.training.launch import resume, run_training
from deitctl.training.repeat import read_config
from deitctl.training.run_dir import Run
from deitctl.training.schedule import compute_lr_with_restarts
from deitctl.training.state import Progress
from deitctl.training.stopping import is_out_of_patience

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]


class StopsAt(SilentReporter):
    """SIGTERM when something of the given name begins."""

    def __init__(self, label: str) -> None:
        self.label = label

    @contextmanager
    def task(self, label: str, total: int | None, unit: str = "images") -> Iterator[Task]:
        if label == self.label:
            signal.raise_signal(signal.SIGTERM)
        with super().task(label, total, unit) as task:
            yield task


def with_epochs(config: TrainConfig, epochs: int, *restarts: int) -> TrainConfig:
    recipe = replace(config.recipe, epochs=epochs, restart_epochs=restarts)
    return replace(config, recipe=recipe)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, little: Pair) -> Callable[[Make], Path]:
    """Train two epochs, once for the whole file."""
    done: list[Path] = []

    def run(little_config: Make) -> Path:
        if not done:
            root = tmp_path_factory.mktemp("finished") / "run"
            config = replace(with_epochs(little_config("x"), 2), output_dir=str(root))
            done.append(run_training(config, datasets=little).run)
        return done[0]

    return run


@pytest.fixture
def run(finished: Callable[[Make], Path], little_config: Make, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished(little_config), tmp_path / "copy"))


def test_a_longer_run_is_the_one_that_its_configuration_describes_also_after_a_stop(
    run: Path, little_config: Make, little: Pair
) -> None:
    with pytest.raises(Interrupted) as stopped:
        resume(run, more_epochs=2, datasets=little, reporter=StopsAt("epoch 3/4"))
    assert stopped.value.resume_command == f"deitctl train --resume {run}"
    result = resume(run, datasets=little)
    _, config = Run.open(run)
    assert (config.recipe.epochs, config.recipe.restart_epochs) == (4, (2,))
    assert (result.epochs, result.final.epoch) == (4, 4)
    assert json.loads((run / "result.json").read_text())["epochs"] == 4
    epochs = list(Run(run).records("epoch"))
    assert [record["epoch"] for record in epochs] == [1, 2, 3, 4]
    assert epochs[result.best.epoch - 1]["top1"] == max(record["top1"] for record in epochs)
    at_once = run_training(with_epochs(little_config("at-once"), 4, 2), datasets=little)
    for file in ("model", "checkpoint/model", "checkpoint/ema", "checkpoint/optimizer"):
        first, second = (root / f"{file}.safetensors" for root in (run, at_once.run))
        assert first.read_bytes() == second.read_bytes(), file


def test_the_schedule_begins_again_stretched_to_its_epochs() -> None:
    """By hand, 10 steps an epoch: 4 epochs with one of warm-up, then 2 with a half."""
    optim = replace(
        DIGITS.optim, lr=1.0, lr_base_size=8, min_lr=0.0, warmup_lr=0.0, warmup_epochs=1
    )
    recipe = replace(DIGITS, optim=optim, batch_size=8, epochs=6, restart_epochs=(4,))

    def lr(step: int) -> float:
        return compute_lr_with_restarts(recipe, step=step, steps_per_epoch=10)

    assert lr(5) == pytest.approx(0.5)
    assert lr(20) == pytest.approx(0.5)  # the middle of the cosine of 40 steps
    assert lr(40) == pytest.approx(0.0)
    assert lr(43) == pytest.approx(RESTART_LR * 3 / 5)
    assert lr(50) == pytest.approx(RESTART_LR * 0.5)  # the middle of 20 steps
    assert lr(59) == pytest.approx(RESTART_LR * 0.5 * (1 + math.cos(math.pi * 19 / 20)))


def test_schedules_by_epoch() -> None:
    recipe = replace(DIGITS, epochs=9, restart_epochs=(4, 6))
    assert [recipe.schedule_of(epoch) for epoch in (0, 3, 4, 5, 6, 8)] == [
        (0, 4),
        (0, 4),
        (4, 2),
        (4, 2),
        (6, 3),
        (6, 3),
    ]
    assert replace(recipe, restart_epochs=()).schedule_of(8) == (0, 9)


def test_early_epochs_of_small_images_do_not_move_when_a_run_is_trained_longer() -> None:
    resize = replace(DIGITS.progressive_resize, scale=0.5, fraction=0.5)
    recipe = replace(DIGITS, epochs=4, progressive_resize=resize)
    assert recipe.early_epochs == 2
    assert replace(recipe, epochs=10, restart_epochs=(4,)).early_epochs == 2
    # Stopped after the first of four: those that were small are, and all that follow are not.
    stopped = replace(recipe, epochs=10, restart_epochs=(1,), planned_epochs=(4,))
    assert stopped.early_epochs == 1


def test_a_run_that_stopped_early_goes_on_from_the_schedule_that_was_planned(run: Path) -> None:
    """Twice: 3 of 100 epochs, then 2 of 10 more, then 5 more. The warm-up is a twentieth of each."""
    optim = replace(DIGITS.optim, lr=1.0, lr_base_size=0, min_lr=0.0, warmup_lr=0.0)
    optim = replace(optim, warmup_epochs=5, sched="wsd", decay_epochs=20)
    _, config = Run.open(run)
    planned = replace(DIGITS, optim=optim, epochs=100)
    config = replace(config, recipe=planned)
    for done, more in ((3, 10), (5, 5)):
        (run / "result.json").write_text(json.dumps({"epochs": done}))
        config = add_epochs(Run(run), config, more, launch="")
    recipe = config.recipe
    assert (recipe.epochs, recipe.restart_epochs, recipe.planned_epochs) == (10, (3, 5), (100, 10))

    def list_rates(recipe: Recipe, start: int, count: int) -> list[float]:
        return [
            compute_lr_with_restarts(recipe, step=step, steps_per_epoch=10)
            for step in range(10 * start, 10 * (start + count))
        ]

    assert list_rates(recipe, 0, 3) == list_rates(planned, 0, 3)  # as it was trained
    ten = list_rates(replace(recipe, epochs=13, restart_epochs=(3,), planned_epochs=(100,)), 3, 10)
    assert list_rates(recipe, 3, 2) == ten[:20]
    assert ten[:5] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert ten[5:80] == [1.0] * 75
    assert ten[81] < 1
    last = list_rates(recipe, 5, 5)
    assert last[:3] == pytest.approx([0, 0.4, 0.8])
    assert last[3:40] == [1.0] * 37
    assert last[41] < 1


def test_a_run_that_is_repeated_does_not_stop_where_it_went_on() -> None:
    recipe = replace(DIGITS, epochs=16, restart_epochs=(6,), planned_epochs=(100,))
    progress = Progress(epoch=6, improved_epoch=3)
    assert not is_out_of_patience(recipe, 3, progress)
    assert is_out_of_patience(replace(recipe, restart_epochs=(), planned_epochs=()), 3, progress)


@pytest.mark.parametrize(("epochs", "restarts"), [(3, (3,)), (3, (2, 2)), (5, (4, 2)), (3, (7,))])
def test_restarts_that_do_not_fit_are_refused(
    epochs: int, restarts: tuple[int, ...], little_config: Make, little: Pair
) -> None:
    with pytest.raises(ConfigError, match="restart_epochs"):
        run_training(with_epochs(little_config("x"), epochs, *restarts), datasets=little)


@pytest.mark.parametrize("planned", [(1,), (2, 3)])
def test_planned_epochs_that_do_not_fit_are_refused(planned: tuple[int, ...], little_config: Make):
    config = with_epochs(little_config("x"), 4, 2)
    recipe = replace(config.recipe, planned_epochs=planned)
    with pytest.raises(ConfigError, match="planned_epochs"):
        check(replace(config, recipe=recipe))


def test_other_epochs_of_a_finished_run_name_the_way_on(run: Path, reporter) -> None:
    _, config = Run.open(run)
    message = rf"epochs is 2, not 5\. .*deitctl train --resume {run} --more-epochs 3"
    with pytest.raises(ConfigError, match=message):
        require_same(run, config, {"recipe.epochs": 5})
    with pytest.raises(ConfigError, match=message):
        find_unfinished(replace(with_epochs(config, 5), output_dir=str(run)), reporter)
    with pytest.raises(ConfigError, match=r"epochs is 2, not 1\. Leave them out, or start"):
        require_same(run, config, {"recipe.epochs": 1})
    with pytest.raises(ConfigError, match="Leave them out, or start"):
        require_same(run, config, {"recipe.epochs": 5, "seed": 9})
    with pytest.raises(DeitctlError, match=r"already holds a run.* --more-epochs N"):
        Run.create(run, config)


def test_a_finished_run_that_is_resumed_says_how_it_is_trained_longer(
    run: Path, little: Pair, reporter
) -> None:
    before = (run / "run.toml").read_bytes()
    assert resume(run, datasets=little, reporter=reporter).epochs == 2
    assert f"deitctl train --resume {run} --more-epochs 2" in reporter.notes[0]
    assert (run / "run.toml").read_bytes() == before


def test_an_unfinished_run_is_finished_first(run: Path, little: Pair) -> None:
    (run / "result.json").unlink()
    before = (run / "run.toml").read_bytes()
    with pytest.raises(
        ConfigError, match=rf"is not finished.*deitctl train --resume {run}\. Then --more-epochs 3"
    ):
        resume(run, more_epochs=3, datasets=little)
    assert (run / "run.toml").read_bytes() == before
    _, config = Run.open(run)
    with pytest.raises(ConfigError, match=r"Finish it .*, then add --more-epochs 1"):
        require_same(run, config, {"recipe.epochs": 3})


def test_a_launch_that_is_restarted_goes_on_with_the_epochs_that_it_added(run: Path) -> None:
    _, config = Run.open(run)
    longer = add_epochs(Run(run), config, 3, launch="job-7")
    assert (longer.recipe.epochs, longer.recipe.restart_epochs) == (5, (2,))
    Run(run).extend(longer, "job-7")
    _, config = Run.open(run)
    assert add_epochs(Run(run), config, 3, launch="job-7") == config == longer
    with pytest.raises(ConfigError, match="is not finished"):
        add_epochs(Run(run), config, 3, launch="job-8")


def test_a_run_without_its_checkpoint_is_not_trained_longer(run: Path) -> None:
    shutil.rmtree(run / "checkpoint")
    with pytest.raises(ConfigError, match=rf"no checkpoint.*deitctl train digits --model {run}"):
        resume(run, more_epochs=1)


@pytest.mark.parametrize("settings", [{}, {"resume": "auto"}])
def test_more_epochs_are_for_a_run_that_is_named(settings: dict) -> None:
    with pytest.raises(ConfigError, match=r"none is named\. Add --resume RUN"):
        deitctl.train("digits", more_epochs=3, **settings)


@pytest.mark.parametrize("number", [0, -1, 10**6, "x"])
def test_a_number_of_epochs_that_cannot_be_is_refused(number: object, run: Path) -> None:
    with pytest.raises(ConfigError, match="more.epochs"):
        deitctl.train(resume=run, more_epochs=number)


def test_a_warm_up_that_follows_the_epochs_is_no_other_difference(run: Path) -> None:
    """A fine-tuning run of 2 epochs has a fifth of an epoch of warm-up, one of 3 three tenths."""
    _, config = Run.open(run)
    fit = partial(fit_to_data, num_images=60, has_new_head=True, is_deit=True)
    two, three = (
        replace(config, recipe=fit(replace(FINETUNE, epochs=epochs))) for epochs in (2, 3)
    )
    assert two.recipe.optim.warmup_epochs < three.recipe.optim.warmup_epochs
    assert "--more-epochs 1" in suggest_more_epochs(Run(run), two, three)
    other = replace(three, recipe=replace(three.recipe, smoothing=0.2))
    assert suggest_more_epochs(Run(run), two, other) == ""


def test_a_run_file_with_restarts_can_be_repeated_with_other_epochs(
    tmp_path: Path, little_config: Make
) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(write_toml(with_epochs(little_config("x"), 4, 2)).encode())
    same = read_config(file, {}, {}, distilled=False)
    assert (same.recipe.epochs, same.recipe.restart_epochs) == (4, (2,))
    other = read_config(file, {"recipe.epochs": 2}, {}, distilled=False)
    assert (other.recipe.epochs, other.recipe.restart_epochs) == (2, ())
