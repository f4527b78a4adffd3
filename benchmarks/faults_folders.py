"""Cases of faults.py: run folders whose records were changed, moved or replaced by links."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fault_rig import Case, Rig, Trial, forge_state


def damage_records(rig: Rig) -> Iterator[Trial]:
    """05, 25: logs and state.json that nobody wrote."""
    base, half = rig.base(), rig.half()

    def log(text: bytes, at: int | None = None) -> Callable[[Path], None]:
        def change(run: Path) -> None:
            with (run / "metrics.jsonl").open("r+b") as file:
                file.seek(0, 2) if at is None else file.seek(at)
                file.write(text)

        return change

    def state(**changes: object) -> Callable[[Path], None]:
        return lambda run: forge_state(run / "checkpoint", **changes)

    def text(content: str) -> Callable[[Path], None]:
        return lambda run: (run / "checkpoint" / "state.json").write_text(content) and None

    def null_top1(run: Path) -> None:
        path = run / "metrics.jsonl"
        path.write_text(re.sub(r'"top1": [0-9.]+,', '"top1": null,', path.read_text()))

    def replace_by_file(run: Path) -> None:
        shutil.rmtree(run / "figures", ignore_errors=True)
        (run / "figures").touch()

    def empty_checkpoint(run: Path) -> None:
        shutil.rmtree(run / "checkpoint")
        (run / "checkpoint").mkdir()

    resumed: list[tuple[str, Path, Callable[[Path], object]]] = [
        ("log deleted, finished run", base, lambda run: (run / "metrics.jsonl").unlink()),
        ("log ends in bytes that are no UTF-8", base, log(b"\xff\xfe\x00torn")),
        ("garbage inside the log", base, log(b'\xff\xfe{"kind"', 40)),
        ("garbage inside the log, unfinished run", half, log(b'\xff\xfe{"kind"', 40)),
        ("log deleted, unfinished run", half, lambda run: (run / "metrics.jsonl").unlink()),
        ("top1 null in the log", base, null_top1),
        ("weights deleted", base, lambda run: (run / "model.safetensors").unlink()),
        ("weights empty", base, lambda run: (run / "model.safetensors").write_bytes(b"")),
        ("figures is a file", base, replace_by_file),
        ("checkpoint is an empty folder", half, empty_checkpoint),
        ("epoch -5, step -3", half, state(epoch=-5, step=-3)),
        ("step 1e30", half, state(step=10**30)),
        ("micro_batch_size -4", half, state(micro_batch_size=-4)),
        ("odd sums and scaler", half, state(loss_sums={"loss": 1e308, "x": 3}, scaler={"scale": "a"})),
        *((f"state.json is {content}", half, text(content)) for content in
          ('""', "5", "null", "[]", "{}", '{"scaler": 5}', '{"scaler": {"scale": "a"}, "step": 1}')),
    ]  # fmt: skip
    must_fail = ("checkpoint is", "epoch -5", "step 1e30", "micro_batch", "odd sums", "state.json")
    for what, source, change in resumed:
        run = rig.copy(source)
        change(run)
        end = rig.resume(run)
        codes = (1,) if what.startswith(must_fail) else (0, 1)
        yield Trial(f"{what}: resume", str(end), end.is_plain(*codes) and len(end.lines) <= 4)
    odd = {
        "garbage inside the log": log(b'\xff\xfe{"kind"', 40),
        "an epoch of nothing": log(b'{"kind":"epoch"}\n'),
        "a step of other types": log(b'{"kind":"step","step":"a","loss":"<b>","lr":[]}\n'),
        "an infinite step": log(b'{"kind":"step","step":1e999,"loss":NaN,"lr":1}\n'),
    }
    for what, change in odd.items():
        run = rig.copy(base)
        change(run)
        end = rig.run(
            "eval", rig.images, "--model", run, "--report", "r.html", "--quiet", "--workers", "0"
        )
        yield Trial(f"{what}: eval --report", str(end), end.is_plain(0, 1))


def change_what_is_resumed(rig: Rig) -> Iterator[Trial]:
    """06: class folders renamed and settings edited between a stop and its resume."""
    data = rig.copy_images()
    running = rig.train("half", "--epochs", "3", "--save-every", "12", data=Path("data"))
    running.wait_until((rig.root / "half" / "checkpoint" / "state.json").exists)
    running.signal(signal.SIGKILL)
    running.finish()
    (data / "daisy").rename(data / "zdaisy")
    end = rig.resume(rig.copy(rig.root / "half"))
    yield Trial("a class folder renamed", str(end), end.is_plain(1))
    (data / "zdaisy").rename(data / "daisy")
    for setting, value in (("lr", "0.5"), ("epochs", "1"), ("batch_size", "7")):
        run = rig.copy(rig.root / "half")
        toml = run / "run.toml"
        toml.write_text(
            re.sub(rf"(?m)^{setting} = .*", f"{setting} = {value}", toml.read_text(), count=1)
        )
        end = rig.resume(run)
        yield Trial(f"run.toml edited: {setting} = {value}", str(end), end.is_plain(1))
    end = rig.resume(rig.copy(rig.root / "half"))
    yield Trial("nothing changed", str(end), end.is_plain(0))


def move_a_run(rig: Rig) -> Iterator[Trial]:
    """08: the folder renamed, deleted or with other things at its places while a run writes."""

    def empty(run: Path, name: str, folder: bool) -> None:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.mkdir() if folder else path.touch()

    changes: dict[str, Callable[[Path], object]] = {
        "renamed": lambda run: run.rename(rig.root / "r2"),
        "deleted": lambda run: shutil.rmtree(run, ignore_errors=True),
        "checkpoint replaced by a file": lambda run: empty(run, "checkpoint", False),
        "metrics.jsonl replaced by a folder": lambda run: empty(run, "metrics.jsonl", True),
    }
    for what, change in changes.items():
        rig.enter("08-moves")
        run = rig.root / "r"
        process = rig.train("r", "--epochs", "40", "--save-every", "4")
        process.wait_until((run / "checkpoint" / "state.json").exists)
        time.sleep(0.5)
        change(run)
        end = process.finish(rig.patience)
        false = "is whole" in end.err and not (run / "checkpoint" / "state.json").exists()
        yield Trial(
            f"run folder: {what}",
            f"{end}; a false promise: {false}",
            end.is_plain(0, 1) and not false,
        )


def plant_links(rig: Rig) -> Iterator[Trial]:
    """14: a run from a stranger, whose files are links to files of yours."""

    def plant(source: Path, name: str, target: str = "../home/precious") -> tuple[Path, Path]:
        shutil.rmtree(rig.root / "home", ignore_errors=True)
        (rig.root / "home" / "keys").mkdir(parents=True)
        precious = rig.root / "home" / "precious"
        precious.write_text("".join(f"precious line {n}\n" for n in range(50)))
        run = rig.copy(source)
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(target if name.count("/") == 0 else f"../{target}")
        return run, precious

    names = ("lock", "metrics.jsonl", "launch_id", "result.json", "config.json", "split.csv", "run.toml",
             "model.safetensors", "figures/curves.png", "checkpoint.old", "checkpoint.new")  # fmt: skip
    for name in names:
        run, precious = plant(rig.half(), name)
        was = precious.read_text()
        end = rig.resume(run)
        same = precious.read_text() == was
        yield Trial(
            f"{name} is a link to a file: resume",
            f"{end}; the file is as it was: {same}",
            same and end.is_plain(),
        )
    for name in ("checkpoint.new", "checkpoint.old", "checkpoint", "figures", "incidents"):
        run, precious = plant(rig.half(), name, "../home/keys")
        keys = rig.root / "home" / "keys"
        (keys / "model.safetensors").write_text("mine")
        end = rig.resume(run)
        left = sorted(p.name for p in keys.iterdir()) if keys.is_dir() else []
        same = left == ["model.safetensors"] and (keys / "model.safetensors").read_text() == "mine"
        yield Trial(
            f"{name} is a link to a folder: resume",
            f"{end}; in the folder: {' '.join(left)}",
            same and end.is_plain(),
        )
    run, precious = plant(rig.half(), "log-zero")
    (run / "log-zero").unlink()
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to("../home/precious")
    forge_state(run / "checkpoint", log_bytes=0)
    was = precious.read_text()
    end = rig.resume(run)
    same = precious.read_text() == was
    yield Trial(
        "metrics.jsonl a link, log_bytes 0: resume",
        f"{end}; as it was: {same}",
        same and end.is_plain(),
    )
    run, precious = plant(rig.half(), "log-zero")
    for pid in range(os.getpid(), os.getpid() + 3000):
        for name in ("model.safetensors", "result.json"):
            (run / f".{name}.{pid}").symlink_to("../home/precious")
    was = precious.read_text()
    end = rig.resume(run)
    same = precious.read_text() == was
    yield Trial(
        "temporary names planted as links: resume",
        f"{end}; as it was: {same}",
        same and end.is_plain(),
    )


CASES: dict[str, Case] = {
    "05-25-records": damage_records,
    "06-resume-of-another": change_what_is_resumed,
    "08-moves": move_a_run,
    "14-links": plant_links,
}
