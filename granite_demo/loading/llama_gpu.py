"""Whether the installed wheel of llama.cpp can use the NVIDIA GPU of this machine.

The wheels for the CPU and for CUDA have the same name. A child process asks the library, because that takes memory of
the GPU until the process ends.
"""

import json
import subprocess
import sys

from granite_demo.models.devices import DeviceMemory, count_nvidia_gpus

PROBE = """
import json, xllamacpp
gpus = [device for device in xllamacpp.get_device_info() if "GPU" in str(device["type"])]
print(json.dumps([[gpu["description"], gpu["memory_free"]] for gpu in gpus]))
"""
PROBE_SECONDS = 60.0
"""The first start of a CUDA wheel can compile its kernels."""


def find_llama_gpu() -> DeviceMemory | None:
    """Return the NVIDIA GPUs that llama.cpp can use, as one device, or None. llama.cpp divides the layers over them."""
    if not count_nvidia_gpus():
        return None
    try:
        done = subprocess.run([sys.executable, "-P", "-c", PROBE], capture_output=True, timeout=PROBE_SECONDS)
        gpus = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):  # xllamacpp is missing, or cannot start
        return None
    title = " and ".join(name for name, _ in gpus)
    return DeviceMemory("cuda", title, sum(free for _, free in gpus)) if gpus else None
