"""Does facebookresearch/deit's own script start? It is asked for its help, then for one epoch; it is never patched."""

from __future__ import annotations

from pathlib import Path

from benchmarks.rivals.measure import run


def try_main(repository: Path, python: str, data: Path, out: Path) -> dict[str, str]:
    """Return what `main.py` did: `starts`, or its last line, and the versions that the repository asks for."""
    out.mkdir(parents=True, exist_ok=True)
    main = [python, "main.py"]
    training = [
        *main,
        "--model",
        "deit_tiny_patch16_224",
        "--data-path",
        str(data),
        "--device",
        "cpu",
        "--batch-size",
        "32",
        "--epochs",
        "1",
        "--num_workers",
        "1",
        "--output_dir",
        str(out),
    ]
    said = "trains on this machine"
    for what, command in (
        ("does not start", [*main, "--help"]),
        ("starts, and does not train here", training),
    ):
        done = run(command, {"HF_HUB_OFFLINE": "1"}, repository, 300)
        if done.code:
            said = f"{what}: {done.last_words}"
            break
    return {
        "main.py": said,
        "asks for": ", ".join((repository / "requirements.txt").read_text().split()),
    }
