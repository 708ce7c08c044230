"""The requests to a backend: to generate, to score and to compare. Uses the standard library only."""

from dataclasses import dataclass, field
from typing import Literal

from granite_demo.errors import InvalidRequestError
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.messages import Controls, Document, Message, ToolSpec, scrub
from granite_demo.types.sampling_params import MAX_ALTERNATIVES, SamplingParams
from granite_demo.types.stop import Stop


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A text to score, or its token ids. Raises InvalidRequestError."""

    text: str = ""
    token_ids: tuple[int, ...] | None = None
    alternatives: int = 5
    special_tokens: bool = False
    """Whether control tokens in the text are parsed."""
    model: LoadOptions | None = None
    """The model for this request. None: the current model."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", scrub(self.text))
        if not self.text and not self.token_ids:
            raise InvalidRequestError("The text to score is empty.")
        if not 0 <= self.alternatives <= MAX_ALTERNATIVES:
            raise InvalidRequestError(f"alternatives must be between 0 and {MAX_ALTERNATIVES}.")


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """A text, and the two ways to load a model that are compared on it. Raises InvalidRequestError."""

    text: str
    reference: LoadOptions
    other: LoadOptions
    special_tokens: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", scrub(self.text))
        if not self.text:
            raise InvalidRequestError("The text for the comparison is empty.")
        if self.reference == self.other:
            raise InvalidRequestError("Both sides are the same. Choose another precision for one of them.")


Overflow = Literal["refuse", "drop"]
"""What to do if a conversation does not fit in the context: raise an error, or leave out the oldest turns."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A conversation (``messages``), a raw text (``prompt``) or token ids to generate from, and how.

    Raises InvalidRequestError.
    """

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    suffix: str | None = None
    """For fill-in-the-middle: the text after the gap that follows ``prompt``, which can then be empty."""
    special_tokens: bool = False
    """Whether control tokens in ``prompt`` are parsed. If not, they are plain text."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    begun: tuple[str, tuple[int, ...]] = ("", ())
    """The end of the prompt that the constraint also applies to: a text, and tokens after it."""
    written: tuple[int, ...] = ()
    """For a continued answer to ``messages``: the tokens that it has. The stream repeats their events."""
    written_text: str = ""
    """The same for an answer of which only the text is known, in the place of ``written``."""
    tools: tuple[ToolSpec, ...] = ()
    documents: tuple[Document, ...] = ()
    controls: Controls = field(default_factory=Controls)
    overflow: Overflow = "refuse"
    model: LoadOptions | None = None
    """The model for this request. None: the current model. It may replace the current model in memory for that time."""
    stop: Stop = field(default_factory=Stop, compare=False, repr=False)
    """Ends the answer when it is set."""

    def __post_init__(self) -> None:
        given = (bool(self.messages), self.prompt is not None, self.prompt_ids is not None)
        if sum(given) != 1:
            raise InvalidRequestError("A request needs either messages or a prompt.")
        if (self.written or self.written_text) and (not self.messages or self.sampling.constraint):
            raise InvalidRequestError("Only an answer in a conversation, without a constraint, can be continued.")
        if self.overflow not in ("refuse", "drop"):
            raise InvalidRequestError(f"overflow must be refuse or drop, not {self.overflow!r}.")
        if self.suffix is not None and self.prompt is None:
            raise InvalidRequestError("A suffix needs a text prompt.")
        if self.prompt is not None:
            if not self.prompt and not self.suffix:
                raise InvalidRequestError("The prompt is empty. Write something to continue from.")
            object.__setattr__(self, "prompt", scrub(self.prompt))
            object.__setattr__(self, "suffix", None if self.suffix is None else scrub(self.suffix))
        elif self.prompt_ids is not None:
            if not self.prompt_ids:
                raise InvalidRequestError("The prompt is empty. Write something to continue from.")
        elif (last := self.messages[-1]).role == "assistant" and (last.tool_calls or not last.content.strip()):
            raise InvalidRequestError(
                "The last message is from the assistant, but has no text to continue. Add a message of the user."
            )

    @property
    def calls(self) -> bool:
        """Whether the answer can call tools: the request has some, or the conversation called some before."""
        return bool(self.tools) or any(message.tool_calls for message in self.messages)

    @property
    def continued(self) -> bool:
        """Whether the answer continues the last message, which is from the assistant."""
        return bool(self.messages) and self.messages[-1].role == "assistant"

    @property
    def lists(self) -> bool:
        """Whether the request asks for citations or lists after the answer, by documents or by a switch."""
        return bool(self.documents) or self.controls.citations or self.controls.hallucinations

    @property
    def raw(self) -> bool:
        """Whether the answer is plain text, without a chat template."""
        return not self.messages
