"""What the chat shows before the first message: the model, what it can do, and examples of one ability each.

``assets/empty_state.js`` fills the boxes that an example names; nothing is sent.
"""

import html
import json
from dataclasses import dataclass

from granite_demo.chat.tools import EXAMPLE_TOOLS, to_json
from granite_demo.types.model_status import ModelChoice, ModelStatus, gigabytes
from granite_demo.ui.chat.composer import NO_DOCUMENTS, NO_TOOLS

LEASE = """Lease of the flat at 12 Granite Road

14.2 The tenant can end the lease in writing. The notice period is three months and begins on the first day of the next
month.
14.3 The landlord can end the lease in writing and with reasons. The notice period is six months.
15.1 The deposit is two months' rent. The landlord returns it within 60 days after the end of the lease.
"""
INVOICE = """Invoice 2291, 3 March 2026, Stone & Sons: 2 slabs at 140.00, 1 delivery at 60.00.

The invoice as JSON, with "number" and "total":
"""
INVOICE_SCHEMA = {
    "type": "object",
    "properties": {"number": {"type": "integer"}, "total": {"type": "number"}},
    "required": ["number", "total"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Example:
    """An example: what its button says, and what it fills in."""

    title: str
    about: str
    fills: dict[str, str]
    """See ``assets/empty_state.js``."""
    off: str = ""
    """Why the loaded model cannot do it."""


def examples(status: ModelStatus) -> tuple[Example, ...]:
    """Six examples, each of one ability of the model of ``status`` or with the reason why it lacks it."""
    ready, model = status.stage == "ready", status.switches
    lease = {"message": "How long is the tenant's notice period?", "name": "lease.txt", "document": LEASE}
    tools = {"message": "What is 17 % of 2,340?", "tools": to_json(EXAMPLE_TOOLS)}
    code = {"message": "Write a Python function that merges two sorted lists, with a test."}
    schema = {"prompt": INVOICE, "schema": json.dumps(INVOICE_SCHEMA, indent=2)}
    both = {"compare": "Name three rocks that form from magma."}
    return (
        Example("Ask a document", "A lease, as a file", lease, NO_DOCUMENTS if ready and not model.documents else ""),
        Example("Call a tool", "You approve each call", tools, NO_TOOLS if ready and not model.tools else ""),
        Example("Write code", "A function with a test", code),
        Example("Write JSON", "An invoice, to its schema", schema, status.unable_to("constraints")),
        Example("Fill in the middle", "The body of a function", {"fill": ""}, status.unable_to("fill in the middle")),
        Example("Compare", "Two settings, one question", both),
    )


def empty_html(status: ModelStatus, offer: ModelChoice | None = None) -> str:
    """The whole of it, for the model of ``status``. ``offer``: a better model for who has the sample."""
    cards = "".join(_card(example) for example in examples(status))
    head = f"<h2>{_title(status)}</h2><p>{_about(status)}</p>"
    return f'<div class="empty">{head}<div class="cards">{cards}</div>{_offer(status, offer)}</div>'


def _offer(status: ModelStatus, offer: ModelChoice | None) -> str:
    if offer is None or status.name != "sample":
        return ""
    button = (
        f'<button type="button" class="primary" data-sheet="picker" data-offer="{html.escape(offer.name)}">'
        f"Load {html.escape(offer.title)} · {gigabytes(offer.size)}</button>"
    )
    return f'<div class="offer"><span>This is a small sample model, not one of IBM\'s.</span>{button}</div>'


def _card(example: Example) -> str:
    fills = "".join(f' data-{name}="{html.escape(text)}"' for name, text in example.fills.items())
    state = ' aria-disabled="true"' if example.off else ""
    return (
        f'<button type="button" class="example"{fills}{state}><b>{html.escape(example.title)}</b>'
        f"<span>{html.escape(example.off or example.about)}</span></button>"
    )


def _title(status: ModelStatus) -> str:
    if status.stage != "ready":
        return "What can I help with?"
    return f"What can {html.escape(status.title or status.model)} do for you?"


def _about(status: ModelStatus) -> str:
    if status.stage != "ready":
        return "You can write while the model loads."
    model = status.switches
    able = {
        "Thinking": model.thinking,
        "Documents": model.documents,
        "Tools": model.tools,
        "Citations": model.citations,
    }
    words = ["Chat", *(name for name, has in able.items() if has)]
    if status.context_length:
        words.append(f"{status.context_length:,} tokens of context")
    return html.escape(" · ".join(words))
