"""Chooses and downloads the GGUF file of a model."""

import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from granite_demo.errors import ConfigurationError, OutOfMemoryError, UnknownModelError
from granite_demo.hub import download, transfer
from granite_demo.models.catalogue import SAMPLE, ModelSpec
from granite_demo.models.config import count_parameters
from granite_demo.models.gguf_memory import running_bytes
from granite_demo.models.memory import FREE_SHARE
from granite_demo.types.load_options import Report

QUANTIZATIONS = ("Q8_0", "Q6_K", "Q4_K_M")
"""The files that are used, the most exact first."""
BITS = {"Q8_0": 8.5, "Q6_K": 6.5625, "Q4_K_M": 4.9}
"""Bits of a weight: exact for Q8_0 and Q6_K, an average of IBM's files for Q4_K_M, which has two types."""
FASTER = "on a CPU, several times as fast as torch"
SAMPLE_BYTES = 92_000_000
"""The size of the sample's file."""
ESTIMATED_CONTEXT = 4096
"""Tokens of the KV cache that must fit beside the weights."""
LEAST_CONTEXT = 256
"""Tokens of the KV cache without which the smallest file is not used."""
_NAME = re.compile(rf"(?!mmproj)(.+)[-.]({'|'.join(QUANTIZATIONS)})(?:-(\d{{5}})-of-(\d{{5}}))?\.gguf", re.IGNORECASE)
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.gguf")


@dataclass(frozen=True, slots=True)
class QuantizedFile:
    """One quantization of a model: a file, or the shards of one, the first one first. ``size`` is in bytes."""

    quantization: str
    names: tuple[str, ...]
    size: int

    def __str__(self) -> str:
        return f"{self.quantization} ({transfer.amount(self.size)})"


@dataclass(frozen=True, slots=True)
class Found:
    """The GGUF file to load, or its first shard, and the reason as a clause."""

    path: Path
    reason: str


@dataclass(slots=True)
class _Shards:
    names: list[str] = field(default_factory=list)
    size: int = 0


def quantized_files(sizes: Mapping[str, int]) -> list[QuantizedFile]:
    """Return what ``QUANTIZATIONS`` has of these files, the most exact first. ``sizes``: bytes by name.

    A file that lacks shards is left out.
    """
    found: dict[tuple[str, str, int], _Shards] = {}
    for name in sorted(sizes):
        if match := _NAME.fullmatch(name):
            model, quantization, _, count = match.groups()
            shards = found.setdefault((quantization.upper(), model, int(count or 1)), _Shards())
            shards.names.append(name)
            shards.size += sizes[name]
    files: dict[str, QuantizedFile] = {}
    for (quantization, _, count), shards in found.items():
        if len(shards.names) == count:
            files.setdefault(quantization, QuantizedFile(quantization, tuple(shards.names), shards.size))
    return [files[quantization] for quantization in QUANTIZATIONS if quantization in files]


def choose(spec: ModelSpec, files: list[QuantizedFile], free: int) -> tuple[QuantizedFile, str]:
    """Return the most exact file that fits into ``free`` bytes with its cache, and the reason as a clause.

    Raises OutOfMemoryError if not even the smallest one fits with a short conversation.
    """
    among, memory = _listed(files), f"{transfer.amount(free)} of free memory"
    for file in files:
        if file.size + running_bytes(spec.shape, ESTIMATED_CONTEXT) <= (1 - FREE_SHARE) * free:
            best = f"{file.quantization} is the most exact of {among} that" if len(files) > 1 else str(file)
            return file, f"{best} fits into {memory}; {FASTER}"
    smallest = min(files, key=lambda file: file.size)
    needed = smallest.size + running_bytes(spec.shape, LEAST_CONTEXT)
    if needed > free:
        raise OutOfMemoryError(
            f"No GGUF file of {spec.title} fits into {memory}: of {among}, "
            f"{smallest.quantization} needs {transfer.amount(needed)} with its cache. Choose a smaller model."
        )
    return smallest, f"{smallest.quantization} is the smallest of {among}, and tight in {memory}; {FASTER}"


def expected_files(spec: ModelSpec, cache_dir: Path | None = None) -> list[QuantizedFile]:
    """Return the files in the hub cache, or if there is none, those that the hub has by IBM's convention.

    Without the network, the sizes of the latter are estimates.
    """
    if files := _files_in(_cached_folder(spec, cache_dir)):
        return files
    if spec == SAMPLE:  # one file
        return [QuantizedFile("Q4_1", ("sample.gguf",), SAMPLE_BYTES)]
    assert spec.shape
    parameters = count_parameters(spec.shape).total
    return [QuantizedFile(name, (), int(parameters * BITS[name] / 8)) for name in QUANTIZATIONS]


def cached_file(spec: ModelSpec, free: int, cache_dir: Path | None = None) -> Found | None:
    """Return the most exact GGUF file of the model in the hub cache that fits, or None. Does not use the network."""
    folder = _cached_folder(spec, cache_dir)
    files = _files_in(folder)
    if folder is None or not files:
        return None
    try:
        file, reason = choose(spec, files, free)
    except OutOfMemoryError:
        return None
    return Found(folder / file.names[0], f"it is in the hub cache: {reason}")


def is_cached(spec: ModelSpec, cache_dir: Path | None = None) -> bool:
    """Return whether a GGUF file of the model is in the hub cache. Does not use the network."""
    return bool(_files_in(_cached_folder(spec, cache_dir)))


def fetch(spec: ModelSpec, free: int, report: Report, cancelled: threading.Event) -> Found:
    """Download the GGUF file that fits into ``free`` bytes, and the tokenizer, into the hub cache.

    ``report`` gets the choice before the download. Raises UnknownModelError if the hub has no such file,
    OutOfMemoryError if none fits, and as ``download.fetch``.
    """
    assert spec.repo_id is not None
    assert spec.gguf_repo is not None
    files = quantized_files(download.list_sizes(spec.gguf_repo, ("*.gguf",), report, cancelled))
    if not files:
        raise UnknownModelError(f"{spec.gguf_repo} has no GGUF file of {_listed(QUANTIZATIONS)}.")
    file, reason = choose(spec, files, free)
    report("downloading", None, reason)
    folder = download.fetch_some(
        spec.gguf_repo,
        file.names,
        lambda stage, fraction, detail: report(stage, fraction, f"{detail}; {reason}"),
        cancelled,
    )
    # The tokenizer in the file is checked against this one.
    download.fetch_some(spec.repo_id, transfer.TOKENIZER, report, cancelled)
    return Found(folder / file.names[0], reason)


def tokenizer_folder(spec: ModelSpec) -> Path | None:
    """Return the folder of the model's tokenizer in the hub cache, or None. Does not use the network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(spec.repo_id or "", "tokenizer.json")
    return Path(found).parent if isinstance(found, str) else None


def file_in(path: Path) -> Path | None:
    """Return the GGUF file of a path: the file itself, or the only one in a folder without safetensors files.

    The shards of one model are one file, and the first one stands for them. Raises ConfigurationError if the folder has
    more than one model.
    """
    if path.suffix == ".gguf" and path.is_file():
        return path
    models: dict[str, Path] = {}
    found = [] if any(path.glob("*.safetensors")) else sorted(path.glob("*.gguf"))
    for file in filter(Path.is_file, found):
        shard = _SHARD.fullmatch(file.name)
        models.setdefault(shard[1] if shard else file.name, file)
    first = next(iter(models.values()), None)
    if len(models) > 1:
        raise ConfigurationError(f"There are {len(models)} GGUF files in {path}. Name one of them: {first}")
    return first


def _listed(values: Iterable[object]) -> str:
    *most, last = map(str, values)
    return f"{', '.join(most)} and {last}" if most else last


def _cached_folder(spec: ModelSpec, cache_dir: Path | None) -> Path | None:
    """Return the snapshot of the main branch of the GGUF repository, or None."""
    if spec.gguf_repo is None:
        return None
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    repo = cache / repo_folder_name(repo_id=spec.gguf_repo, repo_type="model")
    try:
        return repo / "snapshots" / (repo / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _files_in(folder: Path | None) -> list[QuantizedFile]:
    return quantized_files({path.name: path.stat().st_size for path in folder.glob("*.gguf")}) if folder else []
