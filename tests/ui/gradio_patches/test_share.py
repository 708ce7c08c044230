"""A link through which others reach this machine."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from gradio import networking

from granite_demo.errors import ConfigurationError
from granite_demo.settings import Settings
from granite_demo.ui.gradio_patches.share import share_link
from tests.ui.gradio_patches.contract import differs


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


def test_contract_the_tunnel_writes_its_certificate_to_a_path_of_the_module() -> None:
    what = "networking.setup_tunnel(host, port, token, server, certificate) writes to CERTIFICATE_PATH"
    tunnel = inspect.unwrap(networking.setup_tunnel)
    assert "CERTIFICATE_PATH" in tunnel.__code__.co_names, differs(what, "networking.py", "share.py")
    assert len(inspect.signature(tunnel).parameters) == 5, differs(what, "networking.py", "share.py")


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
