"""Batches are copied one ahead on a device that copies while it computes, and nothing else sees it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import Batch, build_train_loader
from deitctl.data.samplers import TrainBatches
from deitctl.data.subsets import select
from deitctl.device import Device, choose_device
from deitctl.errors import DataError, Interrupted, Signalled
from deitctl.models.checkpoint_io import WEIGHTS
from deitctl.models.model_config import Preprocessing
from deitctl.recipes import RECIPES
from deitctl.training import step
from deitctl.training.context import TrainContext
from deitctl.training.device_batch import DeviceBatch
from deitctl.training.feed import feed
from deitctl.training.launch import resume, run_training
from deitctl.training.objective import CrossEntropy, Supervised
from deitctl.training.state import Progress, TrainState

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
CPU = choose_device("cpu", "fp32")


class Copies:
    """A queue of copies that writes down what happens; what is copied is there at once."""

    log: list[Any]

    def __init__(self) -> None:
        self.log, self.count, self.is_open = [], 0, False

    def issue(self, copy: Callable[[], Any]) -> tuple[Any, int]:
        self.is_open = True
        batch = copy()
        self.is_open = False
        self.count += 1
        self.log.append(("copy", batch.step))
        return batch, self.count

    def receive(self, tensors: Iterable[Tensor], end: int) -> None:
        self.log.append(("wait", end - 1))
        assert all(tensor.numel() for tensor in tensors)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Copies:
    queue = Copies()
    monkeypatch.setattr(Device, "open_copy_stream", lambda _: queue)
    return queue


@pytest.fixture
def fed(digit_datasets: Pair) -> Callable[..., Iterator[DeviceBatch]]:
    """Return batches of two images of a run of three steps."""
    some = select(digit_datasets[0], range(6))
    recipe = replace(RECIPES["finetune"], batch_size=2, epochs=1)
    pre = Preprocessing(img_size=16)
    loss = Supervised(CrossEntropy(0.0))
    context = TrainContext(recipe, pre, 10, 3, 0, CPU, loss)
    model = torch.nn.Linear(1, 1)
    state = TrainState(model, torch.optim.SGD(model.parameters()), CPU.grad_scaler(), None, Progress())  # type: ignore[arg-type]  # fmt: skip

    def start(
        end: BaseException | None = None, look: Callable[[], object] = bool
    ) -> Iterator[DeviceBatch]:
        def load() -> Iterator[Batch]:
            keys = TrainBatches(6, 2, seed=0, epochs=1)
            batches = build_train_loader(
                some, recipe.augment, 16, keys, workers=0, pin_memory=False
            )
            for number, batch in enumerate(batches):
                if number == 2 and end is not None:
                    raise end
                look()
                yield batch

        return feed(context, state, load())

    return start


def test_the_copy_of_a_batch_is_issued_before_the_step_before_it(
    copies: Copies, fed: Callable[..., Iterator[DeviceBatch]]
) -> None:
    for batch in fed():
        copies.log.append(("step", batch.step))
    events = ["copy 0", "copy 1", "wait 0", "step 0", "copy 2", "wait 1", "step 1", "wait 2"]
    assert [f"{what} {number}" for what, number in copies.log] == [*events, "step 2"]


def test_an_error_of_the_loader_comes_when_its_batch_is_due(
    copies: Copies, fed: Callable[..., Iterator[DeviceBatch]]
) -> None:
    batches = fed(DataError("lost"))
    assert [next(batches).step, next(batches).step] == [0, 1]
    with pytest.raises(DataError, match="lost"):
        next(batches)


def test_a_batch_is_read_beside_the_queue_of_copies(
    copies: Copies, fed: Callable[..., Iterator[DeviceBatch]]
) -> None:
    """The state may be saved meanwhile, and what is copied there would not follow the last step."""
    seen: list[bool] = []
    assert len(list(fed(look=lambda: seen.append(copies.is_open)))) == 3
    assert seen == [False] * 3


def test_a_batch_for_which_memory_runs_out_is_copied_again(
    copies: Copies, fed: Callable[..., Iterator[DeviceBatch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    issue, failures = copies.issue, [torch.OutOfMemoryError("CUDA out of memory (pretended)")]

    def run_out_once(copy: Callable[[], Any]) -> tuple[Any, int]:
        if copies.count == 1 and failures:
            raise failures.pop()
        return issue(copy)

    monkeypatch.setattr(copies, "issue", run_out_once)
    assert [batch.step for batch in fed()] == [0, 1, 2]
    assert not failures


def test_a_signal_while_a_batch_is_read_ends_the_run_at_once(
    copies: Copies, fed: Callable[..., Iterator[DeviceBatch]]
) -> None:
    batches = fed(Signalled(signal.SIGTERM))
    next(batches)
    with pytest.raises(Signalled):
        next(batches)


def test_the_batches_are_the_same(
    fed: Callable[..., Iterator[DeviceBatch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = list(fed())
    monkeypatch.setattr(Device, "open_copy_stream", lambda _: Copies())
    for one, other in zip(plain, fed(), strict=True):
        assert one.keys == other.keys
        assert all(map(torch.equal, one.tensors, other.tensors))


@pytest.mark.parametrize("number", [4, 5])
def test_a_run_that_reads_ahead_and_is_stopped_ends_as_one_that_does_neither(
    number: int, little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of an epoch of four steps, when the next one's first batch has been read, and after it."""

    def configure(name: str) -> TrainConfig:
        config = little_config(name)
        return replace(config, recipe=replace(config.recipe, epochs=2))

    whole = run_training(configure("whole"), datasets=little).run
    monkeypatch.setattr(Device, "open_copy_stream", lambda _: Copies())
    calls, compute_losses = [], step.compute_losses

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            signal.raise_signal(signal.SIGTERM)
        return compute_losses(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(step, "compute_losses", interrupted)
        with pytest.raises(Interrupted):
            run_training(configure("run"), datasets=little)
    run = whole.with_name("run")
    resume(run, datasets=little)
    for file in ("checkpoint/model.safetensors", "checkpoint/optimizer.safetensors", WEIGHTS):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file
