"""A GGUF file in memory, by llama.cpp: token ids in, logits out. The one module that imports ``llama_cpp``.

Its low-level API is used, not ``Llama``: that has one conversation, chooses tokens itself, and cannot be stopped.
``llama_cpp`` is optional, and imported when a file is opened.
"""

import ctypes
import logging
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from granite_demo.errors import ConfigurationError, CorruptModelError, OutOfMemoryError

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

INSTALL = "pip install llama-cpp-python"
BATCH = 2048
"""Tokens in one call of ``decode``, at most."""
NO_ROOM, ABORTED = 1, 2
"""What ``llama_decode`` returns (llama.h)."""
ERROR = 4
"""The level of a line of its log that matters (``ggml_log_level``)."""


def is_installed() -> bool:
    """Whether the package is there. Does not import it."""
    return find_spec("llama_cpp") is not None


class Aborted(Exception):
    """The caller's ``stop`` said so. The conversation may hold some of the tokens."""


@cache
def _logging(api: Any) -> Any:
    """Have llama.cpp's many lines go to this module's logger rather than to the error output; the callback, kept."""

    def heard(level: int, text: bytes, _: object) -> None:
        log.log(logging.WARNING if level == ERROR else logging.DEBUG, "%s", text.decode(errors="replace").rstrip())

    callback = api.llama_log_callback(heard)
    api.llama_log_set(callback, None)
    return callback


class LlamaFile:
    """A model, memory-mapped from its file. ``config`` and ``name_or_path`` are called as those of a torch model."""

    def __init__(self, path: Path, progress: Callable[[float], bool] = lambda fraction: True) -> None:
        """``progress`` hears how much is read, from 0 to 1; False stops it, which raises Aborted.

        Raises ConfigurationError without the package, CorruptModelError.
        """
        if not is_installed():
            raise ConfigurationError(f"A GGUF file is read by llama-cpp-python, which is not installed. Run: {INSTALL}")
        import llama_cpp

        self._api: Any = llama_cpp
        stopped = False

        def heard(fraction: float, _: object) -> bool:
            nonlocal stopped
            stopped = not progress(fraction)
            return not stopped

        _logging(llama_cpp)
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.progress_callback = llama_cpp.llama_progress_callback(heard)
        options.n_gpu_layers = 0
        self._model: Any = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if stopped:
            raise Aborted
        if not self._model:
            raise CorruptModelError(
                f"llama.cpp cannot read {path}: the file is damaged, or its architecture is newer than the installed "
                f"llama-cpp-python. Fetch the file again, or run: {INSTALL} --upgrade"
            )
        self.path = path
        self.name_or_path = str(path.parent)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.config = SimpleNamespace(vocab_size=int(llama_cpp.llama_vocab_n_tokens(self._vocab)))
        self.context_length = int(llama_cpp.llama_model_n_ctx_train(self._model))
        self.nbytes = int(llama_cpp.llama_model_size(self._model))
        self.rewinds = not (
            llama_cpp.llama_model_is_recurrent(self._model) or llama_cpp.llama_model_is_hybrid(self._model)
        )
        """Whether tokens can be taken off the end of a conversation: not from the state of a Mamba layer."""

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end an answer or a turn."""
        ends = (self._api.llama_vocab_eos(self._vocab), self._api.llama_vocab_eot(self._vocab))
        return frozenset(int(token) for token in ends if token >= 0)

    @property
    def words(self) -> str:
        """Architecture, size and precision: ``llama ?B Q4_1``."""
        text = ctypes.create_string_buffer(128)
        self._api.llama_model_desc(self._model, text, len(text))
        return text.value.decode(errors="replace")

    def value(self, key: str) -> str | None:
        """One of the file's facts, as text: ``general.architecture``. None where it has none, or a list."""
        text = ctypes.create_string_buffer(1024)
        length = self._api.llama_model_meta_val_str(self._model, key.encode(), text, len(text))
        return text.value.decode(errors="replace") if length >= 0 else None

    def number(self, key: str) -> float | None:
        """A fact of the architecture, without its name: ``block_count``."""
        text = self.value(f"{self.value('general.architecture')}.{key}")
        try:
            return None if text is None else float(text)
        except ValueError:
            return None

    @property
    def token_bytes(self) -> int | None:
        """What each token of a conversation takes: a key and a value in float16 for each key/value head of each layer.

        None where the layers differ, as in a hybrid.
        """
        layers, heads = self.number("block_count"), self.number("attention.head_count")
        kv_heads, hidden = self.number("attention.head_count_kv"), self.number("embedding_length")
        if not (layers and heads and kv_heads and hidden):
            return None
        return int(layers * kv_heads * 2 * 2 * (self.number("attention.key_length") or hidden // heads))

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text as llama.cpp reads it, its control tokens among them."""
        data = text.encode()
        ids = (self._api.llama_token * (len(data) + 8))()
        count = self._api.llama_tokenize(self._vocab, data, len(data), ids, len(ids), False, True)
        return list(ids[: max(count, 0)])

    def close(self) -> None:
        """Let go of the weights. Conversations over them have to be closed before."""
        if self._model:
            self._api.llama_model_free(self._model)
            self._model = None


class LlamaCache:
    """Keys, values and states of ``slots`` conversations of at most ``length`` tokens. For one thread at a time."""

    def __init__(self, file: LlamaFile, slots: int, length: int, threads: int, exact: bool = False) -> None:
        """``exact`` keeps the keys and values in float32, twice as large. Raises OutOfMemoryError."""
        self._api = api = file._api
        self._vocabulary = file.config.vocab_size
        options = api.llama_context_default_params()
        options.n_seq_max = slots
        options.n_ctx = slots * -(-length // 256) * 256  # a part for each; llama.cpp's caches grow by 256
        options.n_batch = min(BATCH, options.n_ctx)
        options.n_threads = options.n_threads_batch = threads
        options.kv_unified = False
        options.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED  # on a CPU the slower way in long texts
        if exact:
            options.type_k = options.type_v = api.GGML_TYPE_F32
        self._context: Any = api.llama_init_from_model(file._model, options)
        if not self._context:
            raise OutOfMemoryError(
                f"llama.cpp found no memory for {slots} conversations of {length:,} tokens. Choose a smaller context."
            )
        self._memory = api.llama_get_memory(self._context)
        self._batch = api.llama_batch_init(options.n_batch, 0, 1)
        self._never = api.ggml_abort_callback()
        self.batch = int(options.n_batch)
        self.nbytes = int(options.n_ctx) * (file.token_bytes or 0) * (2 if exact else 1)

    def decode(
        self, slot: int, position: int, ids: Sequence[int], *, every: bool = False, stop: Callable[[], bool] | None
    ) -> Floats:
        """Append ``ids``, ``batch`` at most, to a conversation of ``position`` tokens.

        Returns the logits after the last of them, or with ``every`` after each, float32 of shape (1 or n, vocabulary);
        the next call overwrites them. ``stop`` is asked before each operation of the model, and raises Aborted where it
        says True. Raises RuntimeError where llama.cpp fails.
        """
        count = len(ids)
        batch = self._batch
        batch.n_tokens = count
        for index, token in enumerate(ids):
            batch.token[index] = token
            batch.pos[index] = position + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = slot
            batch.logits[index] = every
        batch.logits[count - 1] = True
        callback = self._never if stop is None else self._api.ggml_abort_callback(lambda _: stop())
        self._api.llama_set_abort_callback(self._context, callback, None)
        result = self._api.llama_decode(self._context, batch)
        if result == ABORTED:
            raise Aborted
        if result:
            reason = "no room in the cache" if result == NO_ROOM else f"code {result}"
            raise RuntimeError(f"llama_decode failed: {reason}")
        if not every:
            return np.ctypeslib.as_array(self._api.llama_get_logits_ith(self._context, -1), (1, self._vocabulary))
        return np.ctypeslib.as_array(self._api.llama_get_logits(self._context), (count, self._vocabulary))

    def cut(self, slot: int, length: int) -> None:
        """Keep the first ``length`` tokens of a conversation. A model that does not rewind allows 0 alone."""
        if not self._api.llama_memory_seq_rm(self._memory, slot, length, -1):
            raise RuntimeError(f"llama.cpp cannot keep the first {length} tokens alone")

    def copy(self, source: int, target: int, length: int) -> None:
        """Put the first ``length`` tokens of one conversation in the place of another."""
        self._api.llama_memory_seq_cp(self._memory, source, target, -1, -1)  # parts have to be copied whole
        self.cut(target, length)

    def set_threads(self, decoding: int, prompts: int) -> None:
        """How many compute a single token, and how many a prompt."""
        self._api.llama_set_n_threads(self._context, decoding, prompts)

    def close(self) -> None:
        """Let go of the memory."""
        if self._context:
            self._api.llama_batch_free(self._batch)
            self._api.llama_free(self._context)
            self._context = None
