"""The parts of an answer, as ``ResponseParser`` yields them."""

from dataclasses import dataclass

from granite_demo.types.events import Appendix, Citation
from granite_demo.types.messages import ToolCall


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The next piece of the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """The next piece of the answer text."""

    text: str


Part = Reasoning | Text | ToolCall | Citation | Appendix
