"""GGUF files: whether one is taken instead of safetensors, which, and how it is loaded. Imports no torch by itself."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from granite_demo import hub, hub_transfer, llama
from granite_demo.catalogue import ModelSpec
from granite_demo.errors import ConfigurationError, CorruptModelError, LoadCancelledError, OutOfMemoryError
from granite_demo.status import LoadOptions, LoadStage, MemoryUse, Report

if TYPE_CHECKING:
    from granite_demo.loading import LoadedModel

CACHE_SHARE = 0.25
"""The part of the free memory that conversations may take."""
CONVERSATIONS = 4
"""For so many at a time memory is shared out."""
USUAL_CONTEXT = 4096
"""Tokens below which there are rather fewer conversations; and where a file does not tell what a token takes."""
ASKED = "asked for"
QUANTIZATION = "Q4_K_M"
"""What is taken of a model's GGUF files: the usual balance of size and quality."""
FASTER = "on a CPU, several times as fast as torch"


def why_not(options: LoadOptions, device: str, installed: Callable[[], bool] = llama.is_installed) -> str:
    """Why ``auto`` does not take a model's GGUF file, as half a sentence, or nothing."""
    if options.engine != "auto":
        return "another engine was asked for"
    if options.revision is not None:
        return "a revision was asked for, which is one of the safetensors"
    if device != "cpu":
        return "there is a GPU"
    if (options.dtype, options.quantization, options.attention) != ("auto", "auto", "auto"):
        return "a precision or attention of torch was asked for"
    if not installed():
        return f"llama-cpp-python is not installed; it is several times as fast on a CPU: {llama.INSTALL}"
    return ""


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

    file = hub.fetch_some(repo, [name], heard, cancelled) / name
    # transformers does not know how every GGUF file splits words.
    hub.fetch_some(spec.repo_id, hub_transfer.TOKENIZER, report, cancelled)
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


def load_gguf(
    path: Path,
    spec: ModelSpec,
    options: LoadOptions,
    report: Report,
    cancelled: Callable[[], bool],
    *,
    engine_why: str,
    checkpoint: Path | None = None,
) -> "LoadedModel":
    """Load ``path`` on the CPU. ``checkpoint`` is a safetensors folder of the same model, if there is one here.

    The tokenizer is transformers': from the files beside the GGUF, else from the GGUF itself. Raises CorruptModelError,
    ConfigurationError, OutOfMemoryError and LoadCancelledError.
    """
    from granite_demo.loading import LoadedModel
    from granite_demo.placement import free_memory
    from granite_demo.switches import find_switches

    def heard(fraction: float) -> bool:
        report("loading", fraction, path.name)
        return not cancelled()

    try:
        file = llama.LlamaFile(path, heard)
    except llama.Aborted:
        raise LoadCancelledError("The load was cancelled.") from None
    try:
        free = free_memory("cpu")
        tokenizer = load_tokenizer(path, file, checkpoint)
        context, why = choose_context(file, options.context, free)
        each = context * (file.token_bytes or 0)
        if checkpoint:
            file.name_or_path = str(checkpoint)
        return LoadedModel(
            model=file,
            tokenizer=tokenizer,
            spec=spec,
            placement=_placement(file, context, why, engine_why),
            context_length=context,
            eos_ids=file.end_ids | ({tokenizer.eos_token_id} - {None}),
            weight_bytes=file.nbytes,
            shape=spec.shape,
            memory=MemoryUse("cpu", file.nbytes, each, free),
            switches=find_switches(tokenizer),
        )
    except BaseException:
        file.close()
        raise


PROBE = "Hello, it's 12345  blanks\n\n\tdef f(x_1): return x**2 != 3.14 # Ça va? 你好 🙂"
"""A text that ways to split words read differently."""


def load_tokenizer(path: Path, file: llama.LlamaFile, checkpoint: Path | None = None) -> Any:
    """The tokenizer beside a GGUF file or in its model's ``checkpoint``, else the one in the file.

    Raises CorruptModelError, also where that one does not read as llama.cpp does.
    transformers splits words as GPT-2 does where it does not know a file's own way, and says nothing.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        for folder in filter(None, (path.parent, checkpoint)):
            if (folder / "tokenizer.json").is_file():
                return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # Not by AutoTokenizer, which wants to know the architecture: transformers reads no GGUF of a Granite.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        text = "".join([*tokenizer.all_special_tokens[:3], PROBE])
        if tokenizer(text, add_special_tokens=False)["input_ids"] != file.tokenize(text):
            raise ValueError("transformers splits texts otherwise than the file's makers")
        return tokenizer
    except Exception as error:  # the class tells nothing: tokenizers raises Exception itself
        raise CorruptModelError(
            f"The tokenizer of {path} cannot be read: {error}. Put the model's tokenizer.json and "
            "tokenizer_config.json beside the file."
        ) from error


def choose_context(file: llama.LlamaFile, wanted: int | None, free: int) -> tuple[int, str]:
    """Tokens of one conversation, and why. Raises OutOfMemoryError."""
    limit = min(wanted or file.context_length, file.context_length)
    if file.token_bytes is None:
        return (limit, ASKED) if wanted else (min(limit, USUAL_CONTEXT), "what a hybrid takes is not known; set more")
    together = int(CACHE_SHARE * free / file.token_bytes)
    if together < min(limit, 256):
        raise OutOfMemoryError("There is no memory for a conversation. Choose a smaller model.")
    fitting = together if wanted else max(together // CONVERSATIONS, min(together, USUAL_CONTEXT))
    if fitting < limit:
        return fitting, f"what fits into {CACHE_SHARE:.0%} of the free memory, shared by {together // fitting}"
    return limit, ASKED if wanted else "the file's own limit"


def _placement(file: llama.LlamaFile, context: int, context_why: str, engine_why: str) -> Any:
    import torch

    from granite_demo.placement import Placement

    precision = file.words.rpartition(" ")[2] if file.words else "GGUF"
    reasons = {
        "device": "a GGUF file is computed by the processor here",
        "dtype": "of the logits; llama.cpp computes in what suits the weights",
        "quantization": f"as the file has it: {file.words}",
        "attention": "its own",
        "context": context_why,
        "engine": engine_why,
    }
    return Placement("cpu", torch.float32, precision, "llama.cpp", context, reasons=reasons)
