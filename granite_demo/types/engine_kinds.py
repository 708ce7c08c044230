"""The table of the engines: what the code needs to know before it makes one.

``engine/factory.py`` has the other half of the table: when ``auto`` chooses an engine, and how it is made. Uses the
standard library only.
"""

from dataclasses import dataclass
from typing import Literal

EngineName = Literal["auto", "batching", "static", "dynamic", "gguf", "zerogpu"]
"""``auto``, or the name of an engine in ``ENGINES``."""


@dataclass(frozen=True, slots=True)
class EngineKind:
    """One way to run the requests to a loaded model."""

    name: str
    serial: bool
    """Whether requests take turns, so that two at once slow each other down; otherwise they share each step."""
    reads_gguf: bool = False
    """Whether it runs GGUF files, on the CPU; the other engines run safetensors files."""
    spans_processes: bool = False
    """Whether several processes can share the model."""
    borrows_gpu: bool = False
    """Whether it has a GPU only during an answer, so that the model is loaded without one."""

    def __str__(self) -> str:
        return self.name

    def words(self, requests: int) -> str:
        """Return the engine as the screen shows it, with the number of ``requests`` that it runs at once."""
        return f"{self.name}, up to {requests} requests {'in turns' if self.serial else 'in a step'}"


BATCHING = EngineKind("batching", serial=False, spans_processes=True)
STATIC = EngineKind("static", serial=True)
DYNAMIC = EngineKind("dynamic", serial=True)
GGUF = EngineKind("gguf", serial=False, reads_gguf=True)
ZEROGPU = EngineKind("zerogpu", serial=False, borrows_gpu=True)

ENGINES: dict[str, EngineKind] = {kind.name: kind for kind in (BATCHING, STATIC, DYNAMIC, GGUF, ZEROGPU)}
