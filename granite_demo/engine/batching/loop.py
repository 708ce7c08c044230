"""The continuous batching of transformers 5.23, adapted for a server.

The changes (measured with ``granite_demo bench``; the line numbers are those of transformers 5.23.0):

- A cancelled request is marked as finished. Otherwise the batch in flight searches for its blocks, and the loop ends
  with the requests of all users (KeyError in cache_allocator.py:294; scheduler.py ``clear_cancelled_requests``).
- The blocks of the last but one chunk of a prompt are also shared. Otherwise asynchronous batching loses them, because
  the request already counts as decoding when their step ends (continuous_api.py ``update_batch``). In a chat of 8,000
  tokens, each turn then computes 2,100 tokens again.
- Outputs go to one function instead of a queue, from which requests can take each other's outputs
  (continuous_api.py:1010).
- Sampling is that of ``sampler``, with separate graphs for steps with log probabilities.
- Prefixes are shared only between requests with the same salt (``prefix_salt``).
- The inputs of a step are prepared in less time (``step_inputs``).
- The warm-up captures the prefill graphs of the usual sizes, so that the first request does not have to.
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
from granite_demo.engine.batching.prefix_salt import separate_prefixes
from granite_demo.engine.batching.sampler import BatchSampler, Row
from granite_demo.engine.batching.step_inputs import use_host_inputs
from granite_demo.engine.kernels import causal_attention
from granite_demo.engine.kernels.layer import has_paged_attention
from granite_demo.loading import gc as garbage

PAGE = 256
"""The tokens in a block of the cache, which is also the unit of prefix sharing. FlashAttention 2 needs at least 256."""
FLASH_ATTENTION = ("flash_attention_2", "flash_attention_3")
"""The attention implementations with which transformers decodes over pages of the cache."""
TURN_SECONDS = 1e-4
"""The thread switch interval of Python with CUDA graphs. The default of 5 ms is longer than a step, so the many small
tasks of page and API would delay the model's thread. On a CPU, steps are longer and there are fewer cores."""


def forget_tensors(error: BaseException | None) -> None:
    """Clear the frames of an exception whose thread has ended. A reference to it, for example in a log, then no longer
    keeps the cache in memory."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


class Scheduler(FIFOScheduler):
    """First come, first served, decode before prefill, with the two corrections above."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.asynchronous = False
        """Whether a step is scheduled before the previous one ends."""
        self._in_flight: dict[str, dict[str, int]] = {}
        self.before_step: Callable[[], None] = lambda: None
        """Called on the thread of the loop before each step, or ten times per second if there are no steps."""
        super().__init__(*args, **kwargs)

    def clear_cancelled_requests(self) -> list[RequestState]:
        """See the base class. This is the first call of a step."""
        self.before_step()
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
    """Passes the outputs of each step to ``receive``, on the thread of the loop."""

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
    """A ``ContinuousBatchingManager`` with its cache, its graphs and its thread."""

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
        before_step: Callable[[], bool] = lambda: False,
    ) -> None:
        """Allocate a cache of ``tokens`` tokens for up to ``requests`` requests. The thread does not start here.

        ``receive`` is called with the outputs of each step, on the thread of the loop. ``before_step`` is called on the
        same thread before each step and after each ``wake``. It returns whether it must be called again even if there
        is no step, and it must not raise. ``context`` is the longest request in tokens, and ``prefill`` is the maximum
        number of tokens in a step. ``compile_level`` is ``ContinuousBatchingConfig.default_compile_level``. Raises
        MemoryError if the cache does not fit.
        """
        SCHEDULER_MAPPING["granite-demo"] = Scheduler
        on_gpu, attention = model.device.type == "cuda", model.config._attn_implementation
        flash = on_gpu and attention.startswith(FLASH_ATTENTION)
        own = on_gpu and not flash and has_paged_attention(model)
        graphs, blocks = flash or own, -(-context // PAGE)
        config = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=-(-tokens // PAGE),
            max_batch_tokens=prefill,
            max_requests_per_batch=requests,
            max_blocks_per_request=blocks if flash else 0,
            use_cuda_graph=(graphs, graphs),
            q_padding_interval_size=QUERY_GRAIN,
            kv_padding_interval_size=KEY_GRAIN,
            default_compile_level=compile_level,
            scheduler_type="granite-demo",
            return_logprobs=True,  # they show NaN in a row
            auto_switch_to_flash=False,  # True searches for a kernel on the hub
            seed=0,  # not used
        )
        self._context = context
        self._before_step = before_step
        self._sampler = sampler
        self._model_config, self._attention = model.config, attention
        if own:
            causal_attention.register()
            model.config._attn_implementation = causal_attention.NAME
        try:
            self._start_manager(model, config, receive, own * blocks)
        except BaseException:
            self._restore_attention()
            raise

    def _start_manager(
        self, model: Any, config: ContinuousBatchingConfig, receive: Callable[[list[Any]], None], own_blocks: int
    ) -> None:
        generation = GenerationConfig(do_sample=False, eos_token_id=-1)
        make: Any = ContinuousBatchingManager
        self._manager = make(model, generation, config)
        if own_blocks:  # transformers allows page tables only with FlashAttention
            self._manager.continuous_batching_config.max_blocks_per_request = own_blocks
        self._manager.output_router = Router(receive)
        self._manager.logit_processor = self._sampler
        if not self._manager.is_tp_driver:
            # Only the driver waits for requests. Otherwise the first token would come later.
            self._manager._wake_up_loop.set()
            self._manager._wake_up_loop.clear = lambda: None
        self._build()

    def _restore_attention(self) -> None:
        if self._model_config._attn_implementation == causal_attention.NAME:
            self._model_config._attn_implementation = self._attention

    def _rebuild(self) -> None:
        self._manager.batch_processor = None
        garbage.release_memory()
        self._build()

    def _build(self) -> None:
        processor = self._manager._create_batch_processor()
        self._manager.batch_processor = processor
        use_host_inputs(processor)
        separate_prefixes(processor.cache)
        self._sampler.stream = processor.inputs_and_outputs.compute_stream
        processor.scheduler.asynchronous = processor.use_async_batching
        processor.scheduler.before_step = self._run_before_step
        for io in self._device_ios():
            io.graphs = Graphs(self._sampler)

    def _run_before_step(self) -> None:
        with torch.cuda.stream(self._sampler.stream):
            again = self._before_step()
        if again:
            self.wake()

    def wake(self) -> None:
        """Make the loop call ``before_step`` soon, even if its thread sleeps."""
        self._manager._wake_up_loop.set()

    def _device_ios(self) -> list[Any]:
        return device_ios(self._manager.batch_processor.inputs_and_outputs)

    def warm_up(self) -> int:
        """Capture the most frequent graphs and return their number. Others are captured on first use."""
        if not self.wants_graphs:
            return 0
        config = self._manager.continuous_batching_config
        steps = usual_steps(config.max_batch_tokens, config.max_requests_per_batch, self._context)
        expected = len(steps) * len(self._device_ios())
        # A compiled step is compiled again for the second size, and must run for that before it can be captured.
        for quick in (not config.default_compile_level, False):
            capture(self._manager, steps, quick)
            count = sum(len(io.graphs) for io in self._device_ios())
            if count == expected or not quick:
                break
            self._rebuild()  # a failed capture blocks the memory pool of the next
        return count

    @property
    def wants_graphs(self) -> bool:
        """Whether steps use CUDA graphs."""
        return bool(self._manager.batch_processor.model_runner.pad_inputs)

    def start(self) -> None:
        """Start the thread."""
        if self.wants_graphs:
            sys.setswitchinterval(TURN_SECONDS)
        self._manager.start()

    def is_running(self) -> bool:
        """Whether the thread runs and has no error."""
        return bool(self._manager.is_running()) and self.error is None

    @property
    def error(self) -> BaseException | None:
        """The error that ended the thread or ends it soon. The thread can still wait for other processes."""
        error: BaseException | None = self._manager.background_thread_status.fatal_error
        return error

    @property
    def is_ending(self) -> bool:
        """Whether an error or ``stop`` ends the thread. If not, only one request has failed."""
        status = self._manager.background_thread_status
        return bool(status.local_status != status.DONT_STOP)

    def submit(self, request_id: str, ids: list[int], ends: list[int], row: Row) -> None:
        """Add a request, which gives an output after every token. ``ids`` can contain a part of the answer."""
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
        """Stop a request. It gives no more outputs."""
        self._manager.cancel_request(request_id)

    def ended_by(self) -> BaseException | None:
        """Wait until the thread has ended, and return its error."""
        self._manager.join(time.perf_counter())
        return self.error

    def restart(self) -> None:
        """Start an ended thread again, without requests, and with a new cache and new graphs.

        The old ones can be damaged: partly written blocks must not be shared, and a failed capture blocks its pool.
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
        """End the thread and drop the references to the model and the cache."""
        if self._manager.is_running():
            self._manager.stop(block=True, hard_stop=True)
        self._manager.destroy()
        self._restore_attention()
        del self._manager, self._sampler
