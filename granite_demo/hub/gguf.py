"""GGUF files: whether one is taken instead of safetensors, which, and how it is loaded. Imports no torch by itself."""

import threading
from pathlib import Path

from granite_demo.errors import ConfigurationError
from granite_demo.hub import download, transfer
from granite_demo.models.catalogue import ModelSpec
from granite_demo.types.load_options import LoadStage, Report

QUANTIZATION = "Q4_K_M"
"""What is taken of a model's GGUF files: the usual balance of size and quality."""
FASTER = "on a CPU, several times as fast as torch"


def _of_the_hub(spec: ModelSpec) -> tuple[str, str]:
    """The repository and the name of a model's GGUF file."""
    assert spec.gguf_repo is not None
    return spec.gguf_repo, f"{(spec.repo_id or '').rpartition('/')[2]}-{QUANTIZATION}.gguf"


def cached_file(spec: ModelSpec) -> Path | None:
    """A model's GGUF file, where it is in the hub's cache. Uses no network."""
    if spec.gguf_repo is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(*_of_the_hub(spec))
    return Path(found) if isinstance(found, str) else None


def fetch(spec: ModelSpec, report: Report, cancelled: threading.Event) -> Path:
    """Download a model's GGUF file and its tokenizer into the hub's cache. Raises as ``hub.fetch`` does."""
    assert spec.repo_id is not None
    repo, name = _of_the_hub(spec)

    def heard(stage: LoadStage, fraction: float | None, detail: str) -> None:
        report(stage, fraction, f"{detail}; {QUANTIZATION} in a GGUF file: {FASTER}")

    file = download.fetch_some(repo, [name], heard, cancelled) / name
    # transformers does not know how every GGUF file splits words.
    download.fetch_some(spec.repo_id, transfer.TOKENIZER, report, cancelled)
    return file


def tokenizer_folder(spec: ModelSpec) -> Path | None:
    """The folder in the hub's cache with the model's tokenizer, and perhaps all of it. Uses no network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(spec.repo_id or "", "tokenizer.json")
    return Path(found).parent if isinstance(found, str) else None


def how_to_fetch(spec: ModelSpec) -> str:
    """The command that puts a model's GGUF file where ``cached_file`` looks."""
    return f"hf download {' '.join(_of_the_hub(spec))}" if spec.gguf_repo else ""


def file_in(path: Path) -> Path | None:
    """The GGUF file that a path names: itself, or the only one in a folder without safetensors."""
    if path.suffix == ".gguf" and path.is_file():
        return path
    files = [] if any(path.glob("*.safetensors")) else sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise ConfigurationError(f"There are {len(files)} GGUF files in {path}. Name one of them: {files[0]}")
    return files[0] if files else None
