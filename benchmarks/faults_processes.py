"""Cases of faults.py: loaders that die or stop, signals, limits of a process, readers that go away."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

from fault_rig import STUDENT, Case, Process, Rig, Trial, count_steps, has_logged, is_alive

LOSABLE = ["train", "distill", "cache-teacher", "eval", "check", "pack", "sweep", "bench"]
"""Commands that start loader processes."""
SAVES = ("train", "distill", "sweep")


def command_with_loaders(rig: Rig, name: str) -> list[str | Path]:
    """Return a command that keeps two loaders busy for some seconds."""
    table = rig.long_table()
    teacher = ["--teacher", rig.base(), *STUDENT, "--finetune-teacher", "none"]
    options: dict[str, list[str | Path]] = {
        "train": [table, "--model", "deit_tiny", "--no-pretrained", "--img-size", "32", "--save-every", "1h"],
        "distill": [table, *teacher, "--img-size", "32", "--views", "2", "--save-every", "1h"],
        "cache-teacher": [table, *teacher, "--views", "3"],
        "eval": [table, "--model", rig.base(), "--batch-size", "8", "--split", "all"],
        "check": [table],
        "pack": [table, "x", "--raw"],
        "sweep": [table, "--preset", "deit-table3", "--teacher", rig.base(), "--student", "deit_tiny",
                    "--no-pretrained", "--allow-weak-teacher", "--finetune-teacher", "none",
                    "--img-size", "32", "--views", "2"],
        "bench": [table, "--model", "deit_tiny", "--img-size", "32", "--batch-size", "32", "--seconds", "1"],
    }  # fmt: skip
    output = {
        "train": ["--output", "r"],
        "distill": ["--output", "r"],
        "sweep": ["--output", "r"],
    }
    return [name, *options[name], "--workers", "2", "--quiet", *output.get(name, [])]


def lose_a_loader(rig: Rig) -> Iterator[Trial]:
    """01, 07: SIGKILL to one of two loaders, as from the kernel when memory is short."""
    for name in LOSABLE:
        rig.enter(f"lose-{name}")
        process = rig.start(*command_with_loaders(rig, name))
        if name == "train":
            process.wait_until(has_logged(rig.root / "r"))
        loaders = process.catch_loaders()
        if not loaders:
            yield Trial(
                f"kill -9 of a loader of {name}",
                f"no loader: {process.finish(rig.patience)}",
                False,
            )
            continue
        os.kill(loaders[0], signal.SIGKILL)
        end = process.finish(rig.patience)
        step = count_steps(rig.root / "r")
        saved = f"; checkpoint of step {step}" if name == "train" else ""
        held = end.is_plain(1) and len(end.lines) <= 3 and (name != "train" or step > 0)
        yield Trial(f"kill -9 of a loader of {name}", f"{end}{saved}", held)


def stop_the_loaders(rig: Rig) -> Iterator[Trial]:
    """02: loaders that no longer answer, as of a dead mount, and then one SIGTERM."""
    for name in ("train", "eval", "cache-teacher"):
        rig.enter(f"stop-{name}")
        process = rig.start(*command_with_loaders(rig, name))
        if name == "train":
            process.wait_until(has_logged(rig.root / "r"))
        loaders = process.catch_loaders()
        for pid in loaders:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2)
        process.signal(signal.SIGTERM)
        end = process.finish(min(rig.patience, 30))
        time.sleep(1)
        left = [pid for pid in loaders if is_alive(pid)]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        step = count_steps(rig.root / "r")
        held = end.is_plain(1, 130, 143) and not left and (name != "train" or step > 0)
        yield Trial(
            f"both loaders of {name} stopped, one SIGTERM",
            f"{end}; checkpoint of step {step}; loaders left: {len(left)}",
            held,
        )


def die_with_the_parent(rig: Rig) -> Iterator[Trial]:
    """The main process is killed: its loaders must not stay."""
    for name in ("train", "eval"):
        rig.enter(f"orphans-{name}")
        process = rig.start(*command_with_loaders(rig, name))
        loaders = process.catch_loaders()
        process.signal(signal.SIGKILL)
        process.finish()
        end = time.monotonic() + 10
        while any(map(is_alive, loaders)) and time.monotonic() < end:
            time.sleep(0.1)
        left = [pid for pid in loaders if is_alive(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        seconds = 10 - max(0.0, end - time.monotonic())
        yield Trial(
            f"kill -9 of {name}'s main process", f"{len(left)} of {len(loaders)} loaders left after {seconds:.0f} s",
            not left,
        )  # fmt: skip


def raise_in_the_library(rig: Rig) -> Iterator[Trial]:
    """An exception out of `deitctl.train` of the library while loaders live."""
    rig.enter("library")
    (rig.root / "own.py").write_text(
        textwrap.dedent("""
        import sys
        import deitctl
        if __name__ == "__main__":
            import deitctl.training.trainer as trainer
            count = [0]
            from deitctl.training import step as step_module
            old = step_module.optimizer_step
            def fail(*a, **k):
                count[0] += 1
                if count[0] == 3: raise RuntimeError("a mistake of one's own")
                return old(*a, **k)
            step_module.optimizer_step = fail
            if hasattr(trainer, "optimizer_step"): trainer.optimizer_step = fail
            deitctl.train(sys.argv[1], model="deit_tiny", pretrained=False, img_size=32, batch_size=32,
                          epochs=1, workers=2, output=sys.argv[2])
        """)
    )
    out, err = rig.root / "o", rig.root / "e"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        popen = subprocess.Popen(
            [sys.executable, "own.py", str(rig.images), "r"], cwd=rig.root, stdout=stdout, stderr=stderr,
            start_new_session=True,
        )  # fmt: skip
    end = Process(popen, out, err).finish(rig.patience)
    yield Trial(
        "an exception out of deitctl.train with 2 loaders",
        str(end),
        end.code == 1 and "one's own" in end.err,
    )


def limit_descriptors_and_files(rig: Rig) -> Iterator[Trial]:
    """09: few file descriptors, small files, no TMPDIR."""
    rig.enter("limits")
    base, small = rig.base(), ("--model", "deit_tiny", "--no-pretrained", "--img-size", "32")
    teacher = ("--teacher", base, *STUDENT, "--finetune-teacher", "none")
    train = ("train", rig.images, *small, "--epochs", "1", "--save-every", "4", "--quiet")
    few = rig.root / "few.csv"
    images = [
        image for number, image in enumerate(sorted(rig.images.glob("*/*"))) if number % 7 == 0
    ]
    few.write_text("path,label\n" + "".join(f"{image},{image.parent.name}\n" for image in images))
    trials: list[tuple[str, str, tuple[str | Path, ...]]] = [
        ("64 descriptors: train, 2 loaders", "ulimit -n 64;", (*train, "--workers", "2", "--output", "a")),
        ("24 descriptors: train, 2 loaders", "ulimit -n 24;", (*train, "--workers", "2", "--output", "b")),
        ("24 descriptors: eval, 2 loaders", "ulimit -n 24;", ("eval", rig.images, "--model", base, "--workers", "2")),
        ("40 descriptors: predict a folder", "ulimit -n 40;", ("predict", rig.images, "--model", base, "--quiet")),
        ("64 descriptors: cache-teacher, 100 views", "ulimit -n 64;",
         ("cache-teacher", few, *teacher, "--quiet", "--views", "100", "--workers", "0")),
        ("64 descriptors: cache-teacher, 100 views, 2 loaders", "ulimit -n 64;",
         ("cache-teacher", few, *teacher, "--quiet", "--views", "100", "--view-seed", "3", "--workers", "2")),
        ("files of at most 20 MiB: train", "ulimit -f 20480;", (*train, "--workers", "0", "--output", "c")),
        ("files of at most 40 MiB: train", "ulimit -f 40960;", (*train, "--workers", "0", "--output", "d")),
    ]  # fmt: skip
    for what, limit, options in trials:
        end = rig.run(*options, limit=limit)
        held = end.is_plain() and (end.code == 0 or len(end.lines) <= 4)
        if "MiB" in what:
            held = end.is_plain(1) and "is whole" not in end.err
        yield Trial(what, str(end), held)
    for options in (
        ("eval", rig.images, "--model", base, "--workers", "2"),
        ("predict", rig.images / "rose", "--model", base, "--quiet"),
    ):
        end = rig.run(*options, env={"TMPDIR": "/nonexistent"})
        yield Trial(f"TMPDIR that is not there: {options[0]}", str(end), end.is_plain(0))


def close_streams(rig: Rig) -> Iterator[Trial]:
    """11: closed stdin, stdout, stderr; readers that go away."""
    rig.enter("streams")
    base = rig.base()
    predict = ("predict", rig.images, "--model", base, "--quiet")
    for form in ("jsonl", "csv", "json", "table"):
        end = rig.run(*predict, "--format", form, redirect="| head -1; exit ${PIPESTATUS[0]}")
        yield Trial(
            f"predict --format {form} | head -1",
            str(end),
            not end.has_traceback and end.code is not None,
        )
    end = rig.run("predict", rig.images / "rose", "--model", base, "--quiet", redirect=">&-")
    yield Trial("predict >&-", str(end), end.is_plain())
    end = rig.run("predict", rig.images / "rose", "nothing.jpg", "--model", base, redirect="2>&-")
    rows = len(end.out.splitlines())
    yield Trial("predict 2>&-", f"exit {end.code}, {rows} rows", end.code == 3 and rows == 71)
    end = rig.run("predict", "-", "--model", base, redirect="<&-")
    yield Trial("predict - <&-", str(end), end.is_plain())
    end = rig.run(
        "train",
        rig.images,
        *_SMALL,
        "--workers",
        "2",
        "--output",
        "closed",
        redirect=">&- 2>&- <&-",
    )
    yield Trial(
        "train >&- 2>&- <&-",
        f"exit {end.code}",
        end.code == 0 and (rig.root / "closed" / "result.json").exists(),
    )


_SMALL = (
    "--model",
    "deit_tiny",
    "--no-pretrained",
    "--img-size",
    "32",
    "--batch-size",
    "32",
    "--epochs",
    "1",
)


def lose_the_listener(rig: Rig) -> Iterator[Trial]:
    """12: the reader of a training's messages goes, its terminal closes; is what was trained saved?"""
    rig.enter("listener")
    train = ("train", rig.images, *_SMALL[:-1], "6", "--workers", "0", "--save-every", "1h")
    end = rig.run(
        *train, "--output", "piped", redirect="2>&1 >/dev/null | head -2; exit ${PIPESTATUS[0]}"
    )
    finished = (rig.root / "piped" / "result.json").exists()
    yield Trial(
        "the reader of stderr goes after two lines",
        f"exit {end.code}, finished: {finished}, checkpoint of step {count_steps(rig.root / 'piped')}",
        end.code == 0 and finished,
    )
    end = rig.run(*train, "--output", "full", redirect="2>/dev/full")
    finished = (rig.root / "full" / "result.json").exists()
    yield Trial("stderr is /dev/full", f"exit {end.code}, finished: {finished}", finished)
    end = rig.run(*train, "--output", "ofull", redirect=">/dev/full")
    finished = (rig.root / "ofull" / "result.json").exists()
    yield Trial(
        "stdout is /dev/full", f"{end}, finished: {finished}", finished and not end.has_traceback
    )
    for name in ("SIGHUP", "SIGTERM", "SIGINT"):
        process = rig.start(*train[:-4], "--epochs", "200", *train[-4:], "--output", name)
        process.wait_until(has_logged(rig.root / name, '"epoch"'))
        time.sleep(0.2)
        process.signal(getattr(signal, name))
        end = process.finish(rig.patience)
        step = count_steps(rig.root / name)
        yield Trial(
            f"{name} in an epoch",
            f"{end}; checkpoint of step {step}",
            step > 0 and not end.has_traceback,
        )
    process = rig.start(*train, "--output", "nohup", prefix=("nohup",))
    process.wait_until(has_logged(rig.root / "nohup", '"epoch"'))
    process.signal(signal.SIGHUP)
    end = process.finish(rig.patience)
    yield Trial("SIGHUP to a run under nohup", str(end), end.is_plain(0))
    process = rig.start(*train, "--output", "usr1")
    time.sleep(0.15)
    process.signal(signal.SIGUSR1)
    end = process.finish(rig.patience)
    yield Trial("SIGUSR1 in the first moments", str(end), end.is_plain(0))


def signal_twice(rig: Rig) -> Iterator[Trial]:
    """28: two SIGTERM in one long step: nothing is saved, and nothing may be said to be."""
    rig.enter("twice")
    process = rig.start(
        "train", rig.images, "--model", "deit_small", "--no-pretrained", "--img-size", "224", "--batch-size", "128",
        "--micro-batch-size", "128", "--epochs", "2", "--workers", "0", "--save-every", "1h", "--output", "r",
    )  # fmt: skip
    process.wait_until((rig.root / "r" / "run.toml").exists)
    time.sleep(6)
    process.signal(signal.SIGTERM)
    time.sleep(2)
    process.signal(signal.SIGTERM)
    end = process.finish(rig.patience)
    step = count_steps(rig.root / "r")
    false = step < 0 and ("is saved" in end.err or "is whole" in end.err)
    yield Trial(
        "two SIGTERM 2 s apart in one step",
        f"{end}; checkpoint of step {step}; said: {' / '.join(end.lines[-2:])[:200]}",
        not false and not end.has_traceback and end.code is not None,
    )


def starve_a_loader(rig: Rig) -> Iterator[Trial]:
    """24: the address space of each loader is limited while it decodes large images that are whole."""
    from PIL import Image

    rig.enter("starve")
    for label in "ab":
        (rig.root / "big" / label).mkdir(parents=True)
        for n in range(40):
            Image.effect_noise((64, 64), 50).convert("RGB").save(
                rig.root / f"big/{label}/{n:03}.jpg"
            )
        for n in range(40, 44):
            color = (n * 5, 9, 200 if label == "a" else 100)
            Image.new("RGB", (8000, 8000), color).save(
                rig.root / f"big/{label}/{n:03}.png", compress_level=1
            )
    process = rig.start(
        "train", "big", *_SMALL[:-4], "--batch-size", "16", "--epochs", "6", "--workers", "2", "--save-every", "1h",
        "--output", "r",
    )  # fmt: skip
    process.wait_until(has_logged(rig.root / "r"))
    for pid in process.loaders():
        with contextlib.suppress(OSError):
            size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
            resource.prlimit(pid, resource.RLIMIT_AS, (size + 60_000_000, size + 60_000_000))
    end = process.finish(rig.patience * 2)
    step = count_steps(rig.root / "r")
    left_out = []
    with contextlib.suppress(OSError, ValueError):
        left_out = json.loads((rig.root / "r" / "result.json").read_text())["unreadable"]
    damaged = "damaged" in end.err or bool(left_out)
    yield Trial(
        "60 MB of address space for each loader",
        f"{end}; left out as unreadable: {len(left_out)}; checkpoint of step {step}",
        end.is_plain() and not damaged,
    )
    script = """
        import io, resource, sys
        from PIL import Image
        from deitctl.data.decode import decode
        import numpy
        data = open("big/a/040.png", "rb").read()
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)
        try: decode(data, "whole.png"); print("decoded")
        except BaseException as error: print(type(error).__name__, error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=rig.root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = done.stdout.strip() or done.stderr.strip().splitlines()[-1]
    yield Trial("100 MiB for decoding 64 MP", said[:200], "damaged" not in said)


def exhaust_shared_memory(rig: Rig) -> Iterator[Trial]:
    """Case 25: /dev/shm of 64 MB, Docker's default, and 8 loaders with large batches."""
    rig.enter("shm")
    table, base = rig.long_table(4), rig.base()
    space = [
        "unshare",
        "-m",
        "bash",
        "-c",
        'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"',
        "bash",
    ]
    big = ("--img-size", "224", "--batch-size", "256", "--workers", "8")
    for name, options in {
        "train": ("train", table, "--model", "test_vit", "--no-pretrained", *big, "--epochs", "1", "--output", "r",
                  "--set", "augment.rand_augment="),
        "eval": ("eval", table, "--model", base, "--batch-size", "2048", "--img-size", "96", "--workers", "8",
                 "--split", "all"),
    }.items():  # fmt: skip
        end = rig.start(*options, "--quiet", prefix=space).finish(rig.patience * 4)
        yield Trial(f"/dev/shm of 64 MB, 8 loaders: {name}", str(end), end.is_plain())


CASES: dict[str, Case] = {
    "01-07-lose-a-loader": lose_a_loader,
    "02-stop-the-loaders": stop_the_loaders,
    "09-limits": limit_descriptors_and_files,
    "11-streams": close_streams,
    "12-listener": lose_the_listener,
    "24-memory-of-a-loader": starve_a_loader,
    "28-second-signal": signal_twice,
    "orphans": die_with_the_parent,
    "library": raise_in_the_library,
    "shared-memory": exhaust_shared_memory,
}
