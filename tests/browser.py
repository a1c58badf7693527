"""Chromium for the tests of pages; on Debian, the packages chromium and chromium-driver."""

import contextlib
import http.client
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from pipeline.pdf import BROWSERS

CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
# Without a window, and without a network.
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND")


def dump_dom(page: Path, profile: Path) -> str:
    """The HTML of a page after its scripts have run."""
    assert CHROMIUM is not None
    options = [*OPTIONS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    command = [CHROMIUM, *options]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return answer.stdout


class Browser:
    """Headless Chromium without a network, driven through chromedriver's W3C interface."""

    def __init__(self, driver: str, profile: Path) -> None:
        self.host = driver
        self.session = ""
        arguments = [
            *OPTIONS,
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--disable-quic",
            f"--user-data-dir={profile}",
        ]
        options = {"binary": CHROMIUM, "args": arguments}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{answer['sessionId']}"
        self.call("POST", "/timeouts", {"script": 120_000})

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection(self.host, timeout=150)
        with contextlib.closing(connection):
            connection.request(
                method, self.session + path, None if body is None else json.dumps(body)
            )
            value = json.loads(connection.getresponse().read())["value"]
        if isinstance(value, dict) and "error" in value:
            raise RuntimeError(value["message"])
        return value

    def open(self, page: Path) -> None:
        self.log()
        self.call("POST", "/url", {"url": page.as_uri()})

    def scheme(self, scheme: str) -> None:
        """Makes the system's colour scheme ``"light"`` or ``"dark"``; the next page follows it."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        command = {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}}
        self.call("POST", "/goog/cdp/execute", command)

    def width(self, pixels: int) -> None:
        metrics = {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": pixels < 600}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
        self.call("POST", "/goog/cdp/execute", command)

    def run(self, script: str) -> Any:
        """The value that ``script`` passes to ``done``."""
        script = f"const done = arguments[0]; {script}"
        return self.call("POST", "/execute/async", {"script": script, "args": []})

    def log(self) -> list[dict[str, Any]]:
        return self.call("POST", "/se/log", {"type": "browser"})
