"""Cases of faults.py: checkpoints and cached targets that were damaged, forged, shared, or cut in use."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fault_rig import STUDENT, Case, Rig, Trial, count_steps, forge_state, has_logged

TENSORS = ("model", "ema", "optimizer")


def edit_tensors(file: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Rewrite a safetensors file of a checkpoint by a function, and forge what would betray that."""
    from safetensors.torch import load_file, save_file

    save_file({k: v.clone() for k, v in edit(load_file(file)).items()}, file)
    forge_state(file.parent)


def flip_bits_of_a_checkpoint(rig: Rig) -> Iterator[Trial]:
    """03: one bit of each of the checkpoint's files, and of a run's weights."""
    draw = random.Random(0)
    for name in (*TENSORS, "the run's model"):
        run = rig.copy(rig.half())
        file = run / ("model.safetensors" if "run" in name else f"checkpoint/{name}.safetensors")
        if not file.exists():
            shutil.copy(rig.base() / "model.safetensors", file)
            shutil.copy(rig.base() / "config.json", run)
            if (rig.base() / "checksums.json").exists():
                shutil.copy(rig.base() / "checksums.json", run)
        data = bytearray(file.read_bytes())
        header = 8 + int.from_bytes(data[:8], "little")
        data[draw.randrange(header, len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
        if "run" in name:
            for command in ("predict", "eval"):
                data_option = rig.images / "rose" if command == "predict" else rig.images
                end = rig.run(command, data_option, "--model", run, "--quiet")
                yield Trial(f"one bit of {name}'s weights: {command}", str(end), end.is_plain(1))
        else:
            end = rig.resume(run)
            yield Trial(
                f"one bit of the checkpoint's {name}: resume",
                str(end),
                end.is_plain(1) and "learning rate" not in end.err,
            )


def forge_hard_targets(rig: Rig) -> Iterator[Trial]:
    """04: half of the cached hard targets set to another valid class."""
    teacher = ("--teacher", rig.base(), *STUDENT, "--finetune-teacher", "none", "--views", "1")
    cache = (*teacher, "--teacher-cache", "targets", "--workers", "0", "--quiet")
    rig.run("cache-teacher", rig.images, *cache)
    [view] = (rig.root / "targets").glob("view-*.bin")
    before = view.read_bytes()
    changed = bytearray(before)
    width = len(before) // 283 if len(before) % 283 == 0 else 2
    for at in range(0, len(changed) - 1, 2 * width):
        changed[at : at + 2] = b"\3\0"
    view.write_bytes(changed)
    end = rig.run(
        "distill",
        rig.images,
        *cache,
        "--img-size",
        "32",
        "--batch-size",
        "32",
        "--epochs",
        "1",
        "--output",
        "d",
    )
    mended = view.read_bytes() == before
    yield Trial(
        "every second hard target another class: distill", f"{end}; computed again: {mended}",
        end.is_plain(1) or (end.is_plain(0) and mended),
    )  # fmt: skip


def forge_tensors(rig: Rig) -> Iterator[Trial]:
    """29: a checkpoint's tensors that do not belong to each other, or to the model."""
    import torch

    def narrow(tensors: dict[str, Any]) -> dict[str, Any]:
        return {k: v[..., :1].contiguous() if v.ndim > 1 else v for k, v in tensors.items()}

    def lose_a_block(tensors: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in tensors.items() if not k.startswith("blocks.3")}

    def add_strangers(tensors: dict[str, Any]) -> dict[str, Any]:
        first = next(iter(tensors.values()))
        return tensors | {"nonsense": first, "cls_token.foo.exp_avg": first.clone()}

    def use_halves(tensors: dict[str, Any]) -> dict[str, Any]:
        return {k: v.half() for k, v in tensors.items()}

    def put_nan(tensors: dict[str, Any]) -> dict[str, Any]:
        bad = float("nan")
        return {
            k: torch.full_like(v, bad) if "blocks.0" in k and v.is_floating_point() else v
            for k, v in tensors.items()
        }

    edits = {
        "moments of other shapes": ("optimizer", narrow),
        "moments of one block missing": ("optimizer", lose_a_block),
        "moments of nobody": ("optimizer", add_strangers),
        "moments in half precision": ("optimizer", use_halves),
        "NaN in the moments": ("optimizer", put_nan),
        "an average of other shapes": ("ema", narrow),
        "an average of nobody": ("ema", add_strangers),
        "NaN in the average": ("ema", put_nan),
        "NaN in the weights": ("model", put_nan),
        "weights in half precision": ("model", use_halves),
    }
    for what, (name, edit) in edits.items():
        run = rig.copy(rig.half())
        edit_tensors(run / "checkpoint" / f"{name}.safetensors", edit)
        end = rig.resume(run)
        yield Trial(f"{what}: resume", str(end), end.is_plain(1) and "learning rate" not in end.err)
    later = rig.copy(rig.half(), "later")
    rig.resume(later)
    copies = (
        ("weights of a later step", later / "checkpoint" / "model.safetensors", "model"),
        (
            "the average in place of the moments",
            rig.half() / "checkpoint" / "ema.safetensors",
            "optimizer",
        ),
    )
    for what, source, name in copies:
        run = rig.copy(rig.half())
        shutil.copy(source, run / "checkpoint" / f"{name}.safetensors")
        end = rig.resume(run)
        yield Trial(f"{what}: resume", str(end), end.is_plain(1))
    run = rig.copy(rig.half())
    (run / "checkpoint" / "ema.safetensors").unlink()
    end = rig.resume(run)
    yield Trial("no average: resume", str(end), end.is_plain(1))


def cut_files_in_use(rig: Rig) -> Iterator[Trial]:
    """17: a packed shard and cached targets that are cut in place while they are read."""
    rig.run("pack", rig.images, "d", "--quiet")
    shard = next((rig.root / "d").glob("*.tar"))
    teacher = ("--teacher", rig.base(), *STUDENT, "--finetune-teacher", "none", "--views", "1", "--img-size", "32",
               "--teacher-cache", "targets", "--batch-size", "32", "--quiet")  # fmt: skip
    for workers in ("0", "2"):
        whole = shard.read_bytes()
        process = rig.train(
            f"r{workers}",
            "--epochs",
            "60",
            "--workers",
            workers,
            "--save-every",
            "1h",
            data=Path("d"),
        )
        process.wait_until(has_logged(rig.root / f"r{workers}"))
        time.sleep(1)
        os.truncate(shard, 300_000)
        end = process.finish(rig.patience)
        step = count_steps(rig.root / f"r{workers}")
        yield Trial(
            f"a shard cut in use, {workers} loaders",
            f"{end}; checkpoint of step {step}",
            end.is_plain(1) and step > 0,
        )
        shard.write_bytes(whole)
    process = rig.start(
        "distill",
        rig.images,
        *teacher,
        "--epochs",
        "60",
        "--workers",
        "0",
        "--save-every",
        "1h",
        "--output",
        "d",
    )
    process.wait_until(has_logged(rig.root / "d"))
    time.sleep(1)
    for view in (rig.root / "targets").glob("view-*.bin"):
        os.truncate(view, 0)
    end = process.finish(rig.patience * 2)
    step = count_steps(rig.root / "d")
    held = end.is_plain(0) or (end.is_plain(1) and step > 0)
    yield Trial("cached targets cut to nothing in use", f"{end}; checkpoint of step {step}", held)


def fill_one_cache(rig: Rig) -> Iterator[Trial]:
    """18: two `distill` and a `cache-teacher` fill one cache; two are killed."""
    for mode in ("hard", "soft"):
        cache = ("--teacher", rig.base(), *STUDENT, "--finetune-teacher", "none", "--views", "4", "--mode", mode,
                 "--teacher-cache", f"targets-{mode}", "--quiet")  # fmt: skip
        train = ("--img-size", "32", "--batch-size", "32", "--epochs", "4", "--workers", "1")
        first = rig.start("distill", rig.images, *cache, *train, "--output", f"a-{mode}")
        second = rig.start("distill", rig.images, *cache, *train, "--output", f"b-{mode}")
        third = rig.start("cache-teacher", rig.images, *cache, "--workers", "0")
        first.wait_until(
            lambda m=mode: len(list((rig.root / f"targets-{m}").glob("view-*.bin"))) >= 2
        )
        for process in (second, third):
            process.signal(signal.SIGKILL)
            process.finish()
        end = first.finish(rig.patience * 2)
        options = () if (rig.root / f"b-{mode}" / "checkpoint").exists() else (*cache, *train)
        if options:
            shutil.rmtree(rig.root / f"b-{mode}", ignore_errors=True)
            again = rig.run("distill", rig.images, *cache, *train, "--output", f"b-{mode}")
        else:
            again = rig.resume(f"b-{mode}")
        verified = rig.run(
            "cache-teacher",
            rig.images,
            *cache,
            "--workers",
            "0",
            "--verify",
            "--num-images",
            "1132",
        )
        models = [(rig.root / f"{n}-{mode}" / "model.safetensors") for n in "ab"]
        same = all(m.exists() for m in models) and models[0].read_bytes() == models[1].read_bytes()
        yield Trial(
            f"three fill one {mode} cache, two killed",
            f"{end.code}, {again.code}, verify {verified.code}; equal: {same}",
            end.is_plain(0) and again.is_plain(0) and verified.is_plain(0) and same,
        )  # fmt: skip


def replace_images_behind_targets(rig: Rig) -> Iterator[Trial]:
    """22: images replaced by others of the same name and size after their targets were cached."""
    data = rig.copy_images()
    cache = (
        "--teacher",
        rig.base(),
        *STUDENT,
        "--finetune-teacher",
        "none",
        "--views",
        "1",
        "--workers",
        "0",
    )
    rig.run("cache-teacher", "data", *cache, "--quiet")
    folders = sorted(p for p in data.iterdir() if p.is_dir())
    blobs = {f: [p.read_bytes() for p in sorted(f.iterdir())] for f in folders}
    count = 0
    for number, folder in enumerate(folders):
        others = blobs[folders[(number + 1) % len(folders)]]
        for path, own, other in zip(sorted(folder.iterdir()), blobs[folder], others, strict=False):
            stat = path.stat()
            if len(other) <= len(own):
                path.write_bytes(other + b"\0" * (len(own) - len(other)))
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
                count += 1
    end = rig.run("cache-teacher", "data", *cache, "--format", "json")
    computed = 0
    with contextlib.suppress(ValueError, KeyError):
        computed = json.loads(end.out)["num_computed"]
    yield Trial(
        f"{count} images replaced, same names, sizes, times",
        f"{end}; computed anew: {computed}",
        computed > 0,
    )


CASES: dict[str, Case] = {
    "03-flip-checkpoint": flip_bits_of_a_checkpoint,
    "04-forge-targets": forge_hard_targets,
    "17-cut-in-use": cut_files_in_use,
    "18-two-fill-one-cache": fill_one_cache,
    "22-same-size": replace_images_behind_targets,
    "29-forge-tensors": forge_tensors,
}
