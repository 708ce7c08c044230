"""Tests that a load that fails does not affect the model that answers."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from granite_demo.backends.model_manager import ModelManager, ReadyModel
from granite_demo.errors import (
    DiskFullError,
    DownloadError,
    GatedModelError,
    GraniteDemoError,
    InvalidRequestError,
    OutOfMemoryError,
    UnknownModelError,
)
from granite_demo.types.load_options import LoadOptions, Report
from tests.faults.site import Site, loader_of, serving, unharmed, wait_until

OTHER, THIRD = LoadOptions("granite-4.0-350m"), LoadOptions("granite-4.1-3b")
KINDS: list[type[GraniteDemoError]] = [
    DiskFullError,
    DownloadError,
    GatedModelError,
    OutOfMemoryError,
    UnknownModelError,
]


def test_f05_a_load_that_fails_leaves_the_model_that_answers(tiny_folder: Path) -> None:
    good = loader_of(tiny_folder)
    failures = [kind(f"{kind.__name__}: not available.") for kind in KINDS]

    def open_model(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        if options.model == OTHER.model and failures:
            raise failures[0]
        return good(options, report, cancelled)

    with serving(open_model) as site:
        while failures:
            with unharmed(site):
                site.backend.select(OTHER)
                wait_until(lambda: str(failures[0]) in site.backend.status().notice, 20)
            failures.pop(0)
        # The load can be tried again.
        site.backend.select(OTHER)
        wait_until(lambda: site.backend.status().model == OTHER.model and site.backend.status().stage == "ready", 20)
        assert site.answer() == site.greedy


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    """Change one bit in the text of the header."""
    return data[:12] + bytes([data[12] ^ 0x80]) + data[13:]


DAMAGES: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("model.safetensors", cut),
    ("model.safetensors", flipped),
    ("config.json", cut),
    ("tokenizer.json", cut),
]


def test_f05_a_damaged_file_is_an_error(tiny_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    good, bad = loader_of(tiny_folder), loader_of(broken)

    def open_model(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        return (bad if options.model == OTHER.model else good)(options, report, cancelled)

    with serving(open_model) as site:
        for name, spoil in DAMAGES:
            shutil.rmtree(broken, ignore_errors=True)
            shutil.copytree(tiny_folder, broken)
            (broken / name).write_bytes(spoil((broken / name).read_bytes()))
            with unharmed(site):
                site.backend.select(OTHER)
                wait_until(lambda: site.backend.status().notice, 20)
                assert "again" in site.backend.status().notice, (name, spoil)


def test_f06_eight_requests_at_once_share_one_load(tiny_folder: Path) -> None:
    good = loader_of(tiny_folder)
    loads: list[str] = []

    def open_model(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        loads.append(options.model)
        return good(options, report, cancelled)

    with serving(open_model) as site:
        site.backend.unload()
        before = len(loads)
        answers = answers_at_once(site, 8)
        assert answers == [site.greedy] * 8
        assert len(loads) == before + 1


def test_f06_of_two_other_models_one_is_loaded_and_a_running_answer_keeps_its_own(tiny_folder: Path) -> None:
    good = loader_of(tiny_folder)
    barrier, gate = threading.Barrier(2), threading.Event()
    loads: list[str] = []

    def open_model(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        loads.append(options.model)
        if options.model in (OTHER.model, THIRD.model):
            gate.wait(20)
        return good(options, report, cancelled)

    with serving(open_model) as site:
        said: list[str] = []

        def select(options: LoadOptions) -> None:
            barrier.wait()
            try:
                site.backend.select(options)
            except InvalidRequestError as error:
                said.append(error.user_text)

        choosing = [threading.Thread(target=select, args=(options,)) for options in (OTHER, THIRD)]
        for thread in choosing:
            thread.start()
        for thread in choosing:
            thread.join()
        wait_until(lambda: len(loads) == 2, 10)
        assert site.answer() == site.greedy  # during the load of the other model
        gate.set()
        wait_until(lambda: site.backend.status().stage == "ready" and site.backend.status().model != "auto", 10)
        assert said == ["Another model is being loaded. Wait for it, or cancel it first."]
        assert len(loads) == 2
        assert site.answer() == site.greedy


def test_f06_two_requests_for_different_models_load_one_after_the_other(tiny_folder: Path) -> None:
    good = loader_of(tiny_folder)
    loading, most = [0], [0]

    def open_model(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        loading[0] += 1
        most[0] = max(most[0], loading[0])
        time.sleep(0.1)
        loading[0] -= 1
        return good(options, report, cancelled)

    manager = ModelManager(open_model)
    loads = [manager.load(options) for options in (OTHER, THIRD) * 2]
    ready = [load.result(20) for load in loads]
    assert ready[0] is ready[2] is not ready[1]
    assert ready[1] is ready[3]
    assert most == [1]
    manager.close()


def answers_at_once(site: Site, count: int) -> list[str]:
    """Return the answers to ``count`` requests that start together."""
    barrier, found = threading.Barrier(count), []

    def ask() -> None:
        barrier.wait()
        found.append(site.answer())

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
