"""One server over a tiny model for all faults that leave it alive, and the switch that makes the model fail."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.site import Faults, Site, checkpoint, loader_of, serving


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a tiny random Granite with a chat template."""
    return checkpoint(tmp_path_factory.mktemp("faults") / "tiny")


@pytest.fixture(scope="session")
def served(tiny_folder: Path) -> Iterator[tuple[Site, Faults]]:
    """The server, and its model's faults."""
    kept: list[Faults] = []
    with serving(loader_of(tiny_folder, lambda loaded: kept.append(Faults(loaded)))) as site:
        yield site, kept[0]


@pytest.fixture
def site(served: tuple[Site, Faults]) -> Site:
    """The server."""
    return served[0]


@pytest.fixture
def faults(served: tuple[Site, Faults]) -> Iterator[Faults]:
    """The faults of its model, none at first."""
    yield served[1]
    served[1].clear()
