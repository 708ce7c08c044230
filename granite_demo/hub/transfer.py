"""What ``hub`` runs in a child process: lists a model's files, downloads those that are missing, links them.

The transfer itself is huggingface_hub's ``http_get``, told to go on where an earlier try stopped. Such a part lies in
the cache as ``<etag>.incomplete``, the name that ``hf cache prune`` looks for. Plain HTTP for every file, because
hf_xet cannot resume. In the end ``snapshot_download`` finds all files there and builds the snapshot's folder.

JSON lines go both ways: the order and "go" in, the amounts, then the folder or an error out. The access token comes
with the order, or huggingface_hub finds it in the environment; nothing that goes out has it.
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

TOKENIZER = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "chat_template*", "*.jinja")
ALLOWED = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", *TOKENIZER)
# So that tokenizer* lets in no code and no pickle.
SUFFIXES = {".safetensors", ".gguf", ".json", ".txt", ".model", ".jinja"}
DUPLICATES = "consolidated*"  # the same weights once more, in another program's layout
FILE_NAME = re.compile(r"[\w.-]+", re.ASCII)  # in the top folder
ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

TIMEOUT_SECONDS = 10
TICK_SECONDS = 0.25
CHUNK = 2**18  # bytes: how finely progress shows, and what a kill may cost
WORKERS = 4
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
GB, MB = 1_000_000_000, 1_000_000

Send = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What to fetch, from where, to where."""

    repo_id: str
    revision: str | None
    cache_dir: str
    endpoint: str
    token: str | None = field(default=None, repr=False)
    """None is the one in the environment or in the hub's own file, if there is one."""
    patterns: Sequence[str] = ALLOWED
    """Of the files to fetch; one at least has to match the first."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file as the hub lists it. ``etag`` is its name among the cache's blobs."""

    name: str
    size: int
    etag: str


def is_wanted(name: str, patterns: Sequence[str] = ALLOWED) -> bool:
    """Whether a file of a repository is one that a model is loaded from, and matches one of the ``patterns``."""
    return (
        FILE_NAME.fullmatch(name) is not None
        and Path(name).suffix in SUFFIXES
        and any(fnmatchcase(name, pattern) for pattern in patterns)
        and not fnmatchcase(name, DUPLICATES)
    )


def list_files(order: Order) -> tuple[str, list[RemoteFile]]:
    """The commit that the revision means, and its wanted files. Raises what ``explained`` explains."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=order.endpoint, token=order.token)
    info = api.model_info(order.repo_id, revision=order.revision, files_metadata=True, timeout=TIMEOUT_SECONDS)
    files = [
        RemoteFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id or "")
        for file in info.siblings or ()
        if is_wanted(file.rfilename, order.patterns)
    ]
    if not all(ETAG.fullmatch(file.etag) for file in files):  # they become file names
        raise ValueError("the hub's listing has a malformed hash")
    first = order.patterns[0]
    if not any(fnmatchcase(file.name, first) for file in files):
        only = first.rpartition(".")[2]
        raise errors.CorruptModelError(
            f"{order.repo_id} has no {first} file, and only {only} is loaded. Choose another model."
        )
    return info.sha or "", files


def explained(error: Exception, order: Order) -> errors.GraniteDemoError:
    """The error to show for what huggingface_hub or the disk raised. Repeats no text of theirs: it may hold secrets."""
    from huggingface_hub import errors as hub

    name, page = order.repo_id, f"{order.endpoint}/{order.repo_id}"
    status = error.response.status_code if isinstance(error, hub.HfHubHTTPError) else None
    if isinstance(error, errors.GraniteDemoError):
        return error
    if isinstance(error, hub.RevisionNotFoundError):
        return errors.UnknownModelError(f"{name} has no revision {order.revision!r}. The page {page} lists them.")
    if isinstance(error, hub.RepositoryNotFoundError) and not isinstance(error, hub.GatedRepoError):
        return errors.UnknownModelError(
            f"There is no model {name} on {order.endpoint}, or it is private. Check the spelling; for a private model "
            "set HF_TOKEN to an access token of an account that may read it."
        )
    if status in (401, 403):
        return errors.GatedModelError(
            f"{order.endpoint} refuses access to {name} ({status}). Accept the licence on {page} if it asks for that, "
            "and set HF_TOKEN to a valid access token of the same account."
        )
    if isinstance(error, hub.OfflineModeIsEnabled):
        return errors.DownloadError(f"{name} is not in the cache, and HF_HUB_OFFLINE forbids to download it. Unset it.")
    if status is not None:
        return errors.DownloadError(f"{order.endpoint} answered {status} for {name}. Try again later.")
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return no_room(order, None)
    if isinstance(error, OSError) and error.errno in NO_ACCESS:
        return errors.ConfigurationError(
            f"The cache folder cannot be used: {error.strerror}. Set HF_HOME to a folder that can be written."
        )
    return errors.DownloadError(
        f"{name} could not be downloaded from {order.endpoint} ({type(error).__name__}). Check the network, then try "
        "again: it goes on where it stopped, and models in the cache still work."
    )


def no_room(order: Order, needed: int | None) -> errors.DiskFullError:
    """The error for a disk on which the missing files do not fit."""
    need = "" if needed is None else f": {amount(needed)} are needed"
    return errors.DiskFullError(
        f"There is not enough room in the cache folder for {order.repo_id}{need}. Make room, or set HF_HOME to a "
        "folder on another disk."
    )


def free_bytes(folder: Path) -> int:
    """The room on the disk where ``folder`` is, or will be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def amount(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / GB:.1f} GB" if size >= GB else f"{size / MB:.0f} MB"


def main() -> None:
    """Serve the order that comes in on standard input. Ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the parent, which ends this process
    channel, sys.stdout = sys.stdout, sys.stderr  # nobody else may print there

    def send(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=channel, flush=True)  # fails when the parent is gone, which is the end

    order = Order(**json.loads(sys.stdin.readline()))
    try:
        _transfer(order, send)
    except Exception as error:
        shown = explained(error, order)
        send({"error": type(shown).__name__, "text": str(shown)})
    finally:
        os._exit(0)  # now, and not when all threads have finished their files


def _folder_name(order: Order) -> str:
    from huggingface_hub.file_download import repo_folder_name

    return repo_folder_name(repo_id=order.repo_id, repo_type="model")


def _transfer(order: Order, send: Send) -> None:
    from huggingface_hub import constants, snapshot_download

    constants.DOWNLOAD_CHUNK_SIZE = CHUNK  # of this process; the usual 10 MB take long to arrive on a slow line
    commit, files = list_files(order)
    places = {file.name: _Place.of(file, order, commit) for file in files}
    for place in places.values():
        place.drop_damaged()
    missing = {place.blob: place for place in places.values() if not place.is_complete()}  # one for equal files

    def tick(**more: Any) -> None:
        send({"done": sum(place.arrived() for place in places.values()), **more})

    tick(total=sum(file.size for file in files))
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
        allow_patterns=list(places),
        max_workers=WORKERS,
    )
    if not all(Path(folder, name).exists() for name in places):  # the hub went away just now
        raise errors.DownloadError(f"The copy of {order.repo_id} in the cache is not complete yet. Try again.")
    send({"folder": folder})


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the cache keeps a file: its name in the commit's folder, its content, and a part of the content."""

    file: RemoteFile
    shown: Path
    blob: Path
    part: Path

    @classmethod
    def of(cls, file: RemoteFile, order: Order, commit: str) -> "_Place":
        repo = Path(order.cache_dir, _folder_name(order))
        blob = repo / "blobs" / file.etag
        return cls(file, repo / "snapshots" / commit / file.name, blob, blob.with_name(f"{file.etag}.incomplete"))

    def is_complete(self) -> bool:
        return self.shown.exists() or self.blob.exists()

    def arrived(self) -> int:
        """The bytes that are there."""
        if self.is_complete():
            return self.file.size
        return self.part.stat().st_size if self.part.exists() else 0

    def drop_damaged(self) -> None:
        """Delete what has a wrong size."""
        for path in (self.shown, self.blob):
            if path.exists() and path.stat().st_size != self.file.size:
                path.unlink()
        if self.part.exists() and self.part.stat().st_size > self.file.size:
            self.part.unlink()


def _download(order: Order, commit: str, places: list[_Place], tick: Callable[..., None]) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import are_symlinks_supported

    linked = are_symlinks_supported(order.cache_dir)
    lock = FileLock(Path(order.cache_dir, ".locks", _folder_name(order), "granite-demo.lock"))
    for folder in {path.parent for place in places for path in (place.shown, place.blob)} | {
        Path(lock.lock_file).parent
    }:
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
        for place in places:
            url = hf_hub_url(order.repo_id, place.file.name, revision=commit, endpoint=order.endpoint)
            running.add(pool.submit(_get, place, url, place.blob if linked else place.shown, order.token))
        while running:
            ended, running = wait(running, TICK_SECONDS, FIRST_EXCEPTION)
            for future in ended:
                future.result()
            tick()
    finally:
        lock.release()


def _get(place: _Place, url: str, target: Path, token: str | None) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers = {**build_hf_headers(token=token), "Accept-Encoding": "identity"}  # ranges are of the bytes as they are
    fruitless = 0
    while not place.is_complete():  # another process may have been faster
        before = place.arrived()
        try:
            with place.part.open("ab") as file:
                http_get(url, file, resume_size=before, headers=headers, expected_size=place.file.size)
        except OSError:  # the disk, or the hub's answer
            raise
        except Exception:  # a lost connection of a kind that http_get does not take up again
            fruitless = 0 if place.arrived() > before else fruitless + 1
            if fruitless > 1:
                raise
        else:
            os.replace(place.part, target)
