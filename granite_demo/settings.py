"""The settings of one process: flags over environment over defaults. The only reader of the environment.

Per-visitor preferences live in the page, and what one request asks for in ``SamplingParams``; neither belongs here.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import platformdirs

from granite_demo.errors import ConfigurationError
from granite_demo.types.load_options import Attention, Device, Dtype, EngineName, LoadOptions, Quantization

LogLevel = Literal["debug", "info", "warning", "error"]

PREFIX = "GRANITE_DEMO_"
HUB_TOKEN = "HF_TOKEN"
SECRETS = (HUB_TOKEN, *(f"{PREFIX}{name}" for name in ("ADMIN_TOKEN", "API_KEY", "LOGIN", "BACKEND_KEY")))
"""Variables that a server forgets once it has read them: what runs in it or is started by it has no use for them."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LIMITS = {"context": 10_000_000, "visitor_tokens": 10_000_000, "answer_seconds": 86_400}
PROXIES = "127.0.0.1"
SPACE_PROXIES = "127.0.0.1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16"
"""A Space is reached through its own network only."""
STORAGE = Path("/data")
"""Where a Hugging Face Space mounts its persistent storage, if it has one."""


def _option(default: Any, help_text: str, env: str | None = None) -> Any:
    return field(default=default, metadata={"help": help_text, "env": env})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the process was started with. Each field has a flag and a ``GRANITE_DEMO_*`` variable of its name."""

    model: str = _option("auto", "A model of the registry, a folder with a checkpoint, or auto.")
    host: str = _option("127.0.0.1", "Address to listen on.")
    port: int = _option(7860, "Port to listen on.")
    device: Device = _option("auto", "Where the model runs.")
    dtype: Dtype = _option("auto", "The precision of its weights.")
    quantization: Quantization = _option("auto", "Quantize the weights with bitsandbytes.")
    attention: Attention = _option("auto", "The attention implementation.")
    keep_quantized: Literal["no", "yes"] = _option("no", "Save a copy of a model that was quantized, to load faster.")
    engine: EngineName = _option("auto", "What runs the model: batching, static, dynamic, gguf or zerogpu.")
    compile: Literal["no", "yes"] = _option(
        "no", "Compile the decode step where its layers cannot be fused: faster, but a minute later ready."
    )
    context: int = _option(0, "Limit the context to this many tokens; 0 takes what the model allows and fits.")
    revision: str = _option("", "A branch, tag or commit of the model's repository; empty is the main branch.")
    idle_minutes: int = _option(0, "Unload a model that nobody used for so long; 0 never does.")
    threads: int = _option(0, "CPU threads for the model; 0 measures how many are fastest.")
    admin_token: str = _option("", "Who knows it may load other models on a public page; without it nobody may.")
    api_key: str = _option("", "Who uses the HTTP API has to send it as a bearer token; without it everybody may.")
    login: str = _option("", "Who sees the page has to log in: NAME:PASSWORD, several of them parted by commas.")
    share: Literal["no", "yes"] = _option("no", "Make a link through which others reach the page; it is public then.")
    visitor_answers: int = _option(0, "Answers at once for one visitor; 0 is 2 on a public page, else no limit.")
    visitor_waiting: int = _option(0, "More of their requests that may wait; 0 is 4 on a public page.")
    visitor_tokens: int = _option(0, "Tokens a minute for one visitor; 0 is 20000 on a public page, else no limit.")
    answer_seconds: int = _option(0, "The longest that an answer may take; 0 is 300 on a public page, else no limit.")
    allowed_hosts: str = _option(
        "", "Names under which the server answers, parted by commas; empty is any, or on this machine alone its own."
    )
    trusted_proxies: str = _option(PROXIES, "Proxies, or networks of them, whose X-Forwarded-For is believed.")
    backend: str = _option("", "Answer with other servers that speak OpenAI's API: their addresses, parted by commas.")
    backend_key: str = _option("", "The key that these servers want.")
    backend_model: str = _option("", "Which of their models to ask for; without it the first one that they list.")
    beside: str = _option("", "Another server that speaks OpenAI's API, to be asked side by side: its address.")
    beside_key: str = _option("", "The key that it wants.")
    log_level: LogLevel = _option("info", "How much the terminal shows.")
    cache_dir: Path = _option(
        platformdirs.user_cache_path("granite-demo"), "Folder for downloaded and converted models.", "CACHE"
    )

    space: bool = field(default=False, metadata={"help": "", "env": None, "flag": False})
    """Whether this is a Hugging Face Space, which sets SPACE_ID."""
    processes: int = field(default=1, metadata={"flag": False})
    """Processes that share one model: torchrun starts them and sets WORLD_SIZE, RANK and LOCAL_RANK."""
    rank: int = field(default=0, metadata={"flag": False})
    """Which of them this is; 0 serves the page."""
    local_rank: int = field(default=0, metadata={"flag": False})
    """The same on this machine: the number of its GPU."""

    @property
    def public(self) -> bool:
        """Whether strangers can reach the page: on a Space, by a link, or on an address not this machine's own."""
        return self.space or self.share == "yes" or self.host not in LOOPBACK

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no log may tell."""
        passwords = (part.partition(":")[2] for part in self.login.split(","))
        return tuple(filter(None, (self.admin_token, self.api_key, self.backend_key, self.beside_key, *passwords)))

    @classmethod
    def resolve(cls, flags: Mapping[str, Any], environ: Mapping[str, str]) -> "Settings":
        """Merge ``flags`` (None means not given) over ``environ`` over the defaults. Raises ConfigurationError."""
        values: dict[str, Any] = {**_on_a_space(environ), **_place_in_group(environ)}
        for option in fields(cls):
            if not option.metadata.get("flag", True):
                continue
            variable = variable_name(option.name)
            if flags.get(option.name) is not None:
                source, value = f"--{option.name.replace('_', '-')}", flags[option.name]
            elif environ.get(variable):
                source, value = variable, environ[variable]
            else:
                continue
            values[option.name] = _cast(option.name, source, value, option.type)
        if values.get("processes", 1) > 1 and values.get("idle_minutes"):
            raise ConfigurationError(
                "A model that several processes share cannot be unloaded. Leave --idle-minutes out."
            )
        return cls(**values)

    def load_options(self) -> LoadOptions:
        """The part that says which model to load and how."""
        return LoadOptions(
            model=self.model,
            revision=self.revision or None,
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            attention=self.attention,
            context=self.context or None,
            keep_quantized=self.keep_quantized == "yes",
            engine=self.engine,
            compile=self.compile == "yes",
        )

    def as_flags(self, *names: str) -> list[str]:
        """The command line that gives a new process the values of these fields."""
        return [part for name in names for part in (f"--{name.replace('_', '-')}", str(getattr(self, name)))]


def variable_name(option_name: str) -> str:
    """The environment variable of a field, such as ``GRANITE_DEMO_PORT``."""
    option = next(option for option in fields(Settings) if option.name == option_name)
    return PREFIX + (option.metadata["env"] or option_name.upper())


def _on_a_space(environ: Mapping[str, str]) -> dict[str, Any]:
    """A Space's defaults: its proxy reaches the page, and what is fetched goes to the storage, if there is one."""
    if not environ.get("SPACE_ID"):
        return {}
    kept = {"cache_dir": STORAGE / "granite-demo"} if os.access(STORAGE, os.W_OK | os.X_OK) else {}
    lent = environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
    engine = {"engine": "zerogpu"} if lent else {}
    return {"space": True, "host": "0.0.0.0", "trusted_proxies": SPACE_PROXIES, **engine, **kept}


def _place_in_group(environ: Mapping[str, str]) -> dict[str, int]:
    """The variables that torchrun sets. Raises ConfigurationError where some are missing."""
    if environ.get("WORLD_SIZE", "1") == "1":
        return {}
    names = {"processes": "WORLD_SIZE", "rank": "RANK", "local_rank": "LOCAL_RANK"}
    try:
        return {name: int(environ[variable]) for name, variable in names.items()}
    except (KeyError, ValueError):
        raise ConfigurationError(
            "WORLD_SIZE is set, but RANK and LOCAL_RANK are not numbers. Use torchrun to start several processes."
        ) from None


def _cast(option_name: str, source: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ConfigurationError(f"{source} must be one of {', '.join(get_args(kind))}, not {value!r}.")
        return value
    if kind is Path:
        try:
            return Path(value).expanduser()
        except RuntimeError:
            raise ConfigurationError(f"{source} names a home folder that does not exist: {value}.") from None
    if kind is int:
        try:
            number = int(value)
        except ValueError:
            raise ConfigurationError(f"{source} must be a whole number, not {value!r}.") from None
        limit = LIMITS.get(option_name, 65535)
        if not 0 <= number <= limit:
            raise ConfigurationError(f"{source} must be between 0 and {limit}, not {number}.")
        return number
    return value


def help_text(option_name: str) -> str:
    """The help of a field's flag, with its default and variable."""
    option = next(option for option in fields(Settings) if option.name == option_name)
    return f"{option.metadata['help']} Default: {option.default or 'none'}. Variable: {variable_name(option_name)}."
