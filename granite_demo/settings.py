"""The options of the program, once: flags, environment variables, documentation and secrets come from one table.

No other module reads the environment. The preferences of a visitor are part of the page, and those of one request are
``SamplingParams``.
"""

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import platformdirs

from granite_demo.errors import ConfigurationError
from granite_demo.types.engine_kinds import ZEROGPU, EngineName
from granite_demo.types.load_options import Attention, Device, Dtype, KvCache, LoadOptions, Quantization

LogLevel = Literal["debug", "info", "warning", "error"]

PREFIX = "GRANITE_DEMO_"
HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""The variables from which huggingface_hub takes its token, the first one that is set."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROXIES = "127.0.0.1"
SPACE_PROXIES = "127.0.0.1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16"
"""A Space can only be reached through its own network."""
STORAGE = Path("/data")
"""The folder where a Hugging Face Space mounts its persistent storage, if it has one."""

ASK = ("serve", "complete", "chat", "score", "doctor", "bench", "replay")
"""The commands that use one model, either here or on another server."""
LOAD = (*ASK, "compare")
"""The commands that load a model."""


@dataclass(frozen=True, slots=True)
class Option:
    """A row of the table: what a field of ``Settings`` is on the command line, in the environment and in the docs."""

    name: str
    kind: Any
    default: Any
    help: str
    commands: tuple[str, ...]
    """The commands with this flag."""
    secret: bool = False
    """A server deletes it from its environment and masks it in its log."""
    maximum: int = 65535
    """Of a number."""
    short: str = ""
    """Stands for the name in the environment variable."""
    client: str = ""
    """Stands for the name in the flag of all commands but ``serve``."""

    @property
    def variable(self) -> str:
        """The environment variable, such as ``GRANITE_DEMO_PORT``."""
        return PREFIX + (self.short or self.name).upper()

    def flag(self, command: str = "serve") -> str:
        """The flag of ``command``, such as ``--cache-dir``."""
        name = self.client if self.client and command != "serve" else self.name
        return f"--{name.replace('_', '-')}"

    def parse(self, source: str, value: Any) -> Any:
        """``value`` in the type of the option. Raises ConfigurationError, which names the ``source``."""
        if get_origin(self.kind) is Literal:
            if value not in get_args(self.kind):
                raise ConfigurationError(f"{source} must be one of {', '.join(get_args(self.kind))}, not {value!r}.")
            return value
        if self.kind is Path:
            try:
                return Path(value).expanduser()
            except RuntimeError:
                raise ConfigurationError(f"{source} names a home folder that does not exist: {value}.") from None
        if self.kind is int:
            try:
                number = int(value)
            except ValueError:
                raise ConfigurationError(f"{source} must be a whole number, not {value!r}.") from None
            if not 0 <= number <= self.maximum:
                raise ConfigurationError(f"{source} must be between 0 and {self.maximum}, not {number}.")
            return number
        return value


def _option(default: Any, help_text: str, commands: tuple[str, ...] = ("serve",), **more: Any) -> Any:
    """A field of ``Settings`` that is an option. ``more`` are fields of ``Option``."""
    return field(default=default, metadata={"help": help_text, "commands": commands, **more})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The values of all options in one process."""

    model: str = _option(
        "auto",
        "Model to load: a name from the list of models, a repository ibm-granite/NAME[@REVISION], a folder with a "
        "checkpoint, a GGUF file, or auto.",
        LOAD,
    )
    host: str = _option("127.0.0.1", "Address to listen on. The default can be reached from this machine only.")
    port: int = _option(7860, "Port to listen on. 0: any free port.")
    device: Device = _option("auto", "Device for the model: auto, cuda, mps or cpu. auto: a GPU if there is one.", LOAD)
    dtype: Dtype = _option(
        "auto",
        "Precision of the weights: auto, bfloat16, float16 or float32. auto: bfloat16 on a GPU; on a CPU, the fastest "
        "in a short measurement.",
        ASK,
    )
    quantization: Quantization = _option(
        "auto",
        "Quantization with bitsandbytes: auto, none, int8, nf4 or fp4. auto: none if the model fits.",
        ASK,
    )
    attention: Attention = _option(
        "auto",
        "Attention implementation: auto, eager, sdpa, flash_attention_2, flash_attention_3 or flash_attention_4. auto: "
        "FlashAttention if it is installed, otherwise sdpa.",
        LOAD,
    )
    keep_quantized: Literal["no", "yes"] = _option(
        "no", "yes: save a copy of the quantized model, which loads faster the next time."
    )
    engine: EngineName = _option(
        "auto", "Engine that runs the model: auto, batching, static, dynamic, gguf or zerogpu.", (*LOAD, "pull")
    )
    compile: Literal["no", "yes"] = _option(
        "no",
        "yes: compile the decode step if its layers cannot be fused. The model is ready a minute later and then runs "
        "faster.",
        ("serve", "bench"),
    )
    context: int = _option(
        0,
        "Maximum context in tokens. 0: as many as the model allows and the memory holds.",
        (*LOAD, "models", "fits"),
        maximum=10_000_000,
    )
    kv_cache: KvCache = _option(
        "f16",
        "Type of the values in the KV cache of a GGUF file: f16 or q8_0. q8_0 takes about half the memory and rounds.",
        LOAD,
    )
    revision: str = _option(
        "", "Branch, tag or commit of the model's repository. Without it: the main branch.", (*LOAD, "pull")
    )
    idle_minutes: int = _option(0, "Minutes without a request before the model is unloaded. 0: never.")
    threads: int = _option(0, "CPU threads for the model. 0: the fastest number in a short measurement.", LOAD)
    admin_token: str = _option(
        "", "Token that lets a visitor load another model in public mode. Without it: nobody can.", secret=True
    )
    api_key: str = _option(
        "",
        "Key that clients of the HTTP API must send as a bearer token. Without it: the API is open, unless --login is "
        "set.",
        secret=True,
    )
    login: str = _option(
        "", "Logins for the page: NAME:PASSWORD, comma-separated. Without it: the page is open.", secret=True
    )
    share: Literal["no", "yes"] = _option("no", "yes: create a public link to the page.")
    visitor_answers: int = _option(0, "Simultaneous answers for each visitor. 0: 2 in public mode, otherwise no limit.")
    visitor_waiting: int = _option(0, "Additional requests of a visitor that can wait. 0: 4 in public mode.")
    visitor_tokens: int = _option(
        0, "Tokens per minute for each visitor. 0: 20,000 in public mode, otherwise no limit.", maximum=10_000_000
    )
    answer_seconds: int = _option(
        0, "Maximum time for one answer. 0: 300 seconds in public mode, otherwise no limit.", maximum=86_400
    )
    allowed_hosts: str = _option(
        "",
        "Host names that the server accepts, comma-separated; * is any. Without it: this machine's own names if no "
        "other machine can reach the server, otherwise any.",
    )
    allowed_origins: str = _option(
        "",
        "Origins whose pages can call the server from a browser (CORS), comma-separated, such as "
        "https://demo.example.org. Without it: none.",
    )
    trusted_proxies: str = _option(
        PROXIES,
        "Proxies, or networks of them, whose X-Forwarded headers are trusted, comma-separated. On a Space, its own "
        "network is included.",
    )
    backend: str = _option(
        "",
        "Base URLs of servers with OpenAI's API that answer instead of a local model, comma-separated.",
        (*ASK, "models"),
        client="url",
    )
    backend_key: str = _option("", "Key for these servers.", (*ASK, "models"), client="url_key", secret=True)
    backend_model: str = _option(
        "", "Model to request from these servers. Without it: the first model that they list.", ("serve", "doctor")
    )
    beside: str = _option("", "Base URL of another server with OpenAI's API, for answers side by side.")
    beside_key: str = _option("", "Key for the server side by side.", secret=True)
    log_level: LogLevel = _option("info", "Detail of the log: debug, info, warning or error.")
    cache_dir: Path = _option(
        platformdirs.user_cache_path("granite-demo"),
        "Folder for downloaded and converted models.",
        (*LOAD, "models", "pull"),
        short="cache",
    )

    space: bool = False
    """Whether this is a Hugging Face Space, which sets SPACE_ID."""
    processes: int = 1
    """The number of processes that share one model: torchrun starts them and sets WORLD_SIZE, RANK and LOCAL_RANK."""
    rank: int = 0
    """The number of this process, from 0. Process 0 serves the page."""
    local_rank: int = 0
    """The number of this process on this machine, which is the number of its GPU."""

    @property
    def public(self) -> bool:
        """Whether strangers can reach the page: on a Space, by a link, or at an address beyond this machine."""
        return self.space or self.share == "yes" or self.host not in LOOPBACK

    @property
    def secrets(self) -> tuple[str, ...]:
        """The values that no log may show: of each login the password, of the other secret options the whole."""
        passwords = [part.partition(":")[2] for part in self.login.split(",")]
        others = [getattr(self, option.name) for option in OPTIONS if option.secret and option.name != "login"]
        return tuple(filter(None, (*others, *passwords)))

    @classmethod
    def resolve(cls, flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> "Settings":
        """Merge ``flags`` (None: not given) over ``environ`` over the defaults. Raises ConfigurationError."""
        values: dict[str, Any] = {**_on_a_space(environ), **_place_in_group(environ)}
        for option in OPTIONS:
            if flags.get(option.name) is not None:
                values[option.name] = option.parse(option.flag(), flags[option.name])
            elif environ.get(option.variable):
                values[option.name] = option.parse(option.variable, environ[option.variable])
        if values.get("processes", 1) > 1 and values.get("idle_minutes"):
            raise ConfigurationError("A model that several processes share cannot be unloaded. Remove --idle-minutes.")
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
            kv_cache=self.kv_cache,
            keep_quantized=self.keep_quantized == "yes",
            engine=self.engine,
            compile=self.compile == "yes",
        )

    def as_flags(self, command: str) -> list[str]:
        """The flags that give a new server these values of the options of ``command``, except secrets."""
        known = [option for option in OPTIONS if command in option.commands and not option.secret]
        return [part for option in known for part in (option.flag(), str(getattr(self, option.name)))]


OPTIONS = tuple(
    Option(option.name, option.type, option.default, **option.metadata)
    for option in fields(Settings)
    if option.metadata
)
"""The table, in the order of the fields."""


def take_secrets(environ: MutableMapping[str, str] = os.environ) -> str:
    """Delete the secrets from the environment, which child processes inherit. Returns the hub's token, or ""."""
    token = next((environ[name] for name in HUB_TOKENS if environ.get(name)), "")
    for name in (*HUB_TOKENS, *(option.variable for option in OPTIONS if option.secret)):
        environ.pop(name, None)
    return token


def options_page() -> str:
    """The table in docs/options.md."""
    lines = ["| flag | variable | default | help |", "|---|---|---|---|"]
    for option in OPTIONS:
        shown = "the user's cache folder" if option.kind is Path else "none"
        default = shown if option.default == "" or option.kind is Path else f"`{option.default}`"
        lines.append(f"| `{option.flag()}` | `{option.variable}` | {default} | {option.help} |")
    return "\n".join(lines)


def _on_a_space(environ: Mapping[str, str]) -> dict[str, Any]:
    """The defaults on a Space: its proxy reaches the page, and downloads go to its storage if there is one."""
    if not environ.get("SPACE_ID"):
        return {}
    kept = {"cache_dir": STORAGE / "granite-demo"} if os.access(STORAGE, os.W_OK | os.X_OK) else {}
    lent = environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
    engine = {"engine": ZEROGPU.name} if lent else {}
    return {"space": True, "host": "0.0.0.0", "trusted_proxies": SPACE_PROXIES, **engine, **kept}


def _place_in_group(environ: Mapping[str, str]) -> dict[str, int]:
    """The variables that torchrun sets. Raises ConfigurationError if one is missing or not a number."""
    if environ.get("WORLD_SIZE", "1") == "1":
        return {}
    names = {"processes": "WORLD_SIZE", "rank": "RANK", "local_rank": "LOCAL_RANK"}
    try:
        return {name: int(environ[variable]) for name, variable in names.items()}
    except (KeyError, ValueError):
        raise ConfigurationError(
            "WORLD_SIZE is set, but RANK and LOCAL_RANK are not numbers. Use torchrun to start several processes."
        ) from None
