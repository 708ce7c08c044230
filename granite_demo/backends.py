"""The seam between front ends and models: messages in, typed events out.

Knows neither pages nor wire formats. The page, the HTTP API and the command line share one ``Backend``.
"""

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Protocol

from granite_demo import comparing, prompts, registry, scoring
from granite_demo.constraints import Matcher, compile_in_time
from granite_demo.dialects import PLAIN, find_dialect
from granite_demo.errors import ContextOverflowError, GraniteDemoError, InvalidRequestError
from granite_demo.fitting import Fitted, fit
from granite_demo.manager import ModelManager, ReadyModel
from granite_demo.planning import best_precision
from granite_demo.provenance import provenance_of
from granite_demo.registry import ModelSpec
from granite_demo.sampling_params import SamplingParams
from granite_demo.scores import CompareRequest, Comparing, Comparison, ScoredToken, ScoreRequest, ScoreSummary
from granite_demo.shapes import count_parameters
from granite_demo.status import LoadOptions, ModelChoice, ModelStatus
from granite_demo.streams import answer_events, opens_thinking
from granite_demo.template_inputs import template_of
from granite_demo.types import Dropped, GenerationRequest, PromptView, Queued, StreamEvent

if TYPE_CHECKING:
    from granite_demo.loading import LoadedModel

LEAST_COMFORT = 8192
"""Tokens of context that a model must have room for to be marked as fitting."""


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


class LocalBackend:
    """Answers with a model of this process."""

    def __init__(
        self,
        manager: ModelManager,
        options: LoadOptions,
        remember: Callable[[str], None] = lambda name: None,
        fixed: str = "",
    ) -> None:
        """``remember`` is told the name of each model that is chosen and ready.

        ``fixed`` is why the model can be neither changed nor unloaded, where it cannot.
        """
        self._fixed = fixed
        self._remember = remember
        self._manager = manager
        self._options = options
        self._pending: LoadOptions | None = None
        self._notice = ""
        self._lock = threading.Lock()

    def for_visitor(self, visitor: str) -> "LocalBackend":
        """See ``Backend.for_visitor``. There is no limit here."""
        return self

    def status(self) -> ModelStatus:
        """See ``Backend.status``. While another model is loaded, the status is that one's."""
        with self._lock:
            options, notice = self._pending or self._options, self._notice
        status = self._manager.status(options)
        unable = (*status.unable, ("comparing precisions", self._fixed)) if self._fixed else status.unable
        return replace(status, notice=notice, unable=unable)

    def choices(self) -> tuple[ModelChoice, ...]:
        """See ``Backend.choices``."""
        if self._fixed:
            return ()
        memory = self.status().memory
        return _choices(memory.weights + memory.free if memory else None)

    def select(self, options: LoadOptions) -> None:
        """See ``Backend.select``. Engine and compilation are those that the process was started with."""
        if self._fixed:
            raise InvalidRequestError(self._fixed)
        registry.resolve(options.model)
        options = replace(options, engine=self._options.engine, compile=self._options.compile)
        with self._lock:
            if self._pending is not None:
                raise InvalidRequestError("Another model is being loaded. Wait for it, or cancel it first.")
            self._pending, self._notice = options, ""
        threading.Thread(target=self._switch, args=(options,), name="switch", daemon=True).start()

    def _switch(self, options: LoadOptions) -> None:
        try:
            self._manager.switch(self._options, options, self._answer_with)
        except GraniteDemoError as error:
            with self._lock:
                self._notice = f"{options.model}: {error.user_text}"
        else:
            self._remember(options.model)
        finally:
            with self._lock:
                self._pending = None

    def _answer_with(self, options: LoadOptions) -> None:
        with self._lock:
            self._options = options

    def cancel_load(self) -> None:
        """See ``Backend.cancel_load``."""
        with self._lock:
            options = self._pending or self._options
        self._manager.cancel(options)

    def unload(self) -> None:
        """See ``Backend.unload``."""
        if self._fixed:
            raise InvalidRequestError(self._fixed)
        with self._lock:
            options = self._options
        self._manager.unload(options)

    def start(self) -> None:
        """See ``Backend.start``."""
        self._manager.load(self._options)

    def wait_until_ready(self) -> ReadyModel:
        """Load the model and wait for it, for callers without an event loop. Raises what the load raises."""
        return self._manager.load(self._options).result()

    def close(self) -> None:
        """See ``Backend.close``."""
        self._manager.close()

    async def inspect(self, request: GenerationRequest, parts: bool = False) -> PromptView | None:
        """See ``Backend.inspect``."""
        if self._manager.status(options := self._wanted(request.model)).stage != "ready":
            return None
        async with self._manager.lease(options) as ready:
            loaded = ready.loaded
            fitted = await asyncio.to_thread(_fit, loaded, request)
            told = await asyncio.to_thread(prompts.render_parts, loaded.tokenizer, fitted.request) if parts else ()
            return PromptView(told, len(fitted.prompt_ids), fitted.dropped, loaded.context_length)

    def _wanted(self, model: LoadOptions | None) -> LoadOptions:
        with self._lock:
            options = self._options
        if model is None or model == options:
            return options
        if self._fixed:
            raise InvalidRequestError(self._fixed)
        registry.resolve(model.model)
        return model

    async def score(self, request: ScoreRequest) -> AsyncGenerator[Queued | ScoredToken | ScoreSummary]:
        """See ``Backend.score``."""
        async with (
            self._manager.lease(self._wanted(request.model)) as ready,
            aclosing(scoring.score(ready, request)) as events,
        ):
            async for event in events:
                yield event

    async def compare(self, request: CompareRequest) -> AsyncGenerator[Comparing | Comparison]:
        """See ``Backend.compare``. Engine and compilation are those that the process was started with."""
        home = self._wanted(None)
        reference, other = (self._side(side, home) for side in (request.reference, request.other))
        lease = partial(self._manager.borrow, home=home)
        async with aclosing(comparing.compare(lease, replace(request, reference=reference, other=other))) as events:
            async for event in events:
                yield event

    def _side(self, side: LoadOptions, home: LoadOptions) -> LoadOptions:
        """``side`` as it is to be loaded: the model that is there, where that has its precision already."""
        status = self._manager.status(home)
        there = status.stage == "ready" and comparing.asked_label(side) == comparing.label_of(status.facts)
        side = replace(side, engine=home.engine, compile=home.compile)
        model = home.model if side.model == status.name else side.model
        same = replace(side, model=model, dtype=home.dtype, quantization=home.quantization) == home
        return home if there and same else self._wanted(side)

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        """See ``Backend.stream``. Waits for the model to be ready first."""
        arrived = time.perf_counter()
        async with self._manager.lease(self._wanted(request.model)) as ready:
            # Tokenising a long text takes a second: off the event loop.
            fitted = await asyncio.to_thread(_fit, ready.loaded, request)
            prompt_ids, context = fitted.prompt_ids, ready.loaded.context_length
            sampling = fit_to_context(request.sampling, len(prompt_ids), context)
            if fitted.dropped:
                yield Dropped(fitted.dropped)
            asked, facts = replace(fitted.request, sampling=sampling), (*ready.loaded.facts, *ready.engine.facts)
            asked_ids = prompt_ids[: len(prompt_ids) - len(request.written)]
            made_by = provenance_of(ready.loaded, facts, asked_ids, request.raw, tools=bool(request.tools))
            matcher = await _matcher(ready.loaded, asked, prompt_ids)
            events = answer_events(ready, asked, prompt_ids, arrived, provenance=made_by, matcher=matcher)
            async with aclosing(events):
                async for event in events:
                    yield event


def fit_to_context(sampling: SamplingParams, prompt_tokens: int, context_length: int) -> SamplingParams:
    """``sampling`` with max_tokens within the room that is left, and a seed where one is needed.

    Raises ContextOverflowError when the prompt alone fills the context.
    """
    room = context_length - prompt_tokens
    if room < 1:
        raise ContextOverflowError(prompt_tokens, context_length)
    if sampling.temperature > 0 and sampling.seed is None:
        sampling = replace(sampling, seed=secrets.randbelow(2**31))
    return replace(sampling, max_tokens=min(sampling.max_tokens or room, room))


async def _matcher(loaded: "LoadedModel", request: GenerationRequest, prompt_ids: list[int]) -> Matcher | None:
    """The constraint of an answer, compiled: where that thinks first, it begins behind. Raises InvalidRequestError."""
    if (constraint := request.sampling.constraint) is None:
        return None
    dialect = PLAIN if request.raw else find_dialect(template_of(loaded.tokenizer))
    thinking = dialect if opens_thinking(loaded.tokenizer, prompt_ids, dialect) else None
    vocabulary = loaded.model.config.vocab_size
    return await compile_in_time(
        loaded.tokenizer, constraint, vocabulary, loaded.eos_ids, begun=request.begun, thinking=thinking
    )


def _fit(loaded: "LoadedModel", request: GenerationRequest) -> Fitted:
    return fit(request, partial(prompts.render, loaded.tokenizer), loaded.context_length)


@lru_cache(maxsize=4)
def _choices(room: int | None) -> tuple[ModelChoice, ...]:
    # Every open page asks every few seconds, and what fits changes only with the model.
    return tuple(_choice(spec, room) for spec in registry.MODELS.values())


def _choice(spec: ModelSpec, room: int | None) -> ModelChoice:
    """``room``: bytes on the device of the present model, once that is known."""
    parts = [spec.family, spec.name]
    if spec.shape:
        parts.append(f"{count_parameters(spec.shape).total / 1e9:.2g}B")
    if spec.shape and room:
        choice = best_precision(spec.shape, room, LEAST_COMFORT)
        parts.append(f"{choice.plan.mark} in {choice.precision}" if choice.precision else "does not fit")
    return ModelChoice(spec.name, " · ".join(parts))
