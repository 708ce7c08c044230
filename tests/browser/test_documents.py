"""Tests for the Documents panel and the grounding view in a browser, on a small page."""

from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
from playwright.sync_api import Page, expect

from granite_demo.chat.conversation import load
from granite_demo.ui.chat import documents
from granite_demo.ui.chat.sources import grounding_html
from granite_demo.ui.gradio_patches.files import uploads_of
from tests.browser.conftest import NewContext

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Run a page with the panel, the value of its conversation, and the grounding view."""
    with gr.Blocks(analytics_enabled=False) as demo:
        holder = gr.JSON(elem_id="holder")
        panel = documents.layout()
        documents.wire(panel, holder)
        view = gr.HTML(elem_id="view")
        answer = "The zebra ran away. Nobody knows more."
        holder.change(lambda value: grounding_html(answer, load(value).documents, ()), [holder], [view])
    _, address, _ = demo.launch(
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        share=False,
        max_file_size="10mb",
        server_name="127.0.0.1",
    )
    yield address
    demo.close()


@pytest.fixture
def page(new_context: NewContext, url: str) -> Page:
    """Return the page with the width of a telephone."""
    page = new_context(viewport={"width": 390, "height": 844}).new_page()
    page.goto(url)
    return page


def upload(page: Page, *paths: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator("#documents-upload").click()
    chooser.value.set_files(paths)


def test_files_and_text_are_added(page: Page, tmp_path: Path) -> None:
    for name, text in (("zebra.txt", "Lions sleep. The zebra ran away."), ("ages.csv", "name,age\nAnna,30\n")):
        (tmp_path / name).write_text(text)
    upload(page, tmp_path / "zebra.txt", tmp_path / "ages.csv")
    expect(page.locator("#holder")).to_contain_text("ages.csv")
    page.get_by_label("Title").fill("Notes")
    page.get_by_label("Text", exact=True).fill("Pasted words.")
    page.get_by_role("button", name="Add the text").click()
    expect(page.get_by_label("Text", exact=True)).to_have_value("")
    expect(page.locator("#holder")).to_contain_text("Pasted words.")
    expect(page.locator("#view mark.lexical")).to_have_text("The zebra ran away.[1]")
    expect(page.locator("#view .source mark.g0")).to_have_text("The zebra ran away.")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.release
def test_a_damaged_file_is_an_error_and_the_valid_one_is_added(page: Page, tmp_path: Path) -> None:
    (tmp_path / "bad.pdf").write_text("no pdf")
    (tmp_path / "good.md").write_text("fine")
    upload(page, tmp_path / "bad.pdf", tmp_path / "good.md")
    expect(page.locator("#documents-message .error")).to_contain_text("bad.pdf is not a PDF")
    expect(page.locator("#holder")).to_contain_text("good.md")
    # The same file again: the browser sends an event although the name is the same.
    upload(page, tmp_path / "good.md")
    expect(page.locator("#holder")).to_contain_text("good.md (2)")


def test_uploaded_files_do_not_stay_on_the_server(page: Page, tmp_path: Path) -> None:
    (tmp_path / "canary-file.txt").write_text("canary 5713")
    upload(page, tmp_path / "canary-file.txt")
    expect(page.locator("#holder")).to_contain_text("canary-file.txt")
    cache, _ = uploads_of(gr.Blocks(analytics_enabled=False))
    assert list(cache.rglob("canary-file.txt")) == []
