"""Which wheel of llama.cpp is installed: a module in place of xllamacpp says what the library would say."""

from pathlib import Path

import pytest

from granite_demo.loading import device, llama_gpu
from granite_demo.loading.device import CPU_WHEEL, place_gguf
from granite_demo.loading.llama_gpu import find_llama_gpu
from granite_demo.models.devices import DeviceMemory
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.model_status import REQUESTED

WHEEL = """
from enum import Enum
class Type(Enum):
    GGML_BACKEND_DEVICE_TYPE_CPU = 0
    GGML_BACKEND_DEVICE_TYPE_GPU = 1
print("a line of the library")
def get_device_info():
    return [{{"description": name, "memory_free": 2, "type": kind}} for name, kind in zip("abc", {kinds})]
"""
CPU, GPU = "Type.GGML_BACKEND_DEVICE_TYPE_CPU", "Type.GGML_BACKEND_DEVICE_TYPE_GPU"
CARD = DeviceMemory("cuda", "a", 2)
FILE = LoadOptions("model.gguf")


@pytest.mark.parametrize(
    ("kinds", "gpus", "expected"),
    [
        ((GPU, CPU), 1, CARD),
        ((GPU, GPU, CPU), 2, DeviceMemory("cuda", "a and b", 4)),
        ((CPU,), 1, None),
        ((), 1, None),
        ((GPU, CPU), 0, None),
    ],
)
def test_the_library_says_which_gpus_it_can_use(
    kinds: tuple[str, ...], gpus: int, expected: DeviceMemory | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "xllamacpp.py").write_text(WHEEL.format(kinds=f"[{', '.join(kinds)}]"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(llama_gpu, "count_nvidia_gpus", lambda: gpus)
    assert find_llama_gpu() == expected


def test_a_wheel_that_cannot_start_has_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "xllamacpp.py").write_text("raise ImportError('libcudart.so.13')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(llama_gpu, "count_nvidia_gpus", lambda: 1)
    assert find_llama_gpu() is None


@pytest.mark.parametrize(
    ("options", "gpu", "gpus", "expected"),
    [
        (FILE, CARD, 1, ("cuda", "all layers on a")),
        (FILE, None, 1, ("cpu", f"there is an NVIDIA GPU, but {CPU_WHEEL}")),
        (FILE, None, 0, ("cpu", "no GPU was found")),
        (LoadOptions("model.gguf", device="cpu"), CARD, 1, ("cpu", REQUESTED)),
    ],
)
def test_a_gguf_file_on_a_machine_with_an_nvidia_gpu(
    options: LoadOptions,
    gpu: DeviceMemory | None,
    gpus: int,
    expected: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "count_nvidia_gpus", lambda: gpus)
    placement = place_gguf(options, "cuda", gpu)
    assert (placement.device, placement.reasons["device"]) == expected
    assert ("Device", *expected) in placement.facts


def test_apples_gpu_needs_no_other_wheel() -> None:
    placement = place_gguf(FILE, "mps")
    assert (placement.device, placement.reasons["device"]) == ("mps", "all layers on Apple's GPU")
