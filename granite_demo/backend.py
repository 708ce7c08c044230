"""Seam 1: what the page, the API and the command line call.

``Backend`` answers requests. ``ModelControl`` loads and unloads the model that answers. The composition makes a
``ManagedBackend``, which is both, and hands on the part that each front end needs.
"""

from collections.abc import AsyncGenerator, Callable
from copy import copy
from typing import Protocol, Self, TypeVar

from granite_demo.types.comparison import Comparing, Comparison
from granite_demo.types.events import Queued, ScoreSummary, StreamEvent
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.logprobs import ScoredToken
from granite_demo.types.model_status import ModelChoice, ModelStatus
from granite_demo.types.prompt_view import PromptView
from granite_demo.types.requests import CompareRequest, GenerationRequest, ScoreRequest

R = TypeVar("R", bound=GenerationRequest | ScoreRequest | CompareRequest)
T = TypeVar("T")


class Backend(Protocol):
    """Answers requests. Errors come with the first event or later; closing a stream cancels its request.

    Every stream raises InvalidRequestError for a request that the model or the server cannot serve, VisitorLimitError
    and TimeLimitError where there are limits, ModelError where no model can be made ready, EngineError where the
    generation fails, and RemoteError where another server does.
    """

    def for_visitor(self, visitor: str) -> Self:
        """This backend within the limits of ``visitor``, an address from ``access.visitor_of``."""
        ...

    def check_visitor(self) -> None:
        """Raise VisitorLimitError where the next request of this visitor would be rejected.

        Called before the work that a request needs. Returns at once.
        """
        ...

    def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        """Yield the events of the answer, a Finish last. Raises ContextOverflowError for a prompt that is too long.

        When ``request.stop`` is set, the answer ends within a moment: the stream yields what it held back as the
        possible beginning of a marker or a call, and ``Finish("stopped")``. An answer that fails after its first token
        yields the same before the error.
        """
        ...

    def score(self, request: ScoreRequest) -> AsyncGenerator[Queued | ScoredToken | ScoreSummary]:
        """Yield each token of a text with its log probability (natural logarithm), a ScoreSummary last.

        Raises ContextOverflowError for a text that is too long.
        """
        ...

    def compare(self, request: CompareRequest) -> AsyncGenerator[Comparing | Comparison]:
        """Yield progress, then the Comparison of two ways to load a model on one text.

        Raises InvalidRequestError where the backend has no model of its own.
        """
        ...

    async def inspect(self, request: GenerationRequest, parts: bool = False) -> PromptView | None:
        """The prompt that ``request`` would send, with its ``parts`` if they are wanted.

        None where the backend cannot know it: another server renders it, or no model is ready.
        Raises InvalidRequestError, VisitorLimitError, or RemoteError.
        """
        ...

    def status(self) -> ModelStatus:
        """The state of the model that answers. Returns at once and raises nothing."""
        ...


class ModelControl(Protocol):
    """Loads and unloads the model that answers everybody. Every method returns at once; ``status`` shows the progress.

    It does not check who calls it: see ``access.Access``.
    """

    def start(self) -> None:
        """Begin to make the model ready; after a failure, try again. Raises nothing: ``status`` has the failure."""
        ...

    def choices(self) -> tuple[ModelChoice, ...]:
        """The models that can be loaded here; empty where the model cannot be changed. Raises nothing."""
        ...

    def select(self, options: LoadOptions) -> None:
        """Begin to load another model; the present one answers until the other is ready.

        Raises UnknownModelError for a name without a model, and InvalidRequestError where the model cannot be changed
        or another load runs. If the load fails, the present model stays and ``status`` has the reason.
        """
        ...

    def cancel_load(self) -> None:
        """Cancel the running load, if there is one. Raises nothing."""
        ...

    def unload(self) -> None:
        """Free the memory of the model; the next request loads it again.

        Raises InvalidRequestError where the model cannot be unloaded.
        """
        ...

    def close(self) -> None:
        """End all requests with EngineClosedError and free the memory of the model. A second call does nothing."""
        ...


class ManagedBackend(Backend, ModelControl, Protocol):
    """A backend with the control of its model."""


class ForwardingBackend:
    """Passes every call to ``backend``. A wrapper overrides the methods that it changes."""

    def __init__(self, backend: ManagedBackend) -> None:
        self._backend = backend

    def for_visitor(self, visitor: str) -> Self:
        """See ``Backend.for_visitor``."""
        own = copy(self)
        own._backend = self._backend.for_visitor(visitor)
        return own

    def check_visitor(self) -> None:
        """See ``Backend.check_visitor``."""
        self._backend.check_visitor()

    def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        """See ``Backend.stream``."""
        return self.answer(self._backend.stream, request)

    def score(self, request: ScoreRequest) -> AsyncGenerator[Queued | ScoredToken | ScoreSummary]:
        """See ``Backend.score``."""
        return self.answer(self._backend.score, request)

    def compare(self, request: CompareRequest) -> AsyncGenerator[Comparing | Comparison]:
        """See ``Backend.compare``."""
        return self.answer(self._backend.compare, request)

    def answer(self, ask: Callable[[R], AsyncGenerator[T]], request: R) -> AsyncGenerator[T]:
        """The events of ``ask(request)``. All streams pass here: override it to change the three of them."""
        return ask(request)

    async def inspect(self, request: GenerationRequest, parts: bool = False) -> PromptView | None:
        """See ``Backend.inspect``."""
        return await self._backend.inspect(request, parts)

    def status(self) -> ModelStatus:
        """See ``Backend.status``."""
        return self._backend.status()

    def start(self) -> None:
        """See ``ModelControl.start``."""
        self._backend.start()

    def choices(self) -> tuple[ModelChoice, ...]:
        """See ``ModelControl.choices``."""
        return self._backend.choices()

    def select(self, options: LoadOptions) -> None:
        """See ``ModelControl.select``."""
        self._backend.select(options)

    def cancel_load(self) -> None:
        """See ``ModelControl.cancel_load``."""
        self._backend.cancel_load()

    def unload(self) -> None:
        """See ``ModelControl.unload``."""
        self._backend.unload()

    def close(self) -> None:
        """See ``ModelControl.close``."""
        self._backend.close()
