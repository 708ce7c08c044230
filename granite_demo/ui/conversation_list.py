"""The list of conversations beside the chat. They are kept in the visitor's browser; the server keeps nothing.

The list and its storage are ``SCRIPTS``. Its events: ``select`` and ``edit`` carry the conversation that
is now open, ``clear`` says that none is. What changes in ``holder``, the open conversation, is saved by the script.
"""

from typing import Any

import gradio as gr

from granite_demo.chat import conversation as conversations
from granite_demo.chat import export
from granite_demo.errors import InvalidRequestError
from granite_demo.ui import theme
from granite_demo.ui.gradio_patches.events import DIRECT

SAVE_JS = "(conversation) => { window.graniteDemo?.save(conversation); }"
"""For the change event of the component that holds the open conversation."""
SHOWN_JS = "(held, ...rest) => [window.graniteDemo?.shownPart(held) ?? held, ...rest]"
"""For events that need no more of the open conversation, their first input, than the branch that is shown."""
SCRIPTS = ("assets/library_turns.js", "assets/library_store.js", "conversation_list.js")
"""The parts of one script."""
UNREADABLE = "This is not a conversation that granite-demo can read."


def layout() -> gr.HTML:
    """Place the sidebar with the list. Call inside the Blocks, outside the tabs."""
    # Closed to begin with, for narrow screens; the script opens it on wide ones.
    with gr.Sidebar(open=False, width=300, elem_id="sidebar"):
        return gr.HTML(
            html_template="",
            js_on_load="\n".join(map(theme.script, SCRIPTS)),
            apply_default_css=False,
            elem_id="library",
            server_functions=[read_file, to_markdown],
        )


def wire(library: gr.HTML, holder: gr.JSON) -> None:
    """Save the open conversation whenever it changes. Opening others is up to the chat."""
    holder.change(None, [holder], None, js=SAVE_JS, **DIRECT)


def read_file(data: Any) -> dict[str, Any]:
    """For the script: [text, name] of a file to its conversations with their titles, or an error to show."""
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
    """For the script: a conversation to the text of its file, or an error to show."""
    try:
        return {"text": export.to_markdown(conversations.load(data))}
    except InvalidRequestError as error:
        return {"error": error.user_text}
