"""Builds backends from settings, for all commands."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from rich.console import Console

from granite_demo.backend import ManagedBackend
from granite_demo.backends.local import LocalBackend
from granite_demo.backends.model_manager import Listener, ModelManager
from granite_demo.backends.open_model import open_model
from granite_demo.backends.remote.backend import RemoteBackend
from granite_demo.backends.remote.endpoints import Endpoints, parse_urls
from granite_demo.cli.terminal import LoadReporter, set_up_logging
from granite_demo.hub.default_model import remember_model
from granite_demo.loading.tensor_parallel import ALONE, Group
from granite_demo.models import registry
from granite_demo.settings import Settings

OpenBackend: TypeAlias = Callable[[Settings, Console], ManagedBackend]
"""Opens the backend of settings. Raises GraniteDemoError."""


def local_backend(settings: Settings, console: Console, group: Group = ALONE, **opening: Any) -> LocalBackend:
    """The backend over a model in this process. ``opening``: arguments of ``open_model``.

    Raises UnknownModelError for an unknown name.
    """
    manager = model_manager(settings, LoadReporter(console), 60.0 * settings.idle_minutes, group=group, **opening)
    return LocalBackend(manager, settings.load_options(), partial(remember_model, settings.cache_dir), group.fixed)


def opened_backend(
    settings: Settings, console: Console, group: Group = ALONE, **opening: Any
) -> LocalBackend | RemoteBackend:
    """The backend for ``settings``: over a model in this process, or over other servers."""
    return remote_backend(settings) if settings.backend else local_backend(settings, console, group, **opening)


def ready_backend(settings: Settings, console: Console) -> LocalBackend | RemoteBackend:
    """The same when its model is ready. Ctrl-C ends the wait. Raises the errors of the load."""
    set_up_logging("warning", console)
    # The commands ask one question at a time: a small cache, and no constraints, start in half the time.
    backend = opened_backend(settings, console, single_user=True)
    try:
        backend.wait_until_ready()
    except BaseException:
        backend.close()
        raise
    return backend


def model_manager(settings: Settings, listener: Listener, idle_seconds: float = 0.0, **opening: Any) -> ModelManager:
    """The manager that loads the model of ``settings``. Raises UnknownModelError for an unknown name."""
    if settings.model != "auto":
        registry.resolve(settings.model)
    loader = partial(open_model, settings.cache_dir, settings.threads, **opening)
    return ModelManager(loader, listener, idle_seconds)


def remote_backend(settings: Settings) -> RemoteBackend:
    """The backend over the servers of ``settings``. Raises ConfigurationError."""
    named = "" if settings.model == "auto" else settings.model
    endpoints = Endpoints(parse_urls(settings.backend), settings.backend_key)
    return RemoteBackend(endpoints, settings.backend_model or named)


def backend_beside(settings: Settings) -> RemoteBackend:
    """The backend over the server for answers side by side. Raises ConfigurationError."""
    return RemoteBackend(Endpoints(parse_urls(settings.beside), settings.beside_key))
