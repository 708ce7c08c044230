"""transformers' continuous batching, set up for a server: the only place that reaches into it (5.23).

What is changed, and why (measured: ``granite_demo bench``; the line numbers are transformers 5.23.0's):

- A cancelled request is marked as finished. Otherwise the batch in flight looks for its blocks, and the loop dies with
  every user's request (KeyError in cache_allocator.py:294; scheduler.py ``clear_cancelled_requests``).
- The blocks of a prompt's last chunk but one are shared, too. Otherwise asynchronous batching forgets them: when their
  step is over, the request already counts as decoding (continuous_api.py ``update_batch``), and of a chat of 8,000
  tokens 2,100 are computed again in every turn.
- Outputs go to one function instead of a queue that requests steal from one another (continuous_api.py:1010).
- Sampling is ours (``batch_sampling``), with graphs of its own where log probabilities are reported.
- A step's inputs are prepared in less time (``batch_inputs``).
- Prefill graphs of the usual sizes are captured in warm-up, not in the first user's request.
"""

import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager, OutputRouter
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler

from granite_demo.engine.batching.cuda_graphs import KEY_GRAIN, QUERY_GRAIN, Graphs, capture, device_ios, usual_steps
from granite_demo.engine.batching.sampler import BatchSampler, Row
from granite_demo.engine.batching.step_inputs import lighten
from granite_demo.loading import gc as garbage

PAGE = 256
"""Tokens in a block of the cache, and so the grain of prefix sharing: the least that FlashAttention 2 reads."""
TURN_SECONDS = 1e-4
"""How long threads of Python may go on while the one of a GPU's model waits. Python's own 5 ms are longer than a step,
which many small pieces of work of page and API would hold up. On a CPU steps are longer, and processors fewer."""


def forget_tensors(error: BaseException | None) -> None:
    """Empty the frames of an exception whose thread has ended: whoever keeps it, as a log may, would keep the cache."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


class Scheduler(FIFOScheduler):
    """First come, first served, decode before prefill; with the two corrections named above."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.asynchronous = False
        """Whether a step is scheduled before the one before it is over."""
        self._in_flight: dict[str, dict[str, int]] = {}
        self.between: Callable[[], None] = lambda: None
        """Called before each step, or ten times a second where there are none, on the loop's thread."""
        super().__init__(*args, **kwargs)

    def clear_cancelled_requests(self) -> list[RequestState]:
        """See the base class. It is the first that is called for a step."""
        self.between()
        cancelled: list[RequestState] = super().clear_cancelled_requests()
        for state in cancelled:
            state.status = RequestStatus.FINISHED
        return cancelled

    def schedule_batch(self, token_budget: int, cache_budget: int) -> Any:
        """See the base class."""
        scheduled = super().schedule_batch(token_budget, cache_budget)
        previous, self._in_flight = self._in_flight, {}
        for future in scheduled[0] or () if self.asynchronous else ():
            name = future.state.request_id
            if not future.has_new_token:
                self._in_flight[name] = future.complete_blocks
            elif name in previous:
                kinds = previous[name].keys() | future.complete_blocks.keys()
                counts = (previous[name], future.complete_blocks)
                future.complete_blocks = {kind: sum(count.get(kind, 0) for count in counts) for kind in kinds}
        return scheduled


class Router(OutputRouter):
    """Hands the outputs of each step to ``receive``, on the loop's thread."""

    def __init__(self, receive: Callable[[list[Any]], None]) -> None:
        super().__init__()
        self._receive = receive

    def deliver(self, output: Any) -> None:
        """See the base class."""
        self._receive([output])

    def deliver_batch(self, outputs: list[Any]) -> None:
        """See the base class."""
        self._receive(outputs)


class Loop:
    """One manager of transformers with its cache, its graphs and its thread."""

    def __init__(
        self,
        model: Any,
        sampler: BatchSampler,
        receive: Callable[[list[Any]], None],
        *,
        tokens: int,
        context: int,
        requests: int,
        prefill: int,
        compile_level: int = 0,
        between: Callable[[], bool] = lambda: False,
    ) -> None:
        """Allocate a cache of ``tokens`` tokens for ``requests`` requests at once; the thread is not started yet.

        ``receive`` is called with the outputs of each step, on the loop's thread; so is ``between``, before each step
        and after each ``wake``, in the order of the steps' own work. It returns whether it wants to be called again
        even if there is no step, and raises nothing. ``context``: the longest request in
        tokens; ``prefill``: the most tokens of one step. ``compile_level`` is that of
        ``ContinuousBatchingConfig.default_compile_level``. Raises MemoryError when the cache does not fit.
        """
        SCHEDULER_MAPPING["granite-demo"] = Scheduler
        graphs = model.device.type == "cuda" and model.config._attn_implementation.startswith("flash")
        config = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=-(-tokens // PAGE),
            max_batch_tokens=prefill,
            max_requests_per_batch=requests,
            max_blocks_per_request=-(-context // PAGE) if graphs else 0,
            use_cuda_graph=(graphs, graphs),
            q_padding_interval_size=QUERY_GRAIN,
            kv_padding_interval_size=KEY_GRAIN,
            default_compile_level=compile_level,
            scheduler_type="granite-demo",
            return_logprobs=True,  # NaN in a row shows here
            auto_switch_to_flash=False,  # would look for a kernel on the hub
            seed=0,  # not used: nothing is drawn
        )
        self._context = context
        self._between = between
        self._sampler = sampler
        generation = GenerationConfig(do_sample=False, eos_token_id=-1)
        make: Any = ContinuousBatchingManager
        self._manager = make(model, generation, config)
        self._manager.output_router = Router(receive)
        self._manager.logit_processor = sampler
        if not self._manager.is_tp_driver:
            # The driver waits for requests; the others wait for the driver, or the first token would come later.
            self._manager._wake_up_loop.set()
            self._manager._wake_up_loop.clear = lambda: None
        self._build()

    def _rebuild(self) -> None:
        self._manager.batch_processor = None
        garbage.release_memory()
        self._build()

    def _build(self) -> None:
        processor = self._manager._create_batch_processor()
        self._manager.batch_processor = processor
        lighten(processor)
        self._sampler.stream = processor.inputs_and_outputs.compute_stream
        processor.scheduler.asynchronous = processor.use_async_batching
        processor.scheduler.between = self._run_between
        for io in self._device_ios():
            io.graphs = Graphs(self._sampler)

    def _run_between(self) -> None:
        with torch.cuda.stream(self._sampler.stream):
            again = self._between()
        if again:
            self.wake()

    def wake(self) -> None:
        """Have ``between`` called soon, though the thread may sleep."""
        self._manager._wake_up_loop.set()

    def _device_ios(self) -> list[Any]:
        return device_ios(self._manager.batch_processor.inputs_and_outputs)

    def warm_up(self) -> int:
        """Capture the graphs that requests need most, and return their number. Others are captured on first use."""
        if not self.wants_graphs:
            return 0
        config = self._manager.continuous_batching_config
        steps = usual_steps(config.max_batch_tokens, config.max_requests_per_batch, self._context)
        expected = len(steps) * len(self._device_ios())
        # A compiled step is compiled once more for the second size, which cannot be captured without running it.
        for quick in (not config.default_compile_level, False):
            capture(self._manager, steps, quick)
            count = sum(len(io.graphs) for io in self._device_ios())
            if count == expected or not quick:
                break
            self._rebuild()  # a capture that failed blocks the memory of the next
        return count

    @property
    def wants_graphs(self) -> bool:
        """Whether steps are to be captured."""
        return bool(self._manager.batch_processor.model_runner.pad_inputs)

    @property
    def busy(self) -> bool:
        """Whether it still computes for a request, cancelled ones included."""
        return bool(self._manager.batch_processor.has_pending_requests())

    def start(self) -> None:
        """Start the thread."""
        if self.wants_graphs:
            sys.setswitchinterval(TURN_SECONDS)
        self._manager.start()

    def is_running(self) -> bool:
        """Whether the thread lives and goes on."""
        return bool(self._manager.is_running()) and self.error is None

    @property
    def error(self) -> BaseException | None:
        """What ended the thread, or is about to: it may still wait for other processes."""
        error: BaseException | None = self._manager.background_thread_status.fatal_error
        return error

    @property
    def is_ending(self) -> bool:
        """Whether an error or ``stop`` ends the thread; without, what failed is one request."""
        status = self._manager.background_thread_status
        return bool(status.local_status != status.DONT_STOP)

    def submit(self, request_id: str, ids: list[int], ends: list[int], row: Row) -> None:
        """Add a request, which yields an output after every token. ``ids`` may hold a part of the answer already."""
        assert row.sampling.max_tokens is not None
        written = len(ids) - row.prompt_length
        state = RequestState(
            request_id=request_id,
            initial_tokens=ids,
            max_new_tokens=row.sampling.max_tokens - written,
            eos_token_id=ends or -1,
            streaming=True,
            logit_processor_kwargs={"row": row},
        )
        self._manager.input_queue.put(state)
        self.wake()

    def cancel(self, request_id: str) -> None:
        """Stop computing for a request. It yields nothing more."""
        self._manager.cancel_request(request_id)

    def ended_by(self) -> BaseException | None:
        """Wait for a thread that is ending, and return the exception that ended it."""
        self._manager.join(time.perf_counter())
        return self.error

    def restart(self) -> None:
        """Start a thread that has ended again, without requests, and with a new cache and new graphs.

        The old ones may be damaged: half-written blocks must not be shared, and a capture that failed blocks its pool.
        """
        forget_tensors(self.error)
        self._manager.background_thread_status.clear()
        for line in (self._manager.input_queue, self._manager.cancel_queue):
            while not line.empty():
                line.get_nowait()
        self._rebuild()
        self.warm_up()
        self._manager.start()

    def stop(self) -> None:
        """End the thread and let go of the model and the cache."""
        if self._manager.is_running():
            self._manager.stop(block=True, hard_stop=True)
        self._manager.destroy()
        del self._manager, self._sampler
