"""Runs a model on static caches with recorded steps, which is fast on a GPU without the package flash-attn.

Each of a few slots has one conversation, up to the full context. To launch the kernels of a step one by one takes
longer than the step itself; a CUDA graph starts them all with one call.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from granite_demo.engine.decoder_layers import LayerChecks, no_check
from granite_demo.engine.interleaved.cuda_graph import GraphRecorder, Record
from granite_demo.engine.interleaved.prefix_cache import common
from granite_demo.engine.interleaved.row_attention import rows_problem
from granite_demo.engine.interleaved.static_cache import forget_states
from granite_demo.engine.interleaved.static_steps import Place, Sizes, Steps
from granite_demo.engine.protocol import score_chunk
from granite_demo.engine.token_stream import Cancelled
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.models.memory import PREFILL_TOKENS
from granite_demo.types.model_status import Fact, gigabytes

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class StaticSlot:
    """The location of a slot in the cache, and the token ids in it."""

    place: Place
    ids: list[int] = field(default_factory=list)
    salt: str = ""
    open: bool = False
    dirty: bool = False
    """Whether a step has failed in it."""
    used: int = 0
    """When it was last used, counted in requests. 0: empty."""


class StaticRunner:
    """A ``Runner``. An ended conversation stays in its slot until another conversation needs the slot.

    ``record`` records steps, or is None. ``rows`` is whether ``row_attention`` is used. The defaults depend on the
    machine. Raises ValueError, with the reason, for a model whose layers cannot have a static cache.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        slots: int,
        *,
        record: Record | Literal["auto"] | None = "auto",
        rows: bool | None = None,
        sizes: Sizes | None = None,
    ) -> None:
        self._model: Any = loaded.model
        self._sdpa_because = "" if rows else "requested" if rows is False else _rows_problem(loaded)
        self._step_by_step_because = _record_problem(loaded) if record == "auto" else "" if record else "requested"
        self._no_chunks_because = ""
        self._record: Record | None = None
        if not self._step_by_step_because:
            self._record = GraphRecorder() if record == "auto" else record
        rows, dtype = not self._sdpa_because, loaded.placement.dtype
        self._steps = Steps(self._model, dtype, loaded.context_length, slots, rows, sizes or Sizes())
        self._slots = [StaticSlot(place) for place in self._steps.places]
        self.context_length = loaded.context_length
        # Fewer tokens are computed in one recorded step, about as fast as a copy. States are not copied.
        self._worth_copying = min(self._steps.sizes.padded) if self._steps.rewinds else self._steps.length + 1
        self._clock = 0
        self._checks = LayerChecks(self._model)
        self.slots = slots
        self.chunk = PREFILL_TOKENS
        self.score_chunk = min(self.chunk, score_chunk(self._model.config.vocab_size))
        self.facts = self._facts()
        """Complete after ``warm_up``."""

    def _facts(self) -> tuple[Fact, ...]:
        size = f"{gigabytes(self._steps.nbytes)}, allocated once; other requests wait"
        attention = "attention with torch's own FlashAttention"
        if self._sdpa_because:
            attention = f"torch's own FlashAttention is not used: {self._sdpa_because}"
        decoding = "step by step", self._step_by_step_because or "no step is recorded yet"
        if self._steps.recorded:
            reasons = ("a token needs one launch instead of hundreds", attention, self._no_chunks_because)
            decoding = f"{self._steps.recorded} CUDA graphs", "; ".join(filter(None, reasons))
        return ("KV cache", f"{self.slots} conversations at a time", size), ("Decoding", *decoding)

    @torch.inference_mode()
    def open(self, prompt_ids: Sequence[int], salt: str = "") -> StaticSlot:
        """See ``Runner.open``.

        If the prompt shares more than half of a slot, that slot is used. Otherwise its conversation can still continue,
        so the shared part is copied to the least recently used slot.
        """
        shared = {slot: self._shared(slot, prompt_ids) if slot.salt == salt else 0 for slot in self._slots}
        free = sorted((slot for slot in self._slots if not slot.open), key=lambda slot: slot.used)
        slot = source = max(free, key=lambda slot: shared[slot])
        if 2 * shared[slot] <= len(slot.ids):
            slot, source = free[0], max(self._slots, key=lambda slot: shared[slot])
        self._rewind(slot, shared[slot])
        if shared[source] - shared[slot] >= self._worth_copying:
            self._steps.copy(source.place, slot.place, shared[source])
            slot.ids = source.ids[: shared[source]]
        self._touch(slot)
        slot.open, slot.salt = True, salt
        return slot

    def _shared(self, slot: StaticSlot, prompt_ids: Sequence[int]) -> int:
        # The logits after the last token are not kept, so at least one token is computed again.
        shared = common(slot.ids, prompt_ids[:-1])
        return shared if self._steps.rewinds or shared == len(slot.ids) else 0

    def _rewind(self, slot: StaticSlot, length: int) -> None:
        if slot.dirty:
            self._steps.wipe(slot.place)
            slot.dirty = False
        if not length:
            forget_states(slot.place.cache)
        del slot.ids[length:]

    def _touch(self, slot: StaticSlot) -> None:
        self._clock += 1
        slot.used = self._clock

    @torch.inference_mode()
    def forward(self, slot: StaticSlot, ids: Sequence[int], check: Callable[[], None]) -> torch.Tensor:
        """See ``Runner.forward``. ``check`` is called before each recorded step, and before each layer otherwise."""
        rest = list(ids)
        with self._reading(slot, len(rest), check):
            for count, size in self._steps.cut(len(slot.ids), len(rest)):
                check()
                logits = self._steps.run(slot.place, len(slot.ids), rest[:count], size)
                slot.ids += rest[:count]
                del rest[:count]
        return logits

    @torch.inference_mode()
    def forward_all(self, slot: StaticSlot, ids: Sequence[int], check: Callable[[], None]) -> torch.Tensor:
        """See ``Runner.forward_all``. This pass is not recorded, because recorded steps keep only the last logits."""
        with self._reading(slot, len(ids), check):
            logits = self._steps.run_for_all(slot.place, len(slot.ids), list(ids))
            slot.ids += ids
        return logits

    @contextmanager
    def _reading(self, slot: StaticSlot, count: int, check: Callable[[], None]) -> Iterator[None]:
        before = len(slot.ids)
        if not count or before + count > self._steps.length:
            raise ValueError(f"{before} and {count} tokens do not fit a slot of {self._steps.length}.")
        try:
            with self._checks.calling(check):
                yield
        except Cancelled:
            self._rewind(slot, before if self._steps.rewinds else 0)
            raise

    def close(self, slot: StaticSlot) -> None:
        """See ``Runner.close``."""
        slot.open = False
        self._touch(slot)

    def discard(self, slot: StaticSlot) -> None:
        """See ``Runner.discard``. The next ``open`` clears the slot."""
        slot.ids, slot.used, slot.open, slot.dirty = [], 0, False, True

    @torch.inference_mode()
    def warm_up(self) -> None:
        """See ``Runner.warm_up``. Allocates the caches and records the steps, if that is possible."""
        for slot in self._slots:
            self.forward(slot, [0] * 8, no_check)
            self.forward(slot, [0], no_check)
        if self._record is not None:
            self._try_to_record(self._record)
        for slot in self._slots:
            self._rewind(slot, 0)
        self.facts = self._facts()

    def _try_to_record(self, record: Record) -> None:
        try:
            self._steps.record_tokens(record)
        except RuntimeError as error:
            self._steps.forget_recorded()
            self._step_by_step_because = _cannot("a step", error)
            return
        try:
            self._steps.record_chunks(record)
        except RuntimeError as error:
            self._steps.forget_recorded(larger_than=1)
            self._no_chunks_because = _cannot("a chunk of a prompt", error)

    def release(self) -> None:
        """See ``Runner.release``. After that, a reference to the runner does not keep the weights."""
        self._steps.release()
        self._record = None
        self._slots.clear()
        self._checks.remove()
        self._model = None


def _rows_problem(loaded: LoadedModel) -> str:
    if loaded.placement.attention == "eager":
        return "the attention is eager"
    if loaded.shape is not None and loaded.shape.mamba:
        return "a hybrid has few layers with attention"
    return rows_problem(loaded.model.config, loaded.model.device, loaded.placement.dtype)


def _record_problem(loaded: LoadedModel) -> str:
    if loaded.model.device.type != "cuda":
        return "CUDA graphs need a CUDA GPU"
    if loaded.placement.spread:
        return "the model is spread over several GPUs"
    if loaded.placement.quantization == "int8":
        return "bitsandbytes' int8 looks for outliers in each layer, for which the GPU has to wait"
    return ""


def _cannot(what: str, error: RuntimeError) -> str:
    cause = error.__context__ or error  # the end of a failed recording fails, too
    reason = f"{what} cannot be recorded: {(str(cause) or type(cause).__name__).splitlines()[0]}"
    log.warning("No CUDA graph: %s", reason)
    return reason
