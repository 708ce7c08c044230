"""A link through which others reach this machine."""

import os
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from socket import socket
from typing import Any, cast

import pytest
from gradio import networking
from rich.console import Console

from granite_demo.backends.limited import LimitedBackend
from granite_demo.backends.local import LocalBackend
from granite_demo.cli.serve import run_server
from granite_demo.errors import ConfigurationError
from granite_demo.hub import download
from granite_demo.server import run
from granite_demo.server.policy import PUBLIC_LIMITS
from granite_demo.settings import SECRETS, Settings
from granite_demo.ui.gradio_patches.share import share_link
from tests.fakes import FakeBackend


def test_a_link_is_made_and_nothing_written_but_to_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def tunnel(*values: Any) -> str:
        asked.append(values)
        Path(getattr(networking, "CERTIFICATE_PATH")).write_text("certificate")  # noqa: B009
        return "https://a.example"

    monkeypatch.setattr(networking, "CERTIFICATE_PATH", "unused")
    monkeypatch.setattr(networking, "setup_tunnel", tunnel)
    assert share_link(7860, tmp_path / "cache") == "https://a.example"
    share_link(7860, tmp_path / "cache")
    assert [values[:2] for values in asked] == [("127.0.0.1", 7860)] * 2
    assert len({values[2] for values in asked}) == 2, "nobody can guess an address from another"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["share-certificate.pem"]


def test_without_a_network_it_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tunnel(*values: Any) -> str:
        raise RuntimeError("Could not get share link.")

    monkeypatch.setattr(networking, "CERTIFICATE_PATH", "unused")
    monkeypatch.setattr(networking, "setup_tunnel", tunnel)
    with pytest.raises(ConfigurationError, match="Could not get share link.*without --share"):
        share_link(7860, tmp_path)


def test_t14_a_shared_page_is_public() -> None:
    assert not Settings.resolve({}, {}).public
    assert Settings.resolve({"share": "yes"}, {}).public
    assert Settings.resolve({}, {"GRANITE_DEMO_SHARE": "yes"}).public
    # Gradio's own variable makes no link.
    assert Settings.resolve({}, {"GRADIO_SHARE": "True"}).share == "no"


def test_t15_a_server_forgets_the_secrets_of_its_environment(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "secret:secret")
    left: list[str] = []
    monkeypatch.setattr(download, "_tokens", [])

    def bind(*values: object) -> None:
        left.extend(os.environ.values())
        raise ConfigurationError("enough")

    monkeypatch.setattr(run, "bind", bind)
    settings = Settings.resolve({}, os.environ)
    with pytest.raises(ConfigurationError, match="enough"):
        run_server(settings, Console(file=StringIO()), lambda *values: cast(LocalBackend, backend))
    assert settings.admin_token == "secret:secret"
    assert "secret:secret" not in left
    assert download._tokens == ["secret:secret"]


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

    monkeypatch.setattr(networking, "CERTIFICATE_PATH", "unused")
    monkeypatch.setattr(networking, "setup_tunnel", lambda *values: "https://a.example")
    monkeypatch.setattr(run, "serve", serve)
    console = Console(file=StringIO(), width=200)
    settings = Settings.resolve({"share": "yes", "port": 0, "cache_dir": tmp_path}, {})
    run_server(settings, console, lambda *values: cast(LocalBackend, backend))
    assert "Whoever has this link can use it: https://a.example" in console.file.getvalue()  # type: ignore[attr-defined]
    assert served[0]._limits == PUBLIC_LIMITS
