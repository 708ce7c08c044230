"""Files of strangers fill neither the memory nor the disk."""

import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient

from granite_demo.errors import NO_SPACE
from granite_demo.server import uploads
from granite_demo.server.app import create_app
from granite_demo.server.route_table import MAX_UPLOAD
from granite_demo.server.route_table import UPLOAD as UPLOADS
from granite_demo.server.run import running
from granite_demo.server.uploads import sweep
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


def test_t12_an_upload_that_is_broken_off_leaves_nothing(url: str, folder: Path, tmp_path: Path) -> None:
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as connection:
        head = (
            f"POST {UPLOADS} HTTP/1.1\r\nhost: x\r\ncontent-length: {2**20}\r\ncontent-type: {HEADERS['content-type']}"
        )
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


@pytest.mark.parametrize("limit", ["bytes", "files", "half of the disk"])
def test_t12_of_too_many_files_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    now = time.time()
    for age, name in enumerate(("tmp0", "tmp1", "own", "other")):
        (tmp_path / name).write_bytes(b"0123456789")
        os.utime(tmp_path / name, (now - age, now - age))
    taken = uploads._taken((tmp_path / "own").stat())
    assert taken > 4096, "a file takes a block and a folder"
    if limit == "bytes":
        monkeypatch.setattr(uploads, "MAX_UPLOADED", int(2.5 * taken))
    elif limit == "files":
        monkeypatch.setattr(uploads, "MAX_KEPT_FILES", 2)
    else:
        monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=int(1.9 * taken)))
    own, missing = str(tmp_path / "own"), str(tmp_path / "missing")
    assert sweep(tmp_path, frozenset({own, missing})) == {own, missing}
    assert {path.name for path in tmp_path.iterdir()} == {"tmp0", "tmp1", "other"}


def test_m1_many_small_files_leave_no_folders(folder: Path, backend: FakeBackend) -> None:
    with TestClient(create_app(backend)) as client:
        for start in range(0, 1000, 50):
            files = [("files", (f"{number}.txt", str(number).encode())) for number in range(start, start + 50)]
            paths = client.post(UPLOADS, files=files).json()
            assert len(paths) == 50
        assert len(files_in(folder)) <= uploads.MAX_KEPT_FILES + 50
        assert len(list(folder.iterdir())) <= uploads.MAX_KEPT_FILES + 50
        for path in files_in(folder):
            os.utime(path, (0, 0))
        client.post(UPLOADS, files={"files": ("last.txt", b"last")})
        assert [path.parent for path in files_in(folder)] == list(folder.iterdir())
        assert client.post(UPLOADS, files=[("files", (f"{n}.txt", b"x")) for n in range(51)]).status_code == 400


@pytest.mark.parametrize("moment", ["write", "flush"])
def test_m2_a_full_disk_is_an_error_that_leaves_nothing(
    folder: Path, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    full = True

    class File:
        """A file on a full disk."""

        def __init__(self, **options: Any) -> None:
            self._file = NamedTemporaryFile(**options)  # noqa: SIM115
            self.name = self._file.name

        def write(self, data: bytes) -> int:
            if full and moment == "write":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self._file.write(data)

        def seek(self, place: int) -> int:
            if full and moment == "flush":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self._file.seek(place)

        def close(self) -> None:
            self._file.close()
            if full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("granite_demo.ui.gradio_patches.files.route_utils.NamedTemporaryFile", File)
    with TestClient(create_app(backend)) as client:
        answer = client.post(UPLOADS, files={"files": ("mine.txt", b"mine")})
        assert (answer.status_code, answer.json()) == (507, {"error": NO_SPACE})
        assert files_in(folder) == []
        full = False
        assert client.post(UPLOADS, files={"files": ("mine.txt", b"mine")}).status_code == 200
    assert not caplog.records
