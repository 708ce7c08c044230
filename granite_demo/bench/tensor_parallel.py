"""Tensor parallel: processes that share a model, measured beside one of them alone, in one run.

The first process measures the model alone while the others wait for it; then all of them open it together.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.bench import output, tables
from granite_demo.bench.options import BenchOptions
from granite_demo.bench.report import SCHEMA, describe
from granite_demo.bench.suites import decode, ttft
from granite_demo.bench.suites.decode import Decode
from granite_demo.bench.suites.ttft import TtftRow
from granite_demo.loading.gc import release_memory
from granite_demo.loading.load import LoadedModel
from granite_demo.loading.tensor_parallel import ALONE, Group
from granite_demo.types.load_options import Report
from granite_demo.types.model_status import gigabytes

Tell = Callable[[str], None]


class Opener(Protocol):
    """Makes the model ready in the processes of ``group``. Raises GraniteDemoError."""

    def __call__(self, report: Report, cancelled: threading.Event, *, group: Group = ALONE) -> ReadyModel: ...


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Bytes of one process: its part of the weights, and the most that it had at a time."""

    weights: int
    peak: int


@dataclass(frozen=True, slots=True)
class Part:
    """The figures of so many processes."""

    processes: int
    decode: Decode
    ttft: tuple[TtftRow, ...]
    memory: tuple[ProcessMemory, ...]
    notes: tuple[str, ...]


def run(opened: Opener, group: Group, asked: BenchOptions, tell: Tell) -> None:
    """Measure, then print the figures or write them. In the processes but the first: compute along."""
    if not group.leads:
        return _follow(opened, group)
    alone, head = _measure(opened, ALONE, asked, tell)
    shared, _ = _measure(opened, group, asked, tell)
    group.leave()
    _write(head, alone, shared, asked)


def _follow(opened: Opener, group: Group) -> None:
    with group.together():
        ready = opened(_silent, threading.Event(), group=group)
        weights = _own_weights(ready.loaded)
        from granite_demo.engine.batching.engine import BatchingEngine

        assert isinstance(ready.engine, BatchingEngine)
        ready.engine.follow()
        group.gather(_memory(ready.loaded, weights))
    group.leave()


def _measure(opened: Opener, group: Group, asked: BenchOptions, tell: Tell) -> tuple[Part, dict[str, Any]]:
    name = "one process" if group.size == 1 else f"{group.size} processes"
    tell(f"{name}: loading")
    with group.together():
        ready = opened(_silent, threading.Event(), group=group)
        weights = _own_weights(ready.loaded)
        sizes = asked.sizes(ready.loaded.placement.device)
        report = describe(ready, sizes, ("decode", "ttft"), "")
        try:
            found, notes = decode.measure(ready, (), sizes, lambda text: tell(f"{name}: decode, {text}"))
            first, others = ttft.measure(ready, (), sizes, lambda text: tell(f"{name}: ttft, {text}"))
        finally:
            ready.engine.close()
        memory = group.gather(_memory(ready.loaded, weights))
    del ready
    _free()
    head = {"model": report.model, "device": report.device, "versions": report.versions, "settings": report.settings}
    return Part(group.size, found, first, tuple(memory), (*notes, *others)), head


def _silent(stage: str, fraction: float | None, detail: str) -> None:
    pass


def _own_weights(loaded: LoadedModel) -> int:
    """Bytes of the parameters, or of this process's parts of them."""
    parts = (getattr(parameter, "_local_tensor", parameter) for parameter in loaded.model.parameters())
    return sum(part.numel() * part.element_size() for part in parts)


def _memory(loaded: LoadedModel, weights: int) -> ProcessMemory:
    from granite_demo.bench.suites.load import memory

    return ProcessMemory(weights, memory(loaded.placement.device)[1])


def _free() -> None:
    import torch

    release_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _write(head: dict[str, Any], alone: Part, shared: Part, asked: BenchOptions) -> None:
    text = json.dumps({"schema": SCHEMA, **head, "parts": [asdict(alone), asdict(shared)]}, indent=2)
    output.deliver(text, lambda: _show(head, alone, shared), asked)


def _show(head: dict[str, Any], alone: Part, shared: Part) -> None:
    console = tables.wide_console()
    model, device = head["model"], head["device"]
    line = f"{model['title']} in {model['precision']}, {shared.processes} processes beside one, on {device['name']}"
    console.print(line, highlight=False, markup=False)
    console.print(tables.shared_decode_table(alone.decode, shared.decode, shared.processes))
    console.print(tables.shared_ttft_table(alone.ttft, shared.ttft, shared.processes))
    for rank, own in enumerate(shared.memory):
        weights = f"{gigabytes(own.weights, 2)}, {own.weights / alone.memory[0].weights:.1%} of one process's"
        text = f"Process {rank + 1}: weights {weights}; {gigabytes(own.peak, 2)} at its peak."
        console.print(text, highlight=False, markup=False)
    for note in dict.fromkeys((*alone.notes, *shared.notes)):
        console.print(note, highlight=False, markup=False)
