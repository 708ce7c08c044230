"""The errors of an engine, as errors that a user can read."""

from granite_demo.engine.protocol import log
from granite_demo.engine.token_stream import Cancelled
from granite_demo.errors import EngineClosedError, EngineError, GraniteDemoError


def closed_error() -> EngineClosedError:
    """The end of a request whose engine was closed."""
    return EngineClosedError("The model was unloaded or the server is stopping. What was written so far is kept.")


def dead_error() -> EngineError:
    """The end of every request, now and later, of an engine whose GPU is lost."""
    return EngineError("The GPU has failed and the model cannot answer any more. Restart the server.")


def gpu_is_lost(error: BaseException) -> bool:
    """Whether nothing can be computed after ``error``: a device-side assert, say."""
    import torch

    from granite_demo.loading.placement import is_out_of_memory

    # Of the errors of the GPU itself only this one leaves it usable.
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def as_user_error(error: BaseException) -> GraniteDemoError | None:
    """What the reader of a request is told about ``error``; None for a cancelled request."""
    if isinstance(error, Cancelled):
        return None
    if isinstance(error, GraniteDemoError):
        return error
    log.error("Generation failed.", exc_info=error)
    from granite_demo.loading.placement import is_out_of_memory  # torch, which this module is imported without

    if is_out_of_memory(error):
        return EngineError("The model ran out of memory. Use a shorter prompt or fewer new tokens, then try again.")
    return EngineError(
        f"The model failed while generating ({type(error).__name__}). The log has the details. Try again."
    )
