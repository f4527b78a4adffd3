"""What two processes do together, for test_several.py: python -m torch.distributed.run ... together.py OUT CONFIG..."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from deitctl.config import TrainConfig
from deitctl.data.readers.digits import load_digits
from deitctl.data.subsets import select
from deitctl.device import choose_device
from deitctl.distillation.precompute import cache_teacher
from deitctl.distributed import process_group
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.validate import validate
from deitctl.events import SilentReporter
from deitctl.models.factory import load_model
from deitctl.settings import from_dict, read_toml
from deitctl.training.launch import run_training, train_or_find


def little() -> list[object]:
    """The 60 and 30 digits of conftest.py."""
    pairs = zip(load_digits(), (6, 3), strict=True)
    return [
        select(s, np.concatenate([np.flatnonzero(s.labels == d)[:n] for d in range(10)]))
        for s, n in pairs
    ]


def main(out: Path, *files: str) -> None:
    """Train each configuration, compute one view more for the last, evaluate the first run on 7 images."""
    configs = [from_dict(TrainConfig, read_toml(Path(f)), f) for f in files]
    datasets = little()
    device = choose_device("cpu", "fp32")
    with process_group(device.torch_device) as world:
        runs = [run_training(config, datasets=tuple(datasets)) for config in configs]
        distill = configs[-1].distill
        again = cache_teacher(
            replace(configs[-1], distill=replace(distill, views=distill.views + 1)),
            tuple(datasets),
            lambda run: train_or_find(run, tuple(datasets), SilentReporter()),
            batch_size=8,
        )
        loaded = load_model(str(runs[0].run), reporter=SilentReporter())
        eval_model = EvalModel(
            model=loaded.model,
            preprocessing=loaded.model_config.preprocessing,
            rows=tuple(range(10)),
            head="cls",
        )
        (scores,) = validate(
            [eval_model],
            select(datasets[1], range(7)),
            device=device,
            batch_size=2,
            workers=0,
            reporter=SilentReporter(),
            world=world,
        )
        record = {
            "rank": world.rank,
            "size": world.size,
            "shipped": [r.evaluation.top1 for r in runs],
            "num_computed": again.num_computed,
            "indices": scores.indices.tolist(),
            "preds": scores.preds.tolist(),
            "loss": scores.loss,
            "top1": scores.top1,
        }
        (out / f"rank-{world.rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
