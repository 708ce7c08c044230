"""Settings to a backend over other servers, and its list of models."""

import json
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from granite_demo.remote.backend import RemoteBackend
from granite_demo.remote.endpoints import CONNECT_SECONDS, Endpoints, parse_urls
from granite_demo.settings import Settings


def remote_backend(settings: Settings) -> RemoteBackend:
    """The backend that ``settings`` name. Raises ConfigurationError."""
    named = "" if settings.model == "auto" else settings.model
    endpoints = Endpoints(parse_urls(settings.backend), settings.backend_key)
    return RemoteBackend(endpoints, settings.backend_model or named)


def backend_beside(settings: Settings) -> RemoteBackend:
    """The backend over the server that is asked side by side. Raises ConfigurationError."""
    return RemoteBackend(Endpoints(parse_urls(settings.beside), settings.beside_key))


def show_remote_models(settings: Settings, as_json: bool) -> None:
    """Print what the servers offer. Raises GraniteDemoError where none of them answers."""
    backend = remote_backend(settings)
    try:
        backend.wait_until_ready()
        backend.endpoints.wait(CONNECT_SECONDS, for_all=True)
        rows = list(_rows(backend))
    finally:
        backend.close()
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(box=None)
    for heading in ("model", "context", "server"):
        table.add_column(heading)
    for row in rows:
        context = f"{row['context']:,}" if row["context"] else "not told"
        table.add_row(row["name"], context, row["server"])
    Console(highlight=False, emoji=False, markup=False).print(table)


def _rows(backend: RemoteBackend) -> Iterator[dict[str, Any]]:
    for one in backend.endpoints.all:
        for served in one.seen.models if one.seen else ():
            yield {"name": served.name, "context": served.context_length, "server": one.shown}
