"""What ``doctor`` says about this machine: the installation, the versions, and where models run."""

import platform

from granite_demo.chat.bundle import versions
from granite_demo.loading.device import choose_device, place_gguf
from granite_demo.loading.llama_gpu import find_llama_gpu
from granite_demo.loading.source import no_llama
from granite_demo.models.devices import find_devices
from granite_demo.models.installation import installation, torch_problem
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.model_status import Chosen


def describe_environment() -> dict[str, str]:
    """Return the facts by name. Imports torch if it is installed and there may be a GPU."""
    options = LoadOptions()
    device = choose_device(options)
    gguf = place_gguf(options, device.value, find_llama_gpu()).chosen["device"]
    return {
        "installation": installation(),
        **versions(),
        "platform": platform.platform(),
        "memory": ", ".join(map(str, find_devices())),
        "GGUF files": no_llama() or _where(gguf),
        "safetensors files": torch_problem("This type of file") or _where(device),
    }


def _where(device: Chosen[str]) -> str:
    return f"run on {device} ({device.reason})"
