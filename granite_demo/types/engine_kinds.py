"""The engines, as far as a program has to know them that makes none. Standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineKind:
    """One way to run the requests for a loaded model."""

    name: str
    serial: bool
    """Whether requests take turns, so that two at once slow each other down; else they share each step."""

    def __str__(self) -> str:
        return self.name

    def words(self, requests: int) -> str:
        """The kind as the screen shows it, with how many ``requests`` it answers at once."""
        return f"{self.name}, up to {requests} requests {'in turns' if self.serial else 'in a step'}"


BATCHING = EngineKind("batching", serial=False)
STATIC = EngineKind("static", serial=True)
DYNAMIC = EngineKind("dynamic", serial=True)
GGUF = EngineKind("gguf", serial=True)
ZEROGPU = EngineKind("zerogpu", serial=False)
