"""``serve``: what a server keeps to itself, and what it says when it is ready."""

import json
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from socket import socket
from typing import cast

import pytest
from rich.console import Console

from granite_demo.backends.limited import LimitedBackend
from granite_demo.backends.local import LocalBackend
from granite_demo.cli.serve import run_server
from granite_demo.errors import ConfigurationError
from granite_demo.hub import download
from granite_demo.server import run
from granite_demo.server.policy import PUBLIC_LIMITS
from granite_demo.settings import Settings
from granite_demo.ui.gradio_patches import share
from tests.fakes import FakeBackend

SECRET_VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "GRANITE_DEMO_ADMIN_TOKEN",
    "GRANITE_DEMO_API_KEY",
    "GRANITE_DEMO_LOGIN",
    "GRANITE_DEMO_BACKEND_KEY",
    "GRANITE_DEMO_BESIDE_KEY",
)
"""Written by hand: the list that the server uses is the one that this test checks."""


def test_t15_no_child_process_of_a_server_inherits_a_secret(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SECRET_VARIABLES:
        monkeypatch.setenv(name, "canary:canary")
    monkeypatch.setenv("GRANITE_DEMO_LOG_LEVEL", "error")
    monkeypatch.setattr(download, "_tokens", [])
    inherited: dict[str, str] = {}

    def bind(*values: object) -> None:
        show = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
        inherited.update(json.loads(subprocess.run(show, capture_output=True, check=True, timeout=60).stdout))
        raise ConfigurationError("enough")

    monkeypatch.setattr(run, "bind", bind)
    settings = Settings.resolve({})
    with pytest.raises(ConfigurationError, match="enough"):
        run_server(settings, Console(file=StringIO()), lambda *values: cast(LocalBackend, backend))
    assert inherited["GRANITE_DEMO_LOG_LEVEL"] == "error"
    assert [name for name, value in inherited.items() if "canary" in value] == []
    assert (settings.admin_token, settings.beside_key) == ("canary:canary", "canary:canary")
    assert download._tokens == ["canary:canary"]


def test_t14_a_link_is_told_and_whoever_comes_by_it_has_the_limits_of_strangers(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served: list[LimitedBackend] = []

    def serve(
        app: object, limited: LimitedBackend, listener: socket, announce: Callable[[], None], proxies: str
    ) -> None:
        announce()
        served.append(limited)
        listener.close()

    monkeypatch.setattr(share, "share_link", lambda port, folder: "https://a.example")
    monkeypatch.setattr(run, "serve", serve)
    console = Console(file=StringIO(), width=200)
    settings = Settings.resolve({"share": "yes", "port": 0, "cache_dir": tmp_path}, {})
    run_server(settings, console, lambda *values: cast(LocalBackend, backend))
    assert "Whoever has this link can use it: https://a.example" in console.file.getvalue()  # type: ignore[attr-defined]
    assert served[0]._limits == PUBLIC_LIMITS
