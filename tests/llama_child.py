"""Runs llama.cpp (package xllamacpp) in a child process to get its log and its tokens.

Some headers abort the process, and the constructor holds Python's lock during a load.
"""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MISSING = "" if find_spec("xllamacpp") else "xllamacpp is not installed"

SCRIPT = """
import json, os, sys
import xllamacpp
asked = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path, params.hostnames = asked["path"], [asked["socket"]]
params.n_ctx, params.n_parallel = asked["context"], asked["slots"]
params.n_batch = params.n_ubatch = asked["batch"]
params.cache_type_k = params.cache_type_v = getattr(xllamacpp.ggml_type, "GGML_TYPE_" + asked["kv_type"].upper())
params.kv_unified, params.cache_ram_mib, params.warmup = True, 0, False
params.chat_template, params.verbosity = "chatml", 4
try:
    server = xllamacpp.Server(params)
except RuntimeError:
    os._exit(3)
import httpx
transport = httpx.HTTPTransport(uds=asked["socket"])
with httpx.Client(transport=transport, base_url="http://llama", timeout=60) as client:
    answers = [client.post("/tokenize", json=text).json()["tokens"] for text in asked["tokenize"]]
    client.post("/completion", json={"prompt": [1], "n_predict": 1})
print("ANSWERS", json.dumps(answers), flush=True)
os._exit(0)
"""


class LlamaChild:
    """One load of a file. ``code`` is 0, 3 if the library refused the file, or the exit code of a crash."""

    def __init__(self, path: Path, **asked: Any) -> None:
        """``asked`` can have context, slots, batch, kv_type and tokenize, which is a list of request bodies."""
        usual = {"context": 512, "slots": 1, "batch": 128, "kv_type": "f16", "tokenize": []}
        told = {**usual, **asked, "path": str(path), "socket": str(path.with_suffix(".sock"))}
        command = [sys.executable, "-c", SCRIPT, json.dumps(told)]
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
        path.with_suffix(".sock").unlink(missing_ok=True)
        run = subprocess.run(command, capture_output=True, timeout=120, env=environment, check=False)
        self.code = run.returncode
        self.log = (run.stdout + run.stderr).decode(errors="replace")
        found = re.search(r"^.*ANSWERS (.*)$", run.stdout.decode(errors="replace"), re.MULTILINE)
        self.tokens: list[list[int]] = json.loads(found[1]) if found else []

    def mebibytes(self, buffer: str) -> float:
        """Return the total size of the buffers of a kind: model, KV, RS, compute or output."""
        return sum(float(size) for size in re.findall(rf"{buffer} buffer size = +([0-9.]+) MiB", self.log))

    @property
    def end_ids(self) -> set[int]:
        """The tokens that end an answer, from the log."""
        return {int(index) for index in re.findall(r"EOG token += (\d+)", self.log)}
