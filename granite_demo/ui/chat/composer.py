"""The message box's menu and chips: what can be added to a message, and why the loaded model cannot take a part of it.

``assets/composer.js`` opens the sheets that the menu names, draws the chips from the conversation, and takes files that
are dropped or pasted.
"""

import html

from granite_demo.chat.documents import MAX_DOCUMENTS, MAX_FILE_BYTES, READERS
from granite_demo.types.model_status import ModelStatus
from granite_demo.ui.chat.context_meter import OVERFLOW_TITLE

NO_DOCUMENTS = "The loaded model's chat template has no place for documents."
NO_TOOLS = "The loaded model's chat template has no place for tools."

REMOVE_DOCUMENT_JS = """(held) => {
  const gone = window.graniteDemo?.removed;
  return [{ ...held, documents: (held?.documents ?? []).filter((one, at) => at !== gone) }];
}"""
"""In the browser alone: the documents need not travel."""


def menu_html(status: ModelStatus) -> str:
    """The "+" with its menu, and the button for thinking, for the model of ``status``."""
    ready, model = status.stage == "ready", status.switches
    texts = "" if model.documents or not ready else NO_DOCUMENTS
    calls = "" if model.tools or not ready else NO_TOOLS
    kinds = ",".join(READERS)
    limits = f"{', '.join(kind[1:] for kind in READERS)} · {MAX_DOCUMENTS} files, {MAX_FILE_BYTES // 1_000_000} MB each"
    rows = (
        _row("file", f'data-upload="{kinds}"', "Add files", limits, texts),
        _row("text", 'data-sheet="documents"', "Paste a text", "", texts),
        _row("tool", 'data-sheet="tools"', "Tools", "The model asks, you approve each call", calls),
        _row("person", 'data-sheet="system"', "System prompt", "Who the model should be", ""),
        _row("fold", 'data-sheet="overflow-sheet"', OVERFLOW_TITLE, "", ""),
    )
    return (
        '<button type="button" class="icon plus" popovertarget="plus-menu" title="Add to the message"></button>'
        f'<div id="plus-menu" class="menu" popover>{"".join(rows)}</div>'
        '<button type="button" class="pill" data-sheet="switches"><span>Thinking</span><i data-level></i></button>'
    )


def _row(icon: str, action: str, label: str, hint: str, off: str) -> str:
    # A disabled button could not be read with the keyboard.
    state = ' aria-disabled="true"' if off else ""
    small = f"<small>{html.escape(off or hint)}</small>" if off or hint else ""
    return f'<button type="button" class="row {icon}" {action}{state}><span>{html.escape(label)}</span>{small}</button>'
