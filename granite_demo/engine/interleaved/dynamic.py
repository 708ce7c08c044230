"""Runs a model on growing caches: ``DynamicCache`` of transformers, for every device and every architecture."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from granite_demo.engine.decoder_layers import LayerChecks, no_check
from granite_demo.engine.interleaved.prefix_cache import PrefixStore
from granite_demo.engine.protocol import score_chunk
from granite_demo.engine.token_stream import Cancelled
from granite_demo.loading.device import is_out_of_memory
from granite_demo.loading.float32_prefill import ATTENTION, Float32Products, register_attention
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.models.memory import PREFILL_TOKENS
from granite_demo.types.model_status import Fact, gigabytes

SLOTS = 4
"""The number of simultaneous conversations. With more of them, each would be slower than reading speed."""


@dataclass(slots=True, eq=False)
class DynamicSlot:
    """A cache, and the token ids in it."""

    cache: DynamicCache
    ids: list[int] = field(default_factory=list)
    salt: str = ""

    @property
    def nbytes(self) -> int:
        """The size of all layers in bytes."""
        return sum(tensor.nbytes for layer in self.cache.layers for tensor in _tensors(vars(layer).values()))

    @property
    def croppable(self) -> bool:
        """Whether tokens can be removed from the end. This is not possible with the state of a Mamba layer."""
        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def crop(self, length: int) -> None:
        """Keep only the first ``length`` tokens, also in layers that are further than others."""
        for layer in _growing(self):
            layer.crop(min(length - layer.get_seq_length(), 0))  # a negative number removes tokens from the end
        del self.ids[length:]


def _growing(slot: DynamicSlot) -> list[DynamicLayer]:
    return cast("list[DynamicLayer]", slot.cache.layers)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):  # the states of a Mamba layer
            yield from _tensors(value.values())


class DynamicRunner:
    """A ``Runner`` that keeps ended conversations, up to ``budget_bytes``, and reuses their common prefix."""

    slots = SLOTS

    def __init__(self, loaded: LoadedModel, budget_bytes: int) -> None:
        self._model: Any = loaded.model
        self._kept: PrefixStore[DynamicSlot] = PrefixStore(budget_bytes)
        self._prompts: AbstractContextManager[Any] = nullcontext()
        self._attention: str = self._model.config._attn_implementation
        if loaded.placement.float32_prefill:
            self._prompts = Float32Products()
            if self._attention == "sdpa":
                register_attention()
                self._model.set_attn_implementation(ATTENTION)
        self._checks = LayerChecks(self._model)
        self.context_length = loaded.context_length
        self.chunk = PREFILL_TOKENS
        self.score_chunk = min(self.chunk, score_chunk(self._model.config.vocab_size))
        self.facts: tuple[Fact, ...] = (
            ("KV cache", f"{SLOTS} conversations at a time", "each as large as its text; other requests wait"),
            ("Kept", f"up to {gigabytes(budget_bytes)}", "earlier conversations, so that later turns start faster"),
        )

    def open(self, prompt_ids: Sequence[int], salt: str = "") -> DynamicSlot:
        """See ``Runner.open``.

        If the prompt shares more than half of a stored cache, that cache is used. Otherwise its conversation can still
        continue, so the shared part is copied.
        """
        slot = DynamicSlot(DynamicCache(config=self._model.config), salt=salt)
        kept, shared = self._kept.find(prompt_ids, salt, complete=not slot.croppable)
        if kept is None:
            return slot
        if 2 * shared > len(kept.ids):
            self._kept.take(kept)
            if shared < len(kept.ids):
                kept.crop(shared)
            return kept
        for source, target in zip(_growing(kept), _growing(slot), strict=True):
            keys: Any = source.keys
            values: Any = source.values
            target.update(keys[..., :shared, :], values[..., :shared, :])
        slot.ids = kept.ids[:shared]
        return slot

    def forward(self, slot: DynamicSlot, ids: Sequence[int], check: Callable[[], None]) -> torch.Tensor:
        """See ``Runner.forward``. ``check`` is called before each layer, so that a long chunk can be cancelled."""
        return self._pass(slot, ids, check, keep=1)

    def forward_all(self, slot: DynamicSlot, ids: Sequence[int], check: Callable[[], None]) -> torch.Tensor:
        """See ``Runner.forward_all``."""
        return self._pass(slot, ids, check, keep=len(ids))

    def _pass(self, slot: DynamicSlot, ids: Sequence[int], check: Callable[[], None], keep: int) -> torch.Tensor:
        input_ids = torch.tensor([list(ids)], device=self._model.device)
        one = len(ids) == 1
        try:
            with self._checks.calling(no_check if one else check), nullcontext() if one else self._prompts:
                output = self._model(
                    input_ids=input_ids, past_key_values=slot.cache, use_cache=True, logits_to_keep=keep
                )
        except Cancelled:
            self._restore(slot)
            raise
        except Exception as error:
            if is_out_of_memory(error):
                self._kept.clear()  # free the memory that can be freed
            raise
        slot.ids += ids
        logits: torch.Tensor = output.logits[0, -keep:]
        return logits

    def _restore(self, slot: DynamicSlot) -> None:
        if slot.croppable:
            slot.crop(len(slot.ids))
        else:
            slot.cache, slot.ids = DynamicCache(config=self._model.config), []

    def close(self, slot: DynamicSlot) -> None:
        """See ``Runner.close``."""
        if slot.ids:
            self._kept.put(slot)

    def discard(self, slot: DynamicSlot) -> None:
        """See ``Runner.discard``. The runner has no reference to an open slot."""

    def warm_up(self) -> None:
        """See ``Runner.warm_up``. Computes a short prompt and a token, so that torch does its initial work."""
        slot = DynamicSlot(DynamicCache(config=self._model.config))
        self.forward(slot, [0] * 8, no_check)
        self.forward(slot, [0], no_check)

    def release(self) -> None:
        """See ``Runner.release``. After that, a reference to the runner does not keep the weights."""
        self._kept.clear()
        self._checks.remove()
        if self._model is not None:
            self._model.set_attn_implementation(self._attention)
        self._model = None
