"""Metrics for Prometheus: requests to the API, tokens and times of answers by source, and the state of the engine.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from granite_demo.backend import ForwardingBackend, ManagedBackend
from granite_demo.types.events import Finish, ReasoningDelta, StreamEvent, TextDelta
from granite_demo.types.model_status import EngineStats, ModelStatus
from granite_demo.types.requests import GenerationRequest

FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
"""Upper limits of the buckets of the histograms, in seconds."""
OTHER = "other"
"""The route of a path that is not known."""

FrontEnd = Literal["api", "page"]
"""The front end of a request."""


class Metrics:
    """The metrics of one application, in its own registry."""

    def __init__(self, status: Callable[[], ModelStatus]) -> None:
        self.registry = CollectorRegistry()
        common: Any = {"namespace": "granite_demo", "registry": self.registry}
        self.requests = Counter("requests", "Requests to the API.", ("route", "code"), **common)
        by: Any = {"labelnames": ("source",), **common}
        self.prompt = Counter("prompt_tokens", "Tokens of answered prompts.", **by)
        self.completion = Counter("completion_tokens", "Generated tokens, thinking included.", **by)
        self.first = Histogram("time_to_first_token_seconds", "Time to the first token.", buckets=FIRST_TOKEN, **by)
        self.between = Histogram("inter_token_seconds", "Time between two tokens.", buckets=BETWEEN_TOKENS, **by)
        self.registry.register(_EngineCollector(status))

    def text(self) -> bytes:
        """All metrics, in the text format of Prometheus."""
        return generate_latest(self.registry)


class WatchedBackend(ForwardingBackend):
    """``backend`` as ``source`` calls it; ``metrics`` count its answers."""

    def __init__(self, backend: ManagedBackend, metrics: Metrics, source: FrontEnd) -> None:
        super().__init__(backend)
        self._metrics, self._source = metrics, source

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        """See ``Backend.stream``."""
        watch = _AnswerWatch(self._metrics, self._source)
        async with aclosing(super().stream(request)) as events:
            async for event in events:
                watch.see(event)
                yield event


class _AnswerWatch:
    """Measures one answer from its start, and counts its tokens, also those of a stopped answer."""

    def __init__(self, metrics: Metrics, source: FrontEnd) -> None:
        self._prompt, self._completion = metrics.prompt.labels(source), metrics.completion.labels(source)
        self._first, self._between = metrics.first.labels(source), metrics.between.labels(source)
        self._last = time.perf_counter()
        self._tokens = 0

    def see(self, event: StreamEvent) -> None:
        """Measure ``event``."""
        if isinstance(event, Finish):
            self._prompt.inc(event.usage.prompt_tokens)
            self._completion.inc(max(0, event.usage.completion_tokens - self._tokens))
        elif isinstance(event, TextDelta | ReasoningDelta) and event.completion_tokens > self._tokens:
            now = time.perf_counter()
            new = event.completion_tokens - self._tokens
            (self._between if self._tokens else self._first).observe((now - self._last) / new)
            self._completion.inc(new)
            self._last, self._tokens = now, event.completion_tokens


class _EngineCollector(Collector):
    """Reads the state of the engine at each scrape."""

    def __init__(self, status: Callable[[], ModelStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        status = self._status()
        yield _gauge("model_ready", "Whether a model is ready.", float(status.stage == "ready"))
        stats = status.engine or EngineStats(0, 0)
        yield _gauge("requests_running", "Requests that run now, including those of the page.", stats.running)
        yield _gauge("requests_waiting", "Requests that wait.", stats.waiting)
        if stats.cache_used is not None:
            yield _gauge("kv_cache_used_ratio", "The used share of the KV cache.", stats.cache_used)
        yield CounterMetricFamily("granite_demo_engine_restarts", "Restarts of the loop of the engine.", stats.restarts)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"granite_demo_{name}", text, value)


class RequestCounter:
    """Counts the requests to ``routes`` and below ``prefix``, by status code."""

    def __init__(self, app: ASGIApp, metrics: Metrics, prefix: str, routes: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._prefix = prefix
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not (path.startswith(self._prefix) or path in self._routes):
            return await self._app(scope, receive, send)
        # An unknown path must not become a new series: a stranger can invent any number of them.
        route = path if path in self._routes else OTHER

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted)
