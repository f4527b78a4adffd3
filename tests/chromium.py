"""A real browser for tests: the system's Chromium over a pipe (Chrome DevTools Protocol), without a package."""

from __future__ import annotations

import base64
import http.server
import json
import os
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
TIMEOUT_S = 60.0  # for a slow and busy machine


class Browser:
    """One page of a headless Chromium, with its requests and console errors since it was opened."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._rest, self._number = to, back, b"", 0
        self._session = ""
        self.requests: list[str] = []
        self.blocked: list[str] = []
        self.console_errors: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._back], [], [], TIMEOUT_S)
            assert ready, "the browser does not answer"
            part = os.read(self._back, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        self._record(message.get("method", ""), message.get("params", {}))
        return message

    def _record(self, event: str, params: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Network.loadingFailed":
            self.blocked.append(params.get("blockedReason", ""))
        elif event == "Runtime.exceptionThrown":
            self.console_errors.append(json.dumps(params["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.console_errors.append(json.dumps(params["args"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.console_errors.append(json.dumps(params["entry"]))

    def open(
        self, page: Path | str, *, width: int = 1440, dark: bool = False, scripts: bool = True
    ) -> None:
        """Open a file or an address in a window of `width` pixels, waiting until it is drawn."""
        self.requests.clear()
        self.blocked.clear()
        self.console_errors.clear()
        phone = width < 600
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844 if phone else 900,
            deviceScaleFactor=1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media="", features=[scheme])
        url = page.absolute().as_uri() if isinstance(page, Path) else page
        self.send("Page.navigate", url=url)
        self.wait(
            f"document.readyState === 'complete' && location.protocol === '{url.partition(':')[0]}:'"
        )

    def js(self, expression: str) -> Any:
        """Return the value of an expression in the page, or what it promises."""
        result = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, f"{expression}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + TIMEOUT_S
        while not self.js(condition):
            assert time.monotonic() < end, f"timed out: {condition}"
            time.sleep(0.02)

    def click(self, selector: str, number: int = 0) -> None:
        """Click with the mouse on the middle of the element, scrolled into view, as a person would."""
        element = f"document.querySelectorAll({json.dumps(selector)})[{number}]"
        assert self.js(f"Boolean({element})"), f"there is no {selector} number {number}"
        self.js(
            f"{element}.scrollIntoView({{block: 'center', inline: 'center', behavior: 'instant'}})"
        )
        x, y, hit = self.js(
            f"(() => {{ const e = {element}, b = e.getClientRects()[0];"
            "const x = b.x + b.width / 2, y = b.y + b.height / 2;"
            "const top = document.elementFromPoint(x, y); return [x, y, e === top || e.contains(top)]; })()"
        )
        assert hit, f"{selector} number {number} is covered at {x}, {y}"
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def choose(self, selector: str, paths: Iterable[Path]) -> None:
        """Choose files in a file input, as its dialog does."""
        element = self.send(
            "Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})"
        )
        names = [str(path.absolute()) for path in paths]
        self.send("DOM.setFileInputFiles", files=names, objectId=element["result"]["objectId"])

    def press(self, key: str) -> None:
        """Press and release a key: `Tab`, `Enter`, `ArrowRight`."""
        code = {
            "Tab": 9,
            "Enter": 13,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
        }[key]
        text = {"text": "\r"} if key == "Enter" else {}
        self.send(
            "Input.dispatchKeyEvent",
            type="keyDown",
            key=key,
            code=key,
            windowsVirtualKeyCode=code,
            **text,
        )
        self.send(
            "Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code
        )

    def screenshot(self, path: Path, *, full_page: bool = True) -> None:
        """Save the page, or only the window, as PNG."""
        image = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=full_page)
        path.write_bytes(base64.b64decode(image["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start Chromium with a profile of its own, and end it."""
    assert CHROMIUM is not None
    (their_in, to), (back, their_out) = os.pipe(), os.pipe()
    command = (
        # Root, as in a container, cannot use Chromium's sandbox.
        'exec "$0" --headless=new --no-sandbox --disable-gpu --no-first-run --disable-extensions '
        "--disable-background-networking "
        f'--remote-debugging-pipe --user-data-dir="$1" 3<&{their_in} 4>&{their_out}'
    )
    with (profile.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", command, CHROMIUM, str(profile)],
            pass_fds=(their_in, their_out),
            stdout=log,
            stderr=log,
        )
    os.close(their_in)
    os.close(their_out)
    try:
        yield Browser(to, back)
    finally:
        os.close(to)
        os.close(back)
        process.terminate()
        process.wait(TIMEOUT_S)


@contextmanager
def serve(
    folder: Path, headers: Mapping[str, str] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder as `python -m http.server` does; yield its address and the requested paths."""
    paths: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self) -> None:
            paths.append(self.path)
            super().do_GET()

        def end_headers(self) -> None:
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", paths
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
