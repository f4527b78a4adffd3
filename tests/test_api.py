"""The Python API: its types as mypy sees them, imports that cost nothing, and docs/python.md as it runs."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import deitctl
from deitctl import api
from deitctl.distributed import SINGLE_PROCESS
from deitctl.errors import ConfigError, DataError
from deitctl.models.checkpoint_io import save_tensors
from deitctl.models.vit import VisionTransformer
from deitctl.settings import list_settings, override, write_toml

ROOT = Path(__file__).parents[1]
SCRIPT = """
from pathlib import Path
from typing import Any

import deitctl

settings: dict[str, Any] = {"augment.mixup": 0.2}
result = deitctl.train("photos/", model="deit_tiny", epochs=3, **settings)
accuracy: float = result.best.score
run: Path = result.run
student = deitctl.distill(data=Path("photos"), teacher="regnety_160", mode="soft", tau=2.0)
scores = deitctl.evaluate("photos/", model=student.run)
assert isinstance(scores, deitctl.EvalResult)  # of one label an image
interval: float = scores.top1_interval.lower
for prediction in deitctl.predict(["a.jpg", Path("b.jpg")], model=run, topk=3):
    label: str = prediction.predictions[0].label
model = deitctl.load(run)
best = model.predict("cat.jpg").predictions[0].score
steps: int = deitctl.plan("photos/").num_steps
folds = deitctl.train("photos/", folds=5, group_by="patient")
mean: float | None = folds.metrics["top1"].mean
second: float = deitctl.distill("photos/", teacher="regnety_160", folds=5, fold=2).best.score
reveal_type(deitctl.train)
"""
MISTAKES = {
    'deitctl.train("photos/", epochs="ten")': 'No overload variant of "train" matches',
    'deitctl.distill(mode="harder")': 'No overload variant of "distill" matches',
    'deitctl.export("runs/x", too="onnx")': "Unexpected keyword argument",
    "deitctl.train().accuracy": 'has no attribute "accuracy"',
    "deitctl.tran()": "has no attribute",
}


def check_types(source: str, folder: Path) -> str:
    """Run mypy over a user's file, as one installs it; return what it says."""
    (folder / "script.py").write_text(source)
    options = ["--strict", "--config-file=", "--ignore-missing-imports", "--follow-imports=silent"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--cache-dir", str(folder / "mypy"), "script.py"],
        cwd=folder,
        env=os.environ | {"MYPYPATH": str(ROOT)},  # an editable installation has no files to find
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


@pytest.mark.slow
def test_mypy_sees_the_types_and_a_wrong_argument(tmp_path: Path) -> None:
    wrong = "".join(f"{line}\n" for line in MISTAKES)
    lines = check_types(f"{SCRIPT}\n{wrong}", tmp_path).splitlines()
    offset = len(SCRIPT.splitlines()) + 2
    messages = dict.fromkeys(range(offset, offset + len(MISTAKES)), "")
    for line in lines:
        if found := re.match(r"script.py:(\d+): error: (.*)", line):
            number = int(found[1])
            assert number in messages, line  # no error in the script itself
            messages[number] += found[2]
    for message, part in zip(messages.values(), MISTAKES.values(), strict=True):
        assert part in message
    revealed = next(line for line in lines if "Revealed type" in line)
    assert "epochs: int | None" in revealed or "epochs: builtins.int | None" in revealed
    assert "TrainResult" in revealed


def test_every_public_name_is_listed_and_resolves() -> None:
    assert set(deitctl.__all__) <= set(dir(deitctl))
    for name in deitctl.__all__:
        assert getattr(deitctl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        deitctl.nothing  # noqa: B018


def test_no_module_takes_the_place_of_a_function() -> None:
    import deitctl.exporters.export
    import deitctl.packing.pack

    for name in deitctl.__all__:
        assert not inspect.ismodule(getattr(deitctl, name)), name


def test_importing_deitctl_imports_nothing_heavy() -> None:
    code = (
        "import sys, deitctl; deitctl.train, deitctl.distill, dir(deitctl)\n"
        "sys.exit(bool({'torch', 'numpy', 'PIL', 'typer', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_keywords_of_training_are_the_settings() -> None:
    """What is not declared in the configuration is an argument of the function alone."""
    keywords = {s.keyword for s in list_settings() if s.option.panel}
    own = {"data", "recipe", "resume", "more_epochs", "config", "reporter", "overrides"}
    own |= set(api.FUNCTIONS)
    assert inspect.signature(deitctl.train).parameters.keys() - own <= keywords
    assert inspect.signature(deitctl.distill).parameters.keys() - own - {"student"} <= keywords


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochz": 3}, "no setting 'epochz'. Did you mean 'epochs'"),
        ({"augment.mixxup": 3}, "no setting 'augment.mixxup'"),
        ({"epochs": "many"}, "does not fit"),
        ({"model": "deit_tinny"}, "deit_tiny"),
        ({"config": "gone.toml"}, "gone.toml has its own data"),
        ({"resume": "gone"}, "gone is not a run"),
        ({"resume": "gone", "output": "x"}, "gone has its own output"),
        (
            {"teacher_cache": "x"},
            "'distill.teacher_cache' cannot be set: a teacher is for `distill`",
        ),
        ({"recipe": 5}, "recipe = 5 does not fit: expected a text"),
        ({"model": 5}, "model = 5 does not fit: expected a text"),
        ({"batch_size": "all"}, "batch_size = 'all' does not fit"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(deitctl.DeitctlError, match=message):
        deitctl.train("digits", **arguments)


def test_a_plan_is_of_a_new_run() -> None:
    """`auto` may find no run to resume, and then begins the planned one; a named run has its plan."""
    assert deitctl.plan("digits", resume="auto").config.model == "deit_tiny"
    with pytest.raises(ConfigError, match="a new run, and runs/x is to be resumed"):
        deitctl.plan("digits", resume="runs/x")


def test_mode_none_is_training_without_a_teacher() -> None:
    planned = deitctl.plan("digits", distilled=True, mode="none")
    assert planned.teacher is None
    for keyword, value in (("teacher", "regnety_002"), ("views", 3), ("dist_token", False)):
        with pytest.raises(ConfigError, match=f"'distill.{keyword}' cannot be set: a teacher is"):
            deitctl.distill("digits", mode="none", **{keyword: value})  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=f"'distill.{keyword}' cannot be set: a teacher is"):
            deitctl.plan("digits", **{keyword: value})
    with pytest.raises(ConfigError, match="--mode none has no teacher"):
        deitctl.cache_teacher("digits", mode="none")  # type: ignore[arg-type]


@pytest.mark.parametrize("distilled", [False, True])
def test_a_configuration_is_repeated_with_its_teacher_and_in_range(
    distilled: bool, tmp_path: Path
) -> None:
    """Without a teacher, `distill` would train something else in silence, and so would `train` with one."""
    path = tmp_path / "run.toml"
    path.write_text(write_toml(deitctl.plan("digits", distilled=distilled).config))
    assert deitctl.plan(config=path, distilled=distilled, epochs=2).epochs == 2
    with pytest.raises(ConfigError, match=r"epochs = 0 is out of range"):
        deitctl.plan(config=path, distilled=distilled, epochs=0)
    other, command = (deitctl.train, "distill") if distilled else (deitctl.distill, "train")
    with pytest.raises(ConfigError, match=f"teacher. Repeat it by deitctl {command} --config"):
        other(config=path)


def test_auto_batch_size_is_in_any_case_as_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deitctl.profiling import batch_size

    monkeypatch.setattr(
        batch_size,
        "with_chosen_batch_size",
        lambda config, *_: override(config, {"recipe.batch_size": 48}),
    )
    for text in ("auto", "AUTO"):
        assert deitctl.plan("digits", batch_size=text).batch_size == 48


def test_a_plan_names_what_was_read_and_warns_as_check_does(
    image_folder: Callable[..., Path], reporter
) -> None:
    counts = {"Training/cat": 6, "Training/dog": 6, "Testing/cat": 5}
    root = image_folder({f"pets/{folder}": count for folder, count in counts.items()})
    planned = deitctl.plan(
        root, model="deit_tiny", recipe="probe", pretrained=False, img_size=32, reporter=reporter
    )
    assert planned.class_names == ("cat", "dog")
    assert planned.train_folder == str(root / "pets" / "Training")
    assert planned.val_folder == str(root / "pets" / "Testing")
    assert reporter.notes[0].endswith(
        "The data are those in pets/. Parts: train is Training/, test is Testing/."
    )
    (warning,) = [text for text in reporter.warnings if "validation lacks" in text]
    assert warning.startswith(f"{root}: Classes of training that validation lacks (dog).")


def test_open_data_are_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deitctl.data import training_data as package

    planned = deitctl.plan("digits")
    (tmp_path / "run.toml").write_text(write_toml(planned.config))
    request = api._collect({"config": tmp_path / "run.toml"})
    datasets = package.open_for_training(
        package.Source("digits"), reporter=deitctl.SilentReporter()
    )
    monkeypatch.setattr(package, "open_for_training", None)
    assert api._configure(request, datasets, SINGLE_PROCESS) == (planned.config, datasets)


@pytest.mark.slow
def test_the_examples_of_the_page_run(
    image_folder: Callable[..., Path],
    make_image: Callable[..., Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = {"train/cat": 6, "train/dog": 6, "val/cat": 2, "val/dog": 2}
    monkeypatch.chdir(image_folder(counts, root="photos").parent)
    make_image(48, 40).save("cat.jpg")
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) > 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert (tmp_path / "runs" / "photos" / "figures" / "curves.png").is_file()
    assert (tmp_path / "report.html").is_file()


def test_a_file_of_names_serves_every_use_of_a_bare_file(
    image_folder: Callable[..., Path],
    deit: Callable[..., VisionTransformer],
    tmp_path: Path,
) -> None:
    """Prediction, evaluation and explanation have the names."""
    save_tensors(tmp_path / "w.safetensors", deit(classes=2).state_dict())
    (tmp_path / "names.json").write_text('{"0": "owl", "1": "cat"}')
    data = image_folder({"val/cat": 2, "val/owl": 2})
    image = str(data / "val" / "owl" / "0.png")
    options = {"model": str(tmp_path / "w.safetensors"), "classes": str(tmp_path / "names.json")}
    best = deitctl.load(**options).predict(image).predictions[0]
    assert best.label == ("owl", "cat")[best.index]
    same = deitctl.load(options["model"], classes=["owl", "cat"]).predict(image).predictions[0]
    assert same == best
    with pytest.raises(DataError, match="without names.*--classes FILE names its classes"):
        deitctl.evaluate(str(data), split="val", model=options["model"], device="cpu", workers=0)
    result = deitctl.evaluate(str(data), split="val", **options, device="cpu", workers=0)
    assert set(result.per_class) == {"cat", "owl"}
    (explained,) = deitctl.explain([image], **options, output=tmp_path / "drawings", device="cpu")
    assert explained.tokens["cls"].label == best.label
