"""`python -m deitctl` and `deitctl`: the same."""

from __future__ import annotations

from deitctl.cli.app import main

if __name__ == "__main__":
    main()
