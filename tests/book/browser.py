"""A headless Chromium that opens pages of the built book and tells what happened, over the DevTools protocol."""

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--hide-scrollbars"]
FLAGS += ["--no-first-run", "--disable-background-networking", "--remote-debugging-port=0"]
FLAGS += ["--remote-allow-origins=*"]
PATIENCE_S = 60
TALLEST = 12_000
TRANSITION_MS = 400  # the theme slides its sidebars away
READY = "document.readyState === 'complete' && (!window.MathJax || !!MathJax.startup)"
TYPESET = "window.MathJax ? MathJax.startup.promise.then(() => true) : true"


class Browser:
    """One browser process with one tab."""

    def __init__(self, profile: Path) -> None:
        program = next(filter(None, map(shutil.which, NAMES)), None)
        assert program, "no Chromium here; `make test` installs it, or: sudo apt install chromium"
        self.process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = wait_for(lambda: (profile / "DevToolsActivePort").read_text().split("\n")[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                tab = next(tab for tab in json.load(answer) if tab["type"] == "page")
            self.socket = websocket.create_connection(tab["webSocketDebuggerUrl"], timeout=PATIENCE_S)
        except BaseException:
            self.process.kill()
            raise
        self._numbers = itertools.count()
        self.events: list[dict] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End the process."""
        self.socket.close()
        self.process.terminate()
        self.process.wait(PATIENCE_S)

    def call(self, method: str, **parameters: object) -> dict:
        """Send one command and return its result; events that come meanwhile are kept in `events`."""
        number = next(self._numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self.events.append(message)

    def evaluate(self, expression: str) -> object:
        """Return the value of a JavaScript expression; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def resize(self, width: int, height: int = 900) -> None:
        """Make the window `width` pixels wide; narrow ones count as a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.evaluate(f"new Promise(done => setTimeout(done, {TRANSITION_MS}))")

    def open(self, path: Path) -> None:
        """Open a local page and wait until it is loaded and its maths is set; `events` holds this page's only."""
        self.events = []
        self.call("Page.navigate", url=path.as_uri())
        wait_for(lambda: self.evaluate(f"location.href === {json.dumps(path.as_uri())} && {READY}"))
        self.evaluate(TYPESET)

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG files of at most `TALLEST` pixels: `path`, then `path` with 2, 3, ..."""
        size = self.call("Page.getLayoutMetrics")
        width, height = size["cssLayoutViewport"]["clientWidth"], int(size["cssContentSize"]["height"])
        self.resize(width, min(height, TALLEST))
        for number, top in enumerate(range(0, height, TALLEST), start=1):
            self.evaluate(f"scrollTo({{top: {top}, behavior: 'instant'}})")  # the last one overlaps with the one before
            image = self.call("Page.captureScreenshot")["data"]
            name = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
            name.write_bytes(base64.b64decode(image))
        self.evaluate("scrollTo({top: 0, behavior: 'instant'})")
        self.resize(width)

    def problems(self) -> list[str]:
        """Return what went wrong on this page: errors in the console, failed loads, requests to other hosts."""
        found = []
        for event in self.events:
            method, parameters = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                found.append(details.get("exception", {}).get("description") or details["text"])
            elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
                found.append(parameters["entry"]["text"])
            elif method == "Runtime.consoleAPICalled" and parameters["type"] == "error":
                found.append(json.dumps(parameters["args"]))
            elif method == "Network.loadingFailed" and not parameters.get("canceled"):
                found.append(parameters["errorText"])
            elif method == "Network.requestWillBeSent":
                url = parameters["request"]["url"]
                if not url.startswith(("file:", "data:", "blob:")):
                    found.append(f"asked for {url}")
        return found


def wait_for(condition):
    """Return the first true value of `condition`; a missing file counts as not yet."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except FileNotFoundError:
            pass
        time.sleep(0.05)
    raise TimeoutError(f"nothing within {PATIENCE_S} s")
