"""What a backend is asked: to generate, to score and to compare. Standard library only."""

from dataclasses import dataclass, field
from typing import Literal

from granite_demo.errors import InvalidRequestError
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.messages import Controls, Document, Message, ToolSpec, scrub
from granite_demo.types.sampling_params import MAX_ALTERNATIVES, SamplingParams
from granite_demo.types.stop import Stop


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A text to score, or the ids of its tokens. Raises InvalidRequestError."""

    text: str = ""
    token_ids: tuple[int, ...] | None = None
    alternatives: int = 5
    special_tokens: bool = False
    """Whether the text may spell control tokens."""
    model: LoadOptions | None = None
    """Score with this model rather than the one that is chosen."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", scrub(self.text))
        if not self.text and not self.token_ids:
            raise InvalidRequestError("There is no text to score.")
        if not 0 <= self.alternatives <= MAX_ALTERNATIVES:
            raise InvalidRequestError(f"alternatives must be between 0 and {MAX_ALTERNATIVES}.")


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """A text that two ways to load a model read, token by token: ``reference`` first. Raises InvalidRequestError."""

    text: str
    reference: LoadOptions
    other: LoadOptions
    special_tokens: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", scrub(self.text))
        if not self.text:
            raise InvalidRequestError("There is no text to compare on.")
        if self.reference == self.other:
            raise InvalidRequestError("Both sides are the same. Choose another precision for one of them.")


Overflow = Literal["refuse", "drop"]
"""When a conversation does not fit the context: an error, or the oldest turns are left out."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to generate from: a conversation (``messages``), raw text (``prompt``) or the ids of tokens."""

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    suffix: str | None = None
    """What follows the gap after ``prompt`` that is to be filled; the prompt may then be empty."""
    special_tokens: bool = False
    """Whether ``prompt`` may spell control tokens; else they are plain text."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    begun: tuple[str, tuple[int, ...]] = ("", ())
    """The end of a prompt that is the beginning of what has to keep to the constraint: a text, and tokens after it."""
    written: tuple[int, ...] = ()
    """Tokens of the answer to ``messages`` that are there already: it is told from its beginning, and goes on."""
    tools: tuple[ToolSpec, ...] = ()
    documents: tuple[Document, ...] = ()
    controls: Controls = field(default_factory=Controls)
    overflow: Overflow = "refuse"
    model: LoadOptions | None = None
    """Answer with this model rather than the one that is chosen; it takes the other's place in memory meanwhile."""
    stop: Stop = field(default_factory=Stop, compare=False, repr=False)
    """Ends the answer early when it is set."""

    def __post_init__(self) -> None:
        given = (bool(self.messages), self.prompt is not None, self.prompt_ids is not None)
        if sum(given) != 1:
            raise InvalidRequestError("A request needs either messages or a prompt.")
        if self.written and (not self.messages or self.sampling.constraint):
            raise InvalidRequestError("Only an answer in a conversation, of a free form, can be gone on with.")
        if self.overflow not in ("refuse", "drop"):
            raise InvalidRequestError(f"overflow must be refuse or drop, not {self.overflow!r}.")
        if self.suffix is not None and self.prompt is None:
            raise InvalidRequestError("A suffix needs a prompt that is text.")
        if self.prompt is not None:
            if not self.prompt and not self.suffix:
                raise InvalidRequestError("The prompt is empty. Write something to continue from.")
            object.__setattr__(self, "prompt", scrub(self.prompt))
            object.__setattr__(self, "suffix", None if self.suffix is None else scrub(self.suffix))
        elif self.prompt_ids is not None:
            if not self.prompt_ids:
                raise InvalidRequestError("The prompt is empty. Write something to continue from.")
        elif (last := self.messages[-1]).role != "tool" and (last.role != "user" or not last.content.strip()):
            raise InvalidRequestError("The last message must be a user's, and not empty, or a tool's.")

    @property
    def calls(self) -> bool:
        """Whether the answer may call tools: some are offered, or the conversation has called some before."""
        return bool(self.tools) or any(message.tool_calls for message in self.messages)

    @property
    def raw(self) -> bool:
        """Whether the answer is plain text, without a chat template."""
        return not self.messages
