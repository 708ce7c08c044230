"""Opens a model: finds or fetches its files, places and loads it, starts and warms up its engine.

The real ``Loader`` of the model manager. torch is imported here when the first model is loaded, not before.
"""

import threading
from dataclasses import replace
from pathlib import Path

from granite_demo import hub, registry, sample
from granite_demo.errors import LoadCancelledError
from granite_demo.manager import ReadyModel
from granite_demo.types import LoadOptions, Report


def open_model(
    cache_dir: Path,
    threads: int,
    options: LoadOptions,
    report: Report,
    cancelled: threading.Event,
    *,
    ignore_ends: bool = False,
) -> ReadyModel:
    """Make a model ready. Raises what fetching and loading raise, and LoadCancelledError once ``cancelled`` is set.

    With ``ignore_ends`` no token ends an answer: to measure answers of one length.
    """
    why = ""
    if options.model == "auto":
        name, why = _choose(cache_dir, options)
        options = replace(options, model=name)
    spec = registry.resolve(options.model)
    commit = None
    if spec.path:
        folder = spec.path
    elif spec.repo_id:
        checkpoint = hub.fetch(spec.repo_id, options.revision, report, cancelled)
        folder, commit = checkpoint.folder, checkpoint.commit
    else:
        folder = sample.ensure_sample(cache_dir, report, cancelled)
    report("loading", None, "")
    import torch

    from granite_demo.engine.create import create_engine
    from granite_demo.engine.sampling import compile_chooser
    from granite_demo.loading import load_model

    if threads:
        torch.set_num_threads(threads)
    compiling = threading.Thread(target=compile_chooser, args=(torch.device("cuda"),), daemon=True)
    if torch.cuda.is_available() and options.device in ("auto", "cuda"):
        compiling.start()  # beside the loading, which mostly waits for the disk
    loaded = load_model(folder, spec, options, report, cancelled, commit=commit, why=why, copies=cache_dir)
    if compiling.ident:
        compiling.join()
    if ignore_ends:
        loaded = replace(loaded, eos_ids=frozenset())
    engine = create_engine(loaded, options.engine, options.compile, report)
    if cancelled.is_set():
        engine.close()
        raise LoadCancelledError("The load was cancelled.")
    return ReadyModel(loaded, engine)


def _choose(cache_dir: Path, options: LoadOptions) -> tuple[str, str]:
    from granite_demo.choosing import choose_model
    from granite_demo.placement import choose_device, free_memory

    device, _ = choose_device(options.device)
    return choose_model(cache_dir, free_memory(device), device != "cpu")
