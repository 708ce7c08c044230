"""Files of strangers fill neither the memory nor the disk."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient

from granite_demo.server import uploads
from granite_demo.server.app import create_app
from granite_demo.server.run import running
from granite_demo.server.uploads import MAX_UPLOAD, UPLOADS, sweep
from tests.fakes import FakeBackend

BOUNDARY = "bound"
HEADERS = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
PIECE = b"x" * 2**20


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Gradio writes what is uploaded."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return tmp_path / "gradio"


@pytest.fixture
def url(folder: Path, backend: FakeBackend) -> Iterator[str]:
    with running(create_app(backend), backend) as url:
        yield url


def part(name: str, content: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="files"{name}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def endless(file_name: str) -> Iterator[bytes]:
    """More than may come: files of 8 MB, or one field that is no file."""
    if not file_name:
        yield part("", b"")[:-2]
    for _ in range(MAX_UPLOAD // 2**20 + 1):
        yield part(file_name, PIECE) if file_name else PIECE


@pytest.mark.parametrize("file_name", ['; filename="a.txt"', ""], ids=["files", "a field"])
def test_t05_t12_an_upload_without_an_end_is_refused_and_leaves_nothing(url: str, folder: Path, file_name: str) -> None:
    # Whoever goes on sending may find the connection closed instead.
    try:
        answer = httpx.post(url + UPLOADS, content=endless(file_name), headers=HEADERS, timeout=30)
        assert answer.status_code == 413
    except httpx.TransportError:
        pass
    assert files_in(folder) == []
    assert httpx.get(f"{url}/health").status_code == 200


def test_t12_the_length_alone_is_enough_to_refuse(url: str, folder: Path) -> None:
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as connection:
        head = f"POST {UPLOADS} HTTP/1.1\r\nhost: x\r\ncontent-length: {MAX_UPLOAD + 1}\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("path", [UPLOADS, "/gradio_api/component_server"])
def test_t12_an_upload_that_is_broken_off_leaves_nothing(
    url: str, folder: Path, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(other))
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as connection:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {2**20}\r\ncontent-type: {HEADERS['content-type']}"
        connection.sendall(f"{head}\r\n\r\n".encode() + part('; filename="a.txt"', b"some"))
        deadline = time.monotonic() + 10
        while not files_in(tmp_path):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    while files_in(tmp_path):
        assert time.monotonic() < deadline, files_in(tmp_path)
        time.sleep(0.02)


def test_t12_what_was_left_goes_before_the_next_upload(folder: Path, backend: FakeBackend) -> None:
    folder.mkdir()
    old, new = folder / "tmpold", folder / "tmpnew"
    for path in (old, new):
        path.write_bytes(b"left")
    os.utime(old, (0, 0))
    with TestClient(create_app(backend)) as client:
        [first] = client.post(UPLOADS, files={"files": ("mine.txt", b"first")}).json()
        assert (old.exists(), new.exists()) == (False, True)
        os.utime(first, (0, 0))
        [second] = client.post(UPLOADS, files={"files": ("mine.txt", b"second")}).json()
        assert (Path(first).exists(), Path(second).exists()) == (False, True)


def test_t12_of_too_many_files_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_UPLOADED", 25)
    now = time.time()
    for age, name in enumerate(("tmp0", "tmp1", "own", "other")):
        (tmp_path / name).write_bytes(b"0123456789")
        os.utime(tmp_path / name, (now - age, now - age))
    own, missing = str(tmp_path / "own"), str(tmp_path / "missing")
    assert sweep(tmp_path, frozenset({own, missing})) == {own, missing}
    assert {path.name for path in tmp_path.iterdir()} == {"tmp0", "tmp1", "other"}
