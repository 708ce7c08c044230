"""What is loaded and how: the choices, and the state that every visitor sees. Standard library only."""

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
"""What a model, its engine or another server may be unable to do."""

Fact = tuple[str, str, str]
"""(name, value, reason): a row for the screen. Built from typed values, and never read back."""

ASKED = "asked for"
"""The reason of a choice that the user made."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Chosen(Generic[T]):
    """One choice made for a loaded model."""

    value: T
    reason: str
    words: str = ""
    """The value as the screen shows it, where that is not ``str(value)``."""

    def __str__(self) -> str:
        return self.words or str(self.value)

    def fact(self, name: str) -> Fact:
        """The row for the screen."""
        return name, str(self), self.reason


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """The choices made for the engine of a loaded model."""

    kind: Chosen[EngineKind]
    compiled: Chosen[bool] | None = None
    """Whether torch compiled the decode step; None where nobody could expect it."""
    fused: Chosen[bool] | None = None
    """Whether the layers run in fused kernels; None where there is no GPU for them."""

    def facts(self, details: tuple[Fact, ...]) -> tuple[Fact, ...]:
        """The rows for the screen, the engine's own ``details`` among them."""
        compiled = self.compiled and self.compiled.fact("Compiled")
        fused = self.fused and self.fused.fact("Layers")
        return (self.kind.fact("Engine"), *details, *(fact for fact in (compiled, fused) if fact))


@dataclass(frozen=True, slots=True)
class ModelSetup:
    """The choices made for a loaded model."""

    device: Chosen[str]
    """cuda, mps or cpu"""
    precision: Chosen[str]
    """Of what is not quantized: bfloat16."""
    quantization: Chosen[str]
    """none, or how the weights are quantized: nf4."""
    attention: Chosen[str]
    engine: EngineSetup

    @property
    def label(self) -> str:
        """The precision of the weights: bfloat16, nf4."""
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
    setup: ModelSetup | None = None
    """The choices made for a ready model; None for one of another server."""
    servers: tuple[str, ...] = ()
    """The other servers that the model runs on, as the screen names them."""
    chosen_because: str = ""
    """Why this model was chosen, where the user named none."""
    facts: tuple[Fact, ...] = ()
    """All that is known of how the model runs, as rows for the screen."""
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
        return self.setup is not None and self.setup.engine.kind.value.serial


BESIDE = "beside"
"""The name under which a request asks for that model."""
