"""The Documents panel: files and pasted texts that are part of every request of the conversation."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from granite_demo.chat.conversation import Conversation, dump, load
from granite_demo.chat.document_process import CHILD_SUFFIXES, read_in_child
from granite_demo.chat.documents import (
    MAX_DOCUMENT,
    MAX_TITLE,
    add,
    check_count,
    paste,
    read_document,
)
from granite_demo.errors import GraniteDemoError, InvalidRequestError
from granite_demo.types.messages import Document
from granite_demo.ui.executor import off_loop, visitor
from granite_demo.ui.gradio_patches.events import DIRECT
from granite_demo.ui.html import note_html

MAX_REASONS = 4
"""Errors of one upload that are shown; the others are counted."""

PART_JS = "(held, ...rest) => { const { turns, head, ...part } = held ?? {}; return [part, ...rest]; }"
"""The turns stay in the browser."""

MERGE_JS = """(held, patch) => {
  if (!patch || (held?.id && held.id !== patch.id)) return [held];
  const { id, created, documents = [], updated } = patch;
  return [{ created, ...held, version: 1, id, documents, updated }];
}"""
"""To read a file takes a while, and the conversation may have grown in the meantime: only its documents are new."""


@dataclass(frozen=True, slots=True)
class DocumentsPanel:
    """The panel's components."""

    upload: gr.UploadButton
    """Hidden: the composer's menu opens it, and files that are dropped or pasted go to it."""
    title: gr.Textbox
    text: gr.Textbox
    add: gr.Button
    message: gr.HTML
    patch: gr.JSON
    """The conversation with its new documents, as it was when the visitor added them."""

    @property
    def shown(self) -> list[Any]:
        """The components that ``shown_values`` fills."""
        return [self.message]


def shown_values(conversation: Conversation, reason: str = "") -> tuple[Any, ...]:
    """The note about the documents of ``conversation``: ``reason``, if the model would ignore them."""
    return (note_html(reason, "error") if reason and conversation.documents else "",)


def layout() -> DocumentsPanel:
    """Place the components. Call inside the Chat tab."""
    upload = gr.UploadButton("Add files", file_count="multiple", elem_id="documents-upload")
    message = gr.HTML(elem_id="documents-message", padding=False)
    with gr.Column(elem_id="documents", elem_classes="sheet"):
        title = gr.Textbox(
            label="Title", max_lines=1, max_length=MAX_TITLE, placeholder="Pasted text", elem_id="documents-title"
        )
        text = gr.Textbox(
            label="Text",
            lines=6,
            max_lines=12,
            placeholder=f"Paste a text of up to {MAX_DOCUMENT:,} characters.",
            elem_id="documents-text",
        )
        add_button = gr.Button("Add the text", variant="primary", elem_id="documents-add")
    patch = gr.JSON(visible=False)
    return DocumentsPanel(upload, title, text, add_button, message, patch)


def wire(panel: DocumentsPanel, holder: gr.JSON) -> None:
    """Connect the events. ``holder`` keeps the conversation, as ``conversations.dump`` gives it."""
    changed = [panel.patch, panel.message]
    boxes = [panel.title, panel.text]
    for event in (
        panel.upload.upload(add_files, [holder, panel.upload], [*changed, panel.upload], js=PART_JS, **DIRECT),
        panel.add.click(add_text, [holder, *boxes], [*changed, *boxes], js=PART_JS, **DIRECT),
    ):
        event.then(None, [holder, panel.patch], [holder], js=MERGE_JS, **DIRECT)


async def add_files(value: Any, paths: Sequence[str] | None) -> tuple[Any, ...]:
    """Add uploaded files to the conversation, all that can be read, and delete them from the server."""
    files = [Path(path) for path in paths or ()]
    try:
        conversation = await off_loop(load, value)
        documents, reasons = await _read(conversation.documents, files)
    except GraniteDemoError as error:
        return gr.skip(), note_html(error.user_text, "error"), None
    finally:
        for file in files:
            with suppress(OSError):
                file.unlink(missing_ok=True)
    more = [f"{len(reasons) - MAX_REASONS} more files could not be added."] if len(reasons) > MAX_REASONS else []
    notes = "".join(note_html(text, "error") for text in [*reasons[:MAX_REASONS], *more])
    return _changed(conversation, documents), notes, None


async def _read(documents: tuple[Document, ...], files: list[Path]) -> tuple[tuple[Document, ...], list[str]]:
    """``documents`` with what could be read of ``files``, and why the others could not be."""
    reasons = []
    for place, file in enumerate(files):
        try:
            check_count(max(len(documents), place) + 1)
            if file.suffix.lower() in CHILD_SUFFIXES:
                document = await read_in_child(file, file.name, visitor.get())
            else:
                document = await off_loop(read_document, file, file.name)
            documents = add(documents, document)
        except GraniteDemoError as error:
            reasons.append(error.user_text if file.name in error.user_text else f"{file.name}: {error.user_text}")
    return documents, reasons


def add_text(value: Any, title: str | None, text: str | None) -> tuple[Any, ...]:
    """Add a pasted text to the conversation. Where it cannot be, the boxes keep it."""
    try:
        conversation = load(value)
        documents = add(conversation.documents, paste(title, text))
    except InvalidRequestError as error:
        return gr.skip(), note_html(error.user_text, "error"), gr.skip(), gr.skip()
    return _changed(conversation, documents), "", "", ""


def _changed(conversation: Conversation, documents: Sequence[Document]) -> dict[str, Any]:
    return dump(conversation.model_copy(update={"documents": tuple(documents), "updated": time.time()}))
