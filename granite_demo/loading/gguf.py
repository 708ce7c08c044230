"""The third stage of opening a model, for a GGUF file: a source and a placement in, a loaded model out."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from granite_demo.errors import CorruptModelError, LoadCancelledError, OutOfMemoryError
from granite_demo.loading import llama_cpp
from granite_demo.loading.load import LoadedModel
from granite_demo.loading.placement import Placement, free_memory
from granite_demo.loading.source import Source
from granite_demo.prompts.template_features import find_switches
from granite_demo.types.load_options import Report
from granite_demo.types.model_status import REQUESTED, MemoryUse

CONVERSATIONS_SHARE = 0.25
"""The part of the free memory for conversations."""
CONVERSATIONS = 4
"""The number of conversations that share this memory."""
USUAL_CONTEXT = 4096
"""With less context than this, there are fewer conversations. Also the context if the memory of a token is unknown."""


def load_gguf(source: Source, placement: Placement, report: Report, cancelled: threading.Event) -> LoadedModel:
    """Load the GGUF file of ``source`` on the CPU, and complete ``placement`` from the file.

    The tokenizer is from the files beside the GGUF file, or from the GGUF file itself. Raises CorruptModelError,
    ConfigurationError, OutOfMemoryError and LoadCancelledError.
    """
    path = source.gguf
    assert path

    def heard(fraction: float) -> bool:
        report("loading", fraction, path.name)
        return not cancelled.is_set()

    try:
        file = llama_cpp.LlamaFile(path, heard)
    except llama_cpp.Aborted:
        raise LoadCancelledError("The load was cancelled.") from None
    try:
        free = free_memory("cpu")
        tokenizer = load_tokenizer(path, file, source.folder)
        context, why = choose_context(file, placement.context, free)
        precision = file.words.rpartition(" ")[2] if file.words else placement.quantization
        reasons = {**placement.reasons, "quantization": f"the file's own: {file.words}", "context": why}
        return LoadedModel(
            model=file,
            tokenizer=tokenizer,
            source=source,
            placement=replace(placement, quantization=precision, context=context, reasons=reasons),
            context_length=context,
            eos_ids=file.end_ids | ({tokenizer.eos_token_id} - {None}),
            weight_bytes=file.nbytes,
            shape=source.spec.shape,
            memory=MemoryUse("cpu", file.nbytes, context * (file.token_bytes or 0), free),
            switches=find_switches(tokenizer),
        )
    except BaseException:
        file.close()
        raise


PROBE = "Hello, it's 12345  blanks\n\n\tdef f(x_1): return x**2 != 3.14 # Ça va? 你好 🙂"
"""A text that ways to split words read differently."""


def load_tokenizer(path: Path, file: llama_cpp.LlamaFile, checkpoint: Path | None = None) -> Any:
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
    except Exception as error:  # no narrower class is possible: tokenizers raises Exception itself
        raise CorruptModelError(
            f"The tokenizer of {path} cannot be read: {error}. Put the model's tokenizer.json and "
            "tokenizer_config.json beside the file."
        ) from error


def choose_context(file: llama_cpp.LlamaFile, wanted: int | None, free: int) -> tuple[int, str]:
    """Tokens of one conversation, and why. Raises OutOfMemoryError."""
    limit = min(wanted or file.context_length, file.context_length)
    if file.token_bytes is None:
        unknown = "the memory that a hybrid needs is unknown; you can set more"
        return (limit, REQUESTED) if wanted else (min(limit, USUAL_CONTEXT), unknown)
    together = int(CONVERSATIONS_SHARE * free / file.token_bytes)
    if together < min(limit, 256):
        raise OutOfMemoryError("There is no memory for a conversation. Choose a smaller model.")
    fitting = together if wanted else max(together // CONVERSATIONS, min(together, USUAL_CONTEXT))
    if fitting < limit:
        return fitting, f"what fits into {CONVERSATIONS_SHARE:.0%} of the free memory, shared by {together // fitting}"
    return limit, REQUESTED if wanted else "the file's own limit"
