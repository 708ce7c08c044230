"""The table of the engines, as far as code has to know them that makes none. Standard library only.

``engine/factory.py`` has the other half of the table: how each is made, and which models it can run.
"""

from dataclasses import dataclass
from typing import Literal

EngineName = Literal["auto", "batching", "static", "dynamic", "gguf", "zerogpu"]
"""``auto``, or the name of an engine in ``ENGINES``."""


@dataclass(frozen=True, slots=True)
class EngineKind:
    """One way to run the requests for a loaded model."""

    name: str
    serial: bool
    """Whether requests take turns, so that two at once slow each other down; else they share each step."""
    reads_gguf: bool = False
    """Whether it runs GGUF files, on the CPU, and nothing else; the other engines run safetensors."""
    spans_processes: bool = False
    """Whether several processes can share its model."""
    borrows_gpu: bool = False
    """Whether it gets a GPU for the length of an answer only, so that the model is loaded without one."""

    def __str__(self) -> str:
        return self.name

    def words(self, requests: int) -> str:
        """The kind as the screen shows it, with how many ``requests`` it answers at once."""
        return f"{self.name}, up to {requests} requests {'in turns' if self.serial else 'in a step'}"


BATCHING = EngineKind("batching", serial=False, spans_processes=True)
STATIC = EngineKind("static", serial=True)
DYNAMIC = EngineKind("dynamic", serial=True)
GGUF = EngineKind("gguf", serial=True, reads_gguf=True)
ZEROGPU = EngineKind("zerogpu", serial=False, borrows_gpu=True)

ENGINES: dict[str, EngineKind] = {kind.name: kind for kind in (BATCHING, STATIC, DYNAMIC, GGUF, ZEROGPU)}
