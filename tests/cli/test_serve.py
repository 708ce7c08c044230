"""``serve``: what a server keeps to itself, and what it says when it is ready."""

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from socket import socket

import pytest
from rich.console import Console

from granite_demo.backends.limited import LimitedBackend
from granite_demo.cli import serve
from granite_demo.errors import ConfigurationError
from granite_demo.hub import download
from granite_demo.server import run as server_run
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


def test_t15_no_child_process_of_a_server_inherits_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRET_VARIABLES:
        monkeypatch.setenv(name, "canary:canary")
    monkeypatch.setenv("GRANITE_DEMO_LOG_LEVEL", "error")
    monkeypatch.setattr(download, "_tokens", [])
    inherited: dict[str, str] = {}

    def bind(*values: object) -> None:
        show = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
        inherited.update(json.loads(subprocess.run(show, capture_output=True, check=True, timeout=60).stdout))
        raise ConfigurationError("enough")

    monkeypatch.setattr(server_run, "bind", bind)
    settings = Settings.resolve({})
    with pytest.raises(ConfigurationError, match="enough"):
        serve.run_server(settings, Console(file=StringIO()))
    assert inherited["GRANITE_DEMO_LOG_LEVEL"] == "error"
    assert [name for name, value in inherited.items() if "canary" in value] == []
    assert (settings.admin_token, settings.beside_key) == ("canary:canary", "canary:canary")
    assert download._tokens == ["canary:canary"]


def test_t14_the_link_is_shown_and_everybody_who_uses_it_has_public_limits(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served: list[LimitedBackend] = []

    def serve_app(app: object, limited: LimitedBackend, listener: socket, announce: Callable[[], None]) -> None:
        announce()
        served.append(limited)
        listener.close()

    monkeypatch.setattr(share, "share_link", lambda port, folder: "https://a.example")
    monkeypatch.setattr(server_run, "serve", serve_app)
    monkeypatch.setattr(serve, "opened_backend", lambda *values: backend)
    console = Console(file=StringIO(), width=200)
    settings = Settings.resolve({"share": "yes", "port": 0, "cache_dir": tmp_path}, {})
    serve.run_server(settings, console)
    assert "Anyone who has this link can use the page: https://a.example" in console.file.getvalue()  # type: ignore[attr-defined]
    assert served[0]._limits == PUBLIC_LIMITS


def test_the_model_loads_before_the_page_is_imported_and_a_failure_ends_it(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def fail(*values: object) -> None:
        steps.append("page")
        assert not gc.isenabled()
        raise ConfigurationError("enough")

    monkeypatch.setattr(backend, "start", lambda: steps.append("start"))
    monkeypatch.setattr(backend, "close", lambda: steps.append("close"))
    monkeypatch.setattr(serve, "opened_backend", lambda *values: backend)
    monkeypatch.setattr(serve, "_application", fail)
    with pytest.raises(ConfigurationError, match="enough"):
        serve.run_server(Settings.resolve({"port": 0}, {}), Console(file=StringIO()))
    assert steps == ["start", "page", "close"]
    assert gc.isenabled()


def test_the_model_loads_before_the_page_is_imported() -> None:
    code = (
        "import sys\nimport granite_demo.cli.serve, granite_demo.server.run\n"
        "sys.exit([name for name in ('torch', 'transformers', 'gradio', 'fastapi') if name in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
