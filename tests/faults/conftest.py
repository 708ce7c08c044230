"""A server with a tiny model for all faults that it must survive, and a switch that makes the model fail."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.site import Faults, Site, checkpoint, loader_of, serving


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the checkpoint of a tiny random Granite model with a chat template."""
    return checkpoint(tmp_path_factory.mktemp("faults") / "tiny")


@pytest.fixture(scope="session")
def served(tiny_folder: Path) -> Iterator[tuple[Site, Faults]]:
    """Run the server. Yield it, with the faults of its model."""
    kept: list[Faults] = []
    with serving(loader_of(tiny_folder, lambda loaded: kept.append(Faults(loaded)))) as site:
        yield site, kept[0]


@pytest.fixture
def site(served: tuple[Site, Faults]) -> Site:
    """Return the server."""
    return served[0]


@pytest.fixture
def faults(served: tuple[Site, Faults]) -> Iterator[Faults]:
    """Yield the faults of its model. At first there are none."""
    yield served[1]
    served[1].clear()
