"""Fixtures of all tests: the sample model, loaded once in each of its two forms, and fakes at the seams."""

import gc
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from granite_demo.hub.sample import ensure_gguf, ensure_sample
from granite_demo.loading import gc as garbage
from granite_demo.settings import Settings
from granite_demo.types.load_options import LoadOptions
from granite_demo.ui.gradio_patches.stubs import skip_type_stubs
from tests.fakes import FakeBackend

if TYPE_CHECKING:
    from granite_demo.backends.model_manager import ReadyModel
    from granite_demo.engine.protocol import Engine
    from granite_demo.loading.loaded_model import LoadedModel


# Several processes with a thread for each processor would mostly wait for one another. torch is not imported yet.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("GRANITE_DEMO_THREADS", "1")

# A second of each import of Gradio.
skip_type_stubs()

# How long an example takes depends on what else the machine does. The folder may be read-only: nothing is kept in it.
settings.register_profile("untimed", deadline=None, database=None)
settings.load_profile("untimed")


LONG = ("engine/test_contract.py", "browser/", "faults/", "threats/", "load/", "engine/", "backends/remote/", "server/")
"""What takes longest, in this order, which ``--no-loadscope-reorder`` has the workers keep."""


def pytest_configure(config: pytest.Config) -> None:
    """In a folder that is read-only pytest cannot keep what it would like to, either."""
    config.addinivalue_line("filterwarnings", "ignore:could not create cache path:pytest.PytestCacheWarning")
    # Collecting makes a million objects that stay.
    gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that the workers end together; those that share a browser follow each other."""
    tests = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        name = item.path.relative_to(tests).as_posix()
        return next((at for at, start in enumerate(LONG) if name.startswith(start)), len(LONG))

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    gc.enable()


FILE, IMPORTED = pytest.StashKey[Path](), pytest.StashKey[int]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What is there when a file's tests begin stays: each engine that is closed looks for garbage among the rest."""
    stash, modules = item.config.stash, len(sys.modules)
    if item.path == stash.get(FILE, None):
        return
    stash[FILE] = item.path
    if modules > stash.get(IMPORTED, 0) + 50:
        stash[IMPORTED] = modules
        gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def not_settled() -> Iterator[None]:
    """What is settled is searched whenever a model goes: here that is what all tests before have left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(garbage, "settle", lambda: None)
        patch.setattr(garbage, "collect", gc.collect)
        yield


@pytest.fixture(scope="session")
def gguf_path() -> Path:
    """The sample's GGUF file in the user's cache, downloaded on first use."""
    return ensure_gguf(Settings.resolve({}, {}).cache_dir, lambda *_: None, threading.Event())


@pytest.fixture(scope="session")
def ready_sample(gguf_path: Path) -> Iterator["ReadyModel"]:
    """The sample as a newcomer gets it: its GGUF file and the default engine."""
    from granite_demo.backends.open_model import open_model

    options = LoadOptions("sample", device="cpu")
    ready = open_model(gguf_path.parents[1], 0, options, lambda *_: None, threading.Event())
    assert ready.loaded.source.gguf == gguf_path
    yield ready
    ready.engine.close()


@pytest.fixture(scope="session")
def sample_tokenizer(gguf_path: Path) -> Any:
    """The tokenizer of its GGUF file."""
    from granite_demo.models.gguf_header import read_header
    from granite_demo.prompts.gguf_tokenizer import make_tokenizer

    return make_tokenizer(read_header(gguf_path))


@pytest.fixture(scope="session")
def sample_path() -> Path:
    """The folder of the sample checkpoint for transformers in the user's cache, made on first use."""
    return ensure_sample(Settings.resolve({}, {}).cache_dir, lambda *_: None, threading.Event())


@pytest.fixture(scope="session")
def sample(sample_path: Path) -> "LoadedModel":
    """The sample checkpoint in float32 on the CPU, by transformers."""
    from granite_demo.models import catalogue
    from tests.loaded import load_checkpoint

    return load_checkpoint(sample_path, spec=catalogue.SAMPLE)


@pytest.fixture(scope="session")
def engine(sample: "LoadedModel") -> Iterator["Engine"]:
    """The engine of torch over the sample checkpoint."""
    from granite_demo.engine.factory import create_engine

    engine = create_engine(sample)
    yield engine
    engine.close()


@pytest.fixture
def backend() -> FakeBackend:
    """A backend that answers at once."""
    return FakeBackend()


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """This seems to be the small installation."""
    monkeypatch.setattr("granite_demo.models.installation.find_spec", lambda name: None)
