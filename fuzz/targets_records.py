"""Fuzz targets of what stands beside weights: a run's log and checkpoint, and the metadata of exports."""

from __future__ import annotations

import io
import json
import zlib
from contextlib import suppress
from functools import cache

import torch
from targets import SEPARATOR, open_temp_dir
from torch import nn

from deitctl.errors import DeitctlError
from deitctl.exporters import metadata, onnx, openvino, torch_export, verify
from deitctl.exporters.dynamic_size import has_dynamic_size
from deitctl.exporters.golden import read_golden
from deitctl.inference.onnx_classifier import _to_timm_config
from deitctl.models.model_config import from_timm_config
from deitctl.report.contents import Curves
from deitctl.report.drawings import draw_run
from deitctl.report.html import _dump_json, build_curves
from deitctl.training.run_dir import Run
from deitctl.training.state import Progress, TrainState
from deitctl.training.trend import judge_trend

DRAWN = 200
"""Of so many logs one is drawn, which takes a thousand times as long as reading it."""
EXPORTS = {
    b"j": ("", metadata.METADATA, metadata.read_metadata),
    b"v": ("", openvino.GRAPH, openvino.read_metadata),
    b"o": ("x.onnx", "", onnx.read_metadata),
    b"p": ("x.pt2", "", torch_export.read_torch_metadata),
}


def run_log(data: bytes) -> None:
    """Read a run's metrics.jsonl and result.json as resume, the report and the estimate do."""
    log, _, result = data.partition(SEPARATOR)
    with open_temp_dir() as root, suppress(DeitctlError):
        (root / "metrics.jsonl").write_bytes(log)
        (root / "result.json").write_bytes(result)
        run = Run(root)
        assert run.result() is None or isinstance(run.result(), dict)
        steps, epochs = list(run.records("step")), list(run.records("epoch"))
        if epochs:
            judge_trend(epochs, 67)
            curves = Curves(run="x", steps=steps, epochs=epochs, teacher_top1=run.teacher_top1())
            _dump_json(build_curves(curves))
            if zlib.crc32(data) % DRAWN == 0:
                draw_run(curves)
        run.cut_log(log.rfind(b"\n", 0, len(log) // 2) + 1)
        kept = list(run.records("epoch"))
        assert kept == epochs[: len(kept)]
        run.log({"kind": "epoch-of-another-kind"})
        assert b'"epoch-of-another-kind"}\n' in run.metrics_file.read_bytes()[-60:]


def _make_state() -> TrainState:
    """Return the state of a small network after a step."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    progress = Progress(step=1, images_seen=1, images_in_epoch=1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(model, optimizer, scaler, None, progress, {"loss": torch.tensor(1.0)})


@cache
def _read_valid_files() -> dict[str, bytes]:
    """Return the files of a valid checkpoint."""
    with open_temp_dir() as root:
        _make_state().save(root / "x")
        return {path.name: path.read_bytes() for path in (root / "x").iterdir()}


def state(data: bytes) -> None:
    """Load a checkpoint whose state.json and moments are arbitrary, and take a step with what was loaded."""
    record, _, moments = data.partition(SEPARATOR)
    files = dict(_read_valid_files())
    files["state.json"] = _forge(record or files["state.json"])
    if moments:
        files["optimizer.safetensors"] = moments
    with open_temp_dir() as root, suppress(DeitctlError):
        folder = root / "checkpoint"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        Run(root).saved_position()
        state = _make_state()
        state.load(folder)
        assert 0 <= state.progress.step < 1 << 60
        assert all(torch.isfinite(value) for value in state.loss_sums.values())
        state.optimizer.step()


def _forge(record: bytes) -> bytes:
    """Remove the checksums of a record, which hardly any mutation would get right."""
    with suppress(ValueError, RecursionError):
        values = json.loads(record)
        if isinstance(values, dict):
            kept = {k: v for k, v in values.items() if k not in ("crc32", "checksums")}
            return json.dumps(kept).encode()
    return record


def export_metadata(data: bytes) -> None:
    """Read the metadata of an export, by the first byte of a folder, an OpenVINO graph, ONNX or .pt2."""
    name, inside, read = EXPORTS.get(data[:1], EXPORTS[b"j"])
    with open_temp_dir() as root, suppress(DeitctlError):
        path = root / name
        (path / inside if inside else path).write_bytes(data[1:])
        read_values = read(path)
        assert all(isinstance(text, str) for item in read_values.items() for text in item)
        has_dynamic_size(read_values)
        with suppress(DeitctlError):
            config = from_timm_config(_to_timm_config(read_values, 5, "x"), "x")
            ours = metadata.describe_model(config, "cls")
            verify._require_same_model(ours, read_values, path, "x")
        golden = read_golden(read_values, verify._read_input(read_values, path)[0])
        assert golden.pixels.nbytes < 1 << 26
        with suppress(DeitctlError):
            golden.check(golden.logits)


def make_run_logs() -> list[bytes]:
    """Logs of a training and of a distillation, and the result of one."""
    step = {
        "kind": "step",
        "step": 0,
        "epoch": 1,
        "lr": 1e-6,
        "loss": 1.6,
        "task_loss": 1.6,
        "grad_norm": 5.1,
    }
    epoch = {
        "kind": "epoch", "epoch": 1, "step": 9, "images_seen": 283, "train": {"loss": 1.6, "task_loss": 1.6},
        "top1": 28.4, "top5": None, "val_loss": 1.58, "heads": None, "head_agreement": None,
        "teacher_agreement": None, "weights": "ema", "top1_model": 27.0, "top1_ema": 28.4, "seconds": 3.5,
        "images_per_second": 200.0,
    }  # fmt: skip
    heads = {"cls": 20.0, "dist": 21.0, "avg-logits": 22.0}
    distilled = epoch | {"epoch": 2, "step": 18, "heads": heads, "teacher_agreement": 50.0}
    lines = [json.dumps(record).encode() for record in (step, epoch, step | {"step": 8}, distilled)]
    result = json.dumps({"schema_version": 1, "epochs": 2, "teacher": {"top1": 80.0}}).encode()
    return [b"\n".join(lines[:2]) + b"\n", b"\n".join(lines) + b"\n" + SEPARATOR + result]


def make_states() -> list[bytes]:
    """The state.json and moments of a small network, together and alone."""
    from safetensors.torch import load, save

    files = _read_valid_files()
    record = _forge(files["state.json"])
    moments = save(load(files["optimizer.safetensors"]))  # without a checksum
    return [record, record + SEPARATOR + moments, SEPARATOR + moments]


def make_export_metadata() -> list[bytes]:
    """The metadata of a small model in each kind of export."""
    import zipfile

    import numpy as np
    from onnx import helper

    from deitctl.exporters.golden import GOLDEN, make_golden_sample
    from deitctl.models.model_config import ModelConfig

    names = ("a", "b", "c", "d", "e")
    config = ModelConfig(
        architecture="deit_tiny_patch16_224", num_classes=5, class_names=names, descriptions=names
    )
    values = metadata.describe_model(config, "cls")
    values |= {"format": "onnx", GOLDEN: make_golden_sample(np.arange(5, dtype=np.float32))}
    text = json.dumps(values).encode()
    entries = "".join(f'<{k} value="{_escape(v)}"/>' for k, v in values.items())
    graph = f"<net><rt_info><{openvino.SECTION}>{entries}</{openvino.SECTION}></rt_info></net>"
    model = helper.make_model(helper.make_graph([], "x", [], []))
    helper.set_model_props(model, values)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"x/extra/{metadata.METADATA}", text)
    return [
        b"j" + text,
        b"v" + graph.encode(),
        b"o" + model.SerializeToString(),
        b"p" + archive.getvalue(),
    ]


def _escape(text: str) -> str:
    from xml.sax.saxutils import escape

    return escape(text, {'"': "&quot;"})


TARGETS = {"run_log": run_log, "state": state, "export_metadata": export_metadata}
MAKERS = {"run_log": make_run_logs, "state": make_states, "export_metadata": make_export_metadata}
