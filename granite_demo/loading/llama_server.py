"""The program of the child process: llama.cpp's server over one model, on a private socket.

llama.cpp runs apart from the page for three reasons: its constructor holds Python's lock during the whole load, some
files and grammars end the process, and only ending the process cancels a load. The child reads one ``ServerOptions``
as JSON from its standard input, and prints ``READY`` and its address when the model is loaded. It ends when that input
is closed. So it ends with its parent, however that ends.
"""

import json
import os
import sys
from dataclasses import dataclass
from typing import Any

from granite_demo.types.load_options import KvCache

READY = "ready"
SERVER_START = "import sys; sys.path.insert(0, sys.argv[1]); from granite_demo.loading.llama_server import main; main()"
SPINS = "1000"
"""How often a thread of llama.cpp looks for work before it sleeps. The default is much higher.

Measured on two cores, alone: 77 tokens/s, by default 74. Beside one busy process: 26 tokens/s, by default less than 1.
"""
ERROR_LEVEL = 1
"""The level of llama.cpp's log: errors only."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What the child is started with."""

    path: str
    """The GGUF file; of several shards, the first."""
    socket: str
    """The path of a unix socket, which ends with ``.sock``; or a loopback address where there are no unix sockets."""
    key: str
    """The bearer token that each request must carry."""
    context: int
    """Tokens of the KV cache, which all slots share."""
    slots: int
    """Requests in one step."""
    threads: int
    gpu_layers: int
    cache_type: KvCache
    """The type of the values in the KV cache."""
    batch: int
    """Tokens of a prompt between two looks at cancelled requests."""


def main() -> None:
    """Serve until standard input is closed."""
    os.putenv("GGML_NO_BACKTRACE", "1")  # an assertion would start a debugger
    os.putenv("GOMP_SPINCOUNT", SPINS)
    options = ServerOptions(**json.loads(sys.stdin.readline()))
    server = load(options)
    print(READY, server.listening_address, flush=True)
    sys.stdin.read()
    sys.stdout.flush()
    del server
    os._exit(0)  # the library aborts the process where a request still runs


def load(options: ServerOptions) -> Any:
    """llama.cpp's server, which answers on the socket while the object lives. Raises RuntimeError."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.path
    params.n_ctx, params.n_parallel, params.kv_unified = options.context, options.slots, True
    params.n_batch = params.n_ubatch = options.batch
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.n_gpu_layers = options.gpu_layers
    params.cache_type_k = params.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{options.cache_type.upper()}")
    params.hostnames, params.port = [options.socket], 0
    params.api_keys = [options.key]
    # A file's own template can hang the load. Prompts are rendered by granite_demo.prompts.
    params.chat_template = "chatml"
    params.fit_params = False  # the planner has decided
    params.warmup = False  # ``LlamaProcess.warm_up`` does it
    params.ui = False
    params.cache_ram_mib = 0  # no copies of caches beyond the slots
    params.verbosity = ERROR_LEVEL
    return xllamacpp.Server(params)
