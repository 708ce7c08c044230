"""A backend that combines a model and another server, so that both can answer one question."""

from collections.abc import AsyncGenerator
from dataclasses import replace

from granite_demo.backend import ForwardingBackend, ManagedBackend
from granite_demo.types.events import StreamEvent
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.model_status import BESIDE, ModelStatus
from granite_demo.types.requests import GenerationRequest


class SideBySideBackend(ForwardingBackend):
    """Forwards to ``backend``, except requests for the model ``BESIDE``, which ``other`` answers.

    Both start and close together.
    """

    def __init__(self, backend: ManagedBackend, other: ManagedBackend) -> None:
        super().__init__(backend)
        self._other = other

    def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        """See ``Backend.stream``."""
        if request.model == LoadOptions(BESIDE):
            return self._other.stream(replace(request, model=None))
        return super().stream(request)

    def status(self) -> ModelStatus:
        """See ``Backend.status``. ``beside`` is the model of the other server."""
        other = self._other.status()
        return replace(super().status(), beside=other.title or other.model)

    def start(self) -> None:
        """See ``ModelControl.start``."""
        super().start()
        self._other.start()

    def close(self) -> None:
        """See ``ModelControl.close``."""
        super().close()
        self._other.close()
