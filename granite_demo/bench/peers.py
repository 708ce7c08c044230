"""Another program's own loop over the same weights, where it is installed."""

import time
from collections.abc import Sequence
from itertools import islice

import torch

from granite_demo.bench.figures import Answer, Run
from granite_demo.loading import LoadedModel

LLAMA = "llama-cpp-python's own loop"


def llama_loop(loaded: LoadedModel, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
    """One user, greedily, by ``llama_cpp.Llama.generate`` on the engine's file and with as many threads.

    Reading the file again, which is mapped to the same memory, is not counted.
    """
    from llama_cpp import Llama

    [prompt] = prompts
    threads = torch.get_num_threads()
    size = len(prompt) + tokens
    llama = Llama(str(loaded.model.path), n_ctx=size, n_threads=threads, n_threads_batch=threads, verbose=False)
    start = time.perf_counter()
    written = islice(llama.generate(list(prompt), temp=0, top_k=1, repeat_penalty=1.0), tokens)
    stamps = [time.perf_counter() - start for _ in written]
    llama.close()
    return Run((Answer(len(stamps), stamps[0], stamps[-1]),))
