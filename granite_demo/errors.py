"""The exceptions that reach a user, each with the text to show and the HTTP status to answer with.

    GraniteDemoError                500
    ├── VisitorLimitError           429  this visitor asks for too much at once
    ├── InvalidRequestError         400  the request cannot be served as it is
    │   └── ContextOverflowError    400  prompt and answer do not fit the context
    ├── ConfigurationError          500  a flag, a variable or the machine is not usable (exit code 2)
    ├── ModelError                  503  a model cannot be made ready
    │   ├── UnknownModelError       404
    │   ├── GatedModelError         403  the hub wants an accepted licence or a valid token
    │   ├── DownloadError           503  no network, or the source refused
    │   ├── ChecksumError           503  a downloaded file is not the expected one
    │   ├── OutOfMemoryError        507  it does not fit into the memory of the device
    │   ├── DiskFullError           507
    │   ├── CorruptModelError       503  files on disk cannot be read as a model
    │   └── LoadCancelledError      503  somebody cancelled the load
    ├── RemoteError                 502  another server did not answer as it should
    │   ├── RemoteDownError         503  it cannot be reached
    │   └── RemoteBusyError         503  it takes no more requests now
    └── EngineError                 500  the generation thread failed
        ├── EngineBusyError         503  too many requests wait already
        ├── EngineClosedError       503  the engine was closed while the request ran
        ├── TimeLimitError          503  an answer took longer than this server allows
        └── UnsuitableEngineError   500  this engine cannot run this model; another one is taken

Messages say what happened and what to do. They are converted to a toast, an HTTP body or an exit code only at
the edge (``ui``, ``server``, ``cli``).
"""


class GraniteDemoError(Exception):
    """Base of all errors whose message is written for the user."""

    status = 500

    @property
    def user_text(self) -> str:
        """The message to show: one or two sentences, plain text."""
        return str(self)


class InvalidRequestError(GraniteDemoError):
    """A value in the request is missing, malformed or out of range."""

    status = 400


class VisitorLimitError(GraniteDemoError):
    """This visitor has asked for as much as one may; the others go on."""

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
    """The process was started with settings that cannot work."""


class ModelError(GraniteDemoError):
    """A model cannot be made ready."""

    status = 503


class UnknownModelError(ModelError):
    """No registry row and no local folder has this name."""

    status = 404


class GatedModelError(ModelError):
    """The hub refuses the files until a licence is accepted or a valid token is given."""

    status = 403


class DownloadError(ModelError):
    """A file could not be fetched."""


class ChecksumError(ModelError):
    """A fetched file has another SHA-256 than the pinned one."""


class OutOfMemoryError(ModelError):
    """A model does not fit into the memory of its device."""

    status = 507


class DiskFullError(ModelError):
    """There is not enough room for a model's files."""

    status = 507


class CorruptModelError(ModelError):
    """Files on disk cannot be read as a model."""


class LoadCancelledError(ModelError):
    """The load was cancelled before the model was ready."""


class RemoteError(GraniteDemoError):
    """Another server did not answer as it should."""

    status = 502

    def __init__(self, text: str, elsewhere: bool = False) -> None:
        """``elsewhere``: another server, or the same one a moment later, may do better."""
        super().__init__(text)
        self.elsewhere = elsewhere


class RemoteDownError(RemoteError):
    """Another server cannot be reached."""

    status = 503

    def __init__(self, text: str) -> None:
        super().__init__(text, elsewhere=True)


class RemoteBusyError(RemoteError):
    """Another server takes no more requests now."""

    status = 503

    def __init__(self, text: str) -> None:
        super().__init__(text, elsewhere=True)


class EngineError(GraniteDemoError):
    """The generation thread failed; the request is lost, the engine lives on."""


class EngineBusyError(EngineError):
    """Too many requests wait already; this one was not taken."""

    status = 503

    def __init__(self, waiting: int) -> None:
        super().__init__(f"The server is busy: {waiting} requests wait already. Try again in a minute.")
        self.waiting = waiting


class EngineClosedError(EngineError):
    """The engine was closed before the request ended."""

    status = 503


class TimeLimitError(EngineError):
    """An answer took longer than this server allows; what was written stays."""

    status = 503

    def __init__(self, seconds: int) -> None:
        super().__init__(
            f"This server ends an answer after {seconds} seconds. Go on from here, or ask for a shorter one."
        )


class UnsuitableEngineError(EngineError):
    """An engine cannot run the model it was made for. The message is the reason, as half a sentence."""
