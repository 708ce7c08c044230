"""Quantized copies of models, which load without a new quantization.

A copy is a folder in the cache. Its name contains the model, the commit and the quantization.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from granite_demo.models.catalogue import ModelSpec

COPIES = "quantized"
COPY_STAGING = ".staging-"


def copy_of(cache_dir: Path, spec: ModelSpec, commit: str | None, quantization: str) -> Path:
    """Return the folder of the copy, which does not have to exist. For a local model, its path replaces the commit."""
    source = commit[:12] if commit else hashlib.sha256(os.fsencode(spec.path or "")).hexdigest()[:12]
    return cache_dir / COPIES / f"{spec.name}-{source}-{quantization}"


def save_copy(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a complete copy to ``folder``, unless it exists. An error leaves no partial copy. Raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / ".lock"):
        for stale in folder.parent.glob(
            f"{COPY_STAGING}*"
        ):  # this process has the lock, so the owners of these are dead
            shutil.rmtree(stale, ignore_errors=True)
        if folder.exists():
            return
        staging = Path(tempfile.mkdtemp(prefix=COPY_STAGING, dir=folder.parent))
        try:
            model.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
            os.replace(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
