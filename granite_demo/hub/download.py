"""Fetches a model from the Hugging Face hub into huggingface_hub's usual cache.

The transfer runs in a child process (``hub_transfer``): huggingface_hub cannot be interrupted while it waits for
bytes, but a process can be killed at any time. What has arrived stays, and the next try goes on from there.

Knows neither the registry nor devices.
"""

import json
import logging
import queue
import re
import struct
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
from granite_demo.types.load_options import Report

log = logging.getLogger(__name__)

REPO_ID = re.compile(r"(?!.*--|.*\.\.|.*\.git$)\w([\w.-]{0,94}\w)?/\w([\w.-]{0,94}\w)?", re.ASCII)
REVISION = re.compile(r"(?!.*\.\.|.*//)\w([\w./-]{0,98}\w)?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")

MARGIN = 1.1  # room wanted for each missing byte
POLL_SECONDS = 0.1
MAX_HEADER = 100_000_000
START = "import sys; sys.path.insert(0, sys.argv[1]); from granite_demo.hub.transfer import main; main()"

_tokens: list[str] = []  # of the process, at most one

Lines: TypeAlias = "queue.SimpleQueue[str]"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's folder in the cache and the commit that it is."""

    folder: Path
    commit: str


def keep_token(token: str) -> None:
    """The access token from now on, where it does not stay in the environment."""
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
    """Return the folder with all files of ``repo_id``, downloading those that the cache does not have.

    ``revision`` is a branch, a tag or a commit, None the main branch. A cached copy is used if the hub cannot be.
    Raises UnknownModelError, GatedModelError, DownloadError, DiskFullError, CorruptModelError, ConfigurationError, or
    LoadCancelledError within a second after ``cancelled`` is set; what has arrived is kept for the next try.
    """
    order = _order(repo_id, revision, cache_dir, endpoint)
    if revision and COMMIT.fullmatch(revision) and (copy := cached(repo_id, revision, cache_dir)):
        report("downloading", 1.0, "already in the cache")  # a commit never changes: no need to ask
        return copy
    for _ in range(2):
        try:
            checkpoint = _download(order, report, cancelled)
        except (errors.DiskFullError, errors.ConfigurationError):
            # Not in the error, which strangers may see.
            free = transfer.amount(transfer.free_bytes(Path(order.cache_dir)))
            log.error("The cache folder is %s; %s are free there.", order.cache_dir, free)
            raise
        except (errors.DownloadError, errors.GatedModelError):
            copy = cached(repo_id, revision, cache_dir)
            if copy is None:
                raise
            report("downloading", 1.0, f"the hub cannot be used now: using the cached copy of commit {copy.commit}")
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
        f"{repo_id} arrived damaged twice: {flaws}. Try again later, or choose another model or revision."
    )


def fetch_some(repo_id: str, patterns: Sequence[str], report: Report, cancelled: threading.Event) -> Path:
    """The folder with those files of the main branch that match ``patterns`` alone; raises as ``fetch`` does.

    ``cached`` does not take it for a copy of the model.
    """
    return _download(replace(_order(repo_id, None, None, None), patterns=patterns), report, cancelled).folder


def cached(repo_id: str, revision: str | None = None, cache_dir: Path | None = None) -> Checkpoint | None:
    """The complete copy of the model in the cache, or None. Uses no network."""
    from huggingface_hub import get_cached_repo_tree, try_to_load_from_cache
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    _check_names(repo_id, revision)
    config = try_to_load_from_cache(repo_id, "config.json", cache_dir=cache_dir, revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    try:
        tree = get_cached_repo_tree(repo_id, revision=folder.name, cache_dir=cache_dir)
    except CachedRepoTreeNotFoundError:  # fetched by another program
        complete = any(folder.glob("tokenizer*")) and _has_all_shards(folder)
    else:
        complete = all(_size(folder / file.path) == file.size for file in tree if is_wanted(file.path))
    sound = complete and (weights := _weights(folder)) and not any(map(find_flaw, weights))
    return Checkpoint(folder, folder.name) if sound else None


def check_place(repo_id: str, revision: str | None = None) -> None:
    """Raise ConfigurationError where the model is not in the cache and could not be written to it either."""
    order = _order(repo_id, revision, None, None)
    if cached(repo_id, revision) is None:
        try:
            Path(order.cache_dir).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=order.cache_dir).close()
        except OSError as error:
            log.error("The cache folder is %s.", order.cache_dir)
            raise transfer.explained(error, order) from error


def download_size(repo_id: str, revision: str | None = None, endpoint: str | None = None) -> int:
    """The bytes of all files that ``fetch`` would want, cached or not, as the hub lists them."""
    order = _order(repo_id, revision, None, endpoint)
    try:
        return sum(file.size for file in transfer.list_files(order)[1])
    except Exception as error:
        raise transfer.explained(error, order) from error


def find_flaw(path: Path) -> str | None:
    """What is wrong with a safetensors file as far as its header tells, or None."""
    size = _size(path)
    if size is None:
        return "is missing"
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(MAX_HEADER, size - 8):
            return "has no safetensors header"
        try:
            tensors = json.loads(file.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
            end = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return "has an unreadable safetensors header"
    return None if end == size else f"has {size:,} bytes instead of {end:,}"


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
            f"{repo_id[:100]!r} is not the name of a model on the hub. Such names look like "
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
    report("downloading", None, f"asking {order.endpoint}")
    command = [sys.executable, "-P", "-c", START, str(Path(__file__).parents[2])]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines: Lines = queue.SimpleQueue()
        reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
        reader.start()
        try:
            _say(process.stdin, json.dumps(asdict(order)))
            return _follow(order, process.stdin, lines, report, cancelled)
        finally:
            process.kill()
            reader.join()


def _cancelled(order: Order) -> errors.LoadCancelledError:
    return errors.LoadCancelledError(f"Downloading {order.repo_id} was cancelled. What has arrived is kept.")


def _read(stream: IO[str], lines: Lines) -> None:
    for line in stream:
        lines.put(line)
    lines.put("{}")  # the child's end


def _say(stream: IO[str], text: str) -> None:
    with suppress(OSError):  # the child ended: what it wrote last tells why
        stream.write(f"{text}\n")
        stream.flush()


def _follow(order: Order, child: IO[str], lines: Lines, report: Report, cancelled: threading.Event) -> Checkpoint:
    """Pass on the child's progress until its end."""
    total = first = most = 0
    began = time.monotonic()
    while True:
        try:
            message = json.loads(lines.get(timeout=POLL_SECONDS))
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
                _say(child, "go")
                began, most = time.monotonic(), first
            case {"note": note}:
                report("downloading", None, note)
            case {"done": done}:
                most = max(most, done)  # a part that the hub sends anew counts when it passes what was there
                rate = (most - first) / max(time.monotonic() - began, POLL_SECONDS)
                report("downloading", most / max(total, 1), progress_text(most, total, rate))
            case _:
                raise errors.DownloadError(f"The download of {order.repo_id} ended for no known reason. Try again.")


def _check_room(order: Order, missing: int) -> None:
    needed = int(missing * MARGIN)
    if needed > transfer.free_bytes(Path(order.cache_dir)):
        raise transfer.no_room(order, needed)


def progress_text(done: int, total: int, rate: float | None) -> str:
    """Bytes and bytes per second for people."""
    unit, name, digits = (GB, "GB", 1) if total >= GB else (MB, "MB", 0)
    speed = "" if rate is None else f", {rate / MB:.{0 if rate >= 10 * MB else 1}f} MB/s"
    return f"{done / unit:.{digits}f} of {total / unit:.{digits}f} {name}{speed}"
