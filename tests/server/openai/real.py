"""The API over the sample model."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from granite_demo.backends.local import LocalBackend
from granite_demo.backends.model_manager import ModelManager, ReadyModel
from granite_demo.server.app import create_app
from granite_demo.server.run import running
from granite_demo.types.load_options import LoadOptions, Report

if TYPE_CHECKING:
    from granite_demo.engine.protocol import Engine
    from granite_demo.loading.loaded_model import LoadedModel


class Kept:
    """The session's engine, which a server that ends must not close."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def close(self) -> None:
        pass


@contextmanager
def serving(sample: "LoadedModel", engine: "Engine") -> Iterator[str]:
    """The address of a server over the session's engine."""

    def load(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        return ReadyModel(sample, Kept(engine))  # type: ignore[arg-type]

    backend = LocalBackend(ModelManager(load), LoadOptions())
    with running(create_app(backend), backend) as url:  # type: ignore[arg-type, unused-ignore]
        yield url
