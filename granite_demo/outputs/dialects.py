"""The table of dialects: the markers that each model family puts around reasoning, tool calls and citations.

The text of the chat template selects the row. The name of the model does not.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

MarkKind = Literal[
    "reasoning_open",
    "reasoning_close",
    "response_open",
    "response_close",
    "call_open",
    "call_close",
    "cite_open",
    "cite_close",
    "citations",
    "hallucinations",
]
"""What a marker means. ``citations`` and ``hallucinations`` start a list after the answer, on a line of their own.

``call_close`` can be missing. ``cite_open`` comes before the key of the document and, if the family has ``cite_close``,
the cited text; if not, the mark stands alone.
"""
CALL_KINDS: tuple[MarkKind, ...] = ("call_open", "call_close")
LIST_KINDS: tuple[MarkKind, ...] = ("cite_open", "cite_close", "citations", "hallucinations")


@dataclass(frozen=True, slots=True)
class Dialect:
    """The grammar of the answers of one family: its markers.

    No marker is a substring of another one: the parser takes the first complete marker.
    """

    name: str
    signs: tuple[str, ...] = ()
    """Strings that occur together in the chat templates of this family, but not in those of later rows."""
    marks: tuple[tuple[str, MarkKind], ...] = ()
    key_open: str = ""
    key_close: str = ""
    """What encloses the key of a document, after ``cite_open``."""
    bare_calls: Literal["", "function", "python"] = ""
    """How this family writes a call when it leaves out the markers: ``<function=name>…`` or ``name(…)``."""

    @property
    def markers(self) -> tuple[str, ...]:
        """All markers. The parser must see them, even those that are special tokens."""
        return (*(text for text, _ in self.marks), *filter(None, (self.key_open, self.key_close)))

    def of(self, *kinds: MarkKind) -> tuple[str, ...]:
        """Return the markers of ``kinds``."""
        return tuple(text for text, kind in self.marks if kind in kinds)

    @property
    def end_of_reasoning(self) -> str:
        """The text that a model of this family writes between its reasoning and its answer. Empty: it has none."""
        close = self.of("reasoning_close")[:1]
        return "".join(f"\n{marker}" for marker in (*close, *self.of("response_open"))) + "\n" if close else ""

    def only(self, *, calls: bool, lists: bool) -> "Dialect":
        """Return a copy without the markers that the request did not ask for. They then stay text.

        ``calls``: the answer can call tools. ``lists``: it can have citations, and lists after it.
        """
        gone = (() if calls else CALL_KINDS) + (() if lists else LIST_KINDS)
        kept = tuple((text, kind) for text, kind in self.marks if kind not in gone)
        return replace(self, marks=kept, bare_calls=self.bare_calls if calls else "")


PLAIN = Dialect("plain")
"""No markers: for ChatML models without tools, and for raw completion."""

THINK: tuple[tuple[str, MarkKind], ...] = (("<think>", "reasoning_open"), ("</think>", "reasoning_close"))
CALL: tuple[tuple[str, MarkKind], ...] = (("<tool_call>", "call_open"), ("</tool_call>", "call_close"))
# Granite 3.1 and later also write the form of Granite 4.
LIST_CALL: tuple[tuple[str, MarkKind], ...] = (("<|tool_call|>", "call_open"), *CALL)

DIALECTS = {
    row.name: row
    for row in (
        # The templates of later families contain the signs of earlier ones, so the most specific row comes first.
        Dialect("4.2", signs=("<function=", "<think>"), marks=(*THINK, *CALL), bare_calls="function"),
        Dialect(
            "3.3",
            signs=("<think>", "<response>"),
            marks=(
                *THINK,
                ("<response>", "response_open"),
                ("</response>", "response_close"),
                *LIST_CALL,
                ("<|start_of_cite|>", "cite_open"),
                ("<|end_of_cite|>", "cite_close"),
                ('{"id": "citation"}', "citations"),
                ('{"id": "hallucination"}', "hallucinations"),
            ),
            key_open="{",
            key_close="}",
            bare_calls="python",
        ),
        # Also 3.0 and 3.1, which have no reasoning.
        Dialect(
            "3.2",
            signs=("<|tool_call|>",),
            marks=(
                ("Here is my thought process:", "reasoning_open"),
                ("Here's my thought process:", "reasoning_open"),
                ("Here is my response:", "reasoning_close"),
                ("Here's my response:", "reasoning_close"),
                *LIST_CALL,
                ("<co>", "cite_open"),
                ("# Citations:", "citations"),
                ("# Hallucinations:", "hallucinations"),
            ),
            key_close="</co>",
            bare_calls="python",
        ),
        Dialect("4.0", signs=("<tool_call>",), marks=CALL, bare_calls="python"),
        PLAIN,
    )
}
"""The rows by name, in the order in which ``find_dialect`` tries them."""


@lru_cache(maxsize=8)
def find_dialect(template: str) -> Dialect:
    """Return the first row whose signs all occur in ``template``, the text of a chat template."""
    return next(row for row in DIALECTS.values() if all(sign in template for sign in row.signs))
