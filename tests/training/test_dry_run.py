"""What a run refuses in its first seconds its dry run refuses too, in the same line; and writes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.errors import DeitctlError
from deitctl.models.checkpoint_io import save_tensors
from deitctl.training.launch import run_training
from deitctl.training.plan import plan_training

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
Change = Callable[[TrainConfig, Path], TrainConfig]


def train_from(
    write: Callable[[Path], object], name: str = "w.safetensors", **changes: object
) -> Change:
    """Return the change that names weights, which are written first."""

    def change(config: TrainConfig, folder: Path) -> TrainConfig:
        write(folder / name)
        return replace(config, weights=str(folder / name), **changes)  # type: ignore[arg-type]

    return change


def set_recipe(**settings: object) -> Change:
    return lambda config, _: replace(config, recipe=replace(config.recipe, **settings))  # type: ignore[arg-type]


def set_config(**settings: object) -> Change:
    return lambda config, _: replace(config, **settings)  # type: ignore[arg-type]


def hold_run(config: TrainConfig, folder: Path) -> TrainConfig:
    (folder / "taken" / "checkpoint").mkdir(parents=True)
    return replace(config, output_dir=str(folder / "taken"))


def write_below_file(config: TrainConfig, folder: Path) -> TrainConfig:
    (folder / "file").write_text("x")
    return replace(config, output_dir=str(folder / "file" / "run"))


def write_runs_below_file(config: TrainConfig, folder: Path) -> TrainConfig:
    (folder / "runs").write_text("x")
    return replace(config, output_dir="")


def link_figures(config: TrainConfig, folder: Path) -> TrainConfig:
    (folder / "linked").mkdir()
    (folder / "linked" / "figures").symlink_to(folder)
    return replace(config, output_dir=str(folder / "linked"))


def damage(path: Path) -> None:
    path.write_bytes(b"\x80" * 100)


def write_nan(path: Path) -> None:
    save_tensors(path, {**read_deit(path), "cls_token": torch.full((1, 1, 192), torch.nan)})


def write_other(path: Path) -> None:
    save_tensors(path, {"conv1.weight": torch.ones(2, 3, 3, 3), "fc.weight": torch.ones(4, 2)})


def read_deit(folder: Path) -> dict[str, torch.Tensor]:
    from deitctl.models.catalog import find
    from deitctl.models.convert import resize_architecture
    from deitctl.models.vit import VisionTransformer

    arch = find("deit_tiny")
    assert arch is not None
    return VisionTransformer(
        resize_architecture(arch, 32), num_classes=10, img_size=32
    ).state_dict()


def write_deit(path: Path) -> None:
    save_tensors(path, read_deit(path))


def write_config_alone(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')


def name_classes(text: str, *, with_weights: bool = True) -> Change:
    def change(config: TrainConfig, folder: Path) -> TrainConfig:
        (folder / "names.txt").write_text(text)
        config = replace(config, classes=str(folder / "names.txt"))
        return train_from(write_deit)(config, folder) if with_weights else config

    return change


REFUSED: dict[str, Change] = {
    "no such weights": train_from(lambda _: None),
    "damaged weights": train_from(damage),
    "damaged pickle": train_from(damage, "w.pth"),
    "an empty file": train_from(lambda path: path.write_bytes(b""), "w.pth"),
    "NaN in weights": train_from(write_nan),
    "weights of another network": train_from(write_other),
    "weights of another DeiT": train_from(write_deit, model="deit_small"),
    "weights for a convnet": train_from(write_deit, model="test_resnet"),
    "a folder that is no model": train_from(write_config_alone, "hf"),
    "published weights that are not here": set_recipe(pretrained=True),
    "published weights of timm": lambda c, f: replace(
        set_recipe(pretrained=True)(c, f), model="test_resnet.r160_in1k"
    ),
    "no such model": set_config(model="deit_tinny"),
    "no such file as model": set_config(model="nowhere/model.safetensors"),
    "a size that patches do not fill": set_recipe(img_size=33),
    "a size of another architecture": lambda c, f: replace(
        set_recipe(img_size=64)(c, f), model="vit_tiny_patch16_224.none"
    ),
    "no such device": set_config(device="cuda:77"),
    "a setting out of range": set_recipe(batch_size=0),
    "a folder with a run": hold_run,
    "a folder below a file": write_below_file,
    "runs is a file": write_runs_below_file,
    "a folder whose parts are links": link_figures,
    "names of fewer classes": name_classes("a\nb\n"),
    "two classes of one name": name_classes("a\na\n"),
    "names without weights": name_classes("a\nb\n", with_weights=False),
    "no such names": set_config(classes="nowhere.txt"),
}


def list_files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


def require_one_line(config: TrainConfig, pair: Pair, folder: Path) -> str:
    """Return the line that a dry run and then the run end with, which are equal."""
    before = list_files(folder)
    with pytest.raises(DeitctlError) as planned:
        plan_training(config, datasets=pair)
    assert list_files(folder) == before
    with pytest.raises(DeitctlError) as ran:
        run_training(config, datasets=pair)
    assert str(planned.value) == str(ran.value)
    assert type(planned.value) is type(ran.value)
    assert "\n" not in str(ran.value)
    return str(ran.value)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_dry_run_refuses_what_the_run_refuses(
    kind: str, little_config: Make, little: Pair, tmp_path: Path
) -> None:
    require_one_line(REFUSED[kind](little_config("run", model_args={}), tmp_path), little, tmp_path)


def test_a_dry_run_leaves_no_trace_where_the_run_would_start(
    little_config: Make, little: Pair, tmp_path: Path
) -> None:
    write_deit(tmp_path / "w.safetensors")
    config = replace(
        little_config("new/run", model_args={}), weights=str(tmp_path / "w.safetensors")
    )
    before = list_files(tmp_path)
    plan = plan_training(config, datasets=little)
    assert list_files(tmp_path) == before
    assert (plan.initial_weights, plan.is_local) == (config.weights, True)
    (change,) = plan.weight_changes  # no names: the order is an assumption, and is said
    assert (
        "the order of the data's classes (0, 1, 2, ...), because w.safetensors names none" in change
    )
    assert change.endswith("--classes FILE names them")


TEACHERS: dict[str, Callable[[Path], dict[str, object]]] = {
    "no such folder": lambda _: {"teacher": "nowhere/there/teacher"},
    "no such name": lambda _: {"teacher": "regnety_161"},
    "of other classes": lambda _: {"finetune_teacher": "none"},
    "damaged": lambda _: {},
    "damaged weights for a name": lambda folder: {
        "teacher": "test_resnet.r160_in1k",
        "teacher_weights": str(folder / "teacher" / "model.safetensors"),
    },
    "names of other weights": lambda folder: {"teacher_classes": str(folder / "names.txt")},
    "a cache with other files": lambda folder: {"teacher_cache": str(folder / "teacher")},
    "a cache below a file": lambda folder: {"teacher_cache": str(folder / "names.txt" / "cache")},
    "a stale cache": lambda folder: {"teacher_cache": str(folder / "stale")},
    "a cache that is no cache": lambda folder: {"teacher_cache": str(folder / "torn")},
}


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_dry_run_refuses_the_teacher_that_the_run_refuses(
    kind: str, distilled: Make, little: Pair, tmp_path: Path, imagenet_teacher: Callable[..., Path]
) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n")
    for name, text in (("stale", '{"teacher": "another"}'), ("torn", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cache.json").write_text(text)
    if kind == "of other classes":
        shutil.rmtree(tmp_path / "teacher")
        imagenet_teacher().rename(tmp_path / "teacher")
    if kind.startswith("damaged"):
        (tmp_path / "teacher" / "model.safetensors").write_bytes(b"\xff" * 1000)
    line = require_one_line(
        distilled("run", model_args={}, **TEACHERS[kind](tmp_path)), little, tmp_path / "run"
    )
    assert ("--teacher-classes names 2 classes" in line) == (kind == "names of other weights")


def test_a_teacher_that_is_not_here_is_refused_without_the_digits(
    distilled: Make, image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from deitctl.data.training_data import Source, open_for_training
    from deitctl.events import SilentReporter

    root = image_folder({"train/a": 3, "train/b": 3, "val/a": 2, "val/b": 2})
    config = replace(
        distilled("run", model_args={}, teacher="regnety_160.deit_in1k"), data=str(root)
    )
    pair = open_for_training(Source(str(root)), reporter=SilentReporter())
    line = require_one_line(config, pair, tmp_path / "run")
    assert "regnety_160" in line
    assert "--teacher-weights FILE" in line


def test_names_for_a_bare_teacher_save_its_fine_tuning_and_key_its_cache(
    distilled: Make, little: Pair, tmp_path: Path, reporter
) -> None:
    from deitctl.distillation.resolve import plan_finetuning, resolve_teacher
    from deitctl.distillation.teacher_weights import identify_teacher

    write_deit(tmp_path / "bare.safetensors")
    bare = distilled("run", model_args={}, teacher=str(tmp_path / "bare.safetensors"))
    assert bare.distill is not None
    assert plan_finetuning(bare, little[0], reporter)[0] == "head"
    identities = {identify_teacher(bare.distill, reporter)}
    for order in ("0123456789", "9876543210"):
        (tmp_path / "names.txt").write_text("\n".join(order))
        distill = replace(bare.distill, teacher_classes=str(tmp_path / "names.txt"))
        config = replace(bare, distill=distill)
        assert plan_finetuning(config, little[0], reporter) == ("no", None)
        match = resolve_teacher(config, little[0], "", None, reporter).match
        assert match.rows == tuple(map(int, order))
        identities.add(identify_teacher(distill, reporter))
    assert len(identities) == 3
