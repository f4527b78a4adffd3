"""One of two processes of test_distributed.py: python pair.py OUT, with RANK and the like in the environment."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn

from deitctl import distributed as module
from deitctl.distributed import ProcessLost, World, process_group

CPU = torch.device("cpu")
BUCKET = 10
SHAPES = [(3,), (), (4, 2), (10,), (11,), (2, 5), (1,), (0,), (25,), (5,), (5,), (1, 1, 1)]
"""Of tensors that are summed: smaller and larger than a bucket, and groups that just fill one and that do not."""
KINDS = [torch.float32, torch.float64, torch.int64, torch.bfloat16]


def tensors_of(rank: int) -> list[torch.Tensor]:
    """Small whole numbers, whose sums are exact in every kind; the last are not laid out in order."""
    generator = torch.Generator().manual_seed(rank)
    made = [
        torch.randint(-9, 10, shape, generator=generator).to(KINDS[(n // 4 + turn) % len(KINDS)])
        for turn in range(2)
        for n, shape in enumerate(SHAPES)
    ]
    image = torch.randint(-9, 10, (2, 3, 2, 2), generator=generator).float()
    return [*made, image.to(memory_format=torch.channels_last), image[0, 0].t()]


def network(seed: int) -> nn.Module:
    """Parameters, statistics and a counter, laid out as `Device.to_device` does it."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)).to(
        memory_format=torch.channels_last
    )
    net.train()(torch.randn(2, 3, 8, 8))
    if seed:
        net(torch.randn(2, 3, 8, 8))
    return net


def work(world: World) -> dict[str, object]:
    """Do everything once; return what came of it, in the order in which both must do it."""
    rank = world.rank
    tensors, model = tensors_of(rank), network(rank)
    places = [t.data_ptr() for t in tensors]
    seen: dict[str, object] = {"place": [rank, world.size, world.is_main]}
    seen["all_gather_ints"] = world.all_gather_ints([rank, 10 + rank, -(2**40)])
    seen["gather"] = world.all_gather_object({"rank": rank, "text": "x" * 100 * rank})
    seen["broadcast_object"] = world.broadcast_object(f"said by {rank}")
    world.barrier()
    world.all_reduce_(tensors)
    world.all_reduce_([])
    seen["sums"] = [t.double().tolist() for t in tensors]
    seen["in_place"] = places == [t.data_ptr() for t in tensors]
    world.broadcast_module_(model)
    seen["model"] = {name: value.double().tolist() for name, value in model.state_dict().items()}
    with process_group(CPU) as again:
        seen["nested"] = [again.rank, again.size, again.all_gather_ints([rank])]
    seen["after nested"] = world.all_gather_ints([rank])
    return seen


def main(out: Path) -> None:
    """Work twice, as one process that calls two workflows does; then the second one dies."""
    module.BUCKET_NUMEL = BUCKET
    with process_group(CPU) as world:
        seen = work(world)
    with process_group(CPU) as world:
        seen["met again"] = world.all_gather_ints([world.rank])
        if world.rank == 1:
            (out / "1.json").write_text(json.dumps(seen))
            os._exit(3)
        try:
            world.all_gather_ints([0])
        except ProcessLost as lost:
            seen["lost"] = [lost.message, lost.hint]
    (out / "0.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
