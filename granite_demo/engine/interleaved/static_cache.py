"""KV caches of a fixed size, allocated once, because a recorded step always reads and writes the same memory.

Each attention layer has one tensor with the rows of all slots, one slot after the other.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import StaticCache
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionLayer, StaticLayer


@dataclass(slots=True)
class Window:
    """The rows that the current step reads and writes. It is set before each step, and all layers read it."""

    rows: torch.Tensor | None = None
    """The rows that the step writes, shape (tokens,)."""
    first: int = 0
    seen: int = 0
    """The step reads ``seen`` rows, starting at ``first``, if attention gets a view of one slot."""


class RowsLayer(CacheLayerMixin):
    """The keys and values of one attention layer: rows of shape (KV heads, head size)."""

    is_sliding = False

    def __init__(self, window: Window, rows: int, whole: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._window = window
        self._rows = rows
        self._whole = whole

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate zeros, because attention multiplies masked values by 0, and 0 times NaN is NaN."""
        self.keys = key_states.new_zeros((self._rows, key_states.shape[1], key_states.shape[3]))
        self.values = value_states.new_zeros((self._rows, value_states.shape[1], value_states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the rows of the window. Return all rows, or the view of one slot: (1, heads, seen, head size)."""
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
        """Copy ``count`` rows, starting at row ``source``, to row ``target``."""
        for tensor in (self.keys, self.values):
            if tensor is not None:
                tensor[target : target + count] = tensor[source : source + count]

    def wipe(self, first: int, count: int) -> None:
        """Set rows to zero, because a failed step can leave NaN."""
        for tensor in (self.keys, self.values):
            if tensor is not None:
                tensor[first : first + count] = 0

    def drop(self) -> None:
        """Free the memory."""
        self.keys = self.values = None
        self.is_initialized = False

    @property
    def nbytes(self) -> int:
        """The allocated bytes."""
        return sum(tensor.nbytes for tensor in (self.keys, self.values) if tensor is not None)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length and the offset of the rows that the step reads. Not called if there is a mask."""
        return self._window.seen, 0

    def get_seq_length(self) -> int:
        """Not supported, and not called if there are positions."""
        raise NotImplementedError

    def get_max_length(self) -> int:
        """Return the number of rows of all slots."""
        return self._rows


def cache_problem(config: Any) -> str:
    """Return why the layers of a model with this config cannot have a static cache, or "" if they can."""
    kinds = {type(layer) for layer in StaticCache(config=config, max_cache_len=1).layers}
    others = kinds - {StaticLayer, LinearAttentionLayer}
    return f"it has layers of the kind {others.pop().__name__}" if others else ""


def make_caches(config: Any, window: Window, slots: int, length: int, whole: bool) -> list[Cache]:
    """Return a cache of ``length`` tokens for each slot. All caches share the attention layers, but not the states.

    With ``whole``, attention gets the rows of all slots instead of a view of one. Raises ValueError for other layers.
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
    """Return the attention layers."""
    return [layer for layer in cache.layers if isinstance(layer, RowsLayer)]


def state_layers(cache: Cache) -> list[LinearAttentionLayer]:
    """Return the layers with a state of fixed size, which cannot be rewound."""
    return [layer for layer in cache.layers if isinstance(layer, LinearAttentionLayer)]


def forget_states(cache: Cache) -> None:
    """Set the states to zero for a new text. They count as previous states, so that a recorded step can read them."""
    for layer in state_layers(cache):
        layer.reset()
        layer.has_previous_state = dict(layer.is_conv_states_initialized)
