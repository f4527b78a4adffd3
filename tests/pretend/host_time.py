"""Process time of the host in a step, outside of networks and optimizer, in ms, as JSON.

python host_time.py [--images N] [--img-size N] [--steps N] [KIND...]

Tensors are on the pretended accelerator and have no values. The clock stops within each operator on the device, whose
arithmetic a real one would do, within networks, and from where the gradient reaches the student's outputs; so it counts
Python, NumPy and operators on the host. What it counts of an operator on the device, because that is pretended, is
measured and taken away; then each costs `LAUNCH_US`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: E402
from accelerator import DEVICE, NAME, PretendedDevice, PretendedTensor  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_iter, tree_map  # noqa: E402

from deitctl.config import DistillConfig, TrainConfig  # noqa: E402
from deitctl.data.readers.digits import load_digits  # noqa: E402
from deitctl.profiling.trial_run import TrialRun, build_trial  # noqa: E402
from deitctl.recipes import RECIPES  # noqa: E402

KINDS = ("labels", "mixed")
LAUNCH_US = 5.0
"""Of dispatching an operator to CUDA; not measured here, a usual figure."""
aten = torch.ops.aten


class Clock:
    """Process time while it is not paused."""

    def __init__(self) -> None:
        self.seconds, self._since = 0.0, 0.0
        self.num_launches = 0
        self._pauses = 0

    def start(self) -> None:
        self.seconds, self.num_launches, self._pauses = 0.0, 0, 0
        self._since = time.process_time()

    def count_launch(self) -> None:
        """Count an operator on the device that is no network's."""
        self.num_launches += self._pauses == 1

    def pause(self, *_: object) -> None:
        if not self._pauses:
            self.seconds += time.process_time() - self._since
        self._pauses += 1

    def resume(self, *_: object) -> None:
        self._pauses -= 1
        if not self._pauses:
            self._since = time.process_time()

    def leave_out(self, trial: TrialRun) -> None:
        """Pause in the networks' forward passes and the student's backward pass; update nothing."""
        networks = trial.teacher_network.networks if trial.teacher_network else ()
        for network in (trial.state.model, *(teacher.model for teacher in networks)):
            network.register_forward_pre_hook(self.pause)
            network.register_forward_hook(self._leave)
        trial.state.optimizer.step = lambda *_: None  # type: ignore[method-assign]

    def _leave(self, _: nn.Module, __: object, outputs: Any) -> None:
        heads = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        trained = [head for head in heads if head is not None and head.requires_grad]
        waiting = len(trained)

        def arrive(_: Tensor) -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:  # losses come before the network in a backward pass
                self.pause()

        for head in trained:
            head.register_hook(arrive)
        self.resume()


class WithoutValues(TorchDispatchMode):
    """Within this context tensors of the pretended device have shapes alone, on the `meta` device."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and each operator would pay for it

    def __enter__(self) -> WithoutValues:
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        self._pin_memory = Tensor.pin_memory
        Tensor.pin_memory = lambda tensor, *_: tensor.clone()  # type: ignore[method-assign]
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        Tensor.pin_memory = self._pin_memory  # type: ignore[method-assign]
        torch._C._set_only_lift_cpu_tensors(self._lifted)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.clock.pause()
        kwargs = kwargs or {}
        device = kwargs.get("device")
        goes_there = device is not None and torch.device(device).type == NAME
        is_there = goes_there or PretendedTensor in map(type, tree_iter((args, kwargs)))
        if is_there:
            try:
                return compute_shapes(func, args, dict(kwargs))
            finally:
                self.clock.count_launch()
                self.clock.resume()
        self.clock.resume()
        return func(*args, **kwargs)


def compute_shapes(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return what an operator on the pretended device returns, without values."""
    if func.overloadpacket is aten.copy_:
        return args[0]
    device = kwargs.get("device")
    if device is not None:
        kwargs["device"] = torch.device("meta")
    kwargs.pop("non_blocking", None)
    result = func(*tree_map(without_values, args), **tree_map(without_values, kwargs))
    if device is not None and torch.device(device).type == "cpu":
        return torch.zeros(result.shape, dtype=result.dtype)
    there = [t for t in tree_iter((args, kwargs)) if isinstance(t, PretendedTensor)]
    originals = {id(t.content): t for t in there}  # what operators in place return

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return originals[id(value)] if id(value) in originals else PretendedTensor(value)

    return tree_map(wrap, result)


def without_values(value: Any) -> Any:
    if isinstance(value, PretendedTensor):
        return value.content
    return value.to("meta") if isinstance(value, Tensor) and value.dim() else value


def configure(kind: str, num_images: int, img_size: int) -> TrainConfig:
    """Return a training by the paper's recipe, all its random parts on."""
    recipe = RECIPES["paper"]
    recipe = replace(recipe, img_size=img_size, batch_size=num_images, epochs=4, ema_decay=0.0)
    distill = None
    if kind == "mixed":
        distill = DistillConfig(
            teacher="regnety_002",
            mode="hard",
            alpha=0.5,
            tau=3.0,
            reduction="batchmean",
            dist_token=True,
            teacher_input="mixed",
            views=0,
            logits_topk=0,
            teacher_img_size=img_size,
        )
    return TrainConfig(
        model="deit_tiny",
        data="digits",
        recipe=recipe,
        distill=distill,
        precision="fp32",
        workers=0,
        model_args={"depth": 1},
    )


def measure(kind: str, num_images: int, img_size: int, num_steps: int) -> dict[str, float]:
    """Return what a step takes of the host: ms, operators on the device, and both together."""
    clock = Clock()
    with WithoutValues(clock):
        config = configure(kind, num_images, img_size)
        trial = build_trial(config, load_digits(), PretendedDevice())
        with closing(trial.build_loader()) as batches:
            batch = next(batches)
        clock.leave_out(trial)
        with resumed_after_backward(clock):
            seconds = []
            for _ in range(2 + num_steps):
                clock.start()
                trial.step(batch)
                clock.pause()
                seconds.append(clock.seconds)
        own_cost = measure_own_cost(clock)
    launches = clock.num_launches
    # The first steps make what is made once; of the others the least, since a busy machine slows any.
    host_ms = 1000 * (min(seconds[2:]) - launches * own_cost)
    return {
        "host_ms": host_ms,
        "operators": launches,
        "total_ms": host_ms + launches * LAUNCH_US / 1000,
    }


def measure_own_cost(clock: Clock) -> float:
    """Return the seconds that the clock runs in an operator on the device because it is pretended."""
    num_launches, costs, tensor = clock.num_launches, [], torch.zeros(2, device=DEVICE)
    for _ in range(9):
        clock.start()
        for _ in range(200):
            tensor.neg()
        clock.pause()
        costs.append(clock.seconds / 200)
    clock.num_launches = num_launches
    return min(costs)


@contextmanager
def resumed_after_backward(clock: Clock) -> Iterator[None]:
    """Let the clock, which a gradient has paused, go on when a backward pass is over."""
    backward = Tensor.backward

    def resuming(*args: Any, **kwargs: Any) -> None:
        backward(*args, **kwargs)
        clock.resume()

    Tensor.backward = resuming  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.backward = backward  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=KINDS)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured = {
        kind: measure(kind, arguments.images, arguments.img_size, arguments.steps)
        for kind in arguments.kinds
    }
    sys.stdout.write(json.dumps(measured))


if __name__ == "__main__":
    main()
