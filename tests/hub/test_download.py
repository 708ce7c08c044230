"""The downloader against a fake hub on loopback, with the real huggingface_hub."""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from granite_demo.errors import (
    ConfigurationError,
    CorruptModelError,
    DiskFullError,
    DownloadError,
    GatedModelError,
    GraniteDemoError,
    LoadCancelledError,
    UnknownModelError,
)
from granite_demo.hub import download
from granite_demo.hub import transfer as hub_transfer
from granite_demo.hub.download import Checkpoint, cached, fetch, progress_text
from tests.fakehub import FakeHub, Request, etag, model_files, safetensors

REPO = "ibm-granite/tiny"
WEIGHTS = "model.safetensors"
SIZE = 2_000_000
TOKEN = "hf_" + "CanaryCanaryCanary" * 2


class Setup:
    """A fake hub with one model, an empty cache, and the reports of ``fetch``."""

    def __init__(self, server: FakeHub, cache: Path) -> None:
        self.hub = server
        self.cache = cache
        self.files = model_files(SIZE)
        self.commit = server.add(REPO, self.files)
        self.cancelled = threading.Event()
        self.calls: list[tuple[float | None, str]] = []
        self.act: Callable[[float | None, str], object] = lambda fraction, detail: None

    def report(self, stage: str, fraction: float | None, detail: str) -> None:
        assert stage == "downloading"
        self.calls.append((fraction, detail))
        self.act(fraction, detail)

    def fetch(self, repo_id: str = REPO, revision: str | None = None, endpoint: str | None = None) -> Checkpoint:
        url = endpoint or self.hub.url
        return fetch(repo_id, revision, self.report, self.cancelled, cache_dir=self.cache, endpoint=url)

    def fractions(self) -> list[float]:
        return [fraction for fraction, _ in self.calls if fraction is not None]

    def blob(self, name: str, suffix: str = "") -> Path:
        return self.cache / "models--ibm-granite--tiny" / "blobs" / (etag(name, self.files[name]) + suffix)

    def assert_whole(self, checkpoint: Checkpoint) -> None:
        found = {path.name: path.read_bytes() for path in checkpoint.folder.iterdir()}
        assert found == self.files


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    """Do not use the settings, the token or the cache of this machine."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with FakeHub() as server:
        yield Setup(server, tmp_path / "cache")


@pytest.fixture
def closed_port() -> str:
    """Return the URL of a hub that does not exist."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


# Successful downloads


def test_progress_rises_in_bytes_of_all_files_and_ends_at_one(tiny: Setup) -> None:
    tiny.hub.rate = 2_000_000
    began = time.monotonic()
    checkpoint = tiny.fetch()
    seconds = time.monotonic() - began
    assert checkpoint == Checkpoint(tiny.cache / "models--ibm-granite--tiny" / "snapshots" / tiny.commit, tiny.commit)
    tiny.assert_whole(checkpoint)
    fractions = tiny.fractions()
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len({fraction for fraction in fractions if 0.1 < fraction < 0.9}) >= 2
    assert len(tiny.calls) <= seconds * 5 + 5, "more often than a few times a second"
    assert any(detail.startswith("1 of 2 MB, ") and detail.endswith(" MB/s") for _, detail in tiny.calls)


def test_progress_text() -> None:
    assert progress_text(1_230_000_000, 5_100_000_000, 34_200_000) == "1.2 of 5.1 GB, 34 MB/s"
    assert progress_text(12_000_000, 93_000_000, 1_550_000) == "12 of 93 MB, 1.6 MB/s"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("config.json", True),
        ("generation_config.json", True),
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("tokenizer.json", True),
        ("tokenizer.model", True),
        ("special_tokens_map.json", True),
        ("vocab.txt", True),
        ("merges.txt", True),
        ("chat_template.jinja", True),
        ("README.md", False),
        ("pytorch_model.bin", False),
        ("tokenizer.bin", False),
        ("tokenizer.pkl", False),
        ("tokenization_evil.py", False),
        ("tokenizer_evil.py", False),
        ("tokenizer/tokenizer.json", False),
        ("onnx/model.safetensors", False),
        ("../model.safetensors", False),
        ("..\\model.safetensors", False),
        ("consolidated.safetensors", False),
        ("consolidated.safetensors.index.json", False),
    ],
)
def test_which_files_are_wanted(name: str, wanted: bool) -> None:
    assert hub_transfer.is_wanted(name) is wanted


def test_only_wanted_files_are_requested(tiny: Setup) -> None:
    unwanted = {"README.md": b"#", "modeling.py": b"1/0", "model.bin": b"pickle", "consolidated.safetensors": b""}
    tiny.hub.add(REPO, tiny.files | unwanted | {"onnx/model.safetensors": b""})
    tiny.assert_whole(tiny.fetch())
    requested = {request.path.split("/")[-1] for request in tiny.hub.requests if "/api/" not in request.path}
    assert requested == set(tiny.files)


def test_a_second_fetch_transfers_nothing_and_a_new_commit_only_what_changed(tiny: Setup) -> None:
    tiny.fetch()
    tiny.fetch()
    assert len(tiny.hub.transfers(WEIGHTS)) == 1
    tiny.files["config.json"] = b'{"model_type": "granite", "new": 1}'
    commit = tiny.hub.add(REPO, tiny.files)
    checkpoint = tiny.fetch()
    assert checkpoint.commit == commit != tiny.commit
    tiny.assert_whole(checkpoint)
    assert len(tiny.hub.transfers(WEIGHTS)) == 1


def test_a_branch_and_a_commit_can_be_requested(tiny: Setup) -> None:
    other = tiny.hub.add(REPO, model_files(1000), branch="small")
    assert tiny.fetch(revision="small").commit == other
    copy = cached(REPO, "small", tiny.cache)
    assert copy is not None
    assert copy == cached(REPO, other, tiny.cache)
    assert tiny.fetch(revision=tiny.commit).commit == tiny.commit


def test_a_cached_commit_needs_no_hub(tiny: Setup, closed_port: str) -> None:
    checkpoint = tiny.fetch()
    assert tiny.fetch(revision=tiny.commit, endpoint=closed_port) == checkpoint
    assert tiny.calls[-1] == (1.0, "already in the cache")


def test_without_symlinks_nothing_is_stored_twice(tiny: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_SYMLINKS", "1")
    checkpoint = tiny.fetch()
    tiny.assert_whole(checkpoint)
    assert not (checkpoint.folder / WEIGHTS).is_symlink()
    assert list(tiny.blob(WEIGHTS).parent.iterdir()) == []
    assert cached(REPO, None, tiny.cache) == checkpoint


def sharded_files() -> dict[str, bytes]:
    shards = {f"model-0000{number}-of-00002.safetensors": safetensors(1000, number) for number in (1, 2)}
    index = {"weight_map": {f"layer.{number}": name for number, name in enumerate(shards)}}
    common = {name: data for name, data in model_files().items() if name != WEIGHTS}
    return common | shards | {"model.safetensors.index.json": json.dumps(index).encode()}


def test_files_are_downloaded_in_parallel(tiny: Setup) -> None:
    tiny.hub.add(REPO, sharded_files())
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    tiny.hub.stall[first] = 0
    began = time.monotonic()

    def resume(fraction: float | None, detail: str) -> None:
        if any(request.ended for request in tiny.hub.transfers(second)):
            tiny.hub.stall.clear()
        assert time.monotonic() - began < 10, "the second file waits for the first"

    tiny.act = resume
    tiny.fetch()


# Interruptions


@pytest.mark.parametrize("reset", [False, True])
def test_after_a_cut_only_the_rest_is_sent(tiny: Setup, reset: bool) -> None:
    tiny.hub.cut[WEIGHTS], tiny.hub.reset, tiny.hub.rate = 1_000_000, reset, 4_000_000
    tiny.assert_whole(tiny.fetch())
    first, second = tiny.hub.transfers(WEIGHTS)
    assert first.sent == 1_000_000
    assert second.range is not None
    start = int(second.range.removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= 1_000_000
    assert second.sent == len(tiny.files[WEIGHTS]) - start
    fractions = tiny.fractions()
    assert fractions == sorted(fractions)


def cancel_in_the_middle(tiny: Setup) -> int:
    """Cancel while the hub sends nothing. Return the bytes that have arrived."""
    tiny.hub.stall[WEIGHTS] = 1_200_000
    cancelled_at = 0.0

    def cancel(fraction: float | None, detail: str) -> None:
        nonlocal cancelled_at
        if fraction and fraction > 0.5:
            cancelled_at = cancelled_at or time.monotonic()
            tiny.cancelled.set()

    tiny.act = cancel
    with pytest.raises(LoadCancelledError, match="The files that have arrived are kept"):
        tiny.fetch()
    assert time.monotonic() - cancelled_at < 1
    assert wait_until(lambda: tiny.hub.transfers(WEIGHTS)[0].ended), "the download goes on"
    tiny.act = lambda fraction, detail: None
    tiny.cancelled.clear()
    tiny.hub.stall.clear()
    return tiny.blob(WEIGHTS, ".incomplete").stat().st_size


def test_cancel_in_the_middle_of_a_file_then_resume(tiny: Setup) -> None:
    arrived = cancel_in_the_middle(tiny)
    assert arrived > 1_000_000
    assert cached(REPO, None, tiny.cache) is None
    tiny.calls.clear()
    tiny.assert_whole(tiny.fetch())
    last = tiny.hub.transfers(WEIGHTS)[-1]
    assert (last.range, last.sent) == (f"bytes={arrived}-", len(tiny.files[WEIGHTS]) - arrived)
    assert tiny.fractions()[0] > 0.5
    assert not tiny.blob(WEIGHTS, ".incomplete").exists()


def test_a_hub_that_ignores_ranges_sends_the_complete_file_again(tiny: Setup) -> None:
    cancel_in_the_middle(tiny)
    tiny.hub.ranges, tiny.hub.rate = False, 3_000_000
    tiny.calls.clear()
    tiny.assert_whole(tiny.fetch())
    assert tiny.hub.transfers(WEIGHTS)[-1].sent == len(tiny.files[WEIGHTS])
    assert tiny.fractions()[0] > 0.5
    assert tiny.fractions() == sorted(tiny.fractions())


def test_parts_are_requested_uncompressed(tiny: Setup) -> None:
    tiny.fetch()
    assert {request.encoding for name in tiny.files for request in tiny.hub.transfers(name)} == {"identity"}


def test_a_part_that_is_too_long_is_dropped(tiny: Setup) -> None:
    part = tiny.blob(WEIGHTS, ".incomplete")
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(SIZE * 2))
    tiny.assert_whole(tiny.fetch())


def test_after_an_early_cancel_there_is_no_request(tiny: Setup) -> None:
    tiny.cancelled.set()
    with pytest.raises(LoadCancelledError):
        tiny.fetch()
    assert tiny.hub.requests == []


def test_the_download_ends_with_the_program(tiny: Setup) -> None:
    tiny.hub.rate = 100_000
    code = (
        "import sys, threading; from pathlib import Path; from granite_demo.hub.download import fetch\n"
        "fetch(sys.argv[1], None, lambda *report: None, threading.Event(), cache_dir=Path(sys.argv[2]),"
        " endpoint=sys.argv[3])"
    )
    root = Path(download.__file__).parents[2]
    program = subprocess.Popen([sys.executable, "-c", code, REPO, str(tiny.cache), tiny.hub.url], cwd=root)
    try:
        assert wait_until(lambda: any(request.sent for request in tiny.hub.transfers(WEIGHTS)))
    finally:
        program.kill()
        program.wait()
    assert wait_until(lambda: tiny.hub.transfers(WEIGHTS)[0].ended), "the download goes on"


def test_two_programs_do_not_write_one_file(tiny: Setup) -> None:
    lock = FileLock(tiny.cache / ".locks" / "models--ibm-granite--tiny" / "granite-demo.lock")
    Path(lock.lock_file).parent.mkdir(parents=True)
    lock.acquire()

    def release(fraction: float | None, detail: str) -> None:
        if detail.startswith("waiting for another process"):
            assert not tiny.hub.transfers(WEIGHTS)
            lock.release()

    tiny.act = release
    tiny.assert_whole(tiny.fetch())
    assert not lock.is_locked


def test_modules_in_the_working_folder_are_not_run(
    tiny: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    tiny.assert_whole(tiny.fetch())
    assert not (tmp_path / "canary").exists()


# Errors of the hub


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("code", ["GatedRepo", None])
def test_a_gated_model_says_how_to_get_access(tiny: Setup, status: int, code: str | None) -> None:
    tiny.hub.gated = (status, code)
    with pytest.raises(GatedModelError) as caught:
        tiny.fetch()
    assert all(part in str(caught.value) for part in (f"{tiny.hub.url}/{REPO}", "licence", "HF_TOKEN", str(status)))


@pytest.mark.parametrize("status", [401, 404])  # the hub does not reveal whether a private model exists
def test_an_unknown_model(tiny: Setup, status: int) -> None:
    tiny.hub.refused = (status, "RepoNotFound")
    with pytest.raises(UnknownModelError, match=r"no model ibm-granite/tiny .*Check the spelling.*HF_TOKEN"):
        tiny.fetch()


def test_an_unknown_revision(tiny: Setup) -> None:
    with pytest.raises(UnknownModelError, match=r"no revision 'v9'"):
        tiny.fetch(revision="v9")


def test_a_hub_in_trouble(tiny: Setup) -> None:
    tiny.hub.refused = (503, None)
    with pytest.raises(DownloadError, match=r"answered 503.*Try again later"):
        tiny.fetch()


def test_an_unreachable_hub(tiny: Setup, closed_port: str) -> None:
    with pytest.raises(DownloadError, match=r"Check the network.*Models in the cache still work"):
        tiny.fetch(endpoint=closed_port)


def test_offline_mode_is_named(tiny: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        tiny.fetch()
    assert tiny.hub.requests == []


@pytest.mark.parametrize("refusal", ["unreachable", "gated", "in trouble"])
def test_a_cached_copy_is_used_when_the_hub_is_not_available(tiny: Setup, closed_port: str, refusal: str) -> None:
    checkpoint = tiny.fetch()
    # Nothing of the new commit is available.
    tiny.hub.add(REPO, model_files(1000))
    tiny.hub.gated = (403, "GatedRepo") if refusal == "gated" else None
    tiny.hub.refused = (503, None) if refusal == "in trouble" else None
    assert tiny.fetch(endpoint=closed_port if refusal == "unreachable" else None) == checkpoint
    fraction, detail = tiny.calls[-1]
    assert fraction == 1.0
    assert f"cached copy of commit {tiny.commit}" in detail


def test_a_hub_that_fails_at_the_end_leaves_no_incomplete_model(tiny: Setup) -> None:
    repo = tiny.cache / "models--ibm-granite--tiny"  # another program has downloaded only the configuration
    for name, text in (
        (f"snapshots/{tiny.commit}/config.json", '{"model_type": "granite"}'),
        ("refs/main", tiny.commit),
    ):
        (repo / name).parent.mkdir(parents=True)
        (repo / name).write_text(text)

    def go_away(request: Request) -> None:
        if request.path.endswith("/revision/main"):
            tiny.hub.refused = (503, None)

    tiny.hub.hook = go_away
    with pytest.raises(DownloadError, match="is not complete"):
        tiny.fetch()
    tiny.hub.refused, tiny.hub.hook = None, lambda request: None
    tiny.assert_whole(tiny.fetch())
    assert len(tiny.hub.transfers(WEIGHTS)) == 1


BAD_IDS = [
    "../x",
    "/etc",
    "/etc/passwd",
    "http://127.0.0.1/x",
    "a/b/c",
    "C:\\x",
    "a/..",
    "./a",
    "a",
    "",
    "a/b\n",
    "é/b",
]
BAD_IDS += ["a--b/c", "a/b@main", "a/b.git", "a /b", "a/" + "b" * 97]


@pytest.mark.parametrize("repo_id", BAD_IDS)
def test_malformed_names_are_refused_before_anything_is_touched(tiny: Setup, repo_id: str) -> None:
    actions: list[Callable[[], object]] = [
        lambda: tiny.fetch(repo_id),
        lambda: cached(repo_id, None, tiny.cache),
    ]
    for action in actions:
        with pytest.raises(UnknownModelError, match="is not the name of a model"):
            action()
    assert tiny.hub.requests == []
    assert not tiny.cache.exists()


@pytest.mark.parametrize("revision", ["../main", "a/../../b", "/etc", "-x", "a//b", "a b", "", "main\n", "C:\\x"])
def test_malformed_revisions_are_refused_before_anything_is_touched(tiny: Setup, revision: str) -> None:
    with pytest.raises(UnknownModelError, match="is not a revision"):
        tiny.fetch(revision=revision)
    assert tiny.hub.requests == []
    assert not tiny.cache.exists()


# The disk


def test_t05_too_small_a_disk_is_found_before_anything_is_fetched(
    tiny: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    needed = sum(map(len, tiny.files.values())) * 1.1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=int(needed) - 1000))
    with pytest.raises(DiskFullError) as caught:
        tiny.fetch()
    assert all(part in str(caught.value) for part in ("2 MB are needed", "HF_HOME"))
    assert str(tiny.cache) not in str(caught.value)
    assert all(part in caplog.text for part in (str(tiny.cache), "2 MB of free space"))
    assert not tiny.hub.transfers(WEIGHTS)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=int(needed) + 1000))
    tiny.assert_whole(tiny.fetch())


def test_t05_f05_a_disk_that_fills_up_meanwhile(tiny: Setup) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    part = tiny.blob(WEIGHTS, ".incomplete")
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match=r"not enough disk space in .*HF_HOME"):
        tiny.fetch()


def test_a_cache_that_is_not_a_folder_is_a_configuration_error(tiny: Setup) -> None:
    tiny.cache.write_text("a file")
    with pytest.raises(ConfigurationError, match="HF_HOME") as caught:
        tiny.fetch()
    assert str(tiny.cache) not in str(caught.value)


# Damaged files


def test_f16_a_file_that_arrives_damaged_is_fetched_once_more(tiny: Setup) -> None:
    tiny.hub.corrupt[WEIGHTS] = 1
    tiny.assert_whole(tiny.fetch())
    assert len(tiny.hub.transfers(WEIGHTS)) == 2
    assert len(tiny.hub.transfers("config.json")) == 1


def test_f16_a_file_that_arrives_damaged_twice_is_an_error(tiny: Setup) -> None:
    tiny.hub.corrupt[WEIGHTS] = 2
    with pytest.raises(CorruptModelError, match=r"in two downloads: model\.safetensors has "):
        tiny.fetch()
    assert len(tiny.hub.transfers(WEIGHTS)) == 2
    assert cached(REPO, None, tiny.cache) is None
    tiny.assert_whole(tiny.fetch())


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json"])
def test_f16_a_file_truncated_in_the_cache_is_fetched_again(tiny: Setup, name: str) -> None:
    tiny.fetch()
    tiny.blob(name).write_bytes(tiny.files[name][:-1])
    assert cached(REPO, None, tiny.cache) is None
    tiny.assert_whole(tiny.fetch())


def test_f16_a_damaged_file_in_the_cache_is_fetched_again(tiny: Setup) -> None:
    tiny.fetch()
    tiny.blob(WEIGHTS).write_bytes(bytes(len(tiny.files[WEIGHTS])))
    assert cached(REPO, None, tiny.cache) is None
    tiny.assert_whole(tiny.fetch())


def test_f16_the_files_of_a_killed_process_are_used(tiny: Setup) -> None:
    lock = tiny.cache / ".locks" / "models--ibm-granite--tiny" / "granite-demo.lock"
    part = tiny.blob(WEIGHTS, ".incomplete")
    for path in (lock, part):
        path.parent.mkdir(parents=True)
    lock.touch()
    part.write_bytes(tiny.files[WEIGHTS][: SIZE // 2])
    tiny.assert_whole(tiny.fetch())
    assert [transfer.range for transfer in tiny.hub.transfers(WEIGHTS)] == [f"bytes={SIZE // 2}-"]


def test_a_model_without_safetensors_is_refused(tiny: Setup) -> None:
    del tiny.files[WEIGHTS]
    tiny.hub.add(REPO, tiny.files | {"pytorch_model.bin": b"pickle"})
    with pytest.raises(CorruptModelError, match="only safetensors files can be loaded"):
        tiny.fetch()
    assert not tiny.hub.transfers("pytorch_model.bin")


# The cache of other programs


@pytest.mark.parametrize("files", [model_files(1000), sharded_files()], ids=["one file", "shards"])
def test_a_copy_that_another_program_fetched_is_used_if_it_is_complete(
    tiny: Setup, tmp_path: Path, files: dict[str, bytes]
) -> None:
    tiny.hub.add(REPO, files)
    folder = tiny.fetch().folder
    # Other programs, and older releases, do not store the listing of the commit.
    other = tmp_path / "other"
    shutil.copytree(tiny.cache, other, symlinks=True, ignore=shutil.ignore_patterns("trees"))
    copy = other / folder.relative_to(tiny.cache)
    assert cached(REPO, None, other) == Checkpoint(copy, copy.name)
    for name in files:
        if name != "model.safetensors.index.json":
            (copy / name).rename(tmp_path / "aside")
            assert cached(REPO, None, other) is None, f"{name} is missing"
            (tmp_path / "aside").rename(copy / name)


def test_a_model_that_was_never_fetched_is_not_cached(tiny: Setup) -> None:
    assert cached(REPO, None, tiny.cache) is None


# Secrets


@pytest.mark.parametrize("kept", [pytest.param(False, marks=pytest.mark.release), True])
def test_t15_the_token_goes_to_the_hub_and_nowhere_else(
    tiny: Setup,
    kept: bool,
    closed_port: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if kept:
        monkeypatch.setattr(download, "_tokens", [])
        download.keep_token(TOKEN)
    else:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []

    def fail(endpoint: str | None = None) -> None:
        with pytest.raises(GraniteDemoError) as caught:
            tiny.fetch(endpoint=endpoint)
        texts.append("".join(traceback.format_exception(caught.value)))

    fail(closed_port)
    for refused in ((401, None), (403, None), (404, "RepoNotFound"), (503, None)):
        tiny.hub.refused = refused
        fail()
    tiny.hub.refused, tiny.hub.gated = None, (403, "GatedRepo")
    fail()
    tiny.hub.gated = None
    tiny.hub.corrupt[WEIGHTS] = 2
    fail()
    tiny.fetch()
    assert len(texts) == 7
    assert TOKEN not in "".join(texts) + str(tiny.calls) + caplog.text + "".join(capfd.readouterr())
    listings = [request for request in tiny.hub.requests if request.path.startswith("/api/")]
    files = [request for request in tiny.hub.requests if request.path.startswith("/files/")]
    assert {request.authorization for request in listings} == {f"Bearer {TOKEN}"}
    assert files
    assert {request.authorization for request in files} == {None}, "the token went to the host of the files"


def test_importing_the_module_stays_light() -> None:
    code = "import sys, granite_demo.hub.download; print({'huggingface_hub', 'httpx2', 'torch'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(download.__file__).parents[2], capture_output=True)
    assert run.stdout == b"set()\n"
