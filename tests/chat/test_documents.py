"""Tests for the conversion of files to documents, with valid and damaged files."""

import io
import logging
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from granite_demo.chat import documents
from granite_demo.chat.documents import MAX_DOCUMENT, MAX_DOCUMENTS, MAX_TITLE, add, check, paste, read_document
from granite_demo.errors import InvalidRequestError
from granite_demo.types.messages import Document

Read = Callable[[str, bytes], Document]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Return a function that reads bytes as a file with a given name."""

    def read_bytes(name: str, data: bytes) -> Document:
        path = tmp_path / "upload"
        path.write_bytes(data)
        return read_document(path, name)

    return read_bytes


def pdf(*pages: str, password: str = "") -> bytes:
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        }
    )
    fonts = DictionaryObject({NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})})
    for text in pages:
        page = writer.add_blank_page(300, 300)
        stream = DecodedStreamObject()
        lines = " T* ".join(f"({line}) Tj" for line in text.split("\n")) if text else ""
        stream.set_data(f"BT /F1 12 Tf 14 TL 20 200 Td {lines} ET".encode("latin-1"))
        page[NameObject("/Resources")] = fonts
        page[NameObject("/Contents")] = writer._add_object(stream)
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    target = io.BytesIO()
    writer.write(target)
    return target.getvalue()


def word(*paragraphs: str, rows: tuple[tuple[str, ...], ...] = ()) -> bytes:
    import docx

    document = docx.Document()
    for text in paragraphs:
        document.add_paragraph(text)
    if rows:
        table = document.add_table(len(rows), len(rows[0]))
        for y, row in enumerate(rows):
            for x, text in enumerate(row):
                table.cell(y, x).text = text
    target = io.BytesIO()
    document.save(target)
    return target.getvalue()


def archive(members: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return target.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        "Größe: 5 €\nzwei".encode(),
        "\ufeffGröße: 5 €\r\nzwei".encode(),
        "Größe: 5 €\rzwei".encode("utf-16"),
        b"\xfe\xff" + "Größe: 5 €\nzwei".encode("utf-16-be"),
        "Größe: 5 €\nzwei\n\n".encode("cp1252"),
    ],
    ids=["utf-8", "utf-8 with mark", "utf-16", "utf-16 big", "cp1252"],
)
def test_text_in_every_common_encoding(read: Read, data: bytes) -> None:
    assert read("a.txt", data) == Document("a.txt", "Größe: 5 €\nzwei")


def test_bytes_that_are_not_in_any_encoding_are_still_text(read: Read) -> None:
    assert read("a.md", b"# caf\xe9 \x81").text == "# café \x81"


@pytest.mark.parametrize("name", ["notes.MD", r"C:\notes\notes.MD", "../../notes.MD", "notes.\x00MD"])
def test_the_title_is_the_name_of_the_file(read: Read, name: str) -> None:
    assert read(name, b"text").title == "notes.MD"


def test_a_long_name_keeps_its_suffix(read: Read) -> None:
    title = read("x" * 500 + ".txt", b"text").title
    assert len(title) == MAX_TITLE
    assert title.endswith("x.txt")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"name,age\nAnna,30\nBob,\n\n", "- name: Anna; age: 30\n- name: Bob"),
        (b"name;age\nAnna;30\n", "- name: Anna; age: 30"),
        (b'name\tnote\nAnna\t"two\nlines"\n', "- name: Anna; note: two lines"),
        (b"1,2\n3,4\n", "- 1; 2\n- 3; 4"),
        (b"a,b\n1,2,3\n", "- a: 1; b: 2; 3"),
        (b"a,a\n1,2\n", "- a; a\n- 1; 2"),
        (b"only,names\n", "- only; names"),
    ],
    ids=["commas", "semicolons", "tabs", "no names", "longer row", "no names if the same", "one row"],
)
def test_a_csv_row_has_the_names_of_its_columns(read: Read, data: bytes, expected: str) -> None:
    assert read("table.csv", data).text == expected


def test_a_csv_that_cannot_be_read_raises(read: Read) -> None:
    with pytest.raises(InvalidRequestError, match=r"is damaged, or it is not a \.csv file"):
        read("table.csv", b'a,"' + b"x" * 200_000 + b'"')


def test_a_pdf_with_pages(read: Read) -> None:
    assert read("a.pdf", pdf("Page one.\nIts second line.", "", "Page three.")).text == (
        "Page one.\nIts second line.\n\nPage three."
    )


def test_word_with_a_table(read: Read) -> None:
    data = word("First.", "", "Second.", rows=(("name", "age"), ("Anna", "30"), ("", "")))
    assert read("a.docx", data).text == "First.\n\nSecond.\n\n- name | age\n- Anna | 30"


def test_a_cell_that_claims_to_span_a_billion_columns_is_read_once(read: Read) -> None:
    data = word(rows=(("wide",),))
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    body = members["word/document.xml"]
    members["word/document.xml"] = body.replace(b"<w:tcPr>", b'<w:tcPr><w:gridSpan w:val="1000000000"/>')
    assert members["word/document.xml"] != body
    assert read("a.docx", archive(members)).text == "- wide"


BOMB = archive({"word/document.xml": b"0" * (documents.MAX_UNPACKED_BYTES + 1)})


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n ", "has no readable text"),
        ("a.txt", bytes(range(256)) * 4, "is not a text file"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\x00\x00", "is not a text file"),
        ("a.txt", b"\xff\xfe\x00\x01\x00", "is not a text file"),
        ("a.txt", b"long text " * 100 + b"\x00", "is not a text file"),
        ("a.md", b"%PDF-1.7 ...", "Rename it so that it ends in .pdf"),
        ("a.csv", b"a,\x00b\n", "is not a text file"),
        ("a.csv", b",,\n,,\n", "has no readable text"),
        ("a.pdf", b"plain text", "is not a PDF"),
        ("a.pdf", b"%PDF-1.7 and nothing", r"is damaged, or it is not a .pdf"),
        ("a.pdf", pdf("", ""), "scan"),
        ("a.pdf", pdf("secret", password="sesame"), "has a password"),
        ("a.docx", b"plain text", "is not a Word file"),
        ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1", "has a password, or is an old Word file"),
        ("a.docx", b"PK\x03\x04 torn", r"is damaged, or it is not a .docx"),
        ("a.docx", archive({"a.txt": b"text"}), "is not a Word file"),
        ("a.docx", archive({"word/document.xml": b"<a/>"}), r"is damaged, or it is not a .docx"),
        ("a.docx", BOMB, "unpacks to more than 30 MB"),
        ("a.docx", word(), "has no readable text"),
        ("a.exe", b"text", "ends in .txt, .md, .csv, .pdf or .docx"),
        ("", b"text", "Document cannot be read"),
    ],
)
def test_a_bad_file_raises_with_its_name_and_what_to_do(read: Read, name: str, data: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        read(name, data)
    assert caught.value.user_text.startswith(name or "Document")
    assert ". " in caught.value.user_text


def test_a_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no longer on the server"):
        read_document(tmp_path / "gone", "a.txt")


def test_a_file_over_the_limit_is_not_read(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequestError, match=r"has 10\.0 MB; the limit is 10 MB"):
        read("a.txt", b"x" * (documents.MAX_FILE_BYTES + 1))


def test_too_many_characters_raise_with_the_number(read: Read) -> None:
    assert len(read("a.txt", b"x" * MAX_DOCUMENT).text) == MAX_DOCUMENT
    with pytest.raises(InvalidRequestError, match="more than 200,000 characters"):
        read("a.txt", b"x" * (MAX_DOCUMENT + 1))


def test_too_many_pages_raise_with_the_number(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_PAGES", 2)
    with pytest.raises(InvalidRequestError, match="has 3 pages; the limit is 2"):
        read("a.pdf", pdf("a", "b", "c"))


@pytest.mark.parametrize(("name", "data"), [("a.pdf", pdf("one", "two")), ("a.docx", word("one", "two"))])
def test_a_file_that_takes_too_long_raises(read: Read, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes) -> None:
    monkeypatch.setattr(documents, "FILE_SECONDS", -1)
    with pytest.raises(InvalidRequestError, match="takes too long"):
        read(name, data)


def test_the_time_limit_applies_inside_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "FILE_SECONDS", -1)
    assert list(documents.READERS[".pdf"]("a.pdf", pdf("a page that is never read"))) == [""]


def test_flaws_of_a_pdf_are_not_logged(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    data = pdf("text").replace(b"startxref\n", b"startxref\n9")
    with caplog.at_level(logging.DEBUG):
        assert read("a.pdf", data).text == "text"
    assert [record for record in caplog.records if record.name.startswith("pypdf")] == []


@settings(deadline=None)  # the first file of a type imports its library
@given(st.sampled_from(sorted(documents.READERS)), st.binary(max_size=300))
def test_no_bytes_raise_another_error(tmp_path_factory: pytest.TempPathFactory, suffix: str, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "upload"
    for start in (b"", b"%PDF-1.4\n", b"PK\x03\x04"):
        path.write_bytes(start + data)
        with suppress(InvalidRequestError):
            assert read_document(path, f"a{suffix}").text


def test_pasted_text() -> None:
    assert paste(" My\nnotes ", "one\r\ntwo ") == Document("My notes", "one\ntwo")
    assert paste(None, "text").title == "Pasted text"


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_an_empty_text_raises(text: str | None) -> None:
    with pytest.raises(InvalidRequestError, match="no text to add"):
        paste("title", text)


def test_a_text_that_is_too_long_raises() -> None:
    with pytest.raises(InvalidRequestError, match="more than 200,000 characters"):
        paste("title", "x" * (MAX_DOCUMENT + 1))


def test_added_documents_have_unique_titles() -> None:
    present: tuple[Document, ...] = ()
    for title in ("a", "a", "b", "a"):
        present = add(present, Document(title, "text"))
    assert [document.title for document in present] == ["a", "a (2)", "b", "a (3)"]


def test_the_limit_for_the_number_of_documents() -> None:
    full = [Document(str(number), "text") for number in range(MAX_DOCUMENTS)]
    check(full)
    with pytest.raises(InvalidRequestError, match="At most 16 documents"):
        add(full, Document("one more", "text"))


def test_the_limit_for_all_documents_together() -> None:
    half = "x" * MAX_DOCUMENT
    two = add(add((), Document("a", half)), Document("b", half))
    with pytest.raises(
        InvalidRequestError, match="With c, the documents have 400,001 characters together; the limit is"
    ):
        add(two, Document("c", "x"))


def test_a_document_that_is_too_long_raises() -> None:
    with pytest.raises(InvalidRequestError, match="long has more than 200,000"):
        check([Document("a", "text"), Document("long", "x" * (MAX_DOCUMENT + 1))])
