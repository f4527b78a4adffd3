"""A validation scores the weights and their average in one pass, each as a pass of its own does."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.readers.digits import ArrayDataset
from deitctl.data.subsets import select
from deitctl.device import choose_device
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.result import EvalResult
from deitctl.evaluation.validate import validate
from deitctl.events import SilentReporter, Task
from deitctl.models.build import build_model
from deitctl.models.compiled import Compiler
from deitctl.models.model_config import Preprocessing
from deitctl.training.checkpointer import AsyncCheckpointer
from deitctl.training.ema import ExponentialMovingAverage
from deitctl.training.launch import run_training
from deitctl.training.state import TrainState
from deitctl.training.validation import copy_with_weights

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
CPU = choose_device("cpu", "fp32")
COLUMNS = ("topk_preds", "data_preds", "preds_among_classes", "confidences", "losses")


def build(name: str) -> nn.Module:
    shape = {"depth": 1} if name.startswith("deit") else {}
    torch.manual_seed(0)
    loaded = build_model(
        name,
        class_names=tuple("abcdefghij"),
        img_size=32,
        drop_path_rate=0.0,
        pretrained=False,
        weights="",
        distilled=None,
        model_args=shape,
        reporter=SilentReporter(),
    )
    model = loaded.model
    for parameter in model.parameters():  # heads begin at zero
        nn.init.normal_(parameter, std=0.05)
    return model


def average(model: nn.Module) -> ExponentialMovingAverage:
    """Return an average that is elsewhere than the weights, its buffers too."""
    ema = ExponentialMovingAverage(model, decay=0.9)
    for value in ema.values.values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value) / 10)
    return ema


def score(models: list[nn.Module], dataset: ImageDataset) -> list[EvalResult]:
    eval_models = [
        EvalModel(
            model=model,
            preprocessing=Preprocessing(img_size=32, crop_pct=1.0),
            rows=tuple(range(10)),
            head="avg-logits",
        )
        for model in models
    ]
    options = {"device": CPU, "batch_size": 16, "workers": 0, "reporter": SilentReporter()}
    return validate(eval_models, dataset, **options)  # type: ignore


@pytest.mark.parametrize("name", ["deit_tiny_distilled", "regnety_002"])
def test_in_one_pass_weights_and_average_score_to_the_bit_as_in_two(
    name: str, digit_datasets: Pair
) -> None:
    dataset, model = select(digit_datasets[1], range(40)), build(name)
    ema = average(model)
    together = score([model, copy_with_weights(model, ema.values)], dataset)
    other = copy.deepcopy(model)
    other.load_state_dict(ema.values)
    alone = score([model], dataset) + score([other], dataset)
    for one, expected in zip(together, alone, strict=True):
        for column in COLUMNS:
            assert torch.equal(getattr(one, column), getattr(expected, column)), column
        assert (one.top1, one.loss, one.ece, one.heads) == (
            expected.top1,
            expected.loss,
            expected.ece,
            expected.heads,
        )
    assert not torch.equal(together[0].losses, together[1].losses)


def test_the_averages_model_is_its_own_tensors_and_follows_them() -> None:
    model = build("regnety_002")
    model.register_buffer("constants", torch.ones(3), persistent=False)
    next(model.parameters()).requires_grad_(False)
    ema = average(model)
    own = copy_with_weights(model, ema.values)
    addresses = {name: value.data_ptr() for name, value in ema.values.items()}
    assert {name: value.data_ptr() for name, value in own.state_dict().items()} == addresses
    assert own.constants is model.constants
    assert [p.requires_grad for p in own.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    ema.update(model, 5, total_steps=100)
    assert all(torch.equal(value, ema.values[name]) for name, value in own.state_dict().items())


def test_a_validation_decodes_each_image_once(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One epoch has a validation of the weights and their average; at the end the saved weights are scored."""
    read, positions = ArrayDataset.read, list[int]()

    def count(self: ArrayDataset, index: int) -> object:
        positions.append(index)
        return read(self, index)

    monkeypatch.setattr(ArrayDataset, "read", count)
    config = little_config("run")
    config = replace(config, recipe=replace(config.recipe, epochs=1))
    assert config.recipe.ema_decay
    result = run_training(config, datasets=little)
    assert len(positions) == 2 * len(little[1].labels)
    record = [r for r in (result.run / "metrics.jsonl").read_text().splitlines() if "epoch" in r][
        -1
    ]
    assert "top1_model" in record
    assert "top1_ema" in record


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no SIGUSR1 here")
def test_a_save_that_is_requested_in_a_validation_is_done_there_and_changes_nothing(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = AsyncCheckpointer.save, list[tuple[int, int]]()

    def record(self: AsyncCheckpointer, state: TrainState) -> None:
        saved.append((state.progress.step, state.progress.epoch))
        save(self, state)

    monkeypatch.setattr(AsyncCheckpointer, "save", record)
    config = little_config("whole")
    config = replace(config, recipe=replace(config.recipe, epochs=1))
    whole = run_training(config, datasets=little).run
    assert saved == [(4, 1)]
    reporter = RaisesIn("epoch 1/1, validate")
    run = run_training(replace(config, output_dir="run"), datasets=little, reporter=reporter).run
    assert saved[1:] == [(4, 0), (4, 1)]
    for file in ("model.safetensors", "checkpoint/ema.safetensors"):
        assert (run / file).read_bytes() == (whole / file).read_bytes()


class RaisesIn(SilentReporter):
    """Raises SIGUSR1 when a task of the given name begins."""

    def __init__(self, label: str) -> None:
        self.label = label

    @contextmanager
    def task(self, label: str, total: int | None, unit: str = "images") -> Iterator[Task]:
        with super().task(label, total, unit) as task:
            if label == self.label:
                signal.raise_signal(signal.SIGUSR1)
            yield task


def test_compiled_weights_and_average_share_a_graph_for_whole_and_last_batches(
    digit_datasets: Pair,
) -> None:
    dataset, model = select(digit_datasets[1], range(23)), build("deit_tiny_distilled")
    ema, sizes = average(model), list[int]()
    expected = score([model, copy_with_weights(model, ema.values)], dataset)

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        sizes.extend(len(t) for t in inputs if t.shape[1:] == (3, 32, 32))
        return graph.forward

    torch._dynamo.reset()
    Compiler(SilentReporter(), backend=backend).compile_module(model, limit=6)
    padded = score([model, copy_with_weights(model, ema.values)], dataset)
    assert sizes == [16]
    for one, other in zip(padded, expected, strict=True):
        assert torch.equal(one.topk_preds, other.topk_preds)
        torch.testing.assert_close(one.losses, other.losses)
        assert one.num_images == 23
