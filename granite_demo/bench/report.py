"""The report of one run: its figures, the machine, the model and the settings. It can be written as JSON."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.bench.options import BenchSizes
from granite_demo.bench.suites.decode import Decode
from granite_demo.bench.suites.load import Load
from granite_demo.bench.suites.ttft import TtftRow
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.types.model_status import Fact, ModelSetup

SCHEMA_VERSION = 1
"""Increase it when the meaning of a field changes or a field is removed."""
REPORTED_PACKAGES = ("granite-demo", "torch", "transformers", "flash-attn", "bitsandbytes", "xllamacpp", "gradio")


@dataclass(slots=True)
class BenchReport:
    """``seconds`` is the duration of each suite. The field of a suite that did not run is None or empty."""

    model: dict[str, Any]
    device: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    setup: ModelSetup
    facts: tuple[Fact, ...]
    started: str
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    load: Load | None = None
    decode: Decode | None = None
    ttft: tuple[TtftRow, ...] = ()
    page: tuple[Any, ...] = ()
    """PageRow values. The type is Any because the module of PageRow needs the packages of the server."""
    startup: Any = None

    def as_json(self) -> str:
        """Return all figures with their samples as JSON, in the version ``SCHEMA_VERSION`` of the format."""
        return json.dumps({"schema": SCHEMA_VERSION, **asdict(self)}, indent=2, ensure_ascii=False)


def describe(ready: ReadyModel, sizes: BenchSizes, suites: Sequence[str], started: str) -> BenchReport:
    """Return a report that has no figures yet."""
    loaded = ready.loaded
    return BenchReport(
        model={
            "name": loaded.spec.name,
            "title": loaded.spec.title,
            "repo_id": loaded.spec.repo_id,
            "commit": loaded.source.commit,
            "precision": loaded.placement.label,
            "attention": loaded.placement.attention,
            "weight_bytes": loaded.weight_bytes,
            "context": loaded.context_length,
            "shape": asdict(loaded.shape) if loaded.shape else None,
        },
        device=_device(loaded),
        versions=_versions(),
        settings={"suites": list(suites), **asdict(sizes)},
        setup=ready.setup,
        facts=ready.facts,
        started=started,
    )


def _device(loaded: LoadedModel) -> dict[str, Any]:
    import psutil

    device = loaded.placement.device
    name, memory = _processor(), psutil.virtual_memory().total
    if loaded.source.gguf:
        threads, capability = loaded.model.process.options.threads, None
    else:
        import torch

        threads, capability = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    if device.startswith("cuda"):
        import torch

        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
    return {
        "device": device,
        "name": name,
        "memory": memory,
        "cores": os.cpu_count(),
        "threads": threads,
        "capability": capability,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in REPORTED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
