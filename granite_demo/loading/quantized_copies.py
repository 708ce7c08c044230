"""Quantized copies of models: made once, they load without quantizing again. Knows folders, not devices.

A copy lies in the cache folder under a name of its model, its commit and its quantization.
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
STAGING = ".staging-"


def copy_of(cache_dir: Path, spec: ModelSpec, commit: str | None, quantization: str) -> Path:
    """Where the copy lies, or would lie. A local folder's copy goes by its path."""
    source = commit[:12] if commit else hashlib.sha256(os.fsencode(spec.path or "")).hexdigest()[:12]
    return cache_dir / COPIES / f"{spec.name}-{source}-{quantization}"


def save_copy(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a copy at ``folder``, whole or not at all, unless another process just did. Raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / ".lock"):
        for stale in folder.parent.glob(f"{STAGING}*"):  # we hold the lock: whoever left these was killed
            shutil.rmtree(stale, ignore_errors=True)
        if folder.exists():
            return
        staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder.parent))
        try:
            model.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
            os.replace(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
