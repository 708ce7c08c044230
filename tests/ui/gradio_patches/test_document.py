"""The page's style sheet and first script in the document, before Gradio's own."""

import gzip
import re

import pytest
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from granite_demo.ui.gradio_patches.document import LookFiles

PAGE = "<html><head><script>first</script></head><body>" + "text " * 1000 + "</body></html>"
FILES = {"page.css": ("text/css", "a { color: red }"), "page.js": ("text/javascript", "start()")}


@pytest.fixture
def client() -> TestClient:
    routes = [Route("/", lambda _: HTMLResponse(PAGE)), Route("/data", lambda _: PlainTextResponse("<head>"))]
    app = Starlette(routes=routes)
    app.add_middleware(LookFiles, files=FILES)
    return TestClient(app)


def test_the_files_come_first_in_the_document(client: TestClient) -> None:
    text = client.get("/").text
    assert re.search(
        r'<head><link rel="stylesheet" href="./look/page-\w{12}.css"><script src="./look/page-\w{12}.js">', text
    )
    assert text.endswith(PAGE.split("<head>")[1])


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_a_name_of_its_content_and_is_kept_for_ever(client: TestClient, name: str) -> None:
    stem, ending = name.split(".")
    found = re.search(rf"look/{stem}-\w+\.{ending}", client.get("/").text)
    assert found
    answer = client.get(found[0])
    assert (answer.headers["content-type"], answer.text) == FILES[name]
    assert "immutable" in answer.headers["cache-control"]
    assert client.get(f"look/{stem}-000000000000.{ending}").status_code == 404


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_the_document_is_compressed_for_who_can_read_it(client: TestClient, encoding: str) -> None:
    with client.stream("GET", "/", headers={"accept-encoding": encoding}) as answer:
        raw = b"".join(answer.iter_raw())
    assert int(answer.headers["content-length"]) == len(raw)
    packed = encoding == "gzip"
    assert answer.headers.get("content-encoding") == ("gzip" if packed else None)
    assert b"text text" in (gzip.decompress(raw) if packed else raw)
    assert (len(raw) < len(PAGE) / 10) == packed


def test_what_is_no_document_stays(client: TestClient) -> None:
    assert client.get("/data").text == "<head>"
