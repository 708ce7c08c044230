"""One pass of the model over a static cache, computed directly or as a replay of a recorded step with the same sizes.

Recorded steps are one token at a few cache lengths and, if one recording can be used for all slots, chunks of a prompt
that are padded to a few sizes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

from granite_demo.engine.interleaved import row_attention
from granite_demo.engine.interleaved.cuda_graph import Record
from granite_demo.engine.interleaved.static_cache import Window, make_caches, rows_layers, state_layers

GRAIN = 64
"""The length of a slot is a multiple of this, because some kernels are slow with, or do not support, odd lengths."""
HEADER = 3
"""The number of values before the token ids in the inputs of a step: the first row of the slot, the position of the
first token in the slot, and the index of the last token that is not padding. One tensor needs one copy to the GPU."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of recorded steps."""

    shortest: int = 1024
    """The cache tokens of the smallest recording of one token. The next has 2 or 4 times as many, up to the context."""
    padded: tuple[int, ...] = (128, 512, 2048)
    """The tokens of a chunk, in ascending order; at least one size."""


@dataclass(frozen=True, slots=True)
class Place:
    """The location of a slot in the cache."""

    index: int
    first: int
    cache: Cache


class Steps:
    """Runs the model. With ``rows``, it uses ``row_attention``; otherwise a step gets a view of its slot."""

    def __init__(self, model: Any, dtype: torch.dtype, context: int, slots: int, rows: bool, sizes: Sizes) -> None:
        self.length = -(-context // GRAIN) * GRAIN
        self._model = model
        self._dtype = dtype
        self._rows = rows
        self.sizes = sizes
        self._window = Window()
        caches = make_caches(model.config, self._window, slots, self.length, whole=rows)
        self.places = [Place(index, index * self.length, cache) for index, cache in enumerate(caches)]
        self.rewinds = not state_layers(caches[0])
        """Whether a slot can be rewound to an earlier token."""
        self._one_for_all = rows and self.rewinds
        self._lengths = self._doubling()
        self._offsets = torch.arange(self.length + 1, device=model.device)
        self._no_mask = torch.zeros((1, 1, 1, 1), device=model.device)
        self._inputs: dict[int, torch.Tensor] = {}
        self._logits: torch.Tensor | None = None
        self._recorded: dict[tuple[int, int, int], Any] = {}
        self._padded: list[int] = []
        self._attention: str = model.config._attn_implementation
        row_attention.register()
        # FlashAttention's package takes no mask, so it cannot see the filled part of a view.
        view = "eager" if self._attention == "eager" else "sdpa"
        model.set_attn_implementation(row_attention.ROW_ATTENTION if rows else view)

    @property
    def recorded(self) -> int:
        """Return the number of recorded steps."""
        return len(self._recorded)

    @property
    def nbytes(self) -> int:
        """The bytes of the caches of all attention layers."""
        return sum(layer.nbytes for layer in rows_layers(self.places[0].cache)) if self.places else 0

    def lengths(self) -> list[int]:
        """Return the cache lengths for which one token is recorded, in ascending order."""
        return self._lengths

    def _doubling(self) -> list[int]:
        # A view costs its full length and is recorded for each slot. Rows cost only what is used, or little more.
        factor = 2 if self._one_for_all else 4
        lengths = [self.sizes.shortest]
        while lengths[-1] < self.length:
            lengths.append(lengths[-1] * factor)
        return [*lengths[:-1], self.length]

    def cut(self, position: int, count: int) -> Iterator[tuple[int, int]]:
        """Yield (tokens, size) of the passes for ``count`` tokens. Size 0 is a pass that is not recorded."""
        while count:
            size = self._fitting(position, count)
            taken = min(size, count) or count
            yield taken, size
            position, count = position + taken, count - taken

    def _fitting(self, position: int, count: int) -> int:
        if count == 1:
            return 1 if self._recorded else 0
        sizes = [size for size in self._padded if position + size <= self.length]
        wide = next((size for size in sizes if size >= count), 0)
        narrow = max((size for size in sizes if size <= count), default=0)
        # A half-full step is better than several smaller ones.
        return wide if wide and (2 * count > wide or not narrow) else narrow

    def run(self, place: Place, position: int, ids: list[int], size: int) -> torch.Tensor:
        """Return the logits after ``ids``, shape (1, vocabulary), from the recorded step of ``size`` or a new pass."""
        values = [place.first, position, len(ids) - 1, *ids]
        if not size:
            inputs = torch.tensor(values, device=self._offsets.device)
            return self._compute(inputs, place, position + len(ids))
        seen = next(length for length in self._seen(size) if length >= position + size)
        self._inputs[size].copy_(torch.tensor(values + [0] * (size - len(ids))))
        self._recorded[self._key(size, seen, place)]()
        assert self._logits is not None
        return self._logits.clone()  # the next step overwrites them

    def run_for_all(self, place: Place, position: int, ids: list[int]) -> torch.Tensor:
        """Return the logits after each of ``ids``, shape (n, vocabulary), from a new pass."""
        inputs = torch.tensor([place.first, position, len(ids) - 1, *ids], device=self._offsets.device)
        return self._compute(inputs, place, position + len(ids), keep=self._offsets[: len(ids)])

    def _seen(self, size: int) -> list[int]:
        return self.lengths() if size == 1 else [self.length]

    def _key(self, size: int, seen: int, place: Place) -> tuple[int, int, int]:
        return size, seen, 0 if self._one_for_all else place.index

    def record_tokens(self, record: Record) -> None:
        """Record the steps of one token. Writes to the first tokens of the slots, and to their states."""
        for seen in self.lengths():
            for place in self.places[:1] if self._one_for_all else self.places:
                self._record(record, 1, seen, place)

    def record_chunks(self, record: Record) -> None:
        """Record the padded chunks, if one recording can be used for all slots."""
        # Experts are called in groups, and most GPUs need the sizes of the groups on the host.
        experts = getattr(self._model.config, "num_local_experts", 0)
        sizes = [size for size in self.sizes.padded if self._one_for_all and not experts and size <= self.length]
        for size in reversed(sizes):  # the largest first: the others fit into its memory
            self._record(record, size, self.length, self.places[0])
        self._padded = sizes

    def _record(self, record: Record, size: int, seen: int, place: Place) -> None:
        inputs = self._inputs.setdefault(size, torch.zeros(HEADER + size, dtype=torch.long, device=self._model.device))
        inputs[0] = place.first
        with _single_token_experts(self._model, size):
            logits = self._compute(inputs, place, seen)
            if self._logits is None:
                self._logits = torch.empty_like(logits)
            target = self._logits
            self._recorded[self._key(size, seen, place)] = record(
                lambda: target.copy_(self._compute(inputs, place, seen))
            )

    def forget_recorded(self, larger_than: int = 0) -> None:
        """Drop the recorded steps of more than ``larger_than`` tokens, so that they are computed directly."""
        for key in [key for key in self._recorded if key[0] > larger_than]:
            del self._recorded[key]
        self._padded = []

    def _compute(self, inputs: torch.Tensor, place: Place, seen: int, keep: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits of the last token, or of the indices ``keep``.

        All values that can differ between two calls with the same sizes are in ``inputs``.
        """
        first, position, last, ids = inputs[:1], inputs[1:2], inputs[2:3], inputs[HEADER:]
        positions = position + self._offsets[: len(ids)]
        self._window.rows, self._window.first, self._window.seen = first + positions, place.first, seen
        if self._rows:
            sight = self._sight_of_rows(first, position, len(ids), seen)
        else:
            hidden = self._offsets[:seen] > positions[:, None]
            mask = torch.zeros(hidden.shape, dtype=self._dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
            sight = {"attention_mask": mask[None, None]}
        output = self._model(
            input_ids=ids[None],
            position_ids=positions[None],
            past_key_values=place.cache,
            use_cache=True,
            logits_to_keep=last if keep is None else keep,
            **sight,
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _sight_of_rows(self, first: torch.Tensor, position: torch.Tensor, count: int, seen: int) -> dict[str, Any]:
        return {
            "attention_mask": self._no_mask,  # of four dimensions: transformers then makes none
            "cu_seq_lens_q": self._offsets[: count + 1 : count].int(),
            "cu_seq_lens_k": torch.cat((first, first + position + count)).int(),
            "max_length_q": count,
            "max_length_k": seen,
        }

    def copy(self, source: Place, target: Place, count: int) -> None:
        """Copy the first ``count`` tokens of ``source`` to ``target``. The model must support rewinding."""
        for layer in rows_layers(target.cache):
            layer.copy(source.first, target.first, count)

    def wipe(self, place: Place) -> None:
        """Clear the rows of a slot after a failed step."""
        for layer in rows_layers(place.cache):
            layer.wipe(place.first, self.length)

    def release(self) -> None:
        """Drop the references to the model, the caches and the recorded steps."""
        self.forget_recorded()
        self._logits = None
        self._inputs.clear()
        for place in self.places:
            for layer in rows_layers(place.cache):
                layer.drop()
        self.places = []
        self._window.rows = None
        if self._model is not None:
            self._model.set_attn_implementation(self._attention)
        self._model = None


@contextmanager
def _single_token_experts(model: Any, size: int) -> Iterator[None]:
    """For one token, run experts as ``generate`` in transformers: others wait for the GPU or are slow."""
    before = model.get_experts_implementation()
    switch = size == 1 and model.device.type == "cuda" and "grouped_mm" in before.values()
    if switch:
        model.set_experts_implementation(
            {name: "batched_mm" if value == "grouped_mm" else value for name, value in before.items()}
        )
    try:
        yield
    finally:
        if switch:
            model.set_experts_implementation(before)
