"""The exceptions that reach a user, each with the text to show and the HTTP status to answer with.

    GraniteDemoError                500
    ├── VisitorLimitError           429  a visitor has reached a limit; other visitors are not affected
    ├── InvalidRequestError         400  a value in the request is missing, malformed or out of range
    │   └── ContextOverflowError    400  the prompt and the answer do not fit the context
    ├── ConfigurationError          500  a flag, a variable or the machine cannot be used (exit code 2)
    ├── ModelError                  503  a model cannot be made ready
    │   ├── UnknownModelError       404  no model has this name
    │   ├── GatedModelError         403  the hub needs an accepted licence or a valid token
    │   ├── DownloadError           503  a file cannot be downloaded
    │   ├── ChecksumError           503  a downloaded file has the wrong SHA-256
    │   ├── OutOfMemoryError        507  the model does not fit into the memory of the device
    │   ├── DiskFullError           507  the files of the model do not fit on the disk
    │   ├── CorruptModelError       503  the files on disk are not a usable model
    │   └── LoadCancelledError      503  the load was cancelled
    ├── RemoteError                 502  another server gave no usable answer
    │   ├── RemoteDownError         503  the other server cannot be reached
    │   └── RemoteBusyError         503  the other server accepts no more requests now
    └── EngineError                 500  the generation failed
        ├── EngineBusyError         503  too many requests are waiting
        ├── EngineClosedError       503  the engine was closed while the request ran
        ├── TimeLimitError          503  the answer took longer than the limit
        └── UnsuitableEngineError   500  the engine cannot run the model; another engine is used

A message says what happened and what to do. Only the edge (``ui``, ``server``, ``cli``) converts it to a note on the
page, an HTTP body or an exit code. The number is the status of the HTTP response.
"""

import errno
import logging
import secrets

log = logging.getLogger(__name__)

NO_SPACE = "The disk of the server is full. Try again in a minute."


class GraniteDemoError(Exception):
    """Base of all errors with a message for the user. ``status`` is that of the HTTP response."""

    status = 500

    @property
    def user_text(self) -> str:
        """The message to show: one or two sentences, plain text."""
        return str(self)


class InvalidRequestError(GraniteDemoError):
    """A value in the request is missing, malformed or out of range."""

    status = 400


class VisitorLimitError(GraniteDemoError):
    """This visitor has reached a limit; other visitors are not affected."""

    status = 429


class ContextOverflowError(InvalidRequestError):
    """The prompt leaves no room for an answer."""

    def __init__(self, prompt_tokens: int, context_length: int) -> None:
        super().__init__(
            f"The prompt has {prompt_tokens:,} tokens, but the model's context holds {context_length:,} "
            "including the answer. Shorten the prompt, or start a new conversation."
        )
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length


class ConfigurationError(GraniteDemoError):
    """A flag, a variable or the machine cannot be used."""


class ModelError(GraniteDemoError):
    """A model cannot be made ready."""

    status = 503


class UnknownModelError(ModelError):
    """No model of the catalogue and no local folder has this name."""

    status = 404


class GatedModelError(ModelError):
    """The hub needs an accepted licence or a valid token."""

    status = 403


class DownloadError(ModelError):
    """A file could not be downloaded."""


class ChecksumError(ModelError):
    """A downloaded file has another SHA-256 than the pinned one."""


class OutOfMemoryError(ModelError):
    """The model does not fit into the memory of its device."""

    status = 507


class DiskFullError(ModelError):
    """The files of the model do not fit on the disk."""

    status = 507


class CorruptModelError(ModelError):
    """The files on disk are not a usable model."""


class LoadCancelledError(ModelError):
    """The load was cancelled before the model was ready."""


class RemoteError(GraniteDemoError):
    """Another server gave no usable answer."""

    status = 502

    def __init__(self, text: str, elsewhere: bool = False) -> None:
        """``elsewhere``: another server, or a second attempt a moment later, can succeed."""
        super().__init__(text)
        self.elsewhere = elsewhere


class RemoteDownError(RemoteError):
    """Another server cannot be reached."""

    status = 503

    def __init__(self, text: str) -> None:
        super().__init__(text, elsewhere=True)


class RemoteBusyError(RemoteError):
    """Another server accepts no more requests now."""

    status = 503

    def __init__(self, text: str) -> None:
        super().__init__(text, elsewhere=True)


class EngineError(GraniteDemoError):
    """The generation failed. The request is lost; the engine continues."""


class EngineBusyError(EngineError):
    """Too many requests are waiting, so this one was rejected."""

    status = 503

    def __init__(self, waiting: int) -> None:
        super().__init__(f"The server is busy: {waiting} requests are waiting. Try again in a minute.")
        self.waiting = waiting


class EngineClosedError(EngineError):
    """The engine was closed before the request ended."""

    status = 503


class TimeLimitError(EngineError):
    """The answer took longer than the limit; the text so far stays."""

    status = 503

    def __init__(self, seconds: int) -> None:
        super().__init__(
            f"This server stops an answer after {seconds} seconds. Continue from here, or ask for a shorter answer."
        )


class UnsuitableEngineError(EngineError):
    """The engine cannot run this model. The message is the reason, a clause without a subject."""


def is_full(error: Exception) -> bool:
    """Whether the disk has no room for what ``error`` is about."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def failure_of(error: Exception) -> tuple[int, str]:
    """The HTTP status and the text for the user of an ``error`` that is none of the above."""
    if is_full(error):
        return DiskFullError.status, NO_SPACE
    return GraniteDemoError.status, log_unexpected(error)


def log_unexpected(error: Exception) -> str:
    """Log ``error``, which is none of the above, under a new ID. The text for the user has the ID alone.

    The error's own text stays in the log: it can hold secrets.
    """
    number = secrets.token_hex(4)
    log.error("Request failed. Error ID: %s.", number, exc_info=error)
    return f"Something went wrong on the server. Try again. Error ID: {number}."
