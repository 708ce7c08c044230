"""Measures processes that share a model (tensor parallel), and compares them with one process, in one run.

The first process measures the model alone while the others wait. Then all processes open it together.
"""

import json
import threading
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.bench import output, tables
from granite_demo.bench.measure import Progress
from granite_demo.bench.options import BenchOptions
from granite_demo.bench.report import SCHEMA_VERSION, describe
from granite_demo.bench.suites import decode, ttft
from granite_demo.bench.suites.decode import Decode
from granite_demo.bench.suites.ttft import TtftRow
from granite_demo.loading.gc import release_memory
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.loading.tensor_parallel import ALONE, Group
from granite_demo.types.load_options import Report
from granite_demo.types.model_status import gigabytes


class GroupOpener(Protocol):
    """Makes the model ready in the processes of ``group``. Raises GraniteDemoError."""

    def __call__(self, report: Report, cancelled: threading.Event, *, group: Group = ALONE) -> ReadyModel: ...


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """The memory of one process in bytes: its part of the weights, and its peak."""

    weights: int
    peak: int


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """The figures of a number of processes."""

    processes: int
    decode: Decode
    ttft: tuple[TtftRow, ...]
    memory: tuple[ProcessMemory, ...]
    notes: tuple[str, ...]


def run(opener: GroupOpener, group: Group, options: BenchOptions, progress: Progress) -> None:
    """Measure in the first process, then print or write the figures. The other processes only take part."""
    if not group.leads:
        return _follow(opener, group)
    alone, head = _measure(opener, ALONE, options, progress)
    shared, _ = _measure(opener, group, options, progress)
    group.leave()
    _write(head, alone, shared, options)


def _follow(opener: GroupOpener, group: Group) -> None:
    with group.together():
        ready = opener(_silent, threading.Event(), group=group)
        weights = _own_weights(ready.loaded)
        from granite_demo.engine.batching.engine import BatchingEngine

        assert isinstance(ready.engine, BatchingEngine)
        ready.engine.follow()
        group.gather(_memory(ready.loaded, weights))
    group.leave()


def _measure(
    opener: GroupOpener, group: Group, options: BenchOptions, progress: Progress
) -> tuple[GroupFigures, dict[str, Any]]:
    name = "one process" if group.size == 1 else f"{group.size} processes"
    progress(f"{name}: loading")
    with group.together():
        ready = opener(_silent, threading.Event(), group=group)
        weights = _own_weights(ready.loaded)
        sizes = options.sizes(ready.loaded.placement.device)
        report = describe(ready, sizes, ("decode", "ttft"), "")
        try:
            found, notes = decode.measure(ready, (), sizes, lambda text: progress(f"{name}: decode, {text}"))
            first, others = ttft.measure(ready, (), sizes, lambda text: progress(f"{name}: ttft, {text}"))
        finally:
            ready.engine.close()
        memory = group.gather(_memory(ready.loaded, weights))
    del ready
    _free()
    head = {"model": report.model, "device": report.device, "versions": report.versions, "settings": report.settings}
    return GroupFigures(group.size, found, first, tuple(memory), (*notes, *others)), head


def _silent(stage: str, fraction: float | None, detail: str) -> None:
    pass


def _own_weights(loaded: LoadedModel) -> int:
    """Return the bytes of the parameters, or of the parts of them in this process."""
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


def _write(head: dict[str, Any], alone: GroupFigures, shared: GroupFigures, options: BenchOptions) -> None:
    text = json.dumps({"schema": SCHEMA_VERSION, **head, "parts": [asdict(alone), asdict(shared)]}, indent=2)
    output.deliver(text, lambda: _show(head, alone, shared), options)


def _show(head: dict[str, Any], alone: GroupFigures, shared: GroupFigures) -> None:
    console = tables.wide_console()
    model, device = head["model"], head["device"]
    size = f"{shared.processes} processes compared with one"
    line = f"{model['title']} in {model['precision']}, {size}, on {device['name']}"
    console.print(line, highlight=False, markup=False)
    console.print(tables.shared_decode_table(alone.decode, shared.decode, shared.processes))
    console.print(tables.shared_ttft_table(alone.ttft, shared.ttft, shared.processes))
    for rank, own in enumerate(shared.memory):
        share = f"{own.weights / alone.memory[0].weights:.1%} of those of one process"
        text = f"Process {rank + 1}: weights {gigabytes(own.weights, 2)}, {share}; peak {gigabytes(own.peak, 2)}."
        console.print(text, highlight=False, markup=False)
    for note in dict.fromkeys((*alone.notes, *shared.notes)):
        console.print(note, highlight=False, markup=False)
