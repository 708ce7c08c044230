"""Who may reach the application and with how much, from the process's settings."""

from dataclasses import dataclass

from granite_demo.access import Limits
from granite_demo.errors import ConfigurationError
from granite_demo.settings import LOOPBACK, Settings

MAX_BODY = 8 * 2**20
"""Bytes of one request. Uploads have their own limit, which Gradio keeps."""
PUBLIC_MAX_BODY = 2 * 2**20
"""The same where strangers send it: a conversation with all the documents that it may have is smaller."""
PUBLIC_DIRECT = 24
"""A page has a few at a time, and several people may share an address. There are threads for 40."""
PUBLIC_LIMITS = Limits(running=2, waiting=4, tokens=20_000, seconds=300, characters=1_000_000, reload=60)
"""One visitor of a public page: two answers side by side and four samples, and some 300 tokens/s for a minute."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one server. The defaults are those of a test: nobody is kept out."""

    api_key: str = ""
    """Who uses the API has to send it; empty lets everybody in, unless there are ``logins``."""
    logins: tuple[tuple[str, str], ...] = ()
    """(name, password) of those who may see the page; empty is everybody."""
    hosts: tuple[str, ...] = ()
    """The names under which the server answers; empty is any."""
    max_body: int = MAX_BODY
    direct: int = 0
    """Direct events of the page that one visitor may have running; 0 is any number."""


def policy_of(settings: Settings) -> Policy:
    """The rules that ``settings`` ask for. Raises ConfigurationError."""
    hosts = tuple(name.strip().lower() for name in settings.allowed_hosts.split(",") if name.strip())
    if not hosts and not settings.public:
        # Else a page elsewhere could give its own name this machine's address, and read what is answered.
        hosts = (settings.host.lower(),)
    max_body = PUBLIC_MAX_BODY if settings.public else MAX_BODY
    direct = PUBLIC_DIRECT if settings.public else 0
    return Policy(settings.api_key, _logins(settings.login), _reachable(hosts), max_body, direct)


def _reachable(hosts: tuple[str, ...]) -> tuple[str, ...]:
    """``hosts`` and this machine's own names, which a container's health check uses and no page elsewhere has."""
    return () if not hosts or "*" in hosts else (*hosts, *LOOPBACK)


def limits_of(settings: Settings) -> Limits:
    """What one visitor may have: as ``settings`` say, else by default where strangers come, else without limits."""
    default = PUBLIC_LIMITS if settings.public else Limits()
    return Limits(
        settings.visitor_answers or default.running,
        settings.visitor_waiting or default.waiting,
        settings.visitor_tokens or default.tokens,
        settings.answer_seconds or default.seconds,
        default.characters,
        default.reload,
    )


def _logins(text: str) -> tuple[tuple[str, str], ...]:
    found = []
    for part in filter(None, text.split(",")):
        name, _, password = part.partition(":")
        if not name.strip() or not password:
            raise ConfigurationError("--login takes NAME:PASSWORD, several of them parted by commas.")
        found.append((name.strip(), password))
    return tuple(found)
