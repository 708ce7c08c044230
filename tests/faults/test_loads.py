"""Models that cannot be loaded, while another one answers."""

import threading
from pathlib import Path

import pytest

from granite_demo.errors import DownloadError, GatedModelError, GraniteDemoError, OutOfMemoryError, UnknownModelError
from granite_demo.manager import ReadyModel
from granite_demo.status import LoadOptions, Report
from tests.faults.site import Site, loader_of, serving, unharmed, wait_until

OTHER = LoadOptions("granite-4.0-350m")


@pytest.mark.parametrize("kind", [DownloadError, GatedModelError, OutOfMemoryError, UnknownModelError])
def test_f05_a_load_that_fails_leaves_the_model_that_answers(tiny_folder: Path, kind: type[GraniteDemoError]) -> None:
    good = loader_of(tiny_folder)
    failing = [True]

    def open_model(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        if options.model == OTHER.model and failing[0]:
            raise kind("It is not to be had.")
        return good(options, report, cancelled)

    with serving(open_model) as site:
        with unharmed(site):
            site.backend.select(OTHER)
            wait_until(lambda: "It is not to be had." in site.backend.status().notice, 10)
        failing[0] = False  # and it can be tried again
        site.backend.select(OTHER)
        wait_until(lambda: site.backend.status().model == OTHER.model and site.backend.status().stage == "ready", 10)
        assert site.answer() == site.greedy


def test_f05_a_file_that_was_cut_off_is_told(tiny_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_folder.iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    good, bad = loader_of(tiny_folder), loader_of(broken)

    def open_model(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        return (bad if options.model == OTHER.model else good)(options, report, cancelled)

    with serving(open_model) as site, unharmed(site):
        site.backend.select(OTHER)
        wait_until(lambda: site.backend.status().notice, 10)
        assert "Remove the folder and try again" in site.backend.status().notice


def test_f06_eight_who_ask_at_once_share_one_load(tiny_folder: Path) -> None:
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


def answers_at_once(site: Site, count: int) -> list[str]:
    """The answers to ``count`` requests that begin together."""
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
