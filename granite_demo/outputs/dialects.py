"""How each family of models marks thinking, tool calls and citations in its answers: a table.

A row is recognised by the chat template's own text, never by a model's name.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal


@dataclass(frozen=True, slots=True)
class Dialect:
    """The markers of one family's answers; what it does not have is empty. No marker is a part of another."""

    name: str
    signs: tuple[str, ...] = ()
    """Texts that all stand in the chat templates of this family, and not all in those of later rows."""
    think_open: tuple[str, ...] = ()
    think_close: tuple[str, ...] = ()
    response_open: str = ""
    response_close: str = ""
    tool_open: tuple[str, ...] = ()
    tool_close: str = ""
    """Empty where the end of the answer ends the call."""
    cite_open: str = ""
    mark_open: str = ""
    mark_close: str = ""
    """Round the document's mark, which follows ``cite_open``."""
    cite_close: str = ""
    """Ends the cited text, which follows the mark; empty where the mark stands alone."""
    appendices: tuple[tuple[str, Literal["citations", "hallucinations"]], ...] = ()
    """(marker, kind). A marker that begins with a line's end also counts at the very beginning."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Every marker: what has to reach the parser even where it is a special token."""
        single = (self.response_open, self.response_close, self.tool_close)
        cites = (self.cite_open, self.mark_open, self.mark_close, self.cite_close)
        several = (*self.think_open, *self.think_close, *self.tool_open, *(marker for marker, _ in self.appendices))
        return tuple(marker for marker in (*single, *cites, *several) if marker)

    def without_calls(self) -> "Dialect":
        """The same for an answer that can call nothing: what looks like a call only speaks of one."""
        return replace(self, tool_open=(), tool_close="")


PLAIN = Dialect("plain")
"""Text only: ChatML models without tools, and raw completion."""

# Granite 3.1 and later write the second form, too.
LIST_CALLS = ("<|tool_call|>", "<tool_call>")

DIALECTS = {
    row.name: row
    for row in (
        # Later families' signs hold earlier ones', so the order is from the most to the least particular.
        Dialect(
            "4.2",
            signs=("<function=", "<think>"),
            think_open=("<think>",),
            think_close=("</think>",),
            tool_open=("<tool_call>",),
            tool_close="</tool_call>",
        ),
        Dialect(
            "3.3",
            signs=("<think>", "<response>"),
            think_open=("<think>",),
            think_close=("</think>",),
            response_open="<response>",
            response_close="</response>",
            tool_open=LIST_CALLS,
            cite_open="<|start_of_cite|>",
            mark_open="{",
            mark_close="}",
            cite_close="<|end_of_cite|>",
            appendices=(('{"id": "citation"}', "citations"), ('{"id": "hallucination"}', "hallucinations")),
        ),
        # 3.0 and 3.1 as well, which only lack the thinking.
        Dialect(
            "3.2",
            signs=("<|tool_call|>",),
            think_open=("Here is my thought process:", "Here's my thought process:"),
            think_close=("Here is my response:", "Here's my response:"),
            tool_open=LIST_CALLS,
            cite_open="<co>",
            mark_close="</co>",
            appendices=(("\n# Citations:", "citations"), ("\n# Hallucinations:", "hallucinations")),
        ),
        Dialect("4.0", signs=("<tool_call>",), tool_open=("<tool_call>",), tool_close="</tool_call>"),
        PLAIN,
    )
}
"""By name, in the order in which they are looked for."""


@lru_cache(maxsize=8)
def find_dialect(template: str) -> Dialect:
    """The row whose signs all stand in ``template``, the text of a chat template."""
    return next(row for row in DIALECTS.values() if all(sign in template for sign in row.signs))
