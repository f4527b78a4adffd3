"""An own objective, augmentation, data set, callback and teacher train, resume, and fail in words."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import deitctl
from deitctl.data.own_functions import identify_function
from deitctl.data.readers.digits import load_digits
from deitctl.data.readers.torch_dataset import open_for_training as open_pair
from deitctl.data.readers.torch_dataset import open_torch_dataset, to_image
from deitctl.data.subsets import select
from deitctl.errors import ConfigError, DataError, ExtensionError, Interrupted, TeacherError
from deitctl.events import SilentReporter
from deitctl.training.extensions import Extensions, keep_names, require_same_extensions
from deitctl.training.objective import StudentBatch

SMALL: dict[str, Any] = {
    "model": "deit_tiny",
    "recipe": "digits",
    "pretrained": False,
    "batch_size": 32,
    "epochs": 2,
    "workers": 0,
    "device": "cpu",
    "model.depth": 1,
    "model.embed_dim": 24,
    "model.num_heads": 2,
}


class Digits(torch.utils.data.Dataset[tuple[Any, int]]):
    """The first digits, as a program has them."""

    classes = tuple("0123456789")

    def __init__(self, count: int = 96) -> None:
        self.images = load_digits()[0]
        self.targets = self.images.labels[:count].tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images.read(index), self.targets[index]


class Squares:
    """An objective that is no cross-entropy."""

    def __call__(self, student: nn.Module, batch: StudentBatch) -> dict[str, Tensor]:
        cls, _ = deitctl.forward_heads(student, batch.images, batch.drop_path_mask)
        loss = (cls.softmax(1) - batch.targets).square().sum(1).mean()
        return {"loss": loss, "squares": loss}


def darken(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """An augmentation with a draw."""
    factor = float(generator.uniform(0.5, 1))
    return image.point(lambda value: int(value * factor))


class StopAfter:
    """A callback that ends a run, and one that interrupts it."""

    def __init__(self, epoch: int, *, interrupts: bool = False) -> None:
        self.epoch, self.interrupts, self.seen = epoch, interrupts, []  # type: ignore[var-annotated]

    def on_epoch_end(self, metrics: Mapping[str, Any]) -> bool:
        self.seen.append(metrics)
        if self.interrupts and metrics["epoch"] == self.epoch:
            raise KeyboardInterrupt
        return bool(metrics["epoch"] == self.epoch)


def read_log(run: Path, kind: str = "epoch") -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with an own data set, objective and augmentation."""
    output = tmp_path_factory.mktemp("unbroken") / "run"
    deitctl.train(
        Digits(), objective=Squares(), augmentation=darken, output=output, save_every="2", **SMALL
    )
    return output


def test_an_own_objective_is_minimized_and_logged(unbroken: Path) -> None:
    first, last = (record["train"]["squares"] for record in read_log(unbroken))
    assert last < first < 1
    assert "task_loss" not in read_log(unbroken)[0]["train"]


def test_a_run_with_own_parts_resumes_to_equal_weights(unbroken: Path, tmp_path: Path) -> None:
    own: dict[str, Any] = {"objective": Squares(), "augmentation": darken}
    stop = StopAfter(1, interrupts=True)
    with pytest.raises(Interrupted):
        deitctl.train(
            Digits(), **own, callbacks=[stop], output=tmp_path / "run", save_every="2", **SMALL
        )
    with pytest.raises(ConfigError, match=r"trained with the augmentation .*darken.*Pass it again"):
        deitctl.train(Digits(), objective=Squares(), resume=tmp_path / "run")
    with pytest.raises(DataError, match="a data set of a program's"):
        deitctl.train(**own, resume=tmp_path / "run")
    deitctl.train(Digits(), **own, resume=tmp_path / "run")
    weights = [(run / "model.safetensors").read_bytes() for run in (unbroken, tmp_path / "run")]
    assert weights[0] == weights[1]


def test_a_callback_sees_each_epoch_and_ends_the_run(tmp_path: Path) -> None:
    callback = StopAfter(1)
    result = deitctl.train(Digits(48), callbacks=[callback], output=tmp_path / "run", **SMALL)
    assert (result.epochs, result.stopped) == (1, "callback")
    assert [m["epoch"] for m in callback.seen] == [1]
    assert callback.seen[0]["top1"] == read_log(tmp_path / "run")[0]["top1"]


def test_a_pair_of_data_sets_is_trained_and_validated_on(tmp_path: Path) -> None:
    result = deitctl.train(
        (Digits(64), Digits(40)), output=tmp_path / "run", **SMALL | {"epochs": 1}
    )
    assert (result.images_seen, result.num_val_images) == (64, 40)


def count_ink(images: Tensor) -> Tensor:
    """A teacher that is no network: logits by the mean of each column."""
    columns = images.mean((1, 2))
    return torch.stack([columns[:, n % columns.shape[1]] * 3 for n in range(10)], dim=1)


CALLS: list[int] = []


def teach(images: Tensor) -> Tensor:
    """The same, counting its calls."""
    CALLS.append(len(images))
    return count_ink(images)


def make_teacher(network: Callable[[Tensor], Tensor], **changes: Any) -> deitctl.CallableTeacher:
    preprocessing = deitctl.Preprocessing(img_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    names = changes.pop("class_names", [str(n) for n in range(10)])
    return deitctl.CallableTeacher(
        network=network, class_names=names, preprocessing=preprocessing, **changes
    )


def test_an_own_teacher_gives_targets_that_are_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SMALL | {"epochs": 1, "mode": "soft", "views": 1, "allow_weak_teacher": True}
    student = {"student": settings.pop("model"), "teacher_cache": tmp_path / "cache"}
    losses = []
    CALLS.clear()
    for name in ("first", "second"):
        result = deitctl.distill(
            Digits(48),
            teacher=make_teacher(teach),
            output=tmp_path / name,
            **student,
            **settings,
        )
        losses.append(read_log(tmp_path / name)[0]["train"]["kd_loss"])
        assert result.teacher is not None
        assert result.teacher.name.endswith("teach")
        CALLS.append(-1)
    assert losses[0] == losses[1] > 0
    assert CALLS[-1] == CALLS[-2] == -1  # the second run has all targets from the cache


@pytest.mark.parametrize("change", ["weights", "preprocessing", "classes", "closure", "partial"])
def test_what_an_own_teacher_depends_on_tells_it_from_another(change: str) -> None:
    def scale(factor: float) -> Callable[[Tensor], Tensor]:
        return lambda images: images * factor

    networks: dict[str, list[Any]] = {
        "weights": [nn.Linear(4, 2), nn.Linear(4, 2)],
        "closure": [scale(1.0), scale(2.0)],
        "partial": [functools.partial(torch.add, alpha=n) for n in (1, 2)],
    }
    pair = [make_teacher(n) for n in networks.get(change, [count_ink, count_ink])]
    if change == "preprocessing":
        pair[1] = replace(pair[1], preprocessing=deitctl.Preprocessing(img_size=9))
    if change == "classes":
        pair[1] = replace(pair[1], class_names=[*reversed(pair[1].class_names)])
    assert pair[0].identify() != pair[1].identify()
    assert pair[0].identify() == replace(pair[0]).identify()


def test_a_function_is_the_same_in_every_process() -> None:
    class Holds:
        def __init__(self, value: object) -> None:
            self.value = value

        def __call__(self, images: Tensor) -> Tensor:
            return images

    same = [identify_function(Holds(Holds(torch.arange(5000)))) for _ in range(2)]
    assert same[0] == same[1] != identify_function(Holds(Holds(torch.arange(5000) + 1)))
    with pytest.raises(ExtensionError, match="holds a generator.*attribute `version`"):
        identify_function(Holds(n for n in range(3)))


def test_an_own_teacher_of_other_classes_is_refused_by_name(tmp_path: Path) -> None:
    teacher = make_teacher(count_ink, class_names=[f"class {n}" for n in range(10)])
    settings = SMALL | {"student": SMALL["model"]}
    del settings["model"]
    with pytest.raises(TeacherError, match="lacks the class '0' of the data"):
        deitctl.distill(Digits(48), teacher=teacher, output=tmp_path / "run", **settings)


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "raises": (
        {"objective": lambda student, batch: 1 / 0},
        r"objective .* failed \(.*test_extensions.py, line \d+\): ZeroDivisionError",
    ),
    "number": ({"objective": lambda student, batch: 1.0}, "objective .* returned a float"),
    "no loss": ({"objective": lambda student, batch: {"kd": 1}}, r"returned the keys \['kd'\]"),
    "a vector": (
        {"objective": lambda student, batch: {"loss": torch.zeros(1)}},
        r"returned loss as \[1\], not as a scalar",
    ),
    "a field of the log": (
        {"objective": lambda student, batch: {"loss": torch.zeros(()), "step": 1.0}},
        "named a loss 'step'",
    ),
    "no gradient": (
        {"objective": lambda student, batch: {"loss": torch.zeros(())}},
        "a loss without a gradient",
    ),
    "augmentation": (
        {"augmentation": lambda image, generator: image.resize((3, 3))},
        "returned an image of 3 x 3 pixels",
    ),
    "no image": ({"augmentation": lambda image, generator: None}, "returned a NoneType"),
    "augmentation raises": (
        {"augmentation": lambda image, generator: image.no_such_method()},
        "augmentation .* failed .* AttributeError",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_an_error_in_words(name: str, tmp_path: Path) -> None:
    own, message = FAULTS[name]
    workers = {"workers": 1} if name == "augmentation raises" else {}
    with pytest.raises(ExtensionError, match=message):
        deitctl.train(Digits(48), **own, output=tmp_path / "run", **SMALL | workers)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "one callback": ({"callbacks": StopAfter(1)}, "no list of objects with on_epoch_end"),
    "a function": ({"callbacks": [print]}, "no list of objects with on_epoch_end"),
    "a name": ({"objective": "mse"}, "objective = 'mse' is no function"),
    "folds": ({"folds": 3}, "folds is a setting of data that is named"),
    "group_by": ({"group_by": "patient"}, "group_by is a setting of data that is named"),
    "class weights": (
        {"objective": Squares(), "class_weights": "inverse"},
        "class_weights is a setting of the recipe's loss",
    ),
    "split_seed": ({"split_seed": "x"}, "split_seed = 'x' does not fit"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_has_no_effect_is_refused_before_anything_is_trained(
    name: str, tmp_path: Path
) -> None:
    own, message = MISTAKES[name]
    with pytest.raises(ConfigError, match=message):
        deitctl.train(Digits(48), **own, output=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_a_sweep_takes_no_objects(tmp_path: Path) -> None:
    vary = {"vary": ["optim.lr=1e-3,2e-3"], "output": tmp_path / "sweep"}
    for data, own in ((Digits(), {}), ("digits", {"objective": Squares()})):
        with pytest.raises(ConfigError, match="processes of their own"):
            deitctl.sweep(data, **own, **vary)


def test_a_resume_opens_the_data_set_as_the_run_did(tmp_path: Path) -> None:
    stop = StopAfter(1, interrupts=True)
    with pytest.raises(Interrupted):
        deitctl.train(Digits(48), callbacks=[stop], split_seed=7, output=tmp_path / "run", **SMALL)
    assert deitctl.train(Digits(48), resume=tmp_path / "run").epochs == 2


def test_a_function_that_has_changed_is_warned_of(tmp_path: Path) -> None:
    class Warns(SilentReporter):
        def warn(self, message: str) -> None:
            messages.append(message)

    messages: list[str] = []
    began, now = Squares(), Squares()
    began.weight, now.weight = 1, 2  # type: ignore[attr-defined]
    keep_names(tmp_path, Extensions(objective=began))
    require_same_extensions(tmp_path, Extensions(objective=began), Warns())
    assert not messages
    require_same_extensions(tmp_path, Extensions(objective=now), Warns())
    assert "Squares has changed" in messages[0]


def test_a_subset_keeps_the_augmentation_whatever_else_is_set() -> None:
    train = load_digits()[0].with_augmentation(darken)
    assert train.with_value_range(None).augmentation is darken
    assert select(train, [0, 1]).augmentation is darken


def test_a_callback_that_fails_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    class Fails:
        def on_epoch_end(self, metrics: Mapping[str, Any]) -> bool | None:
            raise LookupError("no such table")

    with pytest.raises(ExtensionError, match="callback .*Fails failed .* no such table"):
        deitctl.train(Digits(48), callbacks=[Fails()], output=tmp_path / "run", **SMALL)
    assert deitctl.train(Digits(48), resume=tmp_path / "run").epochs == 2


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((3, 4, 4), 7.0), "values from 7 to 7"),
        (np.zeros((4, 4, 2), np.uint8), "as its image"),
        ("cat.jpg", "a str as its image"),
    ],
)
def test_an_image_of_another_kind_is_refused(image: Any, message: str) -> None:
    with pytest.raises(ExtensionError, match=message):
        to_image(image, "Digits[0]")


def test_images_of_every_kind_are_the_same_pixels() -> None:
    array = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    kinds = [Image.fromarray(array), array, torch.tensor(array).permute(2, 0, 1)]
    kinds += [torch.tensor(array).permute(2, 0, 1) / 255, array / 255]
    for kind in kinds:
        np.testing.assert_array_equal(np.asarray(to_image(kind, "x")), array)


class Without(torch.utils.data.Dataset[Any]):
    """A data set of items alone, without attributes."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def test_labels_are_read_from_the_items_where_no_attribute_has_them() -> None:
    image = Image.new("RGB", (4, 4))
    dataset = open_torch_dataset(Without([(image, 2), (image, torch.tensor(0))]), SilentReporter())
    assert (dataset.labels.tolist(), dataset.class_names) == ([2, 0], ("0", "1", "2"))
    several = Without([(image, torch.tensor([1.0, 0.0])), (image, torch.tensor([1.0, 1.0]))])
    assert open_torch_dataset(several, SilentReporter()).labels.tolist() == [
        [True, False],
        [True, True],
    ]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([(Image.new("RGB", (4, 4)), -1)], "has the label -1"),
        ([(Image.new("RGB", (4, 4)), "cat")], "of <U3"),
        ([3], "is a int"),
    ],
)
def test_items_of_another_kind_are_refused(items: list[Any], message: str) -> None:
    with pytest.raises(ExtensionError, match=message):
        open_torch_dataset(Without(items), SilentReporter())


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "extend.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    assert len(blocks) > 5
    names: dict[str, object] = {"__name__": "program"}
    for block in blocks:
        exec(compile(block, "docs/extend.md", "exec"), names)


def test_a_target_transform_decides_the_labels() -> None:
    class Shifted(Digits):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            image, label = super().__getitem__(index)
            return image, 9 - label

    dataset = open_torch_dataset(Shifted(20), SilentReporter())
    assert dataset.labels.tolist() == [9 - label for label in Digits(20).targets]


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1]])
def test_too_few_classes_or_images_are_refused(labels: list[int]) -> None:
    items = Without([(Image.new("RGB", (4, 4)), label) for label in labels])
    with pytest.raises(DataError, match="at least two classes of at least two images"):
        open_pair(items, seed=0, reporter=SilentReporter())


def test_a_pair_of_different_kinds_is_refused() -> None:
    image = Image.new("RGB", (4, 4))
    one, several = Without([(image, 0), (image, 1)]), Without([(image, [0, 1]), (image, [1, 1])])
    with pytest.raises(ExtensionError, match="one label each, and those of the other several"):
        open_pair((one, several), seed=0, reporter=SilentReporter())


def test_transparency_is_laid_over_white_and_deep_images_are_refused() -> None:
    assert to_image(Image.new("RGBA", (2, 2)), "x").getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(ExtensionError, match="more than 8 bits"):
        to_image(Image.new("I;16", (2, 2)), "x")


def test_a_subset_has_the_labels_and_classes_of_what_it_is_of() -> None:
    subset = torch.utils.data.Subset(Digits(20), [3, 5])
    dataset = open_torch_dataset(subset, SilentReporter())
    assert dataset.labels.tolist() == [Digits().targets[3], Digits().targets[5]]
    assert dataset.class_names == Digits.classes
