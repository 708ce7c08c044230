"""The list of conversations beside the chat. The visitor's browser keeps them; the server keeps none.

The scripts of ``SCRIPTS`` are the list and its storage. Its events are ``select`` and ``edit``, with the conversation
that is now open, and ``clear``, when none is open. The scripts save each change of ``holder``, the open conversation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from granite_demo.chat import conversation as conversations
from granite_demo.chat import export
from granite_demo.errors import InvalidRequestError
from granite_demo.ui import theme
from granite_demo.ui.gradio_patches.events import DIRECT

SAVE_CONVERSATION_JS = """(conversation) => {
  document.dispatchEvent(new CustomEvent("conversation", { detail: conversation }));
  window.graniteDemo?.save(conversation);
}"""
"""For the change event of the component with the open conversation."""
SHOWN_JS = "(held, ...rest) => [window.graniteDemo?.shownPart(held) ?? held, ...rest]"
"""For events that need only the branch shown of the open conversation, which is their first input."""
SCRIPTS = (
    "assets/library_turns.js",
    "assets/library_store.js",
    "assets/library_answers.js",
    "conversation_list.js",
)
"""The parts of one script."""
UNREADABLE = "This is not a conversation that granite-demo can read."


def layout(functions: Sequence[Callable[..., Any]] = ()) -> gr.HTML:
    """Add the sidebar with the list. Call it inside the Blocks and outside the tabs.

    ``functions``: those of ``running_answers`` that the scripts call.
    """
    with gr.Column(elem_id="side"):
        gr.HTML(f"<span>{theme.logo_svg()}</span><b>granite-demo</b>", elem_id="brand")
        return gr.HTML(
            html_template="",
            js_on_load="\n".join(map(theme.script, SCRIPTS)),
            apply_default_css=False,
            elem_id="library",
            server_functions=[read_file, to_markdown, *functions],
        )


def wire(library: gr.HTML, holder: gr.JSON) -> None:
    """Save the open conversation when it changes. The chat opens other conversations."""
    holder.change(None, [holder], None, js=SAVE_CONVERSATION_JS, **DIRECT)


def read_file(data: Any) -> dict[str, Any]:
    """For the script: the conversations in a file, given as [text, name], or an error to show."""
    try:
        text, name = data
        if not isinstance(text, str) or not isinstance(name, str):
            raise TypeError
        found = export.read(text, name)
    except InvalidRequestError as error:
        return {"error": error.user_text}
    except (TypeError, ValueError):
        return {"error": UNREADABLE}
    return {"conversations": [conversations.dump(conversation) for conversation in found]}


def to_markdown(data: Any) -> dict[str, Any]:
    """For the script: a conversation as the text of a file, or an error to show."""
    try:
        return {"text": export.to_markdown(conversations.load(data))}
    except InvalidRequestError as error:
        return {"error": error.user_text}
