"""The backend over a model of this process: messages in, typed events out.

Knows neither pages nor wire formats. The page, the HTTP API and the command line share one.
"""

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from functools import lru_cache, partial
from hashlib import sha256
from typing import TYPE_CHECKING, Self

from granite_demo.backends import comparison, scoring
from granite_demo.backends.model_manager import ModelManager, ReadyModel
from granite_demo.backends.response_stream import answer_events, dialect_of, opens_reasoning
from granite_demo.errors import ContextOverflowError, GraniteDemoError, InvalidRequestError
from granite_demo.hub.default_model import is_here
from granite_demo.hub.fit import find_fit
from granite_demo.loading.source import no_llama, with_all_gpus
from granite_demo.models import catalogue, registry
from granite_demo.models.catalogue import ModelSpec
from granite_demo.models.config import count_parameters
from granite_demo.models.devices import DeviceMemory
from granite_demo.models.installation import torch_problem
from granite_demo.models.memory import weight_bytes
from granite_demo.outputs.structured_output import Matcher, compile_in_time
from granite_demo.prompts import render
from granite_demo.prompts.chat_template import template_of
from granite_demo.prompts.truncation import Fitted, fit
from granite_demo.types.comparison import Comparing, Comparison
from granite_demo.types.events import Dropped, Finish, Provenance, Queued, ScoreSummary, StreamEvent
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.logprobs import ScoredToken
from granite_demo.types.model_status import MemoryUse, ModelChoice, ModelStatus
from granite_demo.types.prompt_view import PromptView
from granite_demo.types.requests import CompareRequest, GenerationRequest, ScoreRequest
from granite_demo.types.sampling_params import SamplingParams
from granite_demo.types.stop import StoppedError

if TYPE_CHECKING:
    from granite_demo.loading.loaded_model import LoadedModel


LEAST_COMFORT = 8192
"""Tokens of context that a model must have room for to be marked as fitting."""


class LocalBackend:
    """Answers with a model of this process, and loads others: a ``ManagedBackend``."""

    def __init__(
        self,
        manager: ModelManager,
        options: LoadOptions,
        remember: Callable[[str], None] = lambda name: None,
        fixed: str = "",
    ) -> None:
        """``remember`` gets the name of each model that is chosen and ready.

        ``fixed`` is the reason why the model cannot be changed or unloaded. Empty: it can.
        """
        self._fixed = fixed
        self._no_comparison = fixed or torch_problem(comparison.NEEDS_TORCH)
        self._remember = remember
        self._manager = manager
        self._options = options
        self._pending: LoadOptions | None = None
        self._notice = ""
        self._lock = threading.Lock()

    def for_visitor(self, visitor: str) -> Self:
        """See ``Backend.for_visitor``. There is no limit here."""
        return self

    def check_visitor(self) -> None:
        """See ``Backend.check_visitor``."""

    def status(self) -> ModelStatus:
        """See ``Backend.status``. While another model is loaded, the status is that one's."""
        with self._lock:
            options, notice = self._pending or self._options, self._notice
        status = self._manager.status(options)
        problem = self._no_comparison
        unable = (*status.unable, ("comparing precisions", problem)) if problem else status.unable
        return replace(status, notice=notice, unable=unable)

    def choices(self) -> tuple[ModelChoice, ...]:
        """See ``ModelControl.choices``."""
        if self._fixed:
            return ()
        status = self.status()
        memory = status.memory
        return _choices(memory, status.name)

    def select(self, options: LoadOptions) -> None:
        """See ``ModelControl.select``. Engine and compilation are those that the process was started with."""
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
        """See ``ModelControl.cancel_load``."""
        with self._lock:
            options = self._pending or self._options
        self._manager.cancel(options)

    def unload(self) -> None:
        """See ``ModelControl.unload``."""
        if self._fixed:
            raise InvalidRequestError(self._fixed)
        with self._lock:
            options = self._options
        self._manager.unload(options)

    def start(self) -> None:
        """See ``ModelControl.start``."""
        self._manager.load(self._options)

    def wait_until_ready(self) -> ReadyModel:
        """Load the model and wait for it, for callers without an event loop. Raises what the load raises."""
        return self._manager.load(self._options).result()

    def close(self) -> None:
        """See ``ModelControl.close``."""
        self._manager.close()

    async def inspect(self, request: GenerationRequest, parts: bool = False) -> PromptView | None:
        """See ``Backend.inspect``."""
        if self._manager.status(options := self._wanted(request.model)).stage != "ready":
            return None
        async with self._manager.lease(options) as ready:
            loaded = ready.loaded
            fitted = await asyncio.to_thread(_fit, loaded, request)
            shown = await asyncio.to_thread(render.render_parts, loaded.tokenizer, fitted.request) if parts else ()
            return PromptView(shown, len(fitted.prompt_ids), fitted.dropped, loaded.context_length)

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
        async with aclosing(comparison.compare(lease, replace(request, reference=reference, other=other))) as events:
            async for event in events:
                yield event

    def _side(self, side: LoadOptions, home: LoadOptions) -> LoadOptions:
        """``side`` as it is to be loaded: the model that is there, where that has its precision already."""
        status = self._manager.status(home)
        there = status.setup is not None and status.setup.label == side.label
        side = replace(side, engine=home.engine, compile=home.compile)
        model = home.model if side.model == status.name else side.model
        same = replace(side, model=model, dtype=home.dtype, quantization=home.quantization) == home
        return home if there and same else self._wanted(side)

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        """See ``Backend.stream``. Waits for the model to be ready first."""
        arrived = time.perf_counter()
        async with AsyncExitStack() as stack:
            try:
                dropped, events = await request.stop.guard(self._begin(request, arrived, stack))
            except StoppedError:
                yield Finish.unbegun(time.perf_counter() - arrived)
                return
            if dropped:
                yield Dropped(dropped)
            async for event in events:
                yield event

    async def _begin(
        self, request: GenerationRequest, arrived: float, stack: AsyncExitStack
    ) -> tuple[int, AsyncGenerator[StreamEvent]]:
        """How many messages do not fit the context, and the answer to the others. ``stack`` holds the model."""
        ready = await stack.enter_async_context(self._manager.lease(self._wanted(request.model)))
        # Tokenising a long text takes a second: off the event loop.
        if request.written_text:
            written = await asyncio.to_thread(render.answer_ids, ready.loaded.tokenizer, request.written_text)
            request = replace(request, written=written, written_text="")
        fitted = await asyncio.to_thread(_fit, ready.loaded, request)
        prompt_ids, context = fitted.prompt_ids, ready.loaded.context_length
        sampling = fit_to_context(request.sampling, len(prompt_ids), context)
        asked = replace(fitted.request, sampling=sampling)
        asked_ids = prompt_ids[: len(prompt_ids) - len(request.written)]
        made_by = provenance_of(ready, asked_ids, request.raw, tools=bool(request.tools))
        matcher = await _matcher(ready.loaded, asked, prompt_ids)
        match = partial(_matcher, ready.loaded, asked)
        events = answer_events(ready, asked, prompt_ids, arrived, provenance=made_by, matcher=matcher, match=match)
        return fitted.dropped, await stack.enter_async_context(aclosing(events))


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
    dialect = dialect_of(loaded.tokenizer, request)
    reasoning = dialect if opens_reasoning(loaded.tokenizer, prompt_ids, dialect) else None
    vocabulary = loaded.vocabulary
    return await compile_in_time(
        loaded.tokenizer, constraint, vocabulary, loaded.eos_ids, begun=request.begun, reasoning=reasoning
    )


def _fit(loaded: "LoadedModel", request: GenerationRequest) -> Fitted:
    fitted = fit(request, partial(render.render, loaded.tokenizer), loaded.context_length)
    loaded.check_ids(fitted.prompt_ids)
    return fitted


@lru_cache(maxsize=4)
def _choices(memory: MemoryUse | None, loaded: str) -> tuple[ModelChoice, ...]:
    # Every open page asks every few seconds. What fits, and what was downloaded, changes with the model ``loaded``.
    devices = with_all_gpus(memory.device, memory.weights + memory.free) if memory else []
    return tuple(_choice(spec, devices) for spec in catalogue.MODELS.values())


def _choice(spec: ModelSpec, devices: Sequence[DeviceMemory]) -> ModelChoice:
    """``devices``: those of the present model, once they are known, with its memory as free."""
    parts = [spec.family, spec.name]
    size, mark, reason = 0, "", ""
    gguf = not devices or (devices[0].device == "cpu" and not no_llama())
    if spec.shape:
        parts.append(f"{count_parameters(spec.shape).total / 1e9:.2g}B")
        size = weight_bytes(spec.shape, "bf16")
    if spec.shape and devices:
        found = find_fit(spec, devices, gguf, LEAST_COMFORT)
        mark, reason = found.mark, found.reason
        parts.append(f"{mark} in {found.precision}" if found.precision else "does not fit")
    here = is_here(spec.name, gguf, None)
    return ModelChoice(spec.name, " · ".join(parts), spec.title, size, here, mark, reason)


def provenance_of(ready: ReadyModel, prompt_ids: Sequence[int], raw: bool, tools: bool) -> Provenance:
    """Of an answer of ``ready`` to ``prompt_ids``.

    A completion of ``raw`` text has no template; that for ``tools`` may be another one.
    """
    loaded, setup = ready.loaded, ready.setup
    template = "" if raw else template_of(loaded.tokenizer, tools)
    return Provenance(
        model=loaded.spec.name,
        revision=loaded.source.commit or "",
        template_sha256=sha256(template.encode()).hexdigest() if template else "",
        prompt_sha256=sha256(",".join(map(str, prompt_ids)).encode()).hexdigest(),
        choices={
            "Device": str(setup.device),
            "Precision": str(setup.precision),
            "Quantization": str(setup.quantization),
            "Attention": str(setup.attention),
            "Engine": str(setup.engine.kind),
        },
    )
