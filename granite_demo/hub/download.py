"""Downloads models from the Hugging Face hub into the cache of huggingface_hub.

The transfer runs in a child process (``hub.transfer``), because huggingface_hub cannot be interrupted while it waits
for bytes, but a process can be killed at any time. Partial files stay in the cache, and the next try resumes them.
"""

import json
import logging
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TypeAlias

from granite_demo import errors
from granite_demo.hub import transfer
from granite_demo.hub.transfer import GB, MB, Order, is_wanted
from granite_demo.models.safetensors_header import find_flaw
from granite_demo.types.load_options import Report

log = logging.getLogger(__name__)

REPO_ID = re.compile(r"(?!.*--|.*\.\.|.*\.git$)\w([\w.-]{0,94}\w)?/\w([\w.-]{0,94}\w)?", re.ASCII)
REVISION = re.compile(r"(?!.*\.\.|.*//)\w([\w./-]{0,98}\w)?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")

MARGIN = 1.1  # free bytes required for each missing byte
CHILD_POLL_SECONDS = 0.1
START = "import sys; sys.path.insert(0, sys.argv[1]); from granite_demo.hub.transfer import main; main()"

_tokens: list[str] = []  # the access token of this process: at most one

Lines: TypeAlias = "queue.SimpleQueue[str]"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The folder of a model in the cache, and its commit."""

    folder: Path
    commit: str


def keep_token(token: str) -> None:
    """Set the access token of the hub, for a token that is no longer in the environment."""
    _tokens[:] = [token] if token else []


def fetch(
    repo_id: str,
    revision: str | None,
    report: Report,
    cancelled: threading.Event,
    *,
    cache_dir: Path | None = None,
    endpoint: str | None = None,
) -> Checkpoint:
    """Download the missing files of ``repo_id`` and return the folder with all of them.

    ``revision`` is a branch, a tag or a commit; None is the main branch. If the hub is not available, a complete cached
    copy is used. Raises UnknownModelError, GatedModelError, DownloadError, DiskFullError, CorruptModelError,
    ConfigurationError, or LoadCancelledError within a second after ``cancelled`` is set. Partial files are kept.
    """
    order = _order(repo_id, revision, cache_dir, endpoint)
    if revision and COMMIT.fullmatch(revision) and (copy := cached(repo_id, revision, cache_dir)):
        report("downloading", 1.0, "already in the cache")  # a commit never changes
        return copy
    for _ in range(2):
        try:
            checkpoint = _download(order, report, cancelled)
        except (errors.DiskFullError, errors.ConfigurationError):
            # The folder is not in the error, which visitors can see.
            free = transfer.amount(transfer.free_bytes(Path(order.cache_dir)))
            log.error("The cache folder is %s. It has %s of free space.", order.cache_dir, free)
            raise
        except (errors.DownloadError, errors.GatedModelError):
            copy = cached(repo_id, revision, cache_dir)
            if copy is None:
                raise
            report("downloading", 1.0, f"the hub is not available; using the cached copy of commit {copy.commit}")
            return copy
        broken = {path.name: flaw for path in _weights(checkpoint.folder) if (flaw := find_flaw(path))}
        if not broken:
            return checkpoint
        for name in broken:
            path = checkpoint.folder / name
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    flaws = "; ".join(f"{name} {flaw}" for name, flaw in broken.items())
    raise errors.CorruptModelError(
        f"{repo_id} was damaged in two downloads: {flaws}. Try again later, or choose another model or revision."
    )


def fetch_some(
    repo_id: str, patterns: Sequence[str], report: Report, cancelled: threading.Event, revision: str | None = None
) -> Path:
    """Download only the files of the revision, by default main, that match ``patterns``; return their folder.

    Raises as ``fetch``.

    ``cached`` does not return such an incomplete copy.
    """
    return _download(replace(_order(repo_id, revision, None, None), patterns=patterns), report, cancelled).folder


def list_sizes(
    repo_id: str, patterns: Sequence[str], report: Report, cancelled: threading.Event, revision: str | None = None
) -> dict[str, int]:
    """Return the bytes of each file of the revision, by default main, that matches ``patterns``, by name.

    Raises as ``fetch``.
    """
    order = replace(_order(repo_id, revision, None, None), patterns=patterns)
    answers: queue.SimpleQueue[dict[str, int] | errors.GraniteDemoError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put({file.name: file.size for file in transfer.list_files(order)[1]})
        except Exception as error:
            answers.put(transfer.explained(error, order))

    report("downloading", None, f"connecting to {order.endpoint}")
    threading.Thread(target=ask, daemon=True).start()  # it cannot be interrupted, so a cancelled load leaves it
    while not cancelled.is_set():
        with suppress(queue.Empty):
            answer = answers.get(timeout=CHILD_POLL_SECONDS)
            if isinstance(answer, errors.GraniteDemoError):
                raise answer
            return answer
    raise _cancelled(order)


def cached(repo_id: str, revision: str | None = None, cache_dir: Path | None = None) -> Checkpoint | None:
    """Return the complete copy of the model in the cache, or None. Does not use the network."""
    from huggingface_hub import get_cached_repo_tree, try_to_load_from_cache
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    _check_names(repo_id, revision)
    config = try_to_load_from_cache(repo_id, "config.json", cache_dir=cache_dir, revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    try:
        tree = get_cached_repo_tree(repo_id, revision=folder.name, cache_dir=cache_dir)
    except CachedRepoTreeNotFoundError:  # another program downloaded the files
        complete = any(folder.glob("tokenizer*")) and _has_all_shards(folder)
    else:
        complete = all(_size(folder / file.path) == file.size for file in tree if is_wanted(file.path))
    sound = complete and (weights := _weights(folder)) and not any(map(find_flaw, weights))
    return Checkpoint(folder, folder.name) if sound else None


def check_writable(repo_id: str, revision: str | None = None) -> None:
    """Raise ConfigurationError if the model is not in the cache and the cache is not writable."""
    order = _order(repo_id, revision, None, None)
    if cached(repo_id, revision) is None:
        try:
            Path(order.cache_dir).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=order.cache_dir).close()
        except OSError as error:
            log.error("The cache folder is %s.", order.cache_dir)
            raise transfer.explained(error, order) from error


def _weights(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.safetensors") if is_wanted(path.name)]


def _has_all_shards(folder: Path) -> bool:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return (folder / "model.safetensors").exists()
    try:
        return all((folder / name).exists() for name in json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, TypeError, KeyError, AttributeError):
        return False


def _size(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_size
    return None


def _check_names(repo_id: str, revision: str | None) -> None:
    if not REPO_ID.fullmatch(repo_id):
        raise errors.UnknownModelError(
            f"{repo_id[:100]!r} is not the name of a model on the hub. A name looks like "
            "ibm-granite/granite-3.3-2b-instruct."
        )
    if revision is not None and not REVISION.fullmatch(revision):
        raise errors.UnknownModelError(f"{revision[:100]!r} is not a revision. Give a branch, a tag or a commit.")


def _order(repo_id: str, revision: str | None, cache_dir: Path | None, endpoint: str | None) -> Order:
    _check_names(repo_id, revision)
    from huggingface_hub import constants

    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser().absolute()
    return Order(repo_id, revision, str(cache), (endpoint or constants.ENDPOINT).rstrip("/"), *_tokens)


def _download(order: Order, report: Report, cancelled: threading.Event) -> Checkpoint:
    if cancelled.is_set():
        raise _cancelled(order)
    report("downloading", None, f"connecting to {order.endpoint}")
    command = [sys.executable, "-P", "-c", START, str(Path(__file__).parents[2])]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines: Lines = queue.SimpleQueue()
        reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
        reader.start()
        try:
            _write_line(process.stdin, json.dumps(asdict(order)))
            return _follow(order, process.stdin, lines, report, cancelled)
        finally:
            process.kill()
            reader.join()


def _cancelled(order: Order) -> errors.LoadCancelledError:
    return errors.LoadCancelledError(
        f"The download of {order.repo_id} was cancelled. The files that have arrived are kept."
    )


def _read(stream: IO[str], lines: Lines) -> None:
    for line in stream:
        lines.put(line)
    lines.put("{}")  # the child has ended


def _write_line(stream: IO[str], text: str) -> None:
    with suppress(OSError):  # the child has ended; its last line says why
        stream.write(f"{text}\n")
        stream.flush()


def _follow(order: Order, child: IO[str], lines: Lines, report: Report, cancelled: threading.Event) -> Checkpoint:
    """Report the progress of the child until it ends."""
    total = first = most = 0
    began = time.monotonic()
    while True:
        try:
            message = json.loads(lines.get(timeout=CHILD_POLL_SECONDS))
        except queue.Empty:
            message = None
        if cancelled.is_set():
            raise _cancelled(order)
        match message:
            case None:
                pass
            case {"error": name, "text": text}:
                raise getattr(errors, name)(text)
            case {"folder": folder}:
                report("downloading", 1.0, progress_text(total, total, None))
                return Checkpoint(Path(folder), Path(folder).name)
            case {"total": total, "done": first}:
                _check_room(order, total - first)
                _write_line(child, "go")
                began, most = time.monotonic(), first
            case {"note": note}:
                report("downloading", None, note)
            case {"done": done}:
                most = max(most, done)  # if the hub sends a part again, do not report less than before
                rate = (most - first) / max(time.monotonic() - began, CHILD_POLL_SECONDS)
                report("downloading", most / max(total, 1), progress_text(most, total, rate))
            case _:
                raise errors.DownloadError(f"The download of {order.repo_id} ended unexpectedly. Try again.")


def _check_room(order: Order, missing: int) -> None:
    needed = int(missing * MARGIN)
    if needed > transfer.free_bytes(Path(order.cache_dir)):
        raise transfer.no_room(order, needed)


def progress_text(done: int, total: int, rate: float | None) -> str:
    """Format the progress of a download. ``done`` and ``total`` are in bytes, ``rate`` in bytes per second."""
    unit, name, digits = (GB, "GB", 1) if total >= GB else (MB, "MB", 0)
    speed = "" if rate is None else f", {rate / MB:.{0 if rate >= 10 * MB else 1}f} MB/s"
    return f"{done / unit:.{digits}f} of {total / unit:.{digits}f} {name}{speed}"
