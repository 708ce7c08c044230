"""The state of a model, which all visitors see, and the choices for it with their reasons.

Uses the standard library only.
"""

from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from granite_demo.types.engine_kinds import EngineKind
from granite_demo.types.load_options import LoadStage, precision_label
from granite_demo.types.messages import Switches
from granite_demo.types.sampling_params import SamplingParams

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
"""A feature that a model, its engine or another server may not have."""

Fact = tuple[str, str, str]
"""(name, value, reason): a row for the screen. The code builds it from typed values and never reads it back."""

REQUESTED = "requested"
"""The reason for a choice of the user."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Chosen(Generic[T]):
    """One choice for a loaded model, and its reason."""

    value: T
    reason: str
    words: str = ""
    """The value as the screen shows it, if that is not ``str(value)``."""

    def __str__(self) -> str:
        return self.words or str(self.value)

    def fact(self, name: str) -> Fact:
        """The row for the screen."""
        return name, str(self), self.reason


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """The choices for the engine of a loaded model."""

    kind: Chosen[EngineKind]
    compiled: Chosen[bool] | None = None
    """Whether torch compiles the decode step; None if the engine never does and nobody requested it."""
    fused: Chosen[bool] | None = None
    """Whether the layers run in fused kernels; None without a GPU."""

    def facts(self, details: tuple[Fact, ...]) -> tuple[Fact, ...]:
        """Return the rows for the screen, with the ``details`` of the engine."""
        compiled = self.compiled and self.compiled.fact("Compiled")
        fused = self.fused and self.fused.fact("Layers")
        return (self.kind.fact("Engine"), *details, *(fact for fact in (compiled, fused) if fact))


@dataclass(frozen=True, slots=True)
class ModelSetup:
    """The choices for a loaded model."""

    device: Chosen[str]
    """cuda, mps or cpu"""
    precision: Chosen[str]
    """The type of the weights that are not quantized, such as bfloat16."""
    quantization: Chosen[str]
    """none, int8, nf4 or fp4; for a GGUF file its own name, such as Q4_K."""
    attention: Chosen[str]
    engine: EngineSetup

    @property
    def label(self) -> str:
        """The precision of the weights, such as bfloat16 or nf4."""
        return precision_label(self.precision.value, self.quantization.value)


def gigabytes(size: int, digits: int = 1) -> str:
    """Format ``size`` bytes as decimal gigabytes, like the sizes of files: 6.8 GB."""
    return f"{size / 1e9:,.{digits}f} GB"


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """How a loaded model uses its device, in bytes."""

    device: str
    weights: int
    kv_cache: int
    """The cache of one conversation that fills the context."""
    free: int
    """Free bytes when the model became ready."""


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model that the user can choose, with its size and whether it fits here."""

    name: str
    label: str
    """Family, name, size and mark in one line."""
    title: str = ""
    size: int = 0
    """Bytes of the weights as they are published; 0 if it is unknown."""
    here: bool = False
    """Whether its files are on this machine."""
    mark: str = ""
    """fits, tight or too big; empty before a first model is loaded."""
    reason: str = ""
    """Why it has that mark."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The requests in the engine now, and how often its loop was restarted."""

    running: int
    waiting: int
    restarts: int = 0
    cache_used: float | None = None
    """The used part of the KV cache, from 0 to 1; None if requests do not share one."""
    failure: str = ""
    """Why the engine can no longer answer; empty if it can."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """The state of one model, which every visitor can see."""

    model: str
    stage: LoadStage
    fraction: float | None = None
    """Progress of this stage from 0 to 1, or None if it is unknown."""
    detail: str = ""
    title: str = ""
    about: str = ""
    setup: ModelSetup | None = None
    """The choices for a ready model; None for a model of another server."""
    servers: tuple[str, ...] = ()
    """The other servers that run the model, as the screen shows them."""
    chosen_because: str = ""
    """Why this model was chosen, if the user did not name one."""
    facts: tuple[Fact, ...] = ()
    """How the model runs, as rows for the screen."""
    context_length: int | None = None
    card: tuple[Fact, ...] = ()
    """The configuration of the model, as rows for the screen."""
    memory: MemoryUse | None = None
    notice: str = ""
    """Why the last load failed, if another model still answers."""
    switches: Switches = field(default_factory=Switches)
    """The switches of the chat template."""
    sampling: SamplingParams = SamplingParams()
    """The values that the model card recommends; greedy if it recommends none."""
    unable: tuple[tuple[Feature, str], ...] = ()
    """(feature, why it is not available here)."""
    name: str = ""
    """The name of a ready model; ``model`` is the name in the request."""
    beside: str = ""
    """The model of the other server that answers side by side; empty if there is none."""
    engine: EngineStats | None = field(default=None, compare=False)
    """The requests of a ready model now."""

    def unable_to(self, feature: Feature) -> str:
        """Return why ``feature`` is not available here; empty if it is."""
        return dict(self.unable).get(feature, "")

    @property
    def in_turns(self) -> bool:
        """Whether two requests at once slow each other down, because they take turns in the engine."""
        return self.setup is not None and self.setup.engine.kind.value.serial


BESIDE = "beside"
"""The model name of a request for that model."""
