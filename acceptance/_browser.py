"""A real browser with real keys, driven over the pipe that Chromium has for that: no driver to install."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE_S = 20.0
_CODES = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9}
_CONTROL = 2


class Browser:
    """Chromium without a window; `profile` is an empty folder of its own. Its tabs have each their own session."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 860, dark: bool = False) -> None:
        assert PROGRAM is not None
        command = [
            PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            "--disable-background-networking", "--disable-component-update", "--no-first-run",
            f"--window-size={width},{height}", f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        if dark:
            command.insert(1, "--blink-settings=preferredColorScheme=0")
        read, self._to = os.pipe()
        self._from, write = os.pipe()
        # It reads from descriptor 3 and writes to 4.
        pipes = f'exec "$@" 3</dev/fd/{read} 4>/dev/fd/{write}'
        self._process = subprocess.Popen(
            ["sh", "-c", pipes, "browser", *command],
            pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read)
        os.close(write)
        self._number, self._rest = 0, b""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call("Browser.close")
            self._process.wait(10)
        except (OSError, EOFError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Its answer; what it tells beside is kept in `events`. Raises RuntimeError if it refuses."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._to, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            found = self._message()
            if found.get("id") == self._number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']['message']}")
                return found["result"]
            self.events.append(found)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._from, 1 << 20)
            if not more:
                raise EOFError("the browser has ended")
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def tab(self, url: str) -> Tab:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        tab.open(url)
        return tab


class Tab:
    """One page. Keys go to whatever has the focus, as a person's do."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def reload(self) -> None:
        """Waits until the old page is gone."""
        self.run("window.old = true")
        self.call("Page.reload")
        self.until("!window.old && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page. Raises RuntimeError for one that throws."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails'].get('exception', {}).get('description')}")
        return found["result"].get("value")

    def until(self, script: str, seconds: float = PATIENCE_S) -> Any:
        """Wait until an expression is true; its value. Raises TimeoutError with what the page says."""
        end = time.monotonic() + seconds
        while True:
            try:
                if found := self.run(script):
                    return found
            except RuntimeError:  # the page is being made
                pass
            if time.monotonic() > end:
                shown = self.run("document.body.innerText")
                raise TimeoutError(f"{script} is not so after {seconds:g} s; the page: {shown[:500]!r}")
            time.sleep(0.02)

    def press(self, key: str, control: bool = False) -> None:
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        code = _CODES.get(key, ord(key[0].upper()))
        about: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code, "modifiers": _CONTROL if control else 0}
        typed = {"type": "keyDown", "text": text} if text and not control else {"type": "rawKeyDown"}
        self.call("Input.dispatchKeyEvent", **typed, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def write(self, text: str) -> None:
        """In place of what the focused field holds."""
        self.run("document.activeElement.select()")
        self.call("Input.insertText", text=text)

    def errors(self) -> list[str]:
        """What the page threw, and what its policy kept from it."""
        kept = [event for event in self._browser.events if event.get("sessionId") == self._session]
        thrown = [e["params"]["exceptionDetails"] for e in kept if e.get("method") == "Runtime.exceptionThrown"]
        logged = [e["params"]["entry"] for e in kept if e.get("method") == "Log.entryAdded"]
        return [str(e.get("exception", {}).get("description", e["text"])) for e in thrown] + [
            entry["text"] for entry in logged if entry["level"] == "error"
        ]

    def picture(self, target: Path) -> Path:
        """A screenshot."""
        target.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return target
