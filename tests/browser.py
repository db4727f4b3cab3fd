"""Chromium without a window: what it says of a page, and what the page looks like in it."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "about:blank",
)


class Browser:
    """A running browser.

    Attributes:
        driver: Selenium's.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, *, width: int = 375, theme: str = "light") -> None:
        """Load a file into a window of this width, for a reader who prefers this theme."""
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        preferred = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": preferred})
        self.complaints()
        self.driver.get("about:blank")
        self.driver.get(page.absolute().as_uri())

    def ask(self, script: str) -> Any:
        """The value of an expression in the page."""
        return self.driver.execute_script(f"return {script}")

    def complaints(self) -> list[str]:
        """What was written to the console since this was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses that the page asked for since this was last asked, its own among them."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = (event["params"] for event in events if event["method"] == "Network.requestWillBeSent")
        page = self.driver.current_url
        return [each["request"]["url"] for each in sent if each["documentURL"] == page]

    def picture(self, file: Path) -> None:
        """Save the whole page as PNG."""
        height = self.ask("document.documentElement.scrollHeight")
        width = self.ask("window.innerWidth")
        size = {"width": width, "height": min(height, 12_000), "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.save_screenshot(str(file))


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium with an empty profile; skips the test where there is none."""
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (f"--user-data-dir={profile}", *FLAGS):
            options.add_argument(flag)
        started = webdriver.Chrome(options, Service(driver))
        try:
            yield Browser(started)
        finally:
            started.quit()
