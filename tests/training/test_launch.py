from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from deitctl.api import evaluate
from deitctl.config import DistillConfig, TrainConfig
from deitctl.data.batch_transforms import normalize
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import build_eval_loader
from deitctl.data.stores.store_settings import get_cache, warn
from deitctl.data.subsets import select
from deitctl.data.training_data import Source, open_for_training
from deitctl.errors import (
    ConfigError,
    DataError,
    DeitctlError,
    Interrupted,
    TeacherError,
)
from deitctl.events import SilentReporter, Task
from deitctl.models.checkpoint_io import load_tensors
from deitctl.models.factory import load_model
from deitctl.training.launch import resume, run_training, start_or_resume
from deitctl.training.run_dir import Run
from deitctl.training.trainer import Trainer

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(str(run), reporter=SilentReporter()).model.state_dict())


def last_weights(run: Path) -> bytes:
    return (run / "checkpoint" / "model.safetensors").read_bytes()


class StopsAt(SilentReporter):
    """A signal that comes when something of the given name begins, or after so many batches of it."""

    def __init__(self, label: str, batches: int = 0) -> None:
        self.label, self.batches = label, batches

    @contextmanager
    def task(self, label: str, total: int | None, unit: str = "images") -> Iterator[Task]:
        with super().task(label, total, unit) as task:
            if label == self.label and not self.batches:
                signal.raise_signal(signal.SIGTERM)
            yield _Counting(task, self.batches) if label == self.label else task


class _Counting:
    def __init__(self, task: Task, batches: int) -> None:
        self.task, self.left = task, batches

    def advance(self, amount: int = 1, **fields: object) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)
        self.task.advance(amount, **fields)

    def skip(self, amount: int) -> None:
        self.task.skip(amount)


def test_same_seed_gives_the_same_weights_with_0_1_and_3_workers(
    little_config: Make, little: Pair
) -> None:
    runs = []
    for workers in (0, 1, 3):
        config = little_config(f"w{workers}", workers=workers)
        config = replace(config, recipe=replace(config.recipe, epochs=2))
        runs.append(run_training(config, datasets=little).run)
    assert last_weights(runs[0]) == last_weights(runs[1]) == last_weights(runs[2])


def test_another_seed_gives_other_weights(little_config: Make, little: Pair) -> None:
    config = little_config("a")
    short = replace(config.recipe, epochs=1)
    first = run_training(replace(config, recipe=short), datasets=little).run
    second = run_training(replace(little_config("b", seed=1), recipe=short), datasets=little).run
    assert last_weights(first) != last_weights(second)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, little: Pair) -> Callable[[TrainConfig], Path]:
    """Train a configuration from beginning to end, once for the whole file."""
    done: dict[str, Path] = {}

    def run(config: TrainConfig) -> Path:
        root = tmp_path_factory.mktemp("whole") / "run"
        if config.precision not in done:
            done[config.precision] = run_training(
                replace(config, output_dir=str(root)), datasets=little
            ).run
        return done[config.precision]

    return run


@pytest.mark.parametrize(
    ("label", "batches", "step"),
    [
        ("epoch 1/3", 0, 0),
        ("epoch 1/3", 2, 2),
        ("epoch 2/3", 1, 5),
        ("epoch 2/3", 4, 8),
        ("epoch 3/3, validate", 0, 12),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_ends_as_if_it_had_never_stopped(
    label: str,
    batches: int,
    step: int,
    precision: str,
    little_config: Make,
    little: Pair,
    whole: Callable[[TrainConfig], Path],
) -> None:
    """Whether a signal comes at the beginning of an epoch, within it, after its last step, or while it is evaluated."""
    config = little_config("stopped", precision=precision)
    with pytest.raises(Interrupted) as stopped:
        run_training(config, datasets=little, reporter=StopsAt(label, batches))
    assert stopped.value.exit_code == 143
    assert stopped.value.resume_command == f"deitctl train --resume {config.output_dir}"
    assert (
        json.loads((Path(config.output_dir) / "checkpoint" / "state.json").read_text())["step"]
        == step
    )
    again = resume(Path(config.output_dir), datasets=little).run
    assert_same_end(whole(config), again)


def assert_same_end(whole: Path, again: Path) -> None:
    for file in (
        "checkpoint/model.safetensors",
        "checkpoint/ema.safetensors",
        "checkpoint/optimizer.safetensors",
        "model.safetensors",
    ):
        assert (whole / file).read_bytes() == (again / file).read_bytes(), file
    assert log_without_time(whole) == log_without_time(again)


def log_without_time(run: Path) -> list[dict[str, object]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in r.items() if k not in ("seconds", "images_per_second")} for r in records
    ]


def test_a_run_loads_in_timm_with_the_same_logits(little_config: Make, little: Pair) -> None:
    config = little_config("run", model="deit_tiny_distilled", model_args={})
    result = run_training(replace(config, recipe=replace(config.recipe, epochs=1)), datasets=little)
    loaded = load_model(str(result.run), reporter=SilentReporter())
    theirs = timm.create_model(f"local-dir:{result.run}", pretrained=True).eval()
    batch = next(
        build_eval_loader(
            little[1],
            [loaded.model_config.preprocessing],
            batch_size=8,
            workers=0,
            pin_memory=False,
        )
    )
    images = normalize(batch.images[0], loaded.model_config.preprocessing)
    with torch.no_grad():
        cls, dist = loaded.model(images)
        torch.testing.assert_close(theirs(images), (cls + dist) / 2, rtol=0, atol=1e-6)
    assert theirs.pretrained_cfg["label_names"] == [str(d) for d in range(10)]


def test_the_reported_accuracy_is_what_eval_gives(little_config: Make) -> None:
    config = little_config("run")
    result = run_training(replace(config, recipe=replace(config.recipe, epochs=1)))
    evaluation = evaluate("digits", model=str(result.run), workers=0)
    assert evaluation.top1 == result.evaluation.top1
    assert evaluation.loss == pytest.approx(result.evaluation.loss, rel=1e-5)
    assert not list(result.run.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("mode", "token"), [("hard", True), ("soft", True), ("hard", False), ("soft", False)]
)
def test_distillation_runs_in_every_form(
    mode: str, token: bool, little_config: Make, little: Pair
) -> None:
    teacher = little_config("teacher", model="deit_tiny")
    teacher = replace(teacher, recipe=replace(teacher.recipe, epochs=1))
    run_training(teacher, datasets=little)
    distill = DistillConfig(
        teacher=teacher.output_dir,
        mode=mode,
        alpha=0.5,
        tau=2.0,
        reduction="batchmean",
        dist_token=token,
        allow_weak_teacher=True,
        teacher_input="unmixed",
        views=2,
        logits_topk=100,
    )
    config = little_config("student", distill=distill)
    result = run_training(replace(config, recipe=replace(config.recipe, epochs=1)), datasets=little)
    assert (result.evaluation.heads is not None) == token
    assert result.teacher is not None
    record = json.loads((result.run / "metrics.jsonl").read_text().splitlines()[0])
    assert record["loss"] == pytest.approx(
        0.5 * record["task_loss"] + 0.5 * record["kd_loss"], rel=1e-5
    )


def test_a_teacher_near_chance_is_refused_before_the_first_step(
    little_config: Make, little: Pair
) -> None:
    teacher = little_config("teacher")
    slow = replace(
        teacher.recipe,
        epochs=1,
        optim=replace(teacher.recipe.optim, lr=1e-9, min_lr=0, warmup_lr=0),
    )
    run_training(replace(teacher, recipe=slow), datasets=little)
    distill = DistillConfig(
        teacher=teacher.output_dir,
        mode="hard",
        alpha=0.5,
        tau=1.0,
        reduction="batchmean",
        dist_token=True,
        teacher_input="mixed",
        views=0,
        logits_topk=100,
    )
    with pytest.raises(TeacherError, match="near chance"):
        run_training(little_config("student", distill=distill), datasets=little)


def test_a_run_is_never_overwritten(little_config: Make, little: Pair) -> None:
    config = little_config("run")
    config = replace(config, recipe=replace(config.recipe, epochs=1))
    run_training(config, datasets=little)
    with pytest.raises(DeitctlError, match="already holds a run"):
        run_training(config, datasets=little)


def test_a_loss_that_is_no_number_stops_the_run(little_config: Make, little: Pair) -> None:
    config = little_config("run")
    wild = replace(
        config.recipe, optim=replace(config.recipe.optim, lr=1e30, clip_grad=0, warmup_epochs=0)
    )
    with pytest.raises(DeitctlError, match="The loss is"):
        run_training(replace(config, recipe=wild), datasets=little)


def test_unreadable_images_are_left_out_and_named(
    little_config: Make, image_folder: Callable[..., Path]
) -> None:
    root = image_folder({"train/a": 8, "train/b": 8, "val/a": 2, "val/b": 2})
    damaged, unseen = root / "train" / "a" / "0.png", root / "val" / "b" / "1.png"
    for file in (damaged, unseen):
        file.write_text("not an image")
    config = little_config("run", data=str(root))
    recipe = replace(
        config.recipe,
        epochs=1,
        batch_size=16,
        augment=replace(config.recipe.augment, repeated_aug=1),
    )
    result = run_training(replace(config, recipe=recipe))
    assert list(result.unreadable_reasons) == [str(damaged), str(unseen)]
    assert (result.images_seen, result.evaluation.num_images) == (15, 3)


@pytest.mark.parametrize("start", [run_training, partial(start_or_resume, auto=False)])
def test_a_run_reads_from_stores_by_its_own_settings(
    little_config: Make, little: Pair, start, reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Stop(Exception):
        pass

    def fit(self: Trainer) -> None:
        seen.append((get_cache().folder, get_cache().max_bytes))
        warn("waiting for the store")
        raise Stop

    monkeypatch.setattr(Trainer, "fit", fit)
    config = replace(little_config("run"), cache_dir="/own", cache_size="3MB")
    with pytest.raises(Stop):
        start(config, datasets=little, reporter=reporter)
    assert seen == [("/own", 3_000_000)]
    assert "waiting for the store" in reporter.warnings
    assert get_cache().folder == ""


def test_a_resume_on_other_data_is_refused(little_config: Make, little: Pair) -> None:
    config = little_config("run")
    with pytest.raises(Interrupted):
        run_training(config, datasets=little, reporter=StopsAt("epoch 2/3"))
    fewer = select(little[0], range(40))
    with pytest.raises(DataError, match="images that are gone or have another label: "):
        resume(Path(config.output_dir), datasets=(fewer, little[1]))


def test_a_resumed_run_trains_on_what_it_began_with(
    little_config: Make, image_folder: Callable[..., Path]
) -> None:
    """Images that are added to an unsplit folder in between change nothing."""
    root = image_folder({"a": 9, "b": 9})
    config = little_config("run", data=str(root))
    config = replace(config, recipe=replace(config.recipe, epochs=2, batch_size=8))
    unbroken = run_training(replace(config, output_dir=f"{config.output_dir}-whole")).run
    with pytest.raises(Interrupted):
        run_training(config, reporter=StopsAt("epoch 2/2"))
    split = (unbroken / "split.csv").read_bytes()
    assert (Path(config.output_dir) / "split.csv").read_bytes() == split
    (root / "aa").mkdir()
    for number in range(9):
        for folder in ("a", "aa"):
            shutil.copy(root / "b" / "0.png", root / folder / f"0{number}.png")
    result = resume(Path(config.output_dir))
    assert_same_end(unbroken, result.run)
    # the same where the caller has opened the data as it is now
    changed = open_for_training(Source(str(root)), reporter=SilentReporter())
    again = resume(Path(config.output_dir), datasets=changed)
    assert set(changed[1].class_names) == {"a", "aa", "b"}
    assert again.evaluation.num_images == result.evaluation.num_images
    assert len(again.evaluation.per_class) <= 2
    assert (again.run / "split.csv").read_bytes() == split


def test_the_images_of_a_runs_table_may_be_moved(
    little_config: Make, image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root, table = image_folder({"a": 6, "b": 6}), tmp_path / "lists" / "t.csv"
    table.parent.mkdir()
    names = [f"{c}/{n}.png" for c in "ab" for n in range(6)]
    table.write_text("path,label\n" + "".join(f"/gone/{n},{n[0]}\n" for n in names))
    config = little_config("run", data=str(table), image_folder=str(root))
    config = replace(config, recipe=replace(config.recipe, epochs=1, batch_size=8))
    run = run_training(config).run
    moved = root.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="--images FOLDER"):
        resume(run)
    for settings, places in (
        ({"image_folder": str(moved)}, (str(table), str(moved))),
        ({"data": str(moved)}, (str(moved), "")),
    ):
        result = resume(run, settings=settings)
        assert result.evaluation.num_images > 0
        config = Run.open(run)[1]
        assert (config.data, config.image_folder) == places


def test_a_run_that_was_killed_before_it_wrote_its_split_is_resumed(
    little_config: Make, image_folder: Callable[..., Path]
) -> None:
    config = little_config("run", data=str(image_folder({"a": 6, "b": 6})))
    config = replace(config, recipe=replace(config.recipe, epochs=1, batch_size=6))
    run = Run.create(Path(config.output_dir), config)
    resume(run.root)
    assert (run.root / "split.csv").is_file()
    (run.root / "split.csv").unlink()
    with pytest.raises(DataError, match=r"has no split\.csv"):
        resume(run.root)


def test_a_resume_may_change_the_machine_but_not_the_recipe(
    little_config: Make, little: Pair
) -> None:
    config = little_config("run")
    with pytest.raises(Interrupted):
        run_training(config, datasets=little, reporter=StopsAt("epoch 3/3"))
    with pytest.raises(ConfigError, match=r"other settings: epochs is 3, not 9"):
        resume(Path(config.output_dir), settings={"recipe.epochs": 9}, datasets=little)
    same = {
        "workers": 1,
        "seed": None,
        "recipe.epochs": 3,
        "recipe.optim.clip_grad": "1",
        "save_every": "2",
    }
    assert resume(Path(config.output_dir), settings=same, datasets=little).epochs == 3


def test_a_run_is_not_resumed_with_other_weights_of_its_teacher(
    distilled: Make, little: Pair, digits_teacher: Path
) -> None:
    """The name of a teacher may mean other weights than when the run began."""
    config = distilled("run", teacher_cache="off")
    config = replace(config, recipe=replace(config.recipe, epochs=1, batch_size=60))
    run = run_training(config, datasets=little).run
    resume(run, datasets=little)
    began = json.loads((run / "teacher.json").read_text())["weights_fingerprint"]
    file = digits_teacher / "model.safetensors"
    save_file({k: v * 1.01 for k, v in load_tensors(file).items()}, file)
    with pytest.raises(TeacherError, match=rf"began with other weights of its teacher \({began}\)"):
        resume(run, datasets=little)
    assert json.loads((run / "teacher.json").read_text())["weights_fingerprint"] == began
