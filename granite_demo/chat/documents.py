"""Converts files and pasted text to documents for a model, in this process; see ``document_process``.

All files are untrusted. Their size, unpacked size, number of parts and read time are limited, and the limits are
checked before memory is allocated. Each failure becomes an InvalidRequestError that says what to do.
"""

import codecs
import contextvars
import csv
import io
import logging
import re
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from granite_demo.errors import InvalidRequestError
from granite_demo.types.messages import Document

log = logging.getLogger(__name__)

MAX_DOCUMENTS = 16
MAX_FILE_BYTES = 10_000_000
MAX_DOCUMENT = 200_000
"""The limit for one document."""
MAX_DOCUMENTS_TOTAL = 400_000
"""The limit for all documents of a conversation together."""
MAX_TITLE = 120
MAX_PAGES = 500
MAX_PAGE_BYTES, MAX_PDF_BYTES = 1_000_000, 20_000_000
"""Limits for the unpacked content of one page of a PDF and of all pages. A page of text has about 10 kB."""
MAX_PAGE_PARTS = 200_000
"""Numbers, words and commands in the content of a page. Two bytes can become an object of 500 bytes."""
MAX_UNPACKED_BYTES = 30_000_000
"""The limit for a Word file. It is a ZIP archive, and a small one can unpack to gigabytes."""
MAX_TAGS = 500_000
"""Tags and attributes in a Word file. Each uses about 140 bytes of memory."""
MAX_MEMBERS = 2_000
"""Files in a Word file. One with a picture on each page has a few hundred; python-docx takes quadratic time."""
FILE_SECONDS = 15.0
"""The time to read one file."""

_WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_ENCODED = re.compile(rb"""[^<]{0,4}<\?xml[^>]*encoding\s*=\s*["'](?!utf-?8|utf-?16|us-ascii)""", re.IGNORECASE)
"""XML in an encoding that Word does not use. Some, such as UTF-7, can hide tags."""
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_MAX_CONTROL = 0.01
"""The largest share of control characters in a text. Binary files have more."""


def read_document(path: Path, name: str) -> Document:
    """Read the file at ``path``. ``name`` is the name of the uploaded file. Raises InvalidRequestError."""
    title = title_of(name)
    suffix = Path(title).suffix.lower()
    if suffix not in READERS:
        *most, last = READERS
        kinds = f"{', '.join(most)} or {last}"
        raise InvalidRequestError(f"{title} cannot be read. Use a file that ends in {kinds}, or paste its text.")
    try:
        return Document(title, _gather(title, READERS[suffix](title, _bytes(title, path))))
    except InvalidRequestError:
        raise
    except Exception as error:  # the libraries raise many classes for a damaged file
        log.info("A %s file could not be read: %s.", suffix, type(error).__name__)
        raise InvalidRequestError(
            f"{title} is damaged, or it is not a {suffix} file. Save it again, then add it again."
        ) from None


def title_of(name: str) -> str:
    """The title of a document from the file ``name``."""
    return _title(re.split(r"[/\\]", name)[-1]) or "Document"


def _bytes(title: str, path: Path) -> bytes:
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_FILE_BYTES else b""
    except OSError:
        raise InvalidRequestError(f"{title} is no longer on the server. Add it again.") from None
    if size > MAX_FILE_BYTES:
        raise InvalidRequestError(
            f"{title} has {size / 1e6:.1f} MB; the limit is {MAX_FILE_BYTES // 1_000_000} MB. "
            "Split it, or paste the relevant part."
        )
    if not data:
        raise InvalidRequestError(f"{title} is empty. Use a file with text.")
    return data


def paste(title: str | None, text: str | None) -> Document:
    """Return a document with pasted text. Raises InvalidRequestError."""
    name = _title(title or "") or "Pasted text"
    if not (text or "").strip():
        raise InvalidRequestError("There is no text to add. Paste a text first.")
    return Document(name, _gather(name, [_newlines(text or "")]))


def add(present: Sequence[Document], new: Document) -> tuple[Document, ...]:
    """Add ``new`` to the documents ``present``, with a unique title. Raises InvalidRequestError above a limit."""
    titles = {document.title for document in present}
    numbered = (f"{new.title} ({number})" for number in range(2, len(titles) + 3))
    title = new.title if new.title not in titles else next(name for name in numbered if name not in titles)
    documents = (*present, Document(title, new.text))
    check(documents)
    return documents


def check(documents: Sequence[Document]) -> None:
    """Raise InvalidRequestError if ``documents`` exceed a limit."""
    check_count(len(documents))
    for document in documents:
        _check_length(document.title, len(document.text))
    total = sum(len(document.text) for document in documents)
    if total > MAX_DOCUMENTS_TOTAL:
        raise InvalidRequestError(
            f"With {documents[-1].title}, the documents have {total:,} characters together; the limit is "
            f"{MAX_DOCUMENTS_TOTAL:,}. Remove one first."
        )


def check_count(count: int) -> None:
    """Raise InvalidRequestError if there are too many documents."""
    if count > MAX_DOCUMENTS:
        raise InvalidRequestError(f"At most {MAX_DOCUMENTS} documents are allowed. Remove one first.")


def _check_length(title: str, length: int) -> None:
    if length > MAX_DOCUMENT:
        raise InvalidRequestError(
            f"{title} has more than {MAX_DOCUMENT:,} characters, the limit for one document. "
            "Split it, or paste the relevant part."
        )


def _gather(title: str, parts: Iterable[str]) -> str:
    """Join the parts with blank lines. Raises InvalidRequestError if they are too long, too slow to read, or empty."""
    kept, length, deadline = [], 0, time.monotonic() + FILE_SECONDS
    for part in parts:
        if part := part.strip():
            kept.append(part)
            length += len(part) + 2 * (length > 0)
            _check_length(title, length)
        if time.monotonic() > deadline:
            raise InvalidRequestError(f"{title} takes too long to read. Split it, or paste the relevant part.")
    if not kept:
        raise InvalidRequestError(f"{title} has no readable text. If it is a scan, run OCR on it first.")
    return "\n\n".join(kept)


def _title(name: str) -> str:
    return " ".join(_CONTROL.sub("", name).split())[-MAX_TITLE:]


def _newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decode(title: str, data: bytes) -> str:
    """Decode UTF-8, UTF-16 with a byte order mark, or Windows-1252. Raises InvalidRequestError if it is not text."""
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if marked else ("utf-8-sig", "cp1252", "latin-1"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        too_many = islice(_CONTROL.finditer(text), int(_MAX_CONTROL * len(text)), None)  # not a list: it can be long
        if "\0" not in text and next(too_many, None) is None:
            return _newlines(text)
    raise InvalidRequestError(f"{title} is not a text file. Save it as a text file, then add it again.")


def _read_text(title: str, data: bytes) -> Iterator[str]:
    if data.lstrip()[:5] == b"%PDF-":
        raise InvalidRequestError(f"{title} is a PDF with another suffix. Rename it so that it ends in .pdf.")
    yield _decode(title, data)


def _read_csv(title: str, data: bytes) -> Iterator[str]:
    """Yield each row as a list item, with the names of the columns if the first row has them."""
    text = _decode(title, data)
    _check_length(title, len(text) // 5)  # one row can have millions of empty cells
    first = next((line for line in io.StringIO(text) if line.strip()), "")
    table = csv.reader(io.StringIO(text), delimiter=max(",;\t|", key=first.count))
    rows = (cells for row in table if any(cells := [" ".join(cell.split()) for cell in row]))
    start = list(islice(rows, 2))
    names = start.pop(0) if len(start) == 2 and _are_names(start[0]) else []
    kept, length = [], 0
    for row in chain(start, rows):
        kept.append(_row(names, row))
        length += len(kept[-1]) + (length > 0)
        _check_length(title, length)
    yield "\n".join(kept)


def _are_names(row: list[str]) -> bool:
    return len(set(row)) == len(row) and all(cell and not re.fullmatch(r"[\d.,%+-]+", cell) for cell in row)


def _row(names: list[str], row: list[str]) -> str:
    cells = [f"{names[at]}: {cell}" if at < len(names) else cell for at, cell in enumerate(row) if cell]
    return f"- {'; '.join(cells)}"


def _read_pdf(title: str, data: bytes) -> Iterator[str]:
    if b"%PDF-" not in data[:1024]:
        raise InvalidRequestError(f"{title} is not a PDF file. Save it as PDF or text.")
    from pypdf import PdfReader, overwrite_configuration
    from pypdf.errors import DependencyError, FileNotDecryptedError, LimitReachedError

    # pypdf logs each flaw in a file. The owner of the server cannot fix them.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL + 1)
    # The limits belong to a context. A generator runs in the context of its caller, so it needs its own copy.
    context = contextvars.copy_context()
    packings = ("zlib", "lzw", "run_length", "brotli")
    limits: dict[str, Any] = {f"{packing}_maximum_output_length": MAX_UNPACKED_BYTES for packing in packings}
    limits |= {"array_based_stream_maximum_output_length": MAX_PAGE_BYTES}
    context.run(overwrite_configuration, stream_parsing_work_maximum_count=MAX_PAGE_PARTS, **limits)
    deadline = time.monotonic() + FILE_SECONDS

    def in_time(*_: Any) -> None:
        # Called also inside a page, because one page can take minutes. ``_gather`` then raises the error.
        if time.monotonic() > deadline:
            raise TimeoutError

    try:
        reader = context.run(PdfReader, io.BytesIO(data))
        count, total = context.run(len, reader.pages), 0
        if count > MAX_PAGES:
            raise InvalidRequestError(f"{title} has {count:,} pages; the limit is {MAX_PAGES}. Split it first.")
        for number in range(count):
            page = context.run(reader.get_page, number)
            contents = context.run(page.get_contents)
            total += (size := len(contents.get_data()) if contents is not None else 0)
            if size > MAX_PAGE_BYTES or total > MAX_PDF_BYTES:
                raise LimitReachedError
            yield _newlines(context.run(page.extract_text, visitor_operand_before=in_time))
    except LimitReachedError:
        raise InvalidRequestError(f"{title} has pages that are too complex. Paste their text.") from None
    except TimeoutError:
        yield ""
    except (DependencyError, FileNotDecryptedError):
        # DependencyError is for a cipher that only protected files use.
        raise InvalidRequestError(f"{title} has a password. Save it without a password first.") from None


def _read_docx(title: str, data: bytes) -> Iterator[str]:
    if not data.startswith(b"PK"):
        # A Word file with a password is an OLE container.
        if data.startswith(b"\xd0\xcf\x11\xe0"):
            raise InvalidRequestError(f"{title} has a password, or is an old Word file. Save it as .docx.")
        raise InvalidRequestError(f"{title} is not a Word file. Save it as .docx or text.")
    tags = 0
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if len(entries) > MAX_MEMBERS:
            raise InvalidRequestError(f"{title} has more than {MAX_MEMBERS:,} parts. Split it, or paste its text.")
        if sum(entry.file_size for entry in entries) > MAX_UNPACKED_BYTES:
            raise InvalidRequestError(
                f"{title} unpacks to more than {MAX_UNPACKED_BYTES // 1_000_000} MB. "
                "Remove its pictures, or paste its text."
            )
        # All members are checked, because the file itself says which of them are XML and which is the text.
        for member in map(archive.read, entries):
            if _ENCODED.match(member.replace(b"\0", b"")):
                raise ValueError("an encoding that Word does not use")
            tags += max(member.count(b"<"), member.count(b"="))
    if tags > MAX_TAGS:
        raise InvalidRequestError(f"{title} has too many parts. Split it, or paste its text.")
    if "word/document.xml" not in {entry.filename for entry in entries}:
        raise InvalidRequestError(f"{title} is not a Word file. Save it as .docx or text.")
    import docx

    yield from _blocks(docx.Document(io.BytesIO(data)).element.body)


def _blocks(parent: Any) -> Iterator[str]:
    """Yield the paragraphs and the rows of tables.

    It walks the XML, because the rows of python-docx repeat a cell that spans several columns.
    """
    for element in parent.iterchildren():
        if element.tag == f"{_WORD}p":
            yield element.text if len(element) else ""
        elif element.tag == f"{_WORD}tbl":
            rows = ([_cell(cell) for cell in row.iterchildren(f"{_WORD}tc")] for row in element.iter(f"{_WORD}tr"))
            yield "\n".join(f"- {' | '.join(filter(None, row))}" for row in rows if any(row))
        else:
            yield from _blocks(element)


def _cell(cell: Any) -> str:
    # The rows of a table inside a cell are separate rows.
    return " ".join(" ".join(text.text.split()) for text in cell.iterchildren(f"{_WORD}p") if len(text)).strip()


READERS: dict[str, Callable[[str, bytes], Iterator[str]]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".csv": _read_csv,
    ".pdf": _read_pdf,
    ".docx": _read_docx,
}
"""The reader for each suffix. It yields the text in parts, and can end early."""
