"""What is loaded and how: the choices, and the state that every visitor sees. Standard library only."""

from dataclasses import dataclass, field
from typing import Literal

from granite_demo.types.load_options import LoadStage
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
