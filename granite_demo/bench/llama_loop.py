"""The bare loop of llama.cpp's wheel, as a baseline: the program of a child process.

It calls the library without the engine, the HTTP connection and the line of requests. One line of JSON in, with the
``ServerOptions``, the prompts and the number of tokens; one line out, with the times of the tokens of each prompt.
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

from granite_demo.loading.llama_server import ServerOptions, load

LOOP_START = "import sys; sys.path.insert(0, sys.argv[1]); from granite_demo.bench.llama_loop import main; main()"


def main() -> None:
    """Answer all prompts at the same time, greedily, and print the seconds from the start to each token."""
    order = json.loads(sys.stdin.readline())
    with tempfile.TemporaryDirectory() as folder:
        options = ServerOptions(**{**order["options"], "socket": os.path.join(folder, "loop.sock"), "key": "unused"})
        server: Any = load(options)
        answer(server, [[0]], 2)
        print(json.dumps(answer(server, order["prompts"], order["tokens"])), flush=True)
        os._exit(0)


def answer(server: Any, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[float]]:
    """Return the times of the tokens of each prompt, in seconds from the common start."""
    stamps: list[list[float]] = [[] for _ in prompts]
    start = time.perf_counter()

    def ask(number: int) -> None:
        body = {"prompt": list(prompts[number]), "max_tokens": tokens, "temperature": 0.0, "ignore_eos": True}

        def piece(found: Any) -> bool:
            if found["choices"][0]["finish_reason"] is None:
                stamps[number].append(time.perf_counter() - start)
            return False

        server.handle_completions({**body, "stream": True, "cache_prompt": False}, piece)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return stamps
