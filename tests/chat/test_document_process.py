"""Files in a child process: what it reads, and its end."""

import asyncio
import sys
import time
from pathlib import Path

import psutil
import pytest

from granite_demo.chat import document_process
from granite_demo.chat.document_process import read_in_child
from granite_demo.errors import InvalidRequestError
from granite_demo.types.messages import Document
from tests.chat.test_documents import pdf, word


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A PDF."""
    file = tmp_path / "a.pdf"
    file.write_bytes(pdf("the text"))
    return file


def hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_process, "_START", "while True: pass")


def children() -> int:
    return len(psutil.Process().children())


async def test_a_file_is_read_and_an_error_is_that_of_the_reader(path: Path) -> None:
    assert await read_in_child(path, "/x/a.pdf", "ann") == Document("a.pdf", "the text")
    (path.parent / "a.docx").write_bytes(word("one", "two"))
    assert (await read_in_child(path.parent / "a.docx", "a.docx", "ann")).text == "one\n\ntwo"
    with pytest.raises(InvalidRequestError, match="no longer on the server"):
        await read_in_child(path.parent / "gone.pdf", "gone.pdf", "ann")


async def test_a_reader_that_hangs_is_ended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    hanging(monkeypatch)
    monkeypatch.setattr(document_process, "CHILD_SECONDS", 0.3)
    with pytest.raises(InvalidRequestError, match="takes too long"):
        await read_in_child(path, "a.pdf", "ann")
    assert children() == before
    assert not document_process._running


async def test_a_reader_that_ends_without_an_answer_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for start in ("import os; os.abort()", "print([1])", "x = bytearray(10**12)"):
        monkeypatch.setattr(document_process, "_START", start)
        with pytest.raises(InvalidRequestError, match="cannot be read here"):
            await read_in_child(path, "a.pdf", "ann")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
async def test_a_reader_has_a_limit_of_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = "Document('a.pdf', str(len(bytearray({} * process.CHILD_BYTES // 10))))"
    for tenths, is_read in ((1, True), (20, False)):
        reader = f"process.read_document = lambda *order: {large.format(tenths)}; process.main()"
        imports = "from granite_demo.chat import document_process as process; Document = process.Document"
        monkeypatch.setattr(
            document_process, "_START", f"import sys; sys.path.insert(0, sys.argv[1]); {imports}; {reader}"
        )
        if is_read:
            assert (await read_in_child(path, "a.pdf", "ann")).text == str(document_process.CHILD_BYTES // 10)
        else:
            with pytest.raises(InvalidRequestError, match="cannot be read here"):
                await read_in_child(path, "a.pdf", "ann")


async def test_an_event_that_is_cancelled_ends_its_reader(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    hanging(monkeypatch)
    task = asyncio.create_task(read_in_child(path, "a.pdf", "ann"))
    while children() == before:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert children() == before


async def test_one_visitor_reads_one_file_at_a_time_and_all_read_three(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging(monkeypatch)
    monkeypatch.setattr(document_process, "CHILD_TURN_SECONDS", 0.2)
    monkeypatch.setattr(document_process, "CHILD_SECONDS", 1.0)
    start = time.monotonic()
    visitors = ("ann", "ann", "bob", "cid", "dan")
    done = await asyncio.gather(*(read_in_child(path, "a.pdf", one) for one in visitors), return_exceptions=True)
    assert ["busy" in str(error) for error in done] == [False, True, False, False, True]
    assert time.monotonic() - start < 10
