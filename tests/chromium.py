"""Headless Chromium, driven over a pipe in its DevTools protocol: what a page shows, loads and complains about."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "Chromium is not installed: apt-get install chromium"

_FLAGS = (
    "--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip

# The browser reads commands at descriptor 3 and answers at 4; both may be taken where Python starts.
_LAUNCHER = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3]]
for place, end in enumerate(ends, start=3):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """One page in a browser of its own.

    Args:
        folder: Folder of the browser's profile.
        width: Width of the window in px.
        height: Height of the window in px.

    Attributes:
        events: What the browser told so far: (method, params).
    """

    def __init__(self, folder: Path, width: int = 1400, height: int = 1000) -> None:
        if CHROMIUM is None:
            raise RuntimeError(MISSING)
        from_us, self._to_browser = os.pipe()
        self._from_browser, to_us = os.pipe()
        as_root = ["--no-sandbox"] if os.getuid() == 0 else []
        flags = [*_FLAGS, *as_root, f"--user-data-dir={folder}", f"--window-size={width},{height}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCHER, str(from_us), str(to_us), CHROMIUM, *flags], pass_fds=(from_us, to_us),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(from_us)
        os.close(to_us)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank", newWindow=True, width=width, height=height)[
            "targetId"
        ]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to_browser)
        os.close(self._from_browser)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol; return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to_browser, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while True:
            answer = self._read(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def open(self, url: str) -> None:
        """Go to an address and wait until it is loaded."""
        for address in ("about:blank", url):  # where only the part behind # differs, nothing is loaded anew
            self.events.clear()
            self.call("Page.navigate", url=address)
            self.wait(lambda: any(method == "Page.loadEventFired" for method, _ in self.events), f"{address} to load")

    def wait(self, reached: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        """Wait until something holds; return it."""
        deadline = time.monotonic() + seconds
        while not (found := reached()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {seconds} s for {what}; the page shows: {self.text()[:2000]}")
            self._listen(0.2)
        return found

    def wait_for_text(self, text: str) -> None:
        """Wait until the page shows a text."""
        self.wait(lambda: text in self.text(), f"{text!r}")

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def text(self) -> str:
        """Return what a reader of the page sees as text."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def requested(self) -> list[str]:
        """Return the addresses that the page asked for since it was opened."""
        return [params["request"]["url"] for method, params in self.events if method == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Return errors and warnings of the console, exceptions, and dialogues since the page was opened."""
        found = []
        for method, params in self.events:
            is_error = (
                method in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening", "Log.entryAdded")
                or (method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"))
            )  # fmt: skip
            if is_error:
                found.append(f"{method}: {json.dumps(params)[:500]}")
        return found

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Write what the window shows, or the whole page, as a PNG file."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def resize(self, width: int, height: int) -> None:
        """Give the page another size in px."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def _listen(self, seconds: float) -> None:
        """Take events for a while."""
        deadline = time.monotonic() + seconds
        try:
            while True:
                self._read(deadline)
        except TimeoutError:
            return

    def _read(self, deadline: float) -> dict[str, Any]:
        """Return the next message; an event is kept too."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from_browser], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("Chromium does not answer")
            chunk = os.read(self._from_browser, 1 << 16)
            if not chunk:
                raise RuntimeError("Chromium has ended")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append((message["method"], message.get("params", {})))
        return message
