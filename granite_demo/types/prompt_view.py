"""The exact prompt of a request, as the page shows it. Uses the standard library only."""

from dataclasses import dataclass
from typing import Literal

Origin = Literal["template", "control", "system", "user", "assistant", "document", "tool"]
"""The source of a part of a prompt: the chat template (as text or control tokens), or a part of the request."""


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A part of a prompt with one origin."""

    origin: Origin
    text: str
    tokens: tuple[tuple[int, str], ...]
    """(token id, text) of each token."""


@dataclass(frozen=True, slots=True)
class PromptView:
    """The exact prompt of a request, before it is sent."""

    parts: tuple[PromptPart, ...]
    """Empty if the caller does not request them."""
    tokens: int
    dropped: int
    """The number of messages that are left out to fit the context; see ``GenerationRequest.overflow``."""
    context_length: int
