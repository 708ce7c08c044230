"""The marks of the lists and the loads agree: over free memory, on a CPU, one GPU and two GPUs, all of them faked."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from granite_demo.errors import OutOfMemoryError
from granite_demo.hub import gguf as hub_gguf
from granite_demo.hub.fit import find_fit
from granite_demo.loading import placement
from granite_demo.loading.cpu_benchmark import Seconds
from granite_demo.models.catalogue import MODELS, SAMPLE, ModelSpec
from granite_demo.models.devices import DeviceMemory
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.model_status import Chosen

GB = 10**9
FREE = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 17, 18, 20, 22, 24, 32, 34, 40, 48, 64, 80, 100, 120, 141, 160, 200)
GRANITES = [spec for spec in MODELS.values() if spec is not SAMPLE]


@pytest.fixture(params=[0.5, 2.0], ids=["float32 is faster", "bfloat16 is faster"])
def faster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU whose measurement has one or the other result."""

    def measured(dtype: torch.dtype, in_float32: bool, threads: int, attempt: int = 0) -> Seconds:
        return Seconds(0.5, 0.5) if dtype != torch.float32 else Seconds(request.param / 2, request.param / 2)

    monkeypatch.setattr(placement, "measured", measured)
    monkeypatch.setattr(placement, "is_bitsandbytes_available", lambda: True)
    monkeypatch.setattr(placement, "flash_problem", lambda name, device, dtype: "it is not here")


def loads(spec: ModelSpec, device: str, gpus: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> str | None:
    """The precision in which the load places the model, or None if it is refused."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    frees = {"cpu": gpus[0], "cuda": gpus[0], **{f"cuda:{index}": free for index, free in enumerate(gpus)}}
    monkeypatch.setattr(placement, "free_memory", frees.__getitem__)
    try:
        placed = placement.place(LoadOptions(), Chosen(device, ""), spec.shape)
    except OutOfMemoryError:
        return None
    return "int4" if placed.quantization == "nf4" else "bf16"


@pytest.mark.usefixtures("faster")
@pytest.mark.parametrize("count", [0, 1, 2], ids=["CPU", "one GPU", "two GPUs"])
def test_the_marks_and_the_loads_of_safetensors_agree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int
) -> None:
    device = "cuda" if count else "cpu"
    for free in FREE:
        gpus = [free * GB] * max(count, 1)
        devices = [DeviceMemory(device, "", gpus[0])]
        if count > 1:
            devices.append(DeviceMemory("cuda", "together", sum(gpus)))
        for spec in GRANITES:
            marked = find_fit(spec, devices, gguf=False, hub_cache=tmp_path)
            loaded = loads(spec, device, gpus, monkeypatch)
            assert marked.precision == loaded, (spec.name, free, marked)
            assert (marked.mark == "does not fit") == (loaded is None), (spec.name, free, marked)


def test_the_marks_and_the_choice_of_a_gguf_file_agree(tmp_path: Path) -> None:
    for free in FREE:
        for spec in GRANITES:
            marked = find_fit(spec, [DeviceMemory("cpu", "", free * GB)], gguf=True, hub_cache=tmp_path)
            try:
                file, reason = hub_gguf.choose(spec, hub_gguf.expected_files(spec, tmp_path), free * GB)
            except OutOfMemoryError:
                assert (marked.precision, marked.mark) == (None, "does not fit")
                continue
            assert marked.precision == file.quantization
            assert (marked.mark == "tight") == ("and tight in" in reason)


def test_a_cpu_is_never_offered_4_bits_of_torch(tmp_path: Path) -> None:
    spec = MODELS["granite-4.1-8b"]
    found = find_fit(spec, [DeviceMemory("cpu", "", 12 * GB)], gguf=False, hub_cache=tmp_path)
    assert (found.precision, found.mark) == (None, "does not fit")
    small = find_fit(spec, [DeviceMemory("cpu", "", 12 * GB)], gguf=True, hub_cache=tmp_path)
    assert (small.precision, small.mark) == ("Q8_0", "fits")
