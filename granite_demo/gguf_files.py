"""GGUF files: whether one is taken instead of safetensors, which, and how it is loaded. Imports no torch by itself."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from granite_demo import llama
from granite_demo.catalogue import ModelSpec
from granite_demo.errors import ConfigurationError, CorruptModelError, LoadCancelledError, OutOfMemoryError
from granite_demo.status import LoadOptions, MemoryUse, Report

if TYPE_CHECKING:
    from granite_demo.loading import LoadedModel

CACHE_SHARE = 0.25
"""The part of the free memory that conversations may take."""
USUAL_CONTEXT = 4096
"""Tokens of context where a file does not tell what one of them takes."""
ASKED = "asked for"


def why_not(options: LoadOptions, device: str, installed: Callable[[], bool] = llama.is_installed) -> str:
    """Why ``auto`` does not take a model's GGUF file, as half a sentence, or nothing."""
    if options.engine != "auto":
        return "another engine was asked for"
    if device != "cpu":
        return "there is a GPU"
    if (options.dtype, options.quantization, options.attention) != ("auto", "auto", "auto"):
        return "a precision or attention of torch was asked for"
    if not installed():
        return f"llama-cpp-python is not installed; it is several times as fast on a CPU: {llama.INSTALL}"
    return ""


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
        tokenizer = load_tokenizer(path)
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


def load_tokenizer(path: Path) -> Any:
    """The tokenizer beside a GGUF file, or the one in it. Raises CorruptModelError."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if (path.parent / "tokenizer.json").is_file():
            return AutoTokenizer.from_pretrained(path.parent, local_files_only=True, trust_remote_code=False)
        # Not by AutoTokenizer, which wants to know the architecture: transformers reads no GGUF of a Granite.
        return PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
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
    fitting = int(CACHE_SHARE * free / file.token_bytes)
    if fitting < min(limit, 256):
        raise OutOfMemoryError("There is no memory for a conversation. Choose a smaller model.")
    if fitting < limit:
        return fitting, f"what fits into {CACHE_SHARE:.0%} of the free memory"
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
