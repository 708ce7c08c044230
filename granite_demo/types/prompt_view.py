"""The exact prompt of a request, as the page shows it. Standard library only."""

from dataclasses import dataclass
from typing import Literal

Origin = Literal["template", "control", "system", "user", "assistant", "document", "tool"]
"""Who wrote a part of a prompt: the chat template, as text or as control tokens, or one of the request's parts."""


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A stretch of a prompt with one origin."""

    origin: Origin
    text: str
    tokens: tuple[tuple[int, str], ...]
    """(token id, its text) of each."""


@dataclass(frozen=True, slots=True)
class PromptView:
    """The exact prompt of a request, before it is sent."""

    parts: tuple[PromptPart, ...]
    """Empty unless they were asked for."""
    tokens: int
    dropped: int
    """Messages that are left out to make room; see ``GenerationRequest.overflow``."""
    context_length: int
