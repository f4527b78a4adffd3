"""The folder of an explanation's drawings, in which no file is replaced."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from deitctl.explanation.explanation import Explanation
from deitctl.explanation.overlay import TokenPanel, draw_panels
from deitctl.inference.inputs import Input, is_url, local_path
from deitctl.paths import DiskError

HALF = 40
"""Characters of the image's name, and of the class's, in a name that has both."""


class DrawingFolder:
    """A folder of drawings, each a new file, even beside those of a concurrent process."""

    def __init__(self, folder: Path, *, names_class: bool = False) -> None:
        """Take a folder, and whether a drawing of a class has its name."""
        self.folder, self.names_class, self.counts = folder, names_class, Counter[str]()

    def draw(self, item: Input, explanation: Explanation, panels: list[TokenPanel]) -> Explanation:
        """Write a drawing and return the explanation with its path, or raise `DiskError`."""
        assert item.pixels is not None
        note = explanation.method
        if explanation.class_name is not None:
            note = f"why {explanation.class_name}? ({explanation.method})"
        if explanation.disagree:
            note += ", the two heads disagree"
        buffer = io.BytesIO()
        drawing = draw_panels(item.pixels, panels, name=os.path.basename(item.name), note=note)
        drawing.save(buffer, "PNG")
        stem = _make_stem(item.name)
        if self.names_class and explanation.class_name is not None:
            stem = f"{stem[:HALF]}.{_to_file_name(explanation.class_name)[:HALF]}"
        path = self._write_new(f"{stem}.{explanation.method}", buffer.getbuffer())
        return replace(explanation, image=path)

    def _write_new(self, stem: str, content: memoryview) -> Path:
        while True:
            self.counts[stem.lower()] += 1  # file systems may ignore case
            number = self.counts[stem.lower()]
            path = self.folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                # x: of two processes that choose the same name one fails here and takes the next
                # number.
                with path.open("xb") as file:
                    try:
                        file.write(content)
                    except BaseException:  # a signal too: half a file would never be replaced
                        path.unlink()
                        raise
                return path
            except FileExistsError:
                if not self.folder.is_dir():
                    error = NotADirectoryError("it is a file")
                    raise DiskError.from_os_error(self.folder, error) from None
            except OSError as error:
                raise DiskError.from_os_error(path, error) from error


def _make_stem(name: str) -> str:
    """Return a file name's stem for a path or URL that every file system accepts."""
    last = re.split(r"[?#]", name, maxsplit=1)[0].rstrip("/") if is_url(name) else local_path(name)
    return _to_file_name(os.path.splitext(os.path.basename(last))[0]) or "image"


def _to_file_name(text: str) -> str:
    # 80 characters and the method stay below the 255 bytes of most file systems.
    return re.sub(r"[^\w.-]+", "_", text).strip(".-_")[:80]
