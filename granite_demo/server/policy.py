"""The rules of one server, from the settings: who may reach it, and with which limits."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from granite_demo.access import Limits
from granite_demo.errors import ConfigurationError
from granite_demo.settings import LOOPBACK, PROXIES, Settings

MAX_BODY = 8 * 2**20
"""Bytes of one request. Uploads have a limit of their own, which Gradio enforces."""
PUBLIC_MAX_BODY = 2 * 2**20
"""The same on a public server. A conversation with the largest allowed documents is smaller."""
PUBLIC_LIMITS = Limits(
    running=2, waiting=4, tokens=20_000, seconds=300, characters=1_000_000, own_prefixes=True, reload=60
)
"""Enough for two answers side by side, four samples, and about 300 tokens/s for a minute."""
UNREAD_SECONDS, PUBLIC_UNREAD_SECONDS = 15.0, 5.0
"""A page that does not read its messages for so long is gone: its answers end, and its messages are deleted."""
SPACES = "https://huggingface.co"
"""The site that shows a Space in a frame."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What one address can use, whoever is behind it. 0: no limit."""

    requests: int = 0
    """Per minute, of all kinds. The page needs about 100 to open."""
    events: int = 0
    """Events of the page per minute. A page reads the state of the model up to 60 times a minute."""
    uploads: int = 0
    """Per minute."""
    pages: int = 0
    """Pages that are opened per minute."""
    sessions: int = 0
    """New sessions per minute. A page that is opened begins one."""
    bytes: int = 0
    """Per minute, files not counted. A page sends its conversation with each question and each pause in typing: some
    20 kB. To read JSON takes time of the event loop, which serves everybody; see ``json_body.MAX_VALUES``."""
    open: int = 0
    """Requests at the same time. A page holds two."""
    direct: int = 0
    """Events at the same time that Gradio runs without its queue, on 40 threads for all visitors."""
    connections: int = 0
    """Connections at the same time. Those of a trusted proxy do not count."""
    new_connections: int = 0
    """Per minute."""


PUBLIC_QUOTA = Quota(
    requests=6_000,
    events=1_200,
    uploads=60,
    pages=60,
    sessions=60,
    bytes=48 * 2**20,
    open=200,
    direct=12,
    connections=256,
    new_connections=3_000,
)
"""Enough for a class of thirty at one address."""


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
    queued: int = 0
    """Events of one visitor in the queue of the page, waiting or running. 0: no limit."""
    unread: float = UNREAD_SECONDS
    """Seconds after which the answers end of a page that does not read them."""
    quota: Quota = field(default_factory=Quota)
    origins: tuple[str, ...] = ()
    """The origins whose pages can call the server (CORS). Empty: only the server's own page can."""
    proxies: str = PROXIES
    """Comma-separated addresses and networks whose X-Forwarded headers are trusted."""
    framed_by: str = ""
    """The site that can show the page in a frame. Empty: none."""


def policy_of(settings: Settings) -> Policy:
    """The rules in ``settings``. Raises ConfigurationError for a malformed login or origin."""
    hosts = tuple(_names(settings.allowed_hosts))
    if not hosts and not settings.public:
        # Else another site could point its own name to this machine (DNS rebinding) and read the answers.
        hosts = (settings.host.lower(),)
    limits = limits_of(settings)
    return Policy(
        settings.api_key,
        _logins(settings.login),
        _reachable(hosts),
        PUBLIC_MAX_BODY if settings.public else MAX_BODY,
        limits.running + limits.waiting if limits.running else 0,
        PUBLIC_UNREAD_SECONDS if settings.public else UNREAD_SECONDS,
        PUBLIC_QUOTA if settings.public else Quota(),
        tuple(map(_origin, _names(settings.allowed_origins))),
        settings.trusted_proxies,
        SPACES if settings.space else "",
    )


def _names(text: str) -> list[str]:
    return [name.strip().lower() for name in text.split(",") if name.strip()]


def _origin(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or text != f"{parts.scheme}://{parts.netloc}" or not parts.netloc:
        raise ConfigurationError(
            f"--allowed-origins takes origins such as https://demo.example.org, comma-separated, not {text!r}."
        )
    return text


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
