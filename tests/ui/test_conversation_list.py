"""What the list's script asks the server: files to conversations and back. The rest is in ``tests/browser``."""

import json
from typing import Any

import gradio as gr
import pytest

from granite_demo.chat.conversation import add, dump, start
from granite_demo.ui import conversation_list
from granite_demo.ui.conversation_list import read_file, to_markdown


def test_a_file_becomes_what_the_browser_keeps() -> None:
    conversation = add(start(), "user", content="Hello")
    answer = read_file([json.dumps(dump(conversation)), "x.json"])
    assert answer == {"conversations": [dump(conversation)]}
    json.dumps(answer)


@pytest.mark.parametrize("data", [None, 5, "ab", [], ["text"], [1, 2], [{"a": 1}, "x.json"], ["{", "x.json", 3]])
def test_any_other_call_is_answered_with_an_error(data: Any) -> None:
    answer = read_file(data)
    assert set(answer) == {"error"}
    assert answer["error"].endswith(".")


def test_a_corrupt_file_is_an_error_to_show() -> None:
    assert read_file(["{", "x.json"])["error"].startswith("The file is not valid JSON")


def test_markdown_is_made_of_what_the_browser_sends() -> None:
    conversation = add(start(), "user", content="Hello")
    assert "## User\n\nHello\n" in to_markdown(dump(conversation))["text"]
    assert "not a conversation" in to_markdown({"turns": 5})["error"]


def test_the_events_and_server_functions_are_those_of_the_script() -> None:
    with gr.Blocks(analytics_enabled=False) as demo:
        listed, holder = conversation_list.layout(), gr.JSON(value={}, visible=False)
        for event in (listed.select, listed.edit, listed.clear):
            event(lambda: None, None, None)
        conversation_list.wire(listed, holder)
    assert listed.server_fns
    script = str(listed.js_on_load)
    for function in (read_file, to_markdown):
        assert f'ask("{function.__name__}"' in script
    for name in ("select", "edit", "clear"):
        assert f'trigger("{name}"' in script
    assert demo.fns[3].js == conversation_list.SAVE_CONVERSATION_JS
    assert "window.graniteDemo = {\n  save" in script


def test_no_text_of_a_visitor_becomes_markup() -> None:
    with gr.Blocks(analytics_enabled=False):
        script = str(conversation_list.layout().js_on_load)
    for door in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "confirm("):
        assert door not in script
