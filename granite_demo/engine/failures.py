"""Converts the errors of an engine into errors for the user."""

from granite_demo.engine.protocol import log
from granite_demo.engine.token_stream import Cancelled
from granite_demo.errors import EngineClosedError, EngineError, GraniteDemoError


def closed_error() -> EngineClosedError:
    """Return the error for the requests of a closed engine."""
    return EngineClosedError("The model was unloaded or the server is stopping. The text so far is kept.")


def dead_error() -> EngineError:
    """Return the error for all requests, current and later ones, of an engine whose GPU is lost."""
    return EngineError("The GPU has failed and the model cannot answer. Restart the server.")


def gpu_is_lost(error: BaseException) -> bool:
    """Whether no computation is possible after ``error``, for example a device-side assert."""
    import torch

    from granite_demo.loading.device import is_out_of_memory

    # Out of memory is the only error of the GPU after which it can still compute.
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def as_user_error(error: BaseException) -> GraniteDemoError | None:
    """Return the error for the reader of a request, or None for a cancelled request. Logs unexpected errors."""
    if isinstance(error, Cancelled):
        return None
    if isinstance(error, GraniteDemoError):
        return error
    log.error("Generation failed.", exc_info=error)
    from granite_demo.loading.device import is_out_of_memory  # this module is imported without torch

    if is_out_of_memory(error):
        return EngineError("The model ran out of memory. Use a shorter prompt or fewer new tokens, then try again.")
    return EngineError(
        f"The model failed while generating ({type(error).__name__}). The log has the details. Try again."
    )
