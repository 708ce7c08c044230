"""The options and the stages of a load. Uses the standard library only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from granite_demo.types.engine_kinds import ENGINES, EngineKind, EngineName

LoadStage = Literal["idle", "downloading", "converting", "loading", "warming up", "ready", "failed"]
Report = Callable[[LoadStage, float | None, str], None]
"""Called with the stage, its progress from 0 to 1 (None: unknown) and a short text."""

Device = Literal["auto", "cuda", "mps", "cpu"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Quantization = Literal["auto", "none", "int8", "nf4", "fp4"]
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4"]
KvCache = Literal["f16", "q8_0"]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The model to load, and how. It is the key of the model cache."""

    model: str = "sample"
    revision: str | None = None
    device: Device = "auto"
    dtype: Dtype = "auto"
    quantization: Quantization = "auto"
    attention: Attention = "auto"
    context: int | None = None
    """The limit of the context in tokens. None: as many as the model allows and as fit in memory."""
    kv_cache: KvCache = "f16"
    """The type of the values in the KV cache of a GGUF file."""
    keep_quantized: bool = False
    """Save the quantized model in the cache folder, so that it loads faster the next time."""
    engine: EngineName = "auto"
    compile: bool = False
    """Compile the decode step with torch during the load, if the layers are not fused."""

    @property
    def engine_kind(self) -> EngineKind | None:
        """The requested engine, or None for ``auto``."""
        return ENGINES.get(self.engine)

    @property
    def label(self) -> str:
        """The requested precision of the weights, such as bfloat16, nf4 or auto."""
        return precision_label(self.dtype, self.quantization)


def precision_label(dtype: str, quantization: str) -> str:
    """Return the precision of weights in one word: their quantization, or their type if they have none."""
    return dtype if quantization in ("auto", "none") else quantization
