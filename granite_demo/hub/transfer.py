"""The child process of ``hub.download``: lists the files of a model and downloads those that are missing.

``snapshot_download`` alone cannot do this: it deletes a partial file when it fails, so it never resumes one, and its
progress bar can stop it only when bytes arrive. Therefore each file is downloaded with ``http_get``, which can resume,
to ``<etag>.incomplete`` in the cache, a name that ``hf cache prune`` recognizes. All files use plain HTTP, because
hf_xet cannot resume. At the end, ``snapshot_download`` finds all files in the cache and makes the snapshot folder.

The protocol is JSON lines. Standard input has the order and then "go". Standard output has the byte counts, then the
folder or an error. The access token is in the order, or huggingface_hub finds it. The output never has it.
"""

import errno
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from granite_demo import errors
from granite_demo.hub.cache_state import cache_state

TOKENIZER = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "chat_template*", "*.jinja")
ALLOWED = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", *TOKENIZER)
# These exclude code and pickle files, which tokenizer* matches.
SUFFIXES = {".safetensors", ".gguf", ".json", ".txt", ".model", ".jinja"}
DUPLICATES = "consolidated*"  # a copy of the weights in the format of another program
FILE_NAME = re.compile(r"[\w.-]+", re.ASCII)  # only files in the top folder
ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

TIMEOUT_SECONDS = 10
TICK_SECONDS = 0.25
CHUNK = 2**18  # bytes: the step of the progress, and the maximum loss when the process is killed
WORKERS = 4
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
GB, MB = 1_000_000_000, 1_000_000

Send = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Order:
    """The repository to fetch, its hub, and the cache folder."""

    repo_id: str
    revision: str | None
    cache_dir: str
    endpoint: str
    token: str | None = field(default=None, repr=False)
    """None: the token in the environment or in the hub's token file, if there is one."""
    patterns: Sequence[str] = ALLOWED
    """Patterns of the files to fetch. At least one file must match the first pattern."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file in the listing of the hub. ``size`` is in bytes. ``etag`` is the name of its blob in the cache."""

    name: str
    size: int
    etag: str


def is_wanted(name: str, patterns: Sequence[str] = ALLOWED) -> bool:
    """Whether a model can be loaded from this file of a repository, and it matches one of ``patterns``."""
    return (
        FILE_NAME.fullmatch(name) is not None
        and Path(name).suffix in SUFFIXES
        and any(fnmatchcase(name, pattern) for pattern in patterns)
        and not fnmatchcase(name, DUPLICATES)
    )


def list_files(order: Order) -> tuple[str, list[RemoteFile]]:
    """Return the commit of the revision and its wanted files. ``explained`` converts the errors that this raises."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=order.endpoint, token=order.token)
    info = api.model_info(order.repo_id, revision=order.revision, files_metadata=True, timeout=TIMEOUT_SECONDS)
    files = [
        RemoteFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id or "")
        for file in info.siblings or ()
        if is_wanted(file.rfilename, order.patterns)
    ]
    if not all(ETAG.fullmatch(file.etag) for file in files):  # they become file names
        raise ValueError("the listing of the hub has a malformed hash")
    first = order.patterns[0]
    if not any(fnmatchcase(file.name, first) for file in files):
        only = first.rpartition(".")[2]
        raise errors.CorruptModelError(
            f"{order.repo_id} has no {first} file, and only {only} files can be loaded. Choose another model."
        )
    return info.sha or "", files


def explained(error: Exception, order: Order) -> errors.GraniteDemoError:
    """Convert an error of huggingface_hub or of the disk. The result has no text of it, which can contain secrets."""
    from huggingface_hub import errors as hub

    name, page = order.repo_id, f"{order.endpoint}/{order.repo_id}"
    status = error.response.status_code if isinstance(error, hub.HfHubHTTPError) else None
    if isinstance(error, errors.GraniteDemoError):
        return error
    if isinstance(error, hub.RevisionNotFoundError):
        return errors.UnknownModelError(f"{name} has no revision {order.revision!r}. The page {page} lists them.")
    if isinstance(error, hub.RepositoryNotFoundError) and not isinstance(error, hub.GatedRepoError):
        return errors.UnknownModelError(
            f"There is no model {name} on {order.endpoint}, or it is private. Check the spelling. For a private model, "
            "set HF_TOKEN to an access token of an account that can read it."
        )
    if status in (401, 403):
        return errors.GatedModelError(
            f"{order.endpoint} refuses access to {name} ({status}). If {page} shows a licence, accept it there, and "
            "set HF_TOKEN to a valid access token of the same account."
        )
    if isinstance(error, hub.OfflineModeIsEnabled):
        state = _state_of(order) or f"{name} is not in the cache."
        return errors.DownloadError(f"{state} HF_HUB_OFFLINE prevents the download: unset that variable to allow it.")
    if status is not None:
        return errors.DownloadError(f"{order.endpoint} answered {status} for {name}. Try again later.")
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return no_room(order, None)
    if isinstance(error, OSError) and error.errno in NO_ACCESS:
        return errors.ConfigurationError(
            f"The cache folder cannot be used: {error.strerror}. Set HF_HOME to a writable folder."
        )
    state = _state_of(order)
    return errors.DownloadError(
        f"{name} could not be downloaded from {order.endpoint} ({type(error).__name__}). Check the network and try "
        f"again: the download continues where it stopped. {state or 'Models in the cache still work.'}"
    )


def _state_of(order: Order) -> str:
    if order.patterns is not ALLOWED and tuple(order.patterns) != ALLOWED:
        return ""
    return cache_state(Path(order.cache_dir, _folder_name(order)), order.repo_id, order.revision)


def no_room(order: Order, needed: int | None) -> errors.DiskFullError:
    """Return the error for a disk that is too small. ``needed`` is in bytes."""
    need = "" if needed is None else f": {amount(needed)} are needed"
    return errors.DiskFullError(
        f"There is not enough disk space in the cache folder for {order.repo_id}{need}. Free some space, or set "
        "HF_HOME to a folder on another disk."
    )


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of ``folder``, which does not have to exist."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def amount(size: int) -> str:
    """Format a number of bytes in MB or GB."""
    return f"{size / GB:.1f} GB" if size >= GB else f"{size / MB:.0f} MB"


def main() -> None:
    """Process the order on standard input. Ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the parent, which ends this process
    channel, sys.stdout = sys.stdout, sys.stderr  # other code must not print to the channel

    def send(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=channel, flush=True)  # fails and ends this process if the parent has ended

    order = Order(**json.loads(sys.stdin.readline()))
    try:
        _transfer(order, send)
    except Exception as error:
        shown = explained(error, order)
        send({"error": type(shown).__name__, "text": str(shown)})
    finally:
        os._exit(0)  # do not wait for the other download threads


def _folder_name(order: Order) -> str:
    from huggingface_hub.file_download import repo_folder_name

    return repo_folder_name(repo_id=order.repo_id, repo_type="model")


def _transfer(order: Order, send: Send) -> None:
    from huggingface_hub import constants, snapshot_download

    constants.DOWNLOAD_CHUNK_SIZE = CHUNK  # in this process only; the default of 10 MB is too coarse for slow networks
    commit, remote = list_files(order)
    files = {file.name: _CachedFile.of(file, order, commit) for file in remote}
    for file in files.values():
        file.drop_damaged()
    missing = {file.blob: file for file in files.values() if not file.is_complete()}  # equal files have one blob

    def tick(**more: Any) -> None:
        send({"done": sum(file.arrived() for file in files.values()), **more})

    tick(total=sum(file.size for file in remote))
    if sys.stdin.readline() != "go\n":
        return
    if missing:
        _download(order, commit, list(missing.values()), tick)
    folder = snapshot_download(
        order.repo_id,
        revision=order.revision,
        cache_dir=order.cache_dir,
        endpoint=order.endpoint,
        token=order.token,
        allow_patterns=list(files),
        max_workers=WORKERS,
    )
    if not all(Path(folder, name).exists() for name in files):  # the hub became unavailable after the download
        raise errors.DownloadError(f"The copy of {order.repo_id} in the cache is not complete. Try again.")
    send({"folder": folder})


@dataclass(frozen=True, slots=True)
class _CachedFile:
    """The paths of a file in the cache: its link in the snapshot, its blob, and the partial blob."""

    file: RemoteFile
    link: Path
    blob: Path
    part: Path

    @classmethod
    def of(cls, file: RemoteFile, order: Order, commit: str) -> "_CachedFile":
        repo = Path(order.cache_dir, _folder_name(order))
        blob = repo / "blobs" / file.etag
        return cls(file, repo / "snapshots" / commit / file.name, blob, blob.with_name(f"{file.etag}.incomplete"))

    def is_complete(self) -> bool:
        return self.link.exists() or self.blob.exists()

    def arrived(self) -> int:
        """Return how many bytes are in the cache."""
        if self.is_complete():
            return self.file.size
        return self.part.stat().st_size if self.part.exists() else 0

    def drop_damaged(self) -> None:
        """Delete the files that have a wrong size."""
        for path in (self.link, self.blob):
            if path.exists() and path.stat().st_size != self.file.size:
                path.unlink()
        if self.part.exists() and self.part.stat().st_size > self.file.size:
            self.part.unlink()


def _download(order: Order, commit: str, files: list[_CachedFile], tick: Callable[..., None]) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import are_symlinks_supported

    linked = are_symlinks_supported(order.cache_dir)
    lock = FileLock(Path(order.cache_dir, ".locks", _folder_name(order), "granite-demo.lock"))
    for folder in {path.parent for file in files for path in (file.link, file.blob)} | {Path(lock.lock_file).parent}:
        folder.mkdir(parents=True, exist_ok=True)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tick(note="waiting for another process that downloads this model")
            time.sleep(TICK_SECONDS)
    try:
        pool = ThreadPoolExecutor(WORKERS)
        running = set()
        for file in files:
            url = hf_hub_url(order.repo_id, file.file.name, revision=commit, endpoint=order.endpoint)
            running.add(pool.submit(_get, file, url, file.blob if linked else file.link, order.token))
        while running:
            ended, running = wait(running, TICK_SECONDS, FIRST_EXCEPTION)
            for future in ended:
                future.result()
            tick()
    finally:
        lock.release()


def _get(file: _CachedFile, url: str, target: Path, token: str | None) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers = {**build_hf_headers(token=token), "Accept-Encoding": "identity"}  # ranges count uncompressed bytes
    failures = 0
    while not file.is_complete():  # another process can complete it first
        before = file.arrived()
        try:
            with file.part.open("ab") as part:
                http_get(url, part, resume_size=before, headers=headers, expected_size=file.file.size)
        except OSError:  # an error of the disk, or an error response of the hub
            raise
        except Exception:  # a lost connection that http_get does not resume
            failures = 0 if file.arrived() > before else failures + 1
            if failures > 1:
                raise
        else:
            os.replace(file.part, target)
