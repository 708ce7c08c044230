"""What an answer's text is taken apart into."""

from dataclasses import dataclass

from granite_demo.types.events import Appendix, Citation
from granite_demo.types.messages import ToolCall


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of the thinking."""

    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """More of the answer's text."""

    text: str


Part = Reasoning | Text | ToolCall | Citation | Appendix
