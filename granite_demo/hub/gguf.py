"""Finds and downloads the GGUF file of a model."""

import threading
from pathlib import Path

from granite_demo.errors import ConfigurationError
from granite_demo.hub import download, transfer
from granite_demo.models.catalogue import ModelSpec
from granite_demo.types.load_options import LoadStage, Report

QUANTIZATION = "Q4_K_M"
"""The GGUF file that is used for a model: the usual compromise between size and quality."""
FASTER = "on a CPU, several times as fast as torch"


def _repo_and_name(spec: ModelSpec) -> tuple[str, str]:
    """Return the repository and the name of a model's GGUF file."""
    assert spec.gguf_repo is not None
    return spec.gguf_repo, f"{(spec.repo_id or '').rpartition('/')[2]}-{QUANTIZATION}.gguf"


def cached_file(spec: ModelSpec) -> Path | None:
    """Return the path of the model's GGUF file in the hub cache, or None. Does not use the network."""
    if spec.gguf_repo is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(*_repo_and_name(spec))
    return Path(found) if isinstance(found, str) else None


def fetch(spec: ModelSpec, report: Report, cancelled: threading.Event) -> Path:
    """Download the model's GGUF file and its tokenizer into the hub cache. Raises as ``download.fetch``."""
    assert spec.repo_id is not None
    repo, name = _repo_and_name(spec)

    def report_with_reason(stage: LoadStage, fraction: float | None, detail: str) -> None:
        report(stage, fraction, f"{detail}; {QUANTIZATION} in a GGUF file: {FASTER}")

    file = download.fetch_some(repo, [name], report_with_reason, cancelled) / name
    # transformers does not support the pre-tokenizer of every GGUF file.
    download.fetch_some(spec.repo_id, transfer.TOKENIZER, report, cancelled)
    return file


def tokenizer_folder(spec: ModelSpec) -> Path | None:
    """Return the folder of the model's tokenizer in the hub cache, or None. Does not use the network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(spec.repo_id or "", "tokenizer.json")
    return Path(found).parent if isinstance(found, str) else None


def how_to_fetch(spec: ModelSpec) -> str:
    """Return the command that downloads the model's GGUF file into the hub cache."""
    return f"hf download {' '.join(_repo_and_name(spec))}" if spec.gguf_repo else ""


def file_in(path: Path) -> Path | None:
    """Return the GGUF file of a path: the file itself, or the only one in a folder without safetensors files.

    Raises ConfigurationError if there is more than one.
    """
    if path.suffix == ".gguf" and path.is_file():
        return path
    files = [] if any(path.glob("*.safetensors")) else sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise ConfigurationError(f"There are {len(files)} GGUF files in {path}. Name one of them: {files[0]}")
    return files[0] if files else None
