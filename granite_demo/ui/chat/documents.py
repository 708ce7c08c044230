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
    MAX_DOCUMENTS,
    MAX_FILE_BYTES,
    MAX_TITLE,
    READERS,
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

    accordion: gr.Accordion
    upload: gr.UploadButton
    title: gr.Textbox
    text: gr.Textbox
    add: gr.Button
    listing: gr.CheckboxGroup
    remove: gr.Button
    message: gr.HTML
    reason: gr.HTML
    patch: gr.JSON
    """The conversation with its new documents, as it was when the visitor added them."""

    @property
    def shown(self) -> list[Any]:
        """The components that ``shown_values`` fills."""
        return [self.accordion, self.listing, self.remove, self.message, self.reason]


def shown_values(conversation: Conversation, reason: str | None = "", message: str = "") -> tuple[Any, ...]:
    """What the panel shows of ``conversation``.

    ``reason`` is why the model would ignore documents, if it would: then the panel shows only the present ones.
    None leaves that as it is.
    """
    documents = conversation.documents
    listing = gr.CheckboxGroup(choices=_choices(documents), value=[], visible=bool(documents))
    ignored = gr.skip() if reason is None else note_html(reason) if reason else ""
    seen: dict[str, Any] = {} if reason is None else {"visible": bool(documents) or not reason}
    accordion = gr.Accordion(label=_label(len(documents)), **seen)
    return accordion, listing, gr.Button(visible=bool(documents)), message, ignored


def layout() -> DocumentsPanel:
    """Place the components. Call inside the Chat tab."""
    with gr.Accordion(_label(0), open=False, elem_id="documents") as accordion:
        reason = gr.HTML(elem_id="documents-reason")
        listing = gr.CheckboxGroup(
            [],
            label="Documents of this conversation",
            info="The model answers from these. Tick those to remove.",
            visible=False,
            elem_id="documents-list",
        )
        remove = gr.Button("Remove the ticked ones", size="sm", visible=False, elem_id="documents-remove")
        upload = gr.UploadButton(
            f"Add files ({', '.join(kind[1:] for kind in READERS)}; "
            f"{MAX_DOCUMENTS} documents, {MAX_FILE_BYTES // 1_000_000} MB each)",
            file_count="multiple",
            file_types=list(READERS),
            size="sm",
            elem_id="documents-upload",
        )
        title = gr.Textbox(
            label="Title", max_lines=1, max_length=MAX_TITLE, placeholder="Pasted text", elem_id="documents-title"
        )
        text = gr.Textbox(
            label="Text",
            lines=3,
            max_lines=10,
            placeholder=f"Or paste a text here, of up to {MAX_DOCUMENT:,} characters.",
            elem_id="documents-text",
        )
        add_button = gr.Button("Add the text", size="sm", elem_id="documents-add")
        message = gr.HTML(elem_id="documents-message")
    patch = gr.JSON(visible=False)
    return DocumentsPanel(accordion, upload, title, text, add_button, listing, remove, message, reason, patch)


def wire(panel: DocumentsPanel, holder: gr.JSON) -> None:
    """Connect the events. ``holder`` keeps the conversation, as ``conversations.dump`` gives it."""
    changed = [panel.patch, *panel.shown]
    for event in (
        panel.upload.upload(add_files, [holder, panel.upload], [*changed, panel.upload], js=PART_JS, **DIRECT),
        panel.add.click(
            add_text, [holder, panel.title, panel.text], [*changed, panel.title, panel.text], js=PART_JS, **DIRECT
        ),
        panel.remove.click(remove, [holder, panel.listing], changed, js=PART_JS, **DIRECT),
    ):
        event.then(None, [holder, panel.patch], [holder], js=MERGE_JS, **DIRECT)


async def add_files(value: Any, paths: Sequence[str] | None) -> tuple[Any, ...]:
    """Add uploaded files to the conversation, all that can be read, and delete them from the server."""
    files = [Path(path) for path in paths or ()]
    try:
        conversation = await off_loop(load, value)
        documents, reasons = await _read(conversation.documents, files)
    except GraniteDemoError as error:
        return *_unchanged(error), None
    finally:
        for file in files:
            with suppress(OSError):
                file.unlink(missing_ok=True)
    count = len(documents) - len(conversation.documents)
    notes = [note_html(f"Added {count} document{'s' * (count != 1)}.")] if count else []
    notes += [note_html(reason, "error") for reason in reasons[:MAX_REASONS]]
    if len(reasons) > MAX_REASONS:
        notes.append(note_html(f"{len(reasons) - MAX_REASONS} more files could not be added.", "error"))
    return *_changed(conversation, documents, "".join(notes)), None


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
        return *_unchanged(error), gr.skip(), gr.skip()
    return *_changed(conversation, documents, note_html(f"Added {documents[-1].title}.")), "", ""


def remove(value: Any, chosen: Any) -> tuple[Any, ...]:
    """Take the chosen documents, by their places in the list, out of the conversation."""
    try:
        conversation = load(value)
        if not isinstance(chosen, list) or not chosen:
            raise InvalidRequestError("Tick the documents to remove first.")
    except InvalidRequestError as error:
        return _unchanged(error)
    names = {name for _, name in _choices(conversation.documents)} & {str(name) for name in chosen}
    kept = [one for at, one in enumerate(conversation.documents) if _name(at, one.title) not in names]
    return _changed(conversation, kept, note_html(f"Removed {len(names)} document{'s' * (len(names) != 1)}."))


def _changed(conversation: Conversation, documents: Sequence[Document], message: str) -> tuple[Any, ...]:
    changed = conversation.model_copy(update={"documents": tuple(documents), "updated": time.time()})
    return dump(changed), *shown_values(changed, None, message)


def _unchanged(error: GraniteDemoError) -> tuple[Any, ...]:
    keep = gr.skip()
    return keep, keep, keep, keep, note_html(error.user_text, "error"), keep


def _label(count: int) -> str:
    return f"Documents ({count})" if count else "Documents"


def _choices(documents: Sequence[Document]) -> list[tuple[str, str]]:
    """(what is shown, name) of each document, with the number by which models cite it."""
    return [
        (f"{at + 1}. {one.title} · {len(one.text):,} characters", _name(at, one.title))
        for at, one in enumerate(documents)
    ]


def _name(at: int, title: str) -> str:
    # With the title, so that a list that is out of date removes nothing else.
    return f"{at}:{title}"
