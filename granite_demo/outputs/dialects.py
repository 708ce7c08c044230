"""The table of dialects: the markers that each model family puts around reasoning, tool calls and citations.

The text of the chat template selects the row. The name of the model does not.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal


@dataclass(frozen=True, slots=True)
class Dialect:
    """The markers in the answers of one family. A marker is empty if the family has none.

    No marker is a substring of another one: the parser takes the first complete marker.
    """

    name: str
    signs: tuple[str, ...] = ()
    """Strings that occur together in the chat templates of this family, but not in those of later rows."""
    reasoning_open: tuple[str, ...] = ()
    reasoning_close: tuple[str, ...] = ()
    response_open: str = ""
    response_close: str = ""
    tool_open: tuple[str, ...] = ()
    tool_close: str = ""
    """Empty if only the end of the answer closes a call."""
    cite_open: str = ""
    mark_open: str = ""
    mark_close: str = ""
    """``mark_open`` and ``mark_close`` enclose the document's mark, which follows ``cite_open``."""
    cite_close: str = ""
    """The end of the cited text, which follows the mark. Empty if the mark stands alone."""
    appendices: tuple[tuple[str, Literal["citations", "hallucinations"]], ...] = ()
    """Pairs of marker and kind. At the start of the answer, a marker matches without its leading line break."""

    @property
    def markers(self) -> tuple[str, ...]:
        """All markers. The parser must see them, even those that are special tokens."""
        single = (self.response_open, self.response_close, self.tool_close)
        cites = (self.cite_open, self.mark_open, self.mark_close, self.cite_close)
        several = (
            *self.reasoning_open,
            *self.reasoning_close,
            *self.tool_open,
            *(marker for marker, _ in self.appendices),
        )
        return tuple(marker for marker in (*single, *cites, *several) if marker)

    def without_calls(self) -> "Dialect":
        """A copy for answers that cannot call tools: text that looks like a call stays text."""
        return replace(self, tool_open=(), tool_close="")


PLAIN = Dialect("plain")
"""No markers: for ChatML models without tools, and for raw completion."""

# Granite 3.1 and later also write the second form.
LIST_CALLS = ("<|tool_call|>", "<tool_call>")

DIALECTS = {
    row.name: row
    for row in (
        # The templates of later families contain the signs of earlier ones, so the most specific row comes first.
        Dialect(
            "4.2",
            signs=("<function=", "<think>"),
            reasoning_open=("<think>",),
            reasoning_close=("</think>",),
            tool_open=("<tool_call>",),
            tool_close="</tool_call>",
        ),
        Dialect(
            "3.3",
            signs=("<think>", "<response>"),
            reasoning_open=("<think>",),
            reasoning_close=("</think>",),
            response_open="<response>",
            response_close="</response>",
            tool_open=LIST_CALLS,
            cite_open="<|start_of_cite|>",
            mark_open="{",
            mark_close="}",
            cite_close="<|end_of_cite|>",
            appendices=(('{"id": "citation"}', "citations"), ('{"id": "hallucination"}', "hallucinations")),
        ),
        # Also 3.0 and 3.1, which have no reasoning.
        Dialect(
            "3.2",
            signs=("<|tool_call|>",),
            reasoning_open=("Here is my thought process:", "Here's my thought process:"),
            reasoning_close=("Here is my response:", "Here's my response:"),
            tool_open=LIST_CALLS,
            cite_open="<co>",
            mark_close="</co>",
            appendices=(("\n# Citations:", "citations"), ("\n# Hallucinations:", "hallucinations")),
        ),
        Dialect("4.0", signs=("<tool_call>",), tool_open=("<tool_call>",), tool_close="</tool_call>"),
        PLAIN,
    )
}
"""The rows by name, in the order in which ``find_dialect`` tries them."""


@lru_cache(maxsize=8)
def find_dialect(template: str) -> Dialect:
    """Return the first row whose signs all occur in ``template``, the text of a chat template."""
    return next(row for row in DIALECTS.values() if all(sign in template for sign in row.signs))
