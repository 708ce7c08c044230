"""Tests for thinking, versions, branches, tools, documents and switches of a conversation in a browser."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from granite_demo.chat.documents import read_document
from granite_demo.types.events import Citation, Dropped, Finish, ReasoningDelta, TextDelta, Timings, ToolCalled, Usage
from granite_demo.types.messages import Document, Message, Switches, ToolCall
from tests.browser.conftest import OpenPage
from tests.browser.frame import attach, close_sheet, open_sheet
from tests.browser.test_chat import act, answers, reload, send
from tests.fakes import READY, FakeBackend

pytestmark = pytest.mark.browser

END = Finish("stop", Usage(5, 9, 4), Timings(0.1, 0.5, 0.2), token_ids=(1, 2, 3))


def settled(page: Page, count: int = 1) -> None:
    """Wait until the last answer is complete and is a part of the conversation."""
    expect(page.locator("#chatbot .act.retry")).to_have_count(count)


def slow(page: Page) -> None:
    """Delay all short events, as a slow network does. A late answer must not undo a later change."""

    def later(route: Route) -> None:
        time.sleep(0.4)
        route.continue_()

    page.route("**/run/predict*", later)


def press_send(page: Page) -> None:
    """Press Send as a finger does: the box loses the focus before the click."""
    page.get_by_role("button", name="Send", exact=True).click(delay=100)


def test_thinking_is_a_separate_part_with_time_and_tokens(page: Page, fake: FakeBackend) -> None:
    fake.script = [ReasoningDelta("Let me think.", 4), *[ReasoningDelta("", 4)] * 8, TextDelta("Blue.", 9), END]
    fake.delay = 0.1
    send(page, "Which colour?")
    expect(page.locator("#chatbot .thought-group")).to_contain_text("Let me think.")  # open during the thinking
    expect(answers(page)).to_contain_text("Blue.")
    expect(page.locator("#chatbot .thought-group")).to_contain_text("4 tokens (0.2s)")
    settled(page)
    fake.script = None
    send(page, "And?")
    settled(page, 2)
    assert fake.requests[-1].messages[1] == Message("assistant", "Blue.", thinking="Let me think.")


def test_versions_of_an_answer_have_arrows(page: Page, fake: FakeBackend) -> None:
    send(page, "Hello")
    settled(page)
    fake.words = ["Another"]
    act(page, "retry")
    expect(page.locator("#chatbot .versions")).to_have_text("2/2")
    expect(answers(page)).to_contain_text("Another")
    act(page, "older")
    expect(page.locator("#chatbot .versions")).to_have_text("1/2")
    expect(answers(page)).to_contain_text("Hello world!")
    reload(page)
    expect(page.locator("#chatbot .versions")).to_have_text("1/2")
    act(page, "newer")
    expect(answers(page)).to_contain_text("Another")


@pytest.mark.release
def test_an_edited_question_keeps_the_old_one(page: Page, fake: FakeBackend) -> None:
    send(page, "Hello")
    settled(page)
    act(page, "edit", 0)
    page.locator("#chatbot .editor textarea").fill("Goodbye")
    page.locator("#chatbot .editor .primary").click()
    expect(page.locator("#chatbot .user.message")).to_contain_text("2/2")
    settled(page)
    act(page, "older", 0)
    expect(page.locator("#chatbot .user.message")).to_contain_text("Hello")
    expect(page.locator("#chatbot .user.message")).to_contain_text("1/2")


def test_a_question_is_edited_in_its_bubble(open_page: OpenPage, fake: FakeBackend) -> None:
    page = open_page(viewport={"width": 1280, "height": 720})
    fake.words = ["word "] * 300
    send(page, "Hello")
    settled(page)
    act(page, "edit", 0)
    editor = page.locator("#chatbot .user.message .editor")
    expect(editor.locator("textarea")).to_be_focused()
    expect(editor.locator("textarea")).to_have_value("Hello")
    for name in ("Cancel", "Save and ask"):
        expect(editor.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)
    editor.locator("textarea").press("Escape")
    expect(editor).to_have_count(0)
    expect(page.locator("#chatbot .user.message")).to_contain_text("Hello")
    act(page, "edit", 0)
    editor.locator("textarea").fill("   ")
    editor.locator(".primary").click()
    expect(page.locator("#chat-message")).to_contain_text("The message is empty")
    editor.locator("textarea").fill("Goodbye")
    fake.first_delay = 1
    editor.locator(".primary").click()
    expect(page.locator("#chatbot .bot.message")).to_be_focused()
    expect(editor).to_have_count(0)
    expect(page.locator("#chatbot .user.message")).to_contain_text("Goodbye")
    expect(page.locator("#library .title")).to_have_text("Goodbye")
    settled(page)
    assert len(fake.requests) == 2


@pytest.mark.release
def test_an_answer_can_be_edited_and_the_next_question_uses_it(page: Page, fake: FakeBackend) -> None:
    send(page, "Hello")
    settled(page)
    act(page, "edit")
    page.locator("#chatbot .editor textarea").fill("Bonjour")
    page.locator("#chatbot .editor .primary").click()
    expect(answers(page)).to_contain_text("Bonjour")
    expect(answers(page)).to_contain_text("edited")
    send(page, "More")
    settled(page, 2)
    assert [message.content for message in fake.requests[-1].messages] == ["Hello", "Bonjour", "More"]


@pytest.mark.release
def test_editing_can_be_cancelled(page: Page, fake: FakeBackend) -> None:
    send(page, "Hello")
    settled(page)
    act(page, "edit", 0)
    page.locator("#chatbot .editor textarea").fill("Other")
    page.locator("#chatbot .editor").get_by_role("button", name="Cancel").click()
    expect(page.locator("#chatbot .editor")).to_be_hidden()
    assert len(fake.requests) == 1


@pytest.mark.release
def test_a_branch_is_a_new_conversation(page: Page, fake: FakeBackend) -> None:
    for count, text in enumerate(("One", "Two"), 1):
        send(page, text)
        settled(page, count)
    act(page, "branch", 0)
    expect(answers(page)).to_have_count(1)
    expect(page.locator("#library li")).to_have_count(2)
    expect(page.locator("#library [aria-current=true]")).to_contain_text("One (branch)")
    send(page, "Three")
    settled(page, 2)
    assert [message.content for message in fake.requests[-1].messages] == ["One", "Hello world!", "Three"]


@pytest.mark.release
def test_an_answer_that_was_cut_is_continued(page: Page, fake: FakeBackend) -> None:
    fake.script = [TextDelta("Once", 3), replace(END, reason="length")]
    send(page, "A tale")
    settled(page)
    fake.script = [TextDelta("Once upon a time", 9), END]
    act(page, "go")
    expect(page.locator("#chatbot .versions")).to_have_text("2/2")
    expect(answers(page)).to_contain_text("Once upon a time")
    settled(page)
    expect(page.locator("#chatbot .act.go")).to_have_count(0)
    assert fake.requests[-1].written == (1, 2, 3)
    assert fake.requests[-1].messages == (Message("user", "A tale"),)
    act(page, "retry")
    expect(page.locator("#chatbot .versions")).to_have_text("3/3")
    assert not fake.requests[-1].written


@pytest.mark.release
def test_a_vote_is_kept(page: Page) -> None:
    send(page, "Hello")
    settled(page)
    act(page, "up")
    expect(page.locator("#chatbot .act.up")).to_have_attribute("title", "Good answer (chosen)")
    reload(page)
    expect(page.locator("#chatbot .act.up")).to_have_attribute("title", "Good answer (chosen)")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Import, export").click()
        page.get_by_role("button", name="Export ratings").click()
    saved = json.loads(Path(waiting.value.path()).read_text(encoding="utf-8"))
    assert saved == {"vote": "up", "prompt": "Hello", "answer": "Hello world!"}


@pytest.mark.release
def test_copy_copies_only_the_text(open_page: OpenPage, fake: FakeBackend) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    fake.words = ["**bold** and $x$"]
    send(page, "Hello")
    settled(page)
    act(page, "clip")
    expect(page.locator("#chatbot .act.clip").last).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "**bold** and $x$"


@pytest.mark.release
def test_a_bundle_is_downloaded(page: Page, fake: FakeBackend) -> None:
    fake.script = [TextDelta("Blue.", 3), END]
    send(page, "Which colour?")
    settled(page)
    with page.expect_download() as waiting:
        act(page, "bundle")
    saved = json.loads(Path(waiting.value.path()).read_text(encoding="utf-8"))
    assert saved["format"] == "granite-demo-answer"
    assert "Which colour?" in json.dumps(saved)


def open_tools(page: Page) -> None:
    """Open the panel, and wait until Gradio has built it. Text that is typed before would be lost."""
    open_sheet(page, "tools")
    page.get_by_label("Tools").wait_for()


@pytest.mark.release
def test_late_changes_of_tools_and_switches_are_sent_and_kept(open_page: OpenPage, fake: FakeBackend) -> None:
    fake.state = replace(READY, switches=Switches(thinking=("off", "full"), tools=True))
    page = open_page()
    slow(page)
    page.locator("#message textarea").fill("Hello")
    open_sheet(page, "switches")
    page.locator("#thinking").get_by_text("Full").click()
    close_sheet(page)
    open_tools(page)
    page.get_by_label("Tools").fill('[{"name": "weather"}]')
    close_sheet(page)
    press_send(page)
    settled(page)
    send(page, "And?")
    settled(page, 2)
    for request in fake.requests:
        assert [tool.name for tool in request.tools] == ["weather"]
        assert request.controls.thinking == "full"
    assert [message.content for message in fake.requests[-1].messages] == ["Hello", "Hello world!", "And?"]


@pytest.mark.release
def test_a_malformed_call_is_marked(page: Page, fake: FakeBackend) -> None:
    broken = ToolCalled(ToolCall("", '{"name": "calc', "it was cut off"))
    fake.script = [broken, replace(END, reason="length")]
    send(page, "What is 6 times 7?")
    expect(answers(page)).to_contain_text("it was cut off")
    settled(page)


def test_a_document_is_sent_and_its_citation_opens_the_passage(page: Page, fake: FakeBackend) -> None:
    file = {"name": "sky.txt", "mimeType": "text/plain", "buffer": b"Grass is green. The sky is blue at noon."}
    attach(page, file)
    fake.script = [TextDelta("The sky is blue at noon.", 6), Citation("1", 0, 24), END]
    send(page, "Which colour is the sky?")
    settled(page)
    assert [document.title for document in fake.requests[-1].documents] == ["sky.txt"]
    note = page.locator("#chatbot details").filter(has_text="sky.txt").first
    expect(note).not_to_have_attribute("open", "")
    answers(page).locator("sup a").click()
    expect(note).to_have_attribute("open", "")
    expect(note).to_contain_text("The sky is blue at noon.")
    act(page, "ground")
    expect(page.locator("#sources")).to_contain_text("the model's own citations")
    expect(page.locator("#sources mark, #sources .g0").first).to_be_visible()


def test_only_the_models_switches_are_on_and_sent(open_page: OpenPage, fake: FakeBackend) -> None:
    switches = Switches(thinking=("off", "full"), citations=True, conflicts=(("thinking", "system"),))
    fake.state = replace(READY, switches=switches)
    page = open_page()
    open_sheet(page, "switches")
    expect(page.get_by_label("Originality")).to_be_disabled()
    page.locator("#thinking").get_by_text("Full").click()
    close_sheet(page)
    expect(page.locator("#composer-menu [data-level]")).to_have_text("Full")
    send(page, "Hello")
    settled(page)
    assert fake.requests[-1].controls.thinking == "full"
    open_sheet(page, "system")
    page.locator("#system-prompt textarea").press_sequentially("Be brief.")
    expect(page.locator("#thinking")).to_contain_text("ignores thinking when a system prompt is set")
    expect(page.locator("#thinking input").first).to_be_disabled()


@pytest.mark.release
def test_parts_that_the_model_does_not_read_are_off_with_the_reason(open_page: OpenPage, fake: FakeBackend) -> None:
    page = open_page()
    file = {"name": "sky.txt", "mimeType": "text/plain", "buffer": b"The sky is blue."}
    attach(page, file)
    fake.state = replace(READY, model="another", switches=Switches())
    expect(page.locator("#documents-message")).to_contain_text("has no place for documents")
    page.locator("#composer-menu .plus").click()
    for name in ("Add files", "Paste a text", "Tools"):
        expect(page.locator("#plus-menu .row").filter(has_text=name)).to_have_attribute("aria-disabled", "true")
    expect(page.locator("#plus-menu")).to_contain_text("has no place for tools")


@pytest.mark.release
def test_dropped_messages_have_a_note(page: Page, fake: FakeBackend) -> None:
    fake.script = [Dropped(4), TextDelta("Blue.", 3), END]
    send(page, "Hello")
    expect(answers(page)).to_contain_text("left out to fit the context: the oldest 4 messages")


@pytest.mark.release
def test_a_new_chat_during_an_answer_is_the_open_one(page: Page, fake: FakeBackend) -> None:
    fake.words, fake.delay = ["word "] * 1000, 0.05
    send(page, "Hello")
    expect(answers(page)).to_contain_text("word word")
    page.get_by_role("button", name="New chat").click()
    expect(answers(page)).to_have_count(0)
    expect(page.locator("#library [aria-current=true]")).to_have_count(0)
    fake.words, fake.delay = ["fine"], 0.0
    send(page, "Fresh")
    settled(page)
    expect(page.locator("#library [aria-current=true]")).to_contain_text("Fresh")
    assert fake.requests[-1].messages == (Message("user", "Fresh"),)


@pytest.mark.release
def test_a_conversation_that_is_deleted_during_an_answer_is_gone(page: Page, fake: FakeBackend) -> None:
    fake.words, fake.delay = ["word "] * 1000, 0.05
    send(page, "Hello")
    expect(answers(page)).to_contain_text("word word")
    page.locator("#library").get_by_role("button", name="More").click()
    page.locator("#library").get_by_role("button", name="Delete").click()
    page.locator("#library").get_by_role("button", name="Delete").last.click()
    expect(answers(page)).to_have_count(0)
    fake.words, fake.delay = ["fine"], 0.0
    send(page, "Kept?")
    settled(page)
    reload(page)
    expect(answers(page)).to_contain_text("fine")
    expect(page.locator("#library li")).to_have_count(1)


@pytest.mark.release
def test_six_calls_have_results_before_the_model_continues(page: Page, fake: FakeBackend) -> None:
    calls = [ToolCalled(ToolCall("dice", f'{{"number": {number}}}')) for number in range(6)]
    fake.script = [*calls, replace(END, reason="tool_calls")]
    send(page, "Roll six times.")
    settled(page)
    fake.script = None
    for number in range(6):
        page.get_by_label(f"Result {number + 1}").fill(str(number))
    page.get_by_role("button", name="Send results").click()
    expect(answers(page).last).to_contain_text("Hello world!")
    assert [message.content for message in fake.requests[-1].messages[2:]] == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.release
def test_a_file_that_is_read_slowly_does_not_undo_a_message(
    page: Page, fake: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(path: Path, name: str) -> Document:
        time.sleep(1.5)
        return read_document(path, name)

    monkeypatch.setattr("granite_demo.ui.chat.documents.read_document", slowly)
    send(page, "First")
    settled(page)
    file = {"name": "sky.txt", "mimeType": "text/plain", "buffer": b"The sky is blue."}
    page.locator("input[type=file]:not(#library *)").first.set_input_files(file)  # type: ignore[arg-type]
    send(page, "Second")
    settled(page, 2)
    page.wait_for_timeout(3000)  # until the file is read
    send(page, "Third")
    settled(page, 3)
    contents = [message.content for message in fake.requests[-1].messages]
    assert contents == ["First", "Hello world!", "Second", "Hello world!", "Third"]
    assert [document.title for document in fake.requests[-1].documents] == ["sky.txt"]
