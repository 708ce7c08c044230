"""Seam 1: the protocol between the page, the API and the command line on one side and a model on the other."""

from collections.abc import AsyncGenerator
from typing import Protocol

from granite_demo.types.comparison import Comparing, Comparison
from granite_demo.types.events import Queued, ScoreSummary, StreamEvent
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.logprobs import ScoredToken
from granite_demo.types.model_status import ModelChoice, ModelStatus
from granite_demo.types.prompt_view import PromptView
from granite_demo.types.requests import CompareRequest, GenerationRequest, ScoreRequest


class Backend(Protocol):
    """Answers requests. Closing the stream cancels the request."""

    def for_visitor(self, visitor: str) -> "Backend":
        """This backend as ``visitor`` may use it; see ``limits``."""
        ...

    def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        """Yield the answer's events, a Finish last. Raises GraniteDemoError."""
        ...

    def score(self, request: ScoreRequest) -> AsyncGenerator[Queued | ScoredToken | ScoreSummary]:
        """Yield each token of a text with its log probability, a ScoreSummary last. Raises GraniteDemoError."""
        ...

    def compare(self, request: CompareRequest) -> AsyncGenerator[Comparing | Comparison]:
        """Yield progress, then how two ways to load a model differ on a text. Raises GraniteDemoError."""
        ...

    async def inspect(self, request: GenerationRequest, parts: bool = False) -> PromptView | None:
        """The prompt that ``request`` would send, with its ``parts`` if asked for; raises GraniteDemoError.

        None where the backend cannot know it: another server renders it, or no model is ready.
        """
        ...

    def status(self) -> ModelStatus:
        """The state of the model that answers."""
        ...

    def start(self) -> None:
        """Begin to make the model ready; after a failure, try again. Returns at once."""
        ...

    def choices(self) -> tuple[ModelChoice, ...]:
        """The models that can be loaded here; empty where the backend's model cannot be changed."""
        ...

    def select(self, options: LoadOptions) -> None:
        """Begin to load another model; until it is ready the present one answers. Raises GraniteDemoError."""
        ...

    def cancel_load(self) -> None:
        """Give up the load that is going on, if there is one."""
        ...

    def unload(self) -> None:
        """Give back the model's memory; the next request loads it again."""
        ...

    def close(self) -> None:
        """End all requests and give back the model's memory."""
        ...
