"""The devices of this machine with their free memory.

This module does not import torch, which takes seconds. The CUDA driver gives the same numbers.
"""

import ctypes
import runpy
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from granite_demo.types.model_status import gigabytes

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Free memory, in bytes, in which a model can run. ``device`` is torch's name for it, or "typed in"."""

    device: str
    title: str
    free: int

    def __str__(self) -> str:
        return f"{self.device} ({self.title}, {gigabytes(self.free)})"


def find_devices() -> list[DeviceMemory]:
    """Return the devices of this machine, best first: each GPU, all GPUs together if there are several, the CPU."""
    gpus = _gpus() if _torch_has_cuda() else []
    if len(gpus) > 1:
        gpus.append(DeviceMemory("cuda", f"{len(gpus)} GPUs together", sum(gpu.free for gpu in gpus)))
    return [*gpus, DeviceMemory("cpu", "main memory", psutil.virtual_memory().available)]


def _torch_has_cuda() -> bool:
    package = find_spec("torch")  # does not import it
    if package is None or package.origin is None:
        return False
    return runpy.run_path(str(Path(package.origin).with_name("version.py"))).get("cuda") is not None


def count_nvidia_gpus() -> int:
    """Return the number of NVIDIA GPUs that the driver lists, also if torch is missing or is built without CUDA."""
    return _open_driver()[1]


def _open_driver() -> tuple[Any, int]:
    """Return the CUDA driver and the number of its GPUs."""
    try:
        cuda = ctypes.CDLL(DRIVER)
    except OSError:
        return None, 0
    count = ctypes.c_int()
    failed = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))  # 0 is success
    return cuda, 0 if failed else count.value


def _gpus() -> list[DeviceMemory]:
    """Return the GPUs with the numbers of ``torch.cuda.mem_get_info``, which exclude the context of this process."""
    cuda, count = _open_driver()
    gpus = []
    for index in range(count):
        device, name, context = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_void_p()
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(name, len(name), device)
        if cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
            continue  # reserved for another process, or full
        cuda.cuCtxSetCurrent(context)
        failed = cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        cuda.cuDevicePrimaryCtxRelease_v2(device)
        if not failed and free.value:
            gpus.append(DeviceMemory(f"cuda:{index}", name.value.decode(errors="replace"), free.value))
    return gpus
