"""The model manager: each model is loaded once, shared by all requests, and kept while a request uses it.

It does not import torch. The load itself is a ``Loader``; the real one is ``open_model.open_model``.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from granite_demo.engine.protocol import Engine
from granite_demo.errors import GraniteDemoError, LoadCancelledError, ModelError, OutOfMemoryError
from granite_demo.loading import gc as garbage
from granite_demo.prompts.fim import cannot_fill
from granite_demo.types.load_options import LoadOptions, LoadStage, Report
from granite_demo.types.model_status import Fact, ModelSetup, ModelStatus

if TYPE_CHECKING:
    from granite_demo.loading.loaded_model import LoadedModel


log = logging.getLogger(__name__)
Listener = Callable[[ModelStatus], None]


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """A loaded model and the engine that owns it."""

    loaded: "LoadedModel"
    engine: Engine

    @property
    def setup(self) -> ModelSetup:
        """The choices that were made for the model."""
        return ModelSetup(**self.loaded.placement.chosen, engine=self.engine.setup)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """How the model runs, as rows for the screen."""
        return (*self.loaded.facts, *self.engine.facts)


Loader = Callable[[LoadOptions, Report, threading.Event], ReadyModel]
"""Makes a model ready and reports (stage, fraction, detail). Raises LoadCancelledError when the event is set."""


@dataclass(slots=True, eq=False)
class _Entry:
    """The state of one key of the cache. The lock of the manager guards ``leases``."""

    status: ModelStatus
    future: Future[ReadyModel] = field(default_factory=Future)
    cancelled: threading.Event = field(default_factory=threading.Event)
    leases: int = 0
    idle: threading.Timer | None = None


class ModelManager:
    """Loads models one at a time. Loads of one key share one model, and a lease keeps a model until its block ends."""

    def __init__(self, loader: Loader, listener: Listener = lambda status: None, idle_seconds: float = 0.0) -> None:
        """``listener`` gets each change of a status. The loading thread calls it.

        A model without a lease for ``idle_seconds`` is unloaded. 0: never.
        """
        self._idle_seconds = idle_seconds
        self._loader = loader
        self._listener = listener
        self._entries: dict[LoadOptions, _Entry] = {}
        self._retired: list[_Entry] = []  # unloaded, but a lease still uses the model
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._closed = False

    def load(self, options: LoadOptions) -> Future[ReadyModel]:
        """Start to load ``options`` if it is not loaded or loading. A failed load is tried again.

        The future raises GraniteDemoError. Raises ModelError after ``close``.
        """
        with self._lock:
            return self._load(options).future

    def _load(self, options: LoadOptions) -> _Entry:
        if self._closed:
            raise ModelError("The server is stopping.")
        entry = self._entries.get(options)
        if entry is None or _failed(entry):
            entry = _Entry(ModelStatus(options.model, "loading"))
            self._entries[options] = entry
            self._executor.submit(self._run, options, entry)
        return entry

    @asynccontextmanager
    async def lease(self, options: LoadOptions) -> AsyncGenerator[ReadyModel]:
        """Wait until the model is ready, and keep it loaded during the block. Raises as the future of ``load``."""
        with self._lock:
            entry = self._load(options)
            entry.leases += 1
            if entry.idle:
                entry.idle.cancel()
            future = entry.future
        try:
            # Shielded, so that a cancelled request does not cancel the load for the others.
            yield await asyncio.shield(asyncio.wrap_future(future))
        finally:
            with self._lock:
                entry.leases -= 1
                unused = entry in self._retired and not entry.leases
                if unused:
                    self._retired.remove(entry)
                elif self._idle_seconds and not entry.leases:
                    self._start_idle(options, entry)
            if unused:
                await asyncio.to_thread(_close, entry)

    @asynccontextmanager
    async def borrow(self, options: LoadOptions, home: LoadOptions) -> AsyncGenerator[ReadyModel]:
        """Lease ``options`` once: it is unloaded after the block, unless it was loaded before.

        If it does not fit in memory together with ``home``, then ``home`` is unloaded when its running answers end, and
        loaded again after the block. Requests for ``home`` wait until then.
        """
        with self._lock:
            stays = options in self._entries and not _failed(self._entries[options])
        placeholder = None
        try:
            async with AsyncExitStack() as stack:
                if not stays:
                    stack.push_async_callback(asyncio.to_thread, self.unload, options)
                try:
                    ready = await stack.enter_async_context(self.lease(options))
                except OutOfMemoryError:
                    if options == home or self.status(home).stage != "ready":
                        raise
                    placeholder = _Entry(ModelStatus(home.model, "loading", detail="another model uses its memory"))
                    with self._lock:
                        old, self._entries[home] = self._entries[home], placeholder
                    await asyncio.to_thread(self._retire, old)
                    while old.future.done():  # until its running answers end
                        await asyncio.sleep(0.02)
                    ready = await stack.enter_async_context(self.lease(options))
                yield ready
        finally:
            if placeholder:
                self._reload(home, placeholder)

    def _reload(self, home: LoadOptions, placeholder: _Entry) -> None:
        with self._lock:
            if not self._closed:
                self._executor.submit(self._run, home, placeholder)
                return
        placeholder.future.set_exception(ModelError("The server is stopping."))

    def _start_idle(self, options: LoadOptions, entry: _Entry) -> None:
        def unload_idle() -> None:
            with self._lock:
                unused = self._entries.get(options) is entry and not entry.leases
            if unused:
                log.info("%s was idle for %g s and is unloaded.", options.model, self._idle_seconds)
                self.unload(options)

        entry.idle = threading.Timer(self._idle_seconds, unload_idle)
        entry.idle.daemon = True
        entry.idle.start()

    def status(self, options: LoadOptions) -> ModelStatus:
        """Return the current status of ``options``."""
        with self._lock:
            entry = self._entries.get(options)
            status = entry.status if entry else ModelStatus(options.model, "idle")
            ready = entry.future.result() if entry and status.stage == "ready" and entry.future.done() else None
        return replace(status, engine=ready.engine.stats()) if ready else status

    def unload(self, options: LoadOptions) -> None:
        """Unload the model. A running load is cancelled. A model in use is closed when its last lease ends."""
        with self._lock:
            entry = self._entries.pop(options, None)
            if entry is None:
                return
        self._retire(entry)

    def _retire(self, entry: _Entry) -> None:
        with self._lock:
            entry.cancelled.set()
            unused = not entry.leases
            if not unused:
                self._retired.append(entry)
        if unused:
            _close(entry)

    def cancel(self, options: LoadOptions) -> None:
        """Cancel a load that has not ended. Requests that wait for it get LoadCancelledError."""
        with self._lock:
            entry = self._entries.get(options)
            if entry is not None and not entry.future.done():
                entry.cancelled.set()

    def switch(self, old: LoadOptions, new: LoadOptions, answer_with: Callable[[LoadOptions], None]) -> None:
        """Load ``new`` and then unload ``old``.

        If the load fails, ``old`` continues to answer, and its error is raised. Only if both do not fit in memory,
        ``old`` is unloaded first, and loaded again if ``new`` then fails. ``answer_with`` sets the model for requests.
        It is always called before the other model is unloaded, because a request for an unloaded model loads it again.
        """
        if old == new:
            self.load(new).result()
            return
        try:
            self.load(new).result()
        except OutOfMemoryError:
            if self.status(old).stage != "ready":
                raise
            answer_with(new)
            self.unload(old)
            try:
                self.load(new).result()
            except ModelError:
                answer_with(old)
                self.load(old)
                raise
        else:
            answer_with(new)
            self.unload(old)

    def close(self) -> None:
        """Cancel all loads and close all engines, and wait for both. Running requests end with an error."""
        with self._lock:
            self._closed = True
            entries = [*self._entries.values(), *self._retired]
            self._entries.clear()
            self._retired.clear()
            for entry in entries:
                entry.cancelled.set()
                if entry.idle:
                    entry.idle.cancel()
        for entry in entries:  # before the executor, so that running answers do not wait for a load
            _close(entry)
        self._executor.shutdown(wait=True)

    def _run(self, options: LoadOptions, entry: _Entry) -> None:
        def report(stage: LoadStage, fraction: float | None = None, detail: str = "") -> None:
            entry.status = replace(entry.status, stage=stage, fraction=fraction, detail=detail)
            self._notify(entry.status)

        try:
            if entry.cancelled.is_set():
                raise LoadCancelledError("The load was cancelled.")
            ready = self._loader(options, report, entry.cancelled)
            with self._lock:
                if not entry.cancelled.is_set():
                    entry.status = _ready_status(entry.status, ready)
                    entry.future.set_result(ready)
            if not entry.future.done():
                ready.engine.close()
                raise LoadCancelledError("The load was cancelled.")
            garbage.settle()
        except BaseException as error:
            shown = error
            if not isinstance(error, GraniteDemoError):
                log.exception("Loading %s failed.", options.model)  # with the text, which visitors do not see
                shown = ModelError(f"Loading {options.model} failed ({type(error).__name__}). See the log.")
            entry.status = replace(entry.status, stage="failed", fraction=None, detail=str(shown))
            entry.future.set_exception(shown)
        # At the end, so that a listener can start a new load.
        self._notify(entry.status)

    def _notify(self, status: ModelStatus) -> None:
        try:
            self._listener(status)
        except Exception:
            log.exception("The listener failed for the status of %s.", status.model)


def _ready_status(status: ModelStatus, ready: ReadyModel) -> ModelStatus:
    loaded = ready.loaded
    return replace(
        status,
        stage="ready",
        fraction=1.0,
        detail="",
        name=loaded.spec.name,
        title=loaded.spec.title,
        about=loaded.spec.about,
        setup=ready.setup,
        chosen_because=loaded.source.chosen_because,
        facts=ready.facts,
        context_length=loaded.context_length,
        card=loaded.card,
        memory=loaded.memory,
        switches=loaded.switches,
        sampling=loaded.recommended.sampling,
        unable=(*ready.engine.unable, *cannot_fill(loaded.tokenizer, loaded.spec.chat_format)),
    )


def _failed(entry: _Entry) -> bool:
    return entry.future.done() and entry.future.exception() is not None


def _close(entry: _Entry) -> None:
    if entry.future.done() and entry.future.exception() is None:
        entry.future.result().engine.close()
        entry.future = Future()  # drops the last reference to the weights
    garbage.release_memory()
