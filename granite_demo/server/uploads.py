"""Limits for uploaded files, which Gradio writes to disk while they arrive: their size, their number and their age."""

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

MAX_UPLOADED = 256 * 2**20
"""Bytes that all files together take on the disk. A file is read as soon as it has arrived, so the oldest can go."""
MAX_KEPT_FILES = 500
"""Files of all uploads. Each takes two inodes: Gradio gives it a folder of its own."""
KEPT_SECONDS = 600
"""The longest age of a file."""
BLOCK = 512
"""The unit of ``st_blocks``."""


def sweep(folder: Path, uploaded: frozenset[str]) -> set[str]:
    """Delete files older than ``KEPT_SECONDS``, and the oldest beyond the limits; then folders that are empty.

    ``folder`` is the one that Gradio writes to, ``uploaded`` the paths of complete uploads. The files never take more
    than half of what the disk has for them. Returns the paths of ``uploaded`` that no longer exist.
    """
    # Other Gradio programs can share the folder: of complete uploads, delete only those of this server.
    files: list[tuple[float, int, str]] = []
    gone = set()
    for path in {*uploaded, *map(str, folder.glob("tmp*"))}:
        try:
            found = os.stat(path)
        except OSError:
            gone.add(path)
        else:
            files.append((found.st_mtime, _taken(found), path))
    room, oldest = _room(folder, sum(size for _, size, _ in files)), time.time() - KEPT_SECONDS
    for place, (modified, size, path) in enumerate(sorted(files, reverse=True)):
        room -= size
        if room < 0 or place >= MAX_KEPT_FILES or modified < oldest:
            with suppress(OSError):
                os.unlink(path)
                gone.add(path)
    for parent in {Path(path).parent for path in gone} - {folder}:
        with suppress(OSError):  # not empty
            parent.rmdir()
    return gone


def _taken(found: os.stat_result) -> int:
    """The bytes of a file on the disk, and those of its folder."""
    blocks = getattr(found, "st_blocks", None)  # Windows has none
    return found.st_size if blocks is None else blocks * BLOCK + 4096


def _room(folder: Path, taken: int) -> int:
    try:
        return min(MAX_UPLOADED, (shutil.disk_usage(folder).free + taken) // 2)
    except OSError:  # the folder does not exist yet
        return MAX_UPLOADED
