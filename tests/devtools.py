"""Headless Chromium driven over a pipe by its DevTools protocol: type, click, wait, look."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-pipe --window-size=1200,900"
)


class Tab:
    """One tab of a browser of its own, from entering a `with` block to leaving it; `requested`: all addresses asked."""

    def __init__(self, folder: Path) -> None:
        self.requested: list[str] = []
        self._folder = folder
        self._number = 0

    def __enter__(self) -> Tab:
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()

        def as_three_and_four() -> None:
            # Out of the way first: either may be 3 or 4 already.
            ends = os.dup(to_read), os.dup(to_write)
            for end, number in zip(ends, (3, 4), strict=True):
                os.dup2(end, number)

        command = ["chromium", *QUIET.split(), f"--user-data-dir={self._folder / 'profile'}", "about:blank"]
        self._process = subprocess.Popen(
            command, preexec_fn=as_three_and_four, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        self._received = b""
        self._session: str | None = None
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self._ask(f"{domain}.enable")
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._to)  # at which Chromium ends
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        os.close(self._from)

    def open(self, address: str) -> None:
        """Go to a page."""
        self._ask("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of an expression in JavaScript."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 120.0) -> Any:
        """The value of an expression once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, (
                f"{script} was not true in time; the page: {self.run('document.body.innerText')}"
            )
            time.sleep(0.2)
        return value

    def type(self, selector: str, text: str) -> None:
        """Put text into a field, as a keyboard would."""
        self.run(f"(e => {{ e.focus(); e.select() }})(document.querySelector({json.dumps(selector)}))")
        self._ask("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Click an element."""
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def screenshot(self, path: Path) -> None:
        """A PNG of what is seen."""
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot")["data"]))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("method") == "Network.requestWillBeSent":
                self.requested.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            part = os.read(self._from, 1 << 20)
            assert part, "the browser has ended"
            self._received += part
        message, _, self._received = self._received.partition(b"\0")
        return dict(json.loads(message))
