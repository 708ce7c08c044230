"""A browser names no file and no address, and an event that does not exist is not found."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio import processing_utils, route_utils, utils
from gradio.context import LocalContext
from gradio.data_classes import PredictBodyInternal
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from granite_demo.chat import conversation as conversations
from granite_demo.server.app import create_app
from granite_demo.server.run import running
from granite_demo.ui.gradio_patches.files import uploads_of
from tests.fakes import FakeBackend
from tests.threats.stranger import EMPTY, Stranger
from tests.ui.gradio_patches.contract import differs

DOWNLOAD = "async_ssrf_protected_download"


@pytest.fixture(scope="module")
def stranger() -> Iterator[Stranger]:
    backend = FakeBackend()
    with running(create_app(backend), backend) as url, Stranger(base_url=url) as http:
        http.config = http.get("/config").json()
        yield http


def file(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def carrying(path: str) -> dict[str, Any]:
    """A conversation with a file hidden in it."""
    conversation = conversations.add(conversations.start(), "user", content="Hi")
    conversation = conversations.add(conversation, "assistant", content="Ho", made={"file": file(path)})
    return conversations.dump(conversation)


def test_a_file_that_was_uploaded_becomes_a_document(stranger: Stranger) -> None:
    [path] = stranger.post("/gradio_api/upload", files={"files": ("mine.txt", b"my own words")}).json()
    response = stranger.call("add_files", [EMPTY, [file(path)]])
    assert response.status_code == 200
    assert "my own words" in response.text


def test_no_other_file_of_the_machine_is_read(stranger: Stranger, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("canary-of-the-server")
    answers = [
        stranger.call("add_files", [EMPTY, [file(str(secret))]]),
        stranger.call("earlier", [carrying(str(secret))]),
        stranger.call("earlier", [carrying("/proc/self/environ")]),
    ]
    for response in answers:
        assert response.status_code == 422
        assert "canary" not in response.text


@pytest.mark.parametrize("address", ["http://192.0.2.1/x.txt", "https://example.org/x.txt", "ftp://192.0.2.1/x"])
def test_nothing_is_downloaded(stranger: Stranger, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    async def fetch(url: str, cache_dir: str) -> str:
        fetched.append(url)
        raise OSError

    monkeypatch.setattr(processing_utils, DOWNLOAD, fetch)
    assert stranger.call("add_files", [EMPTY, [file(address)]]).status_code == 422
    assert stranger.call("earlier", [carrying(address)]).status_code == 422
    assert fetched == []


@pytest.mark.parametrize("way", ["queue/join", "run/predict"])
@pytest.mark.parametrize("named", [{"fn_index": 9999}, {"fn_index": -1}])
def test_an_event_that_the_page_does_not_have_is_not_found(stranger: Stranger, way: str, named: dict[str, int]) -> None:
    answer = stranger.post(f"/gradio_api/{way}", json={"data": [], "session_hash": "stranger", **named})
    assert (answer.status_code, answer.json()["detail"]) == (404, "The page has no such event. Reload it.")


def test_a_direct_call_of_no_event_is_not_found(stranger: Stranger) -> None:
    assert stranger.post("/gradio_api/run/nothing", json={"data": []}).status_code == 404


def test_contract_paths_are_checked_for_a_launched_page_only(tmp_path: Path) -> None:
    page = gr.Blocks(analytics_enabled=False)
    token = LocalContext.blocks.set(page)
    try:
        assert not page.has_launched, differs("a page has not launched at first", "blocks.py", "files.py")
        processing_utils._check_allowed(tmp_path / "secret", check_in_upload_folder=True)
        page.has_launched = True
        page.allowed_paths, page.blocked_paths = [], []
        with pytest.raises(gr.exceptions.InvalidPathError):
            processing_utils._check_allowed(tmp_path / "secret", check_in_upload_folder=True)
    finally:
        LocalContext.blocks.reset(token)


async def test_contract_a_component_downloads_what_looks_like_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    async def fetch(url: str, cache_dir: str) -> str:
        fetched.append(url)
        return "downloaded"

    monkeypatch.setattr(processing_utils, DOWNLOAD, fetch)
    box = gr.Textbox(render=False)
    assert await box.async_move_resource_to_block_cache("https://example.org/x.txt") == "downloaded"
    assert fetched, differs("Block.async_move_resource_to_block_cache downloads an address", "blocks.py", "files.py")


@pytest.mark.parametrize(("number", "error"), [(9999, KeyError), (-1, KeyError), (None, route_utils.FnIndexInferError)])
def test_contract_an_unknown_event_raises(number: int | None, error: type[Exception]) -> None:
    body = PredictBodyInternal(data=[], fn_index=number, request=None)
    with pytest.raises(error):
        route_utils.get_fn(gr.Blocks(analytics_enabled=False), "nothing", body)


def test_contract_uploads_have_a_folder_and_a_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    page = gr.Blocks(analytics_enabled=False)
    what = "Blocks.upload_file_set is the set of complete uploads below utils.get_upload_folder()"
    assert uploads_of(page) == (tmp_path, set()), differs(what, "blocks.py and utils.py", "files.py")
    assert page.upload_file_set in page.temp_file_sets, differs(what, "blocks.py", "files.py")
    assert utils.get_upload_folder() == os.fspath(tmp_path)


def test_contract_an_upload_that_a_disconnect_ends_is_left_on_the_disk(tmp_path: Path) -> None:
    async def interrupted() -> Any:
        yield b'--bound\r\ncontent-disposition: form-data; name="files"; filename="a.txt"\r\n\r\nsome'
        raise ClientDisconnect

    headers = Headers({"content-type": "multipart/form-data; boundary=bound"})
    parser = route_utils.GradioMultiPartParser(headers, interrupted(), upload_dir=str(tmp_path), max_file_size=100)
    with pytest.raises(ClientDisconnect):
        asyncio.run(parser.parse())
    left = list(tmp_path.iterdir())
    for open_file in parser._files_to_close_on_error:
        open_file.close()
    assert left, differs("GradioMultiPartParser.parse leaves files after a disconnect", "route_utils.py", "files.py")
