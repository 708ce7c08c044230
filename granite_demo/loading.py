"""Options in, a placed model out. Every automatic choice carries its reason.

Imports torch; the rest of the package imports this module only where a model is really loaded.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from granite_demo.errors import ConfigurationError, CorruptModelError
from granite_demo.registry import ModelSpec
from granite_demo.types import LoadOptions

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a model runs, each choice with its reason."""

    device: str
    device_reason: str
    dtype: torch.dtype
    dtype_reason: str
    attention: str
    attention_reason: str

    @property
    def facts(self) -> tuple[tuple[str, str, str], ...]:
        """(name, value, reason) rows for the log and the Settings tab."""
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            ("Device", self.device, self.device_reason),
            ("Precision", dtype, self.dtype_reason),
            ("Attention", self.attention, self.attention_reason),
        )


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory with all that an engine and a prompt need."""

    model: Any
    tokenizer: Any
    spec: ModelSpec
    placement: Placement
    context_length: int
    """Tokens, prompt and answer together."""
    eos_ids: frozenset[int]
    """Every id that ends an answer: the tokenizer's and those of generation_config.json."""


def place(options: LoadOptions) -> Placement:
    """Choose device, dtype and attention for ``options``. Raises ConfigurationError."""
    device, device_reason = _choose_device(options.device)
    dtype, dtype_reason = _choose_dtype(options.dtype, device)
    return Placement(
        device=device,
        device_reason=device_reason,
        dtype=dtype,
        dtype_reason=dtype_reason,
        attention="sdpa",
        attention_reason="torch's own attention: it runs on every device and needs no extra package",
    )


def load_checkpoint(folder: Path, spec: ModelSpec, placement: Placement) -> LoadedModel:
    """Load a safetensors checkpoint from ``folder``. Raises CorruptModelError."""
    # The terminal has one bar for the whole load.
    disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=placement.dtype,
            device_map={"": placement.device},
            attn_implementation=placement.attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        ).eval()
    except Exception as error:
        # safetensors, json and transformers each have exceptions of their own for a broken file.
        raise CorruptModelError(
            f"The files of {spec.title} in {folder} cannot be loaded: {error}. Remove the folder and try again."
        ) from error
    end = model.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [end]
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        spec=spec,
        placement=placement,
        context_length=model.config.max_position_embeddings,
        eos_ids=frozenset(token for token in (*ends, tokenizer.eos_token_id) if token is not None),
    )


def _choose_device(wanted: str) -> tuple[str, str]:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted != "auto":
        if not available[wanted]:
            found = ", ".join(device for device, present in available.items() if present)
            raise ConfigurationError(f"Device {wanted} was asked for, but torch finds only: {found}.")
        return wanted, "asked for"
    if available["cuda"]:
        return "cuda", f"a GPU was found: {torch.cuda.get_device_name()}"
    if available["mps"]:
        return "mps", "Apple's GPU was found"
    why = "this torch is built without CUDA" if torch.version.cuda is None else "no GPU was found"
    return "cpu", why


def _choose_dtype(wanted: str, device: str) -> tuple[torch.dtype, str]:
    if wanted != "auto":
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype, "asked for"
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16, "this GPU has no bfloat16"
    if device != "cpu":
        return torch.bfloat16, "the precision Granite was trained in"
    return _choose_cpu_dtype()


def _choose_cpu_dtype() -> tuple[torch.dtype, str]:
    """float32, unless bfloat16 is clearly faster for a typical message on this CPU."""
    seconds = {dtype: _message_seconds(dtype, time.perf_counter) for dtype in (torch.float32, torch.bfloat16)}
    ratio = seconds[torch.bfloat16] / seconds[torch.float32]
    reason = f"measured here: a typical message takes {ratio:.1f} times as long in bfloat16 as in float32"
    return (torch.bfloat16 if ratio < 0.8 else torch.float32), reason


def _message_seconds(dtype: torch.dtype, clock: Clock, prompt: int = 256, answer: int = 128) -> float:
    """Seconds the matrix products of one message take: ``prompt`` rows at once, then ``answer`` single rows.

    The weights, 16 MB or more, do not fit a CPU's inner caches, so single rows are bound by memory as in a model.
    """
    weights = [torch.randn(2048, 512, dtype=dtype) for _ in range(8)]

    def seconds(rows: int, repeat: int) -> float:
        x = torch.randn(rows, 512, dtype=dtype)
        for weight in weights[:2]:
            torch.nn.functional.linear(x, weight)
        start = clock()
        for _ in range(repeat):
            for weight in weights:
                torch.nn.functional.linear(x, weight)
        return (clock() - start) / repeat

    return seconds(prompt, 1) + answer * seconds(1, 8)
