"""What to do about findings, as a CSV file for people, spreadsheets and scripts."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from deitctl.checks.findings import Finding, Remedy
from deitctl.paths import write_bytes

OF_FOLDERS = ("empty_class", "similar_class_names", "misnamed_part")
"""Checks whose remedies rename folders, inner ones first; they come last, so that the paths of files stay right."""
FORMULA = "=+-@"


def write_fix_list(path: Path, findings: Iterable[Finding]) -> int:
    """Write `file,problem,action,target` rows and return how many; raise `DeitctlError` if that cannot be done."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(Remedy._fields)
    count = 0
    for remedy in one_for_a_file(findings):
        rows.writerow(map(safe, remedy))
        count += 1
    write_bytes(path, text.getvalue().encode())
    return count


def one_for_a_file(findings: Iterable[Finding]) -> Iterator[Remedy]:
    """Yield remedies that do not contradict each other, in an order in which they can be carried out.

    A file that is deleted is not renamed too, and nothing is moved onto another file: a person has to look at that.
    """
    ordered = sorted(
        findings, key=lambda f: OF_FOLDERS.index(f.check) if f.check in OF_FOLDERS else -1
    )
    deleted = {r.file for f in ordered for r in f.remedies() if r.action == "delete"}
    treated: set[str] = set()
    taken: set[str] = set()
    for remedy in (r for f in ordered for r in f.remedies()):
        if remedy.action in ("move", "rename"):
            if remedy.file in deleted or remedy.file in treated:
                continue
            if remedy.target in taken or _exists_elsewhere(remedy.file, remedy.target):
                remedy = remedy._replace(action="review")
            taken.add(remedy.target)
        elif remedy.action == "delete" and remedy.file in treated:
            continue
        if remedy.action != "review":
            treated.add(remedy.file)
        yield remedy


def _exists_elsewhere(file: str, target: str) -> bool:
    """Say whether something else is in the way; on some systems a name in other letters is the same file."""
    return os.path.exists(target) and not (os.path.exists(file) and os.path.samefile(file, target))


def safe(field: str) -> str:
    """Write a name so that it stays on its line and in its cell and is no formula.

    Backslashes and characters that are not to be seen are written as in a Python string, and a leading = + - @ gets
    `./` before it, which leaves a path what it is.
    """
    shown = "".join(c if _visible(c) else c.encode("unicode_escape").decode() for c in field)
    return f"./{shown}" if shown.startswith(tuple(FORMULA)) else shown


def _visible(character: str) -> bool:
    return character != "\\" and unicodedata.category(character) not in (
        "Cc",
        "Cf",
        "Cs",
        "Co",
        "Cn",
        "Zl",
        "Zp",
    )
