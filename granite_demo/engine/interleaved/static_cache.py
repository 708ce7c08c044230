"""KV caches of a fixed size, allocated once: a recorded step reads and writes the same memory each time.

Knows no model and no requests. Every attention layer has one tensor of rows for all slots, slot after slot.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import StaticCache
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionLayer, StaticLayer


@dataclass(slots=True)
class Window:
    """What the running step touches; set before each step, read by every layer."""

    rows: torch.Tensor | None = None
    """The rows that it writes, shape (tokens,)."""
    first: int = 0
    seen: int = 0
    """It reads ``seen`` rows from ``first`` on, in a cache that shows a slot at a time."""


class RowsLayer(CacheLayerMixin):
    """The keys and values of one attention layer: rows of shape (key/value heads, head size)."""

    is_sliding = False

    def __init__(self, window: Window, rows: int, whole: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._window = window
        self._rows = rows
        self._whole = whole

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate. Zeros, since attention multiplies what it masks by 0, which leaves NaN NaN."""
        self.keys = key_states.new_zeros((self._rows, key_states.shape[1], key_states.shape[3]))
        self.values = value_states.new_zeros((self._rows, value_states.shape[1], value_states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the window's rows; return all rows, or the window's view of shape (1, heads, seen, head size)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        assert self._window.rows is not None
        self.keys.index_copy_(0, self._window.rows, key_states[0].transpose(0, 1))
        self.values.index_copy_(0, self._window.rows, value_states[0].transpose(0, 1))
        if self._whole:
            return self.keys, self.values
        seen = slice(self._window.first, self._window.first + self._window.seen)
        return self.keys[seen].transpose(0, 1)[None], self.values[seen].transpose(0, 1)[None]

    def copy(self, source: int, target: int, count: int) -> None:
        """Copy ``count`` rows from row ``source`` on to row ``target`` on."""
        for tensor in (self.keys, self.values):
            if tensor is not None:
                tensor[target : target + count] = tensor[source : source + count]

    def wipe(self, first: int, count: int) -> None:
        """Back to zeros: what failed may have left NaN."""
        for tensor in (self.keys, self.values):
            if tensor is not None:
                tensor[first : first + count] = 0

    def drop(self) -> None:
        """Let go of the memory."""
        self.keys = self.values = None
        self.is_initialized = False

    @property
    def nbytes(self) -> int:
        """What is allocated."""
        return sum(tensor.nbytes for tensor in (self.keys, self.values) if tensor is not None)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what the step sees. Not asked for while the mask is given."""
        return self._window.seen, 0

    def get_seq_length(self) -> int:
        """Not known here, and not asked for while positions are given."""
        raise NotImplementedError

    def get_max_length(self) -> int:
        """The rows of all slots."""
        return self._rows


def cache_problem(config: Any) -> str:
    """Why the layers of such a model cannot have a static cache, or nothing."""
    kinds = {type(layer) for layer in StaticCache(config=config, max_cache_len=1).layers}
    others = kinds - {StaticLayer, LinearAttentionLayer}
    return f"it has layers of the kind {others.pop().__name__}" if others else ""


def make_caches(config: Any, window: Window, slots: int, length: int, whole: bool) -> list[Cache]:
    """A cache for each slot of ``length`` tokens. Attention layers are the same objects in all; states are not.

    ``whole``: attention is shown the rows of all slots, instead of a view of one. Raises ValueError for other layers.
    """
    if problem := cache_problem(config):
        raise ValueError(problem)
    shared: dict[int, RowsLayer] = {}

    def layer(index: int, kind: Any) -> Any:
        if type(kind) is LinearAttentionLayer:
            return kind  # static by nature, one for each slot
        return shared.setdefault(index, RowsLayer(window, slots * length, whole))

    return [
        Cache(layers=[layer(*item) for item in enumerate(StaticCache(config=config, max_cache_len=length).layers)])
        for _ in range(slots)
    ]


def rows_layers(cache: Cache) -> list[RowsLayer]:
    """The attention layers."""
    return [layer for layer in cache.layers if isinstance(layer, RowsLayer)]


def state_layers(cache: Cache) -> list[LinearAttentionLayer]:
    """The layers that keep a state of fixed size, which cannot be rewound."""
    return [layer for layer in cache.layers if isinstance(layer, LinearAttentionLayer)]


def forget_states(cache: Cache) -> None:
    """Start a new text: states of zeros, which count as a previous state so that a recorded step may read them."""
    for layer in state_layers(cache):
        layer.reset()
        layer.has_previous_state = dict(layer.is_conv_states_initialized)
