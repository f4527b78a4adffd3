"""Fuzz one target with Atheris: `python fuzz/run.py TARGET [libFuzzer options] CORPUS`. See docs/security.md."""

from __future__ import annotations

import sys
import warnings

import atheris

with atheris.instrument_imports(
    include=[
        "deitctl",
        "PIL",
        "tomllib",
        "json",
        "safetensors",
        "zipfile",
        "tarfile",
        "csv",
        "targets",
        "targets_records",
    ]
):
    import targets
    import targets_records


def main() -> None:
    """Run until a failing input is found or the time limit is reached."""
    target = (targets.TARGETS | targets_records.TARGETS)[sys.argv[1]]
    warnings.simplefilter("ignore")

    def once(data: bytes) -> None:
        target(bytes(data))

    atheris.Setup([sys.argv[0], *sys.argv[2:]], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
