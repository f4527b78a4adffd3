"""What is read from metrics.jsonl has the keys and types that reports and trends rely on; the rest is passed over."""

from __future__ import annotations

import json
import os

import pytest

from deitctl.errors import DeitctlError
from deitctl.report.contents import Curves
from deitctl.report.figures import draw_curves
from deitctl.report.html import build_curves
from deitctl.training.run_log import MAX_LINE_BYTES, parse_record, read_records
from deitctl.training.trend import judge_trend

STEP = {"kind": "step", "step": 10, "epoch": 1, "lr": 0.1, "loss": 2.5, "grad_norm": None}
EPOCH = {
    "kind": "epoch",
    "epoch": 1,
    "step": 11,
    "top1": 50.0,
    "top5": None,
    "val_loss": 1.5,
    "heads": {"cls": 50.0, "dist": 40.0, "avg-logits": 50.0},
    "weights": "ema",
}


def dump(record: object) -> bytes:
    return json.dumps(record).encode()


def test_our_records_come_back_as_they_are():
    assert parse_record(dump(STEP)) == STEP
    assert parse_record(dump(EPOCH)) == EPOCH


def test_what_an_epoch_need_not_say_is_null():
    short = {"kind": "epoch", "epoch": 1, "step": 11, "top1": 50}
    assert parse_record(dump(short)) == {
        **short,
        "top5": None,
        "val_loss": None,
        "heads": None,
        "weights": "model",
    }


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"\xff\xfe",
        '{"kind": "step", "step": 1}'.encode("utf-16"),
        b"[" * 5000,
        b"1" * 5000,
        b"null",
        b"[1]",
        b"{}",
        b'{"kind": ["step"], "step": 1}',
        b'{"kind": "other", "step": 1}',
        *(
            dump(STEP | change)
            for change in (
                {"step": "a"},
                {"step": None},
                {"step": True},
                {"step": 1.5},
                {"step": -1},
                {"step": 10**400},
                {"step": float("inf")},
                {"loss": "<b>"},
                {"loss": float("nan")},
                {"loss": 10**400},
                {"lr": []},
                {"$x$": 1.0},
                {f"n{number}": 1 for number in range(200)},
            )
        ),
        b'{"kind": "epoch"}',
        *(
            dump(EPOCH | change)
            for change in (
                {"epoch": 0},
                {"epoch": "1"},
                {"step": 0},
                {"top1": None},
                {"top1": 101},
                {"top1": float("nan")},
                {"top5": "5"},
                {"val_loss": {}},
                {"heads": [1]},
                {"heads": {"cls": "x"}},
                {"heads": {"cls": None}},
                {"weights": "other"},
                {"weights": []},
            )
        ),
    ],
)
def test_what_is_no_record_is_passed_over(line, tmp_path):
    assert parse_record(line) is None
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([dump(STEP), line, dump(EPOCH), dump({**STEP, "step": 20})]))
    assert [record["step"] for record in read_records(path, "step")] == [10, 20]
    assert list(read_records(path, "epoch")) == [EPOCH]


def test_an_endless_line_is_passed_over_in_pieces(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"x" * (3 * MAX_LINE_BYTES) + b"\n" + dump(STEP))
    assert list(read_records(path, "step")) == [STEP]


def test_no_log_has_no_records_and_what_is_no_file_is_one_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert list(read_records(path, "step")) == []
    path.mkdir()
    with pytest.raises(DeitctlError, match=r"metrics\.jsonl cannot be read: Is a directory\."):
        list(read_records(path, "step"))
    path.rmdir()
    os.mkfifo(path)  # opening it would wait for a writer
    with pytest.raises(DeitctlError, match="it is a pipe"):
        list(read_records(path, "step"))


def test_records_that_lack_what_others_have_are_drawn_and_judged(tmp_path):
    """A log that was pieced together: losses of other names, heads in one epoch alone."""
    steps = [STEP, {"kind": "step", "step": 0}, {**STEP, "step": 30, "kd_loss": 1.0, "loss": None}]
    epochs = [
        EPOCH,
        EPOCH | {"heads": None, "val_loss": None},
        EPOCH | {"heads": {"other": 1.0}, "epoch": 3, "step": 33},
    ]
    steps, epochs = ([parse_record(dump(r)) for r in part] for part in (steps, epochs))
    draw_curves(tmp_path / "curves.png", steps, epochs, teacher_top1=None, title="run")
    drawn = build_curves(Curves(run="run", steps=steps, epochs=epochs))
    assert drawn["losses"] == {"loss": [2.5, None, None]}
    assert drawn["top1"]["class head"] == [50.0, None, None]
    assert drawn["at"] == [10 / 11, 0.0, 30 / 11]
    assert judge_trend(epochs, 10).num_epochs == 1
