"""Tests that hostile files raise before they use much memory or time."""

import io
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from granite_demo.chat import documents
from granite_demo.chat.documents import read_document
from granite_demo.errors import InvalidRequestError
from granite_demo.types.messages import Document
from tests.chat.test_documents import Read, archive, pdf, word


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Return a function that reads bytes as a file with a given name."""

    def read_bytes(name: str, data: bytes) -> Document:
        path = tmp_path / "upload"
        path.write_bytes(data)
        return read_document(path, name)

    return read_bytes


def with_body(body: bytes, member: str = "word/document.xml") -> bytes:
    """Return a Word file with ``body`` inside the tags of its text, or inside another member."""
    with zipfile.ZipFile(io.BytesIO(word("text"))) as file:
        members = {name: file.read(name) for name in file.namelist()}
    start, tag, end = members[member].partition(b"<w:body>" if member == "word/document.xml" else b">")
    members[member] = start + tag + body + end
    return archive(members)


@pytest.mark.parametrize(
    "data",
    [
        with_body(b"<w:p/>" * 300_000 + b"<w:tbl>" + b"<w:tr/>" * 210_000 + b"</w:tbl>"),
        with_body(b"<w:p " + b" ".join(b'a%x=""' % number for number in range(510_000)) + b"/>"),
        with_body(b"<w:p/>" * 510_000, "word/styles.xml"),
    ],
    ids=["tags", "attributes", "in another member"],
)
def test_a_word_file_with_many_parts_is_not_parsed(read: Read, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("docx.Document", lambda _: pytest.fail("parsed"))
    with pytest.raises(InvalidRequestError, match="too many parts"):
        read("a.docx", data)


def test_tags_that_an_encoding_hides_raise(read: Read) -> None:
    for space in (b" ", b" " * 5000):
        text = b'<?xml version="1.0"' + space + b'encoding="UTF-7"?>+ADw-a/+AD4-'
        with pytest.raises(InvalidRequestError, match=r"is damaged, or it is not a \.docx"):
            read("a.docx", archive({"word/document.xml": text}))


@pytest.mark.parametrize(
    "pages", [["x" * documents.MAX_PAGE_BYTES], ["x) Tj (" * 100_000], ["x" * 500] * 3], ids=["page", "parts", "all"]
)
def test_a_pdf_that_is_too_complex_raises(read: Read, monkeypatch: pytest.MonkeyPatch, pages: list[str]) -> None:
    if len(pages) > 1:
        monkeypatch.setattr(documents, "MAX_PDF_BYTES", 1500)
        assert read("a.pdf", pdf(*pages[:2]))
    with pytest.raises(InvalidRequestError, match="too complex"):
        read("a.pdf", pdf(*pages))


@pytest.mark.parametrize(
    "data", [b"a\n" * 4_900_000, b"\n" * 4_900_000, b"," * 4_900_000], ids=["rows", "blank", "cells"]
)
def test_a_long_table_uses_little_memory(read: Read, data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequestError, match="more than 200,000 characters"):
            read("a.csv", data)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data)
    finally:
        tracemalloc.stop()


def test_the_length_is_checked_at_each_row(read: Read) -> None:
    start = time.thread_time()
    with pytest.raises(InvalidRequestError, match="more than 200,000 characters"):
        # Each row repeats the name of its column.
        read("a.csv", b"n" * 100_000 + b"\n" + b"1\n" * 100_000)
    assert time.thread_time() - start < 2


def test_a_word_file_with_many_parts_is_not_read(read: Read) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for number in range(documents.MAX_MEMBERS + 1):
            file.writestr(f"word/{number}.xml", "<x/>")
    start = time.thread_time()
    with pytest.raises(InvalidRequestError, match="more than 2,000 parts"):
        read("a.docx", data.getvalue())
    assert time.thread_time() - start < 1
