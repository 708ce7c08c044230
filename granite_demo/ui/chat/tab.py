"""The Chat tab's layout. The conversation is kept in the visitor's browser, and each question sends all of it."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from granite_demo.access import Access
from granite_demo.backend import Backend, ModelControl
from granite_demo.chat.conversation import Conversation
from granite_demo.types.model_status import ModelStatus
from granite_demo.ui.chat import (
    composer,
    context_meter,
    documents,
    empty_state,
    prompt_xray,
    side_by_side,
    template_switches,
    tools,
)
from granite_demo.ui.chat.context_meter import Meter
from granite_demo.ui.chat.documents import DocumentsPanel
from granite_demo.ui.chat.messages import chat_messages
from granite_demo.ui.chat.prompt_xray import Xray
from granite_demo.ui.chat.side_by_side import SideBySideTab
from granite_demo.ui.chat.template_switches import SwitchPanel
from granite_demo.ui.chat.tools import ToolsPanel
from granite_demo.ui.html import panel_head
from granite_demo.ui.markdown import DELIMITERS
from granite_demo.ui.theme import script

COMPOSER_SCRIPTS = ("assets/composer.js", "assets/message_queue.js")
MESSAGE_SCRIPTS = ("assets/page.js", "assets/chat.js", "assets/message_editor.js", "assets/tool_cards.js")
"""The parts of one script."""
SEND, STOP = "Send", "Stop"
IGNORED = "The loaded model's chat template has no place for {0}: it would not see them."


@dataclass(frozen=True, slots=True)
class ChatTab:
    """The tab's components."""

    holder: gr.JSON
    """The open conversation, as ``conversations.dump`` writes it."""
    patch: gr.JSON
    """What the server adds to it; see ``respond``."""
    growing: gr.JSON
    """The answer as far as it is shown: a patch, with its key and its place in line. The browser keeps it."""
    watched: gr.JSON
    """The key of the answer that the open conversation waits for; see ``running_answers``."""
    setup: gr.JSON
    """What the panels of the open conversation set: all of it but its turns."""
    acts: gr.HTML
    """Has an event for each button under the messages."""
    download: gr.JSON
    earlier: gr.Button
    chatbot: gr.Chatbot
    empty: gr.HTML
    """What stands there before the first message."""
    grounding: gr.HTML
    """What in the documents supports an answer."""
    message: gr.HTML
    """Why something was not done."""
    textbox: gr.Textbox
    menu: gr.HTML
    """What can be added to a message; see ``composer``."""
    chips: gr.HTML
    """What is added to the conversation; see ``composer``."""
    switches: SwitchPanel
    system_prompt: gr.Textbox
    documents: DocumentsPanel
    tools: ToolsPanel
    meter: Meter
    xray: Xray
    comparison: SideBySideTab

    @property
    def screen(self) -> list[Any]:
        """What ``screen_values`` fills."""
        return [self.chatbot, self.earlier]

    @property
    def panels(self) -> list[Any]:
        """What ``panel_values`` fills."""
        return [
            self.system_prompt,
            self.meter.overflow,
            *self.documents.shown,
            *self.tools.shown,
            *self.switches.shown,
        ]


def layout(backend: Backend, control: ModelControl, access: Access) -> ChatTab:
    """Place the components. Call inside the tab."""
    with gr.Column(elem_id="chat"):
        holder, setup = (gr.JSON({}, visible=False) for _ in range(2))
        patch, growing, watched, download = (gr.JSON(visible=False) for _ in range(4))
        scripts = "\n".join(map(script, MESSAGE_SCRIPTS))
        acts = gr.HTML(js_on_load=scripts, elem_id="acts", server_functions=[tools.run_call])
        with gr.Column(elem_id="conversation"):
            earlier = gr.Button("Show earlier messages", visible=False, size="sm", elem_id="earlier")
            chatbot = _chatbot()
            start = empty_state.empty_html(backend.status())
            empty = gr.HTML(start, js_on_load=script("assets/empty_state.js"), elem_id="empty", padding=False)
        with gr.Column(elem_id="composer"):
            message = gr.HTML(elem_id="chat-message", padding=False)
            texts = documents.layout()
            with gr.Column(elem_id="box"):
                chips = gr.HTML(js_on_load="\n".join(map(script, COMPOSER_SCRIPTS)), elem_id="chips", padding=False)
                textbox = _textbox()
                with gr.Row(elem_id="box-bar"):
                    menu = gr.HTML(composer.menu_html(backend.status()), elem_id="composer-menu", padding=False)
                    bar = gr.HTML(elem_id="meter-bar", padding=False)
        with gr.Column(elem_id="sources", elem_classes="drawer"):
            gr.HTML(panel_head("Sources of the answer"), padding=False)
            grounding = gr.HTML(padding=False)
        return ChatTab(
            holder,
            patch,
            growing,
            watched,
            setup,
            acts,
            download,
            earlier,
            chatbot,
            empty,
            grounding,
            message,
            textbox,
            menu,
            chips,
            template_switches.layout(),
            _system_prompt(),
            texts,
            tools.layout(),
            context_meter.layout(bar),
            prompt_xray.layout(),
            side_by_side.layout(backend, control, access),
        )


def _system_prompt() -> gr.Textbox:
    with gr.Column(elem_id="system", elem_classes="sheet"):
        return gr.Textbox(
            label="System prompt",
            elem_id="system-prompt",
            lines=4,
            max_lines=12,
            placeholder="Who the model should be and how it should answer. Empty: the model's own default.",
        )


def _textbox() -> gr.Textbox:
    return gr.Textbox(
        elem_id="message",
        label="Message",
        show_label=False,
        placeholder="Write a message",
        lines=1,
        max_lines=12,
        autofocus=True,
        submit_btn=SEND,
        stop_btn=False,
    )


def _chatbot() -> gr.Chatbot:
    return gr.Chatbot(
        show_label=False,
        label="Conversation",
        elem_id="chatbot",
        height="100%",
        layout="bubble",
        buttons=[],
        latex_delimiters=DELIMITERS,
        allow_tags=False,
    )


def screen_values(conversation: Conversation, *, everything: bool = False, busy: bool = False) -> tuple[Any, ...]:
    """The messages, and what stands beside them; ``busy``: an answer is about to be written."""
    history, hidden = chat_messages(conversation, everything=everything, busy=busy)
    label = f"Show {hidden:,} earlier message{'s' * (hidden != 1)}"
    if everything:
        label = f"{hidden:,} earlier messages are too many to show; Export has them"
    earlier = gr.Button(label, visible=hidden > 0, interactive=not everything)
    return history, earlier


def panel_values(conversation: Conversation, status: ModelStatus) -> tuple[Any, ...]:
    """What belongs to the conversation as a whole, for the model of ``status``."""
    return (
        conversation.system,
        conversation.overflow,
        *attachments(conversation, status),
        *template_switches.shown_values(status.switches, conversation),
    )


def attachments(conversation: Conversation, status: ModelStatus) -> tuple[Any, ...]:
    """Documents and tools, with the reason where the model would not see them."""
    ready, model = status.stage == "ready", status.switches
    texts = "" if model.documents or not ready else IGNORED.format("documents")
    calls = "" if model.tools or not ready else IGNORED.format("tools")
    return *documents.shown_values(conversation, texts), *tools.shown_values(conversation, calls)


def message_box(*, busy: bool, **values: Any) -> Any:
    """The message box with its button: Stop while an answer is written, else Send."""
    return gr.Textbox(submit_btn=False if busy else SEND, stop_btn=STOP if busy else False, **values)
