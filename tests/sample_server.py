"""Backend and server over a model of the session, for tests of the complete program."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from granite_demo.backends.local import LocalBackend
from granite_demo.backends.model_manager import ModelManager, ReadyModel
from granite_demo.engine.protocol import Engine
from granite_demo.server.app import create_app
from granite_demo.server.run import running
from granite_demo.types.load_options import LoadOptions, Report


class Kept:
    """The session's engine, which a backend that ends must not close."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def close(self) -> None:
        pass


def backend_over(ready: ReadyModel) -> LocalBackend:
    """A backend that loads this model."""

    def load(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        return ReadyModel(ready.loaded, Kept(ready.engine))  # type: ignore[arg-type]

    return LocalBackend(ModelManager(load), LoadOptions())


@contextmanager
def serving(ready: ReadyModel) -> Iterator[str]:
    """The address of a page and an API over this model."""
    backend = backend_over(ready)
    with running(create_app(backend), backend) as url:  # type: ignore[arg-type, unused-ignore]
        yield url
