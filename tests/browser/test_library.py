"""Tests for the list of conversations in a browser, with a minimal chat that repeats each message."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped, unused-ignore]
from fastapi import FastAPI
from playwright.sync_api import BrowserContext, FilePayload, Locator, Page, expect

from granite_demo.chat import conversation as conversations
from granite_demo.chat import export
from granite_demo.server.run import address, bind
from granite_demo.ui import conversation_list
from granite_demo.ui.theme import load_theme
from tests.browser.conftest import NewContext, stored
from tests.browser.frame import add_look

pytestmark = pytest.mark.browser

Shown = tuple[dict[str, Any], str]


def show(value: Any) -> Shown:
    conversation = conversations.load(value)
    return conversations.dump(conversation), "\n".join(turn.content for turn in conversations.path(conversation))


def say(text: str, value: Any) -> tuple[dict[str, Any], str, str]:
    conversation = conversations.add(conversations.load(value), "user", content=text)
    conversation = conversations.add(conversation, "assistant", content=f"You said: {text}")
    return *show(conversations.dump(conversation)), ""


def selected(event: gr.EventData) -> Shown:
    return show(event.conversation)


def build() -> FastAPI:
    with gr.Blocks(title="granite-demo", analytics_enabled=False) as demo:
        listed = conversation_list.layout()
        holder = gr.JSON(value={}, visible=False)
        shown = gr.Textbox(label="Shown", elem_id="shown", lines=4)
        said = gr.Textbox(label="Say", elem_id="say")
        said.submit(say, [said, holder], [holder, shown, said], queue=False)
        for event in (listed.select, listed.edit):
            event(selected, None, [holder, shown], queue=False)
        listed.clear(lambda: show({}), None, [holder, shown], queue=False)
        conversation_list.wire(listed, holder)
    app = FastAPI()
    add_look(app)
    gr.mount_gradio_app(app, demo, path="/", theme=load_theme(), ssr_mode=False, run_history=False)
    return app


@contextmanager
def served(port: int = 0) -> Iterator[str]:
    """Run the page on a given port, as after a restart."""
    app, listener = build(), bind("127.0.0.1", port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    try:
        yield address(listener)
    finally:
        page: Any = app.routes[-1]
        page.app.stop_event.set()
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served() as address:
        yield address


@pytest.fixture
def context(new_context: NewContext) -> BrowserContext:
    return new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)


def visit(context: BrowserContext, url: str) -> Page:
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#library nav")).to_be_attached()
    return page


@pytest.fixture
def page(context: BrowserContext, url: str) -> Page:
    return visit(context, url)


def speak(page: Page, text: str) -> None:
    page.locator("#say textarea").fill(text)
    page.locator("#say textarea").press("Enter")
    expect(page.locator("#shown textarea")).to_have_value(holds(f"You said: {text}"))
    expect(titles(page).first).to_be_visible()


def holds(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text))


def titles(page: Page) -> Locator:
    return page.locator("#library .title")


def new(page: Page) -> None:
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#shown textarea")).to_have_value("")


def choose(page: Page, title: str, action: str) -> None:
    page.get_by_role("button", name=f"More for {title}").click()
    page.locator("#library .choices").get_by_role("button", name=action, exact=True).click()


def bring(page: Page, *files: tuple[str, str]) -> None:
    payloads: list[FilePayload] = [{"name": n, "mimeType": "text/plain", "buffer": t.encode()} for n, t in files]
    page.locator("#library input[type=file]").set_input_files(payloads)


def test_a_conversation_is_listed_and_marked_as_open(page: Page) -> None:
    expect(page.locator("#library .none")).to_contain_text("in this browser only")
    speak(page, "Hello there")
    expect(titles(page)).to_have_text(["Hello there"])
    expect(titles(page)).to_have_attribute("aria-current", "true")
    expect(page.locator("#library h2")).to_have_text(["Today"])


@pytest.mark.release
def test_an_empty_conversation_is_not_kept(page: Page) -> None:
    new(page)
    page.wait_for_timeout(300)
    assert stored(page) == []


def test_new_keeps_the_old_conversation(page: Page) -> None:
    speak(page, "First")
    new(page)
    expect(page.locator("#library [aria-current]")).to_have_count(0)
    speak(page, "Second")
    expect(titles(page)).to_have_text(["Second", "First"])
    titles(page).filter(has_text="First").click()
    expect(page.locator("#shown textarea")).to_have_value("First\nYou said: First")
    expect(page.locator("#library [aria-current]")).to_have_text("First")
    speak(page, "More")
    expect(titles(page)).to_have_text(["First", "Second"])
    assert len(stored(page)) == 2


def test_search_finds_titles_and_answers(page: Page) -> None:
    for text in ("Apples", "Pears"):
        speak(page, text)
        new(page)
    search = page.get_by_role("searchbox", name="Search conversations")
    search.fill("you SAID: pea")
    expect(titles(page)).to_have_text(["Pears"])
    search.fill("nothing of it")
    expect(page.locator("#library .none")).to_have_text("No conversation matches.")
    search.fill("")
    expect(titles(page)).to_have_count(2)


@pytest.mark.release
def test_rename_by_keyboard(page: Page) -> None:
    speak(page, "Hello")
    page.get_by_role("button", name="More for Hello").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_label("New name")).to_be_focused()
    page.keyboard.type("Greetings")
    page.keyboard.press("Enter")
    expect(titles(page)).to_have_text(["Greetings"])
    expect(page.get_by_role("button", name="More for Greetings")).to_be_focused()
    speak(page, "Again")
    expect(titles(page)).to_have_text(["Greetings"])
    assert stored(page)[0]["conversation"]["title"] == "Greetings"


@pytest.mark.release
def test_escape_keeps_the_old_name(page: Page) -> None:
    speak(page, "Hello")
    choose(page, "Hello", "Rename")
    page.keyboard.type("Other")
    page.keyboard.press("Escape")
    expect(titles(page)).to_have_text(["Hello"])


def test_delete_asks_first_and_empties_the_chat(page: Page) -> None:
    speak(page, "Hello")
    choose(page, "Hello", "Delete")
    page.locator("#library .choices").get_by_role("button", name="Cancel").click()
    expect(titles(page)).to_have_count(1)
    choose(page, "Hello", "Delete")
    page.locator("#library .choices").get_by_role("button", name="Delete", exact=True).click()
    expect(titles(page)).to_have_count(0)
    expect(page.locator("#shown textarea")).to_have_value("")
    assert stored(page) == []


@pytest.mark.release
def test_a_late_answer_does_not_restore_a_deleted_conversation(page: Page) -> None:
    speak(page, "Hello")
    (item,) = stored(page)
    choose(page, "Hello", "Delete")
    page.locator("#library .choices").get_by_role("button", name="Delete", exact=True).click()
    expect(titles(page)).to_have_count(0)
    page.evaluate("(conversation) => window.graniteDemo.save(conversation)", item["conversation"])
    assert stored(page) == []


@pytest.mark.release
def test_another_conversation_can_be_deleted(page: Page) -> None:
    speak(page, "First")
    new(page)
    speak(page, "Second")
    choose(page, "First", "Delete")
    page.locator("#library .choices").get_by_role("button", name="Delete", exact=True).click()
    expect(titles(page)).to_have_text(["Second"])
    expect(page.locator("#shown textarea")).to_have_value("Second\nYou said: Second")


@pytest.mark.release
def test_titles_are_from_the_server(page: Page) -> None:
    for question in ("🙂" * 60, "🙂" * 61, "a \u00a0 b"):
        speak(page, question)
        new(page)
    found = stored(page)
    assert len(found) == 3
    for item in found:
        assert item["title"] == conversations.title_of(conversations.load(item["conversation"]))


@pytest.mark.release
def test_a_conversation_with_only_settings_is_kept(page: Page) -> None:
    value = conversations.dump(conversations.start(system="Be brief."))
    page.evaluate("(conversation) => window.graniteDemo.save(conversation)", value)
    expect(titles(page)).to_have_text(["Untitled"])
    assert conversations.load(stored(page)[0]["conversation"]) == conversations.load(value)


def test_a_reload_opens_the_conversation_again(page: Page) -> None:
    speak(page, "First")
    new(page)
    speak(page, "Second")
    titles(page).filter(has_text="First").click()
    expect(page.locator("#shown textarea")).to_have_value(holds("First"))
    page.reload()
    expect(page.locator("#shown textarea")).to_have_value("First\nYou said: First")
    speak(page, "More")
    assert sorted(len(item["conversation"]["turns"]) for item in stored(page)) == [2, 4]


@pytest.mark.release
def test_a_reload_of_a_new_chat_stays_empty(page: Page) -> None:
    speak(page, "First")
    new(page)
    page.reload()
    expect(titles(page)).to_have_text(["First"])
    page.wait_for_timeout(300)
    expect(page.locator("#shown textarea")).to_have_value("")


def test_a_restart_of_the_server_keeps_everything(context: BrowserContext) -> None:
    with served() as url:
        speak(visit(context, url), "Before the restart")
    with served(int(url.rpartition(":")[2])) as again:
        page = visit(context, again)
        expect(page.locator("#shown textarea")).to_have_value(holds("You said: Before the restart"))
        expect(titles(page)).to_have_text(["Before the restart"])


def test_markup_in_a_title_is_text(page: Page) -> None:
    title = "<img src=x onerror='window.pwned=1'><b>bold</b>"
    speak(page, title)
    expect(titles(page)).to_have_text([title])
    choose(page, title, "Rename")
    page.keyboard.press("Escape")
    choose(page, title, "Delete")
    assert page.evaluate("window.pwned") is None
    assert page.locator("#library img, #library b").count() == 0


def test_export_json_and_import_it_as_a_copy(page: Page) -> None:
    speak(page, "Hello, world")
    with page.expect_download() as download:
        choose(page, "Hello, world", "Export JSON")
    assert download.value.suggested_filename == "Hello-world.json"
    text = download.value.path().read_text(encoding="utf-8")
    assert len(export.read(text, "x.json")[0].turns) == 2
    bring(page, ("Hello-world.json", text))
    expect(page.locator("#library .message")).to_have_text("Imported 1 conversation.")
    expect(titles(page)).to_have_text(["Hello, world", "Hello, world"])
    one, two = stored(page)
    assert one["id"] != two["id"]
    assert one["conversation"]["turns"] == two["conversation"]["turns"]


@pytest.mark.release
def test_export_markdown_and_import_it_into_an_empty_browser(page: Page) -> None:
    speak(page, "What is **this**?")
    with page.expect_download() as download:
        choose(page, "What is **this**?", "Export Markdown")
    assert download.value.suggested_filename == "What-is-this.md"
    text = download.value.path().read_text(encoding="utf-8")
    assert "## User\n\nWhat is **this**?\n\n## Assistant\n\nYou said: What is **this**?" in text
    choose(page, "What is **this**?", "Delete")
    page.locator("#library .choices").get_by_role("button", name="Delete", exact=True).click()
    expect(titles(page)).to_have_count(0)
    bring(page, ("a.md", text))
    expect(page.locator("#shown textarea")).to_have_value("What is **this**?\nYou said: What is **this**?")
    expect(titles(page)).to_have_text(["What is **this**?"])


@pytest.mark.release
def test_export_all_and_import_in_another_browser(page: Page, new_context: NewContext, url: str) -> None:
    for text in ("One", "Two", "Three"):
        speak(page, text)
        new(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Import, export").click()
        page.get_by_role("button", name="Export all").click()
    other = visit(new_context(), url)
    bring(other, ("all.json", download.value.path().read_text(encoding="utf-8")))
    expect(titles(other)).to_have_text(["Three", "Two", "One"])
    assert stored(other) == stored(page)


def test_a_corrupt_file_changes_nothing(page: Page) -> None:
    speak(page, "Hello")
    before = stored(page)
    for name, text, error in (
        ("broken.json", '{"version": 1, "id": "a", "turns": {', "broken.json: The file is not valid JSON"),
        ("list.json", '[{"role": "user", "content": "x"}, 5]', "list.json: Entry 2 of the list"),
        ("page.html", "<script>window.pwned=1</script>", "page.html: The file is not valid JSON"),
        ("foreign.md", "# Notes\n\n## User\n\nx", "not exported by granite-demo"),
    ):
        bring(page, (name, text))
        expect(page.locator("#library .message.error")).to_contain_text(error)
        expect(page.locator("#library .message.error")).to_contain_text("Nothing was changed.")
        assert stored(page) == before
    expect(page.locator("#shown textarea")).to_have_value("Hello\nYou said: Hello")


@pytest.mark.release
def test_a_valid_file_is_imported_next_to_a_corrupt_one(page: Page) -> None:
    good = json.dumps([{"role": "user", "content": "Good"}])
    bring(page, ("bad.json", "{"), ("good.json", good))
    expect(page.locator("#library .message")).to_contain_text("Imported 1 conversation.")
    expect(page.locator("#library .message")).to_contain_text("bad.json:")
    expect(titles(page)).to_have_text(["Good"])


@pytest.mark.release
def test_a_file_that_is_too_large_is_not_read(page: Page, tmp_path: Path) -> None:
    large = tmp_path / "large.json"
    large.write_bytes(b"[" + b" " * 20_000_000)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.locator("#library input[type=file]").set_input_files(large)
    expect(page.locator("#library .message.error")).to_contain_text("larger than 20 MB")
    assert [url for url in asked if "component_server" in url] == []


def test_two_tabs_share_the_list_and_lose_no_turn(page: Page, context: BrowserContext, url: str) -> None:
    speak(page, "Hello")
    other = visit(context, url)
    expect(other.locator("#shown textarea")).to_have_value("Hello\nYou said: Hello")
    speak(other, "From the other tab")
    speak(page, "From the first tab")
    (item,) = stored(page)
    assert len(item["conversation"]["turns"]) == 6
    conversations.load(item["conversation"])
    new(other)
    speak(other, "Something else")
    expect(titles(page)).to_have_text(["Something else", "Hello"])
    expect(page.locator("#library [aria-current]")).to_have_text("Hello")
    expect(other.locator("#library [aria-current]")).to_have_text("Something else")
    page.reload()
    expect(page.locator("#shown textarea")).to_have_value(holds("From the first tab"))


@pytest.mark.release
def test_a_name_from_another_tab_is_not_undone(page: Page, context: BrowserContext, url: str) -> None:
    speak(page, "Hello")
    other = visit(context, url)
    choose(other, "Hello", "Rename")
    other.keyboard.type("Named")
    other.keyboard.press("Enter")
    expect(titles(page)).to_have_text(["Named"])
    speak(page, "More")
    expect(titles(page)).to_have_text(["Named"])


BLOCKED = "indexedDB.open = () => { throw new DOMException('no', 'SecurityError'); }"
FULL = """
const put = IDBObjectStore.prototype.put;
IDBObjectStore.prototype.put = function (item) {
  const request = put.call(this, item);
  if (window.full) {
    Object.defineProperty(this.transaction, "error", { value: new DOMException("full", "QuotaExceededError") });
    this.transaction.abort();
  }
  return request;
};
"""


def test_without_a_database_the_list_is_in_memory_and_can_be_exported(page: Page) -> None:
    page.add_init_script(BLOCKED)
    page.reload()
    expect(page.locator("#library .message.error")).to_contain_text("keeps nothing")
    expect(page.locator("#library .list")).not_to_contain_text("kept here")
    speak(page, "Still works")
    new(page)
    speak(page, "And this")
    expect(titles(page)).to_have_text(["And this", "Still works"])
    titles(page).filter(has_text="Still works").click()
    expect(page.locator("#shown textarea")).to_have_value(holds("You said: Still works"))
    with page.expect_download() as download:
        page.get_by_role("button", name="Import, export").click()
        page.get_by_role("button", name="Export all").click()
    found = export.read(download.value.path().read_text(encoding="utf-8"), "all.json")
    assert sorted(map(conversations.title_of, found)) == ["And this", "Still works"]


@pytest.mark.release
def test_what_does_not_fit_in_the_storage_is_stored_when_there_is_room(page: Page) -> None:
    page.add_init_script(FULL)
    page.reload()
    speak(page, "First")
    page.evaluate("window.full = true")
    new(page)
    speak(page, "Second")
    expect(page.locator("#library .message.error")).to_contain_text("storage is full")
    expect(titles(page)).to_have_text(["Second", "First"])
    assert [item["title"] for item in stored(page)] == ["First"]
    choose(page, "First", "Delete")
    page.locator("#library .choices").get_by_role("button", name="Delete", exact=True).click()
    expect(titles(page)).to_have_text(["Second"])
    page.evaluate("window.full = false")
    speak(page, "More")
    expect(page.locator("#library .message")).to_have_text("")
    assert [item["title"] for item in stored(page)] == ["Second"]


@pytest.mark.release
def test_two_tabs_show_the_same(page: Page, context: BrowserContext, url: str) -> None:
    speak(page, "Hello")
    other = visit(context, url)
    expect(other.locator("#shown textarea")).to_have_value("Hello\nYou said: Hello")
    speak(other, "More")
    expect(page.locator("#shown textarea")).to_have_value(holds("You said: More"))
    speak(page, "Again")
    expect(other.locator("#shown textarea")).to_have_value(holds("You said: Again"))
    assert len(stored(page)[0]["conversation"]["turns"]) == 6


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.release), "dark"])
@pytest.mark.parametrize("width", [390, pytest.param(1280, marks=pytest.mark.release)])
def test_layout_and_accessibility_of_the_list(new_context: NewContext, url: str, width: int, scheme: str) -> None:
    page = visit(new_context(viewport={"width": width, "height": 844}), f"{url}/?__theme={scheme}")
    for text in ("A question with a very long title that does not fit into one line", "Short"):
        page.locator("#say textarea").fill(text)
        page.locator("#say textarea").press("Enter")
        expect(page.locator("#shown textarea")).to_have_value(holds("You said"))
        page.evaluate("window.graniteDemo.refresh()")
    page.get_by_role("button", name="More for").first.click()
    expect(page.get_by_role("button", name="Export Markdown")).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Colours are tested on the whole page: here the list has none of its look.
    options = {"rules": {"color-contrast": {"enabled": False}}}
    found = Axe().run(page, context="#library", options=options).response["violations"]
    assert [(item["id"], item["nodes"][0]["html"]) for item in found] == []
    titles(page).first.click()
    expect(page.locator("#shown textarea")).to_have_value(holds("You said"))
