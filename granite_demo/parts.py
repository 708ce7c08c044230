"""What an answer's text is taken apart into."""

from dataclasses import dataclass

from granite_demo.messages import ToolCall
from granite_demo.types import Appendix, Citation


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of the thinking."""

    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """More of the answer's text."""

    text: str


Part = Reasoning | Text | ToolCall | Citation | Appendix
