"""The rules of one server, from the settings: who may reach it, and with which limits."""

from dataclasses import dataclass

from granite_demo.access import Limits
from granite_demo.errors import ConfigurationError
from granite_demo.settings import LOOPBACK, Settings
from granite_demo.ui.gradio_patches.queue import PUBLIC_UNREAD_SECONDS, UNREAD_SECONDS

MAX_BODY = 8 * 2**20
"""Bytes of one request. Uploads have a limit of their own, which Gradio enforces."""
PUBLIC_MAX_BODY = 2 * 2**20
"""The same on a public server. A conversation with the largest allowed documents is smaller."""
PUBLIC_DIRECT = 24
"""Direct events of one visitor on a public server. A page has a few at a time, several people can share an address,
and 40 threads run them."""
PUBLIC_BYTES = 48 * 2**20
"""A page sends its conversation with each question and each pause in typing: some 20 kB."""
PUBLIC_LIMITS = Limits(
    running=2, waiting=4, tokens=20_000, seconds=300, characters=1_000_000, own_prefixes=True, reload=60
)
"""Enough for two answers side by side, four samples, and about 300 tokens/s for a minute."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one server. The defaults keep nobody out."""

    api_key: str = ""
    """Required by the API. Empty: the API is open, or closed if there are ``logins``."""
    logins: tuple[tuple[str, str], ...] = ()
    """(name, password) of those who may open the page. Empty: everybody."""
    hosts: tuple[str, ...] = ()
    """The host names under which the server answers. Empty: any."""
    max_body: int = MAX_BODY
    direct: int = 0
    """Direct events of the page that one visitor may run at the same time. 0: no limit."""
    queued: int = 0
    """Events of one visitor in the queue of the page, waiting or running. 0: no limit."""
    bytes: int = 0
    """Bytes that one visitor may send in a minute, files not counted. 0: no limit."""
    unread: float = UNREAD_SECONDS
    """Seconds after which the answers end of a page that does not read them."""


def policy_of(settings: Settings) -> Policy:
    """The rules in ``settings``. Raises ConfigurationError for a malformed login."""
    hosts = tuple(name.strip().lower() for name in settings.allowed_hosts.split(",") if name.strip())
    if not hosts and not settings.public:
        # Else another site could point its own name to this machine (DNS rebinding) and read the answers.
        hosts = (settings.host.lower(),)
    max_body = PUBLIC_MAX_BODY if settings.public else MAX_BODY
    direct = PUBLIC_DIRECT if settings.public else 0
    limits = limits_of(settings)
    queued = limits.running + limits.waiting if limits.running else 0
    sent = PUBLIC_BYTES if settings.public else 0
    unread = PUBLIC_UNREAD_SECONDS if settings.public else UNREAD_SECONDS
    return Policy(settings.api_key, _logins(settings.login), _reachable(hosts), max_body, direct, queued, sent, unread)


def _reachable(hosts: tuple[str, ...]) -> tuple[str, ...]:
    """``hosts`` and the loopback names, which health checks of containers use and no other site can have."""
    return () if not hosts or "*" in hosts else (*hosts, *LOOPBACK)


def limits_of(settings: Settings) -> Limits:
    """The limits of one visitor: those in ``settings``, else ``PUBLIC_LIMITS`` on a public server, else none."""
    default = PUBLIC_LIMITS if settings.public else Limits()
    return Limits(
        settings.visitor_answers or default.running,
        settings.visitor_waiting or default.waiting,
        settings.visitor_tokens or default.tokens,
        settings.answer_seconds or default.seconds,
        default.characters,
        default.own_prefixes,
        default.reload,
    )


def _logins(text: str) -> tuple[tuple[str, str], ...]:
    found = []
    for part in filter(None, text.split(",")):
        name, _, password = part.partition(":")
        if not name.strip() or not password:
            raise ConfigurationError("--login takes NAME:PASSWORD, or several of them, comma-separated.")
        found.append((name.strip(), password))
    return tuple(found)
