"""Browsers for tests: Chromium by Playwright, Firefox by its own protocol (WebDriver BiDi).

Both are those of the system. Where `BACH_BROWSERS` is set, a browser that is missing fails the
tests instead of skipping them.
"""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_FIREFOX = ("firefox-esr", "firefox")
_CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
_SECONDS = 20


class Page:
    """A page of a browser; `complaints` holds console errors and what could not be loaded."""

    def __init__(self):
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def open(self, url: str) -> None:
        raise NotImplementedError

    def evaluate(self, expression: str) -> object:
        raise NotImplementedError

    def png(self) -> bytes:
        raise NotImplementedError

    def press(self, key: str) -> None:
        raise NotImplementedError

    def picture(self) -> np.ndarray:
        """What is seen, once it has come to rest: uint8 `(height, width, 3)`."""
        end, last = time.monotonic() + _SECONDS, b""
        while (now := self.png()) != last and time.monotonic() < end:
            last = now
            time.sleep(0.4)
        found = cv2.imdecode(np.frombuffer(now, np.uint8), cv2.IMREAD_COLOR)
        return cv2.cvtColor(found, cv2.COLOR_BGR2RGB)

    def wait(self, expression: str) -> object:
        """Wait until an expression is true."""
        end = time.monotonic() + _SECONDS
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"{expression}; {self.complaints}"
            time.sleep(0.05)
        return value


class _Chromium(Page):
    def __init__(self, page):
        super().__init__()
        self._page = page
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("requestfailed", lambda request: self.complaints.append(request.url))
        page.on("request", lambda request: self.requests.append(request.url))
        self.open = page.goto
        self.png = page.screenshot

    def _heard(self, message) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def evaluate(self, expression: str) -> object:
        return self._page.evaluate(expression)

    def press(self, key: str) -> None:
        self._page.keyboard.press(key)


class _Firefox(Page):
    def __init__(self, port: int, size: tuple[int, int]):
        super().__init__()
        import websocket

        end = time.monotonic() + _SECONDS
        while True:
            try:
                url = f"ws://127.0.0.1:{port}/session"
                self._socket = websocket.create_connection(url, suppress_origin=True, timeout=60)
                break
            except OSError:
                assert time.monotonic() < end, "Firefox does not answer"
                time.sleep(0.1)
        self._ids = itertools.count(1)
        self._call("session.new", capabilities={})
        events = ["log.entryAdded", "network.beforeRequestSent", "network.fetchError"]
        self._call("session.subscribe", events=events)
        self._tab = self._call("browsingContext.create", type="tab")["context"]
        viewport = {"width": size[0], "height": size[1]}
        self._call("browsingContext.setViewport", context=self._tab, viewport=viewport)

    def _call(self, method: str, **params: object) -> dict:
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == number:
                assert answer["type"] == "success", answer
                return answer["result"]
            self._heard(answer)

    def _heard(self, event: dict) -> None:
        about = event.get("params", {})
        if event["method"] == "log.entryAdded" and about["level"] in ("error", "warn"):
            self.complaints.append(str(about.get("text")))
        elif event["method"] == "network.fetchError":
            self.complaints.append(about["request"]["url"])
        elif event["method"] == "network.beforeRequestSent":
            self.requests.append(about["request"]["url"])

    def open(self, url: str) -> None:
        self._call("browsingContext.navigate", context=self._tab, url=url, wait="complete")

    def evaluate(self, expression: str) -> object:
        answer = self._call(
            "script.evaluate",
            expression=f"JSON.stringify({expression})",
            target={"context": self._tab},
            awaitPromise=True,
        )
        assert answer["type"] == "success", answer
        value = answer["result"].get("value")
        return None if value is None else json.loads(value)

    def png(self) -> bytes:
        answer = self._call("browsingContext.captureScreenshot", context=self._tab)
        return base64.b64decode(answer["data"])

    def press(self, key: str) -> None:
        keys = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        actions = [{"type": "key", "id": "keyboard", "actions": keys}]
        self._call("input.performActions", context=self._tab, actions=actions)


def _find(names: tuple[str, ...]) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    text = f"no browser: {' or '.join(names)}"
    if os.environ.get("BACH_BROWSERS"):
        pytest.fail(text)
    pytest.skip(text)


@contextlib.contextmanager
def opened(browser: str, size: tuple[int, int] = (1280, 900)) -> Iterator[Page]:
    """An empty page of "chromium" or "firefox", `size` px wide and high."""
    program = _find(_CHROMIUM if browser == "chromium" else _FIREFOX)
    with contextlib.ExitStack() as stack:
        if browser == "chromium":
            from playwright.sync_api import sync_playwright

            player = stack.enter_context(sync_playwright())
            chromium = player.chromium.launch(executable_path=program, args=_CHROMIUM_ARGS)
            stack.callback(chromium.close)
            width, height = size
            yield _Chromium(chromium.new_page(viewport={"width": width, "height": height}))
            return
        profile = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        port = 20_000 + os.getpid() % 20_000
        words = ["--headless", "--no-remote", "--profile", profile]
        words += ["--remote-debugging-port", str(port)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = stack.enter_context(subprocess.Popen([program, *words], **quiet))
        stack.callback(process.terminate)
        yield _Firefox(port, size)
