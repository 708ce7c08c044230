"""What is loaded and how: the choices, and the state that every visitor sees. Standard library only."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from granite_demo.messages import Switches
from granite_demo.sampling_params import SamplingParams

LoadStage = Literal["idle", "downloading", "converting", "loading", "warming up", "ready", "failed"]
Report = Callable[[LoadStage, float | None, str], None]
"""Called with the stage, its progress from 0 to 1 (None: unknown) and a short text."""


Feature = Literal[
    "completion",
    "fill in the middle",
    "special tokens",
    "token ids",
    "log probabilities",
    "scoring",
    "constraints",
    "comparing precisions",
    "logit bias",
    "replay",
]
"""What a model, its engine or another server may be unable to do."""

Fact = tuple[str, str, str]
"""(name, value, reason) of a choice made for a model"""

IN_TURNS = "requests in turns"
"""How the fact about an engine ends that does not answer its requests in common steps."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """How a loaded model uses its device, in bytes."""

    device: str
    weights: int
    kv_cache: int
    """The cache of one conversation that fills the context."""
    free: int
    """What was free when the model was ready."""


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model to pick: with its size, and whether it fits here."""

    name: str
    label: str
    """Family, name, size and mark in one line."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Requests in the engine right now, and how often its loop had to be started again since it was made."""

    running: int
    waiting: int
    restarts: int = 0
    cache_used: float | None = None
    """The share of the KV cache that is taken, where all requests have one together."""
    failure: str = ""
    """Why the engine cannot answer any more, if it cannot."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What the model manager is doing with one model, for every visitor to see."""

    model: str
    stage: LoadStage
    fraction: float | None = None
    """Progress of this stage from 0 to 1, or None where it cannot be known."""
    detail: str = ""
    title: str = ""
    about: str = ""
    facts: tuple[Fact, ...] = ()
    """Each choice made for a ready model, in display order."""
    context_length: int | None = None
    card: tuple[Fact, ...] = ()
    """(name, value, what it does) of the model's configuration."""
    memory: MemoryUse | None = None
    notice: str = ""
    """Why the last load failed, while another model still answers."""
    switches: Switches = field(default_factory=Switches)
    """What the model's chat template reads."""
    sampling: SamplingParams = SamplingParams()
    """What the model's makers use; greedy where they name nothing."""
    unable: tuple[tuple[Feature, str], ...] = ()
    """(feature, why it is not to be had here)."""
    name: str = ""
    """What a ready model is called, where ``model`` is how it was asked for."""
    beside: str = ""
    """The model of another server that can be asked beside this one, if there is one."""
    engine: EngineStats | None = field(default=None, compare=False)
    """The requests of a ready model, as they are this moment."""

    def unable_to(self, feature: Feature) -> str:
        """Why ``feature`` is not to be had here; empty where it is."""
        return dict(self.unable).get(feature, "")

    @property
    def in_turns(self) -> bool:
        """Whether two requests at once would slow each other down, since the engine answers them in turns."""
        return any(name == "Engine" and value.endswith(IN_TURNS) for name, value, _ in self.facts)


BESIDE = "beside"
"""The name under which a request asks for that model."""

Device = Literal["auto", "cuda", "mps", "cpu"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Quantization = Literal["auto", "none", "int8", "nf4", "fp4"]
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4"]
EngineName = Literal["auto", "batching", "static", "dynamic", "gguf", "zerogpu"]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Which model to load and how: the key of the model cache."""

    model: str = "sample"
    revision: str | None = None
    device: Device = "auto"
    dtype: Dtype = "auto"
    quantization: Quantization = "auto"
    attention: Attention = "auto"
    context: int | None = None
    """Tokens to limit the context to; None for as many as the model allows and fit."""
    keep_quantized: bool = False
    """Save a quantized model in the cache folder, from which it loads faster the next time."""
    engine: EngineName = "auto"
    compile: bool = False
    """Have torch compile the decode step, where layers are not fused, while the model is made ready."""
