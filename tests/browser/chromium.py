"""Finds a Chromium browser for the tests.

The order is: the path in CHROME, if set; the browser of Playwright, downloaded if possible; a browser on PATH; the
package of Debian, installed by apt-get if the user is root. The headless variant is preferred, because it is smaller.
"""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Playwright as AsyncPlaywright
from playwright.sync_api import Playwright

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",  # necessary if the user is root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    # Only the page under test can use the network.
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A page that a test serves under the name of another site shows the page of this machine in a frame.
    "--disable-features=LocalNetworkAccessChecks",
)


def launch_args(playwright: Playwright | AsyncPlaywright) -> dict[str, Any]:
    """Return arguments for ``playwright.chromium.launch``. Fails the test if there is no browser."""
    return {"executable_path": str(_find(Path(playwright.chromium.executable_path))), "args": list(FLAGS)}


def _find(own: Path) -> Path:
    if chosen := os.environ.get("CHROME"):
        if not Path(chosen).is_file():
            pytest.fail(f"CHROME is {chosen!r}, which is no file. Set it to the path of a Chromium.", pytrace=False)
        return Path(chosen)
    if _runs(own) or (_download() and _runs(own)):
        # .../chromium-1255/chrome-linux64/chrome has a sibling .../chromium_headless_shell-1255/*/chrome-headless-shell
        build = own.parents[1].name.removeprefix("chromium-")
        shells = own.parents[2].glob(f"chromium_headless_shell-{build}/*/chrome-headless-shell")
        return next((shell for shell in shells if _runs(shell)), own)
    if found := _on_path() or (_apt_get() and _on_path()):
        return found
    pytest.fail("There is no browser. Install Chromium, or set CHROME to the path of one.", pytrace=False)


def _runs(path: Path) -> bool:
    """Return whether the file exists and its system libraries are installed."""
    return path.is_file() and (sys.platform != "linux" or _succeeds(str(path), "--version", seconds=30))


def _on_path() -> Path | None:
    return next((Path(path) for name in NAMES if (path := shutil.which(name))), None)


@cache
def _download() -> bool:
    return _succeeds(sys.executable, "-m", "playwright", "install", "chromium", seconds=120)


@cache
def _apt_get() -> bool:
    if not (shutil.which("apt-get") and os.geteuid() == 0):
        return False
    if not _succeeds("apt-get", "update", seconds=120):
        return False
    install = ("apt-get", "install", "-y", "--no-install-recommends")
    # The first package is newer; old versions of Debian do not have it.
    return any(_succeeds(*install, name, seconds=600) for name in ("chromium-headless-shell", "chromium"))


def _succeeds(*command: str, seconds: float) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=seconds, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
