"""The flags of the commands, as typer reads them, and the values that they stand for. Knows no command."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from granite_demo.errors import ConfigurationError, InvalidRequestError
from granite_demo.settings import help_text
from granite_demo.types.constraints import Constraint
from granite_demo.types.messages import Controls
from granite_demo.types.sampling_params import MAX_ALTERNATIVES, SamplingParams

MAX_TOKENS = 512
"""Of an answer, as on the page: a base model seldom ends by itself."""


def _flag(name: str) -> Any:
    return typer.Option(help=help_text(name), show_default=False)


Model = Annotated[str | None, _flag("model")]
Host = Annotated[str | None, _flag("host")]
Port = Annotated[int | None, _flag("port")]
Device = Annotated[str | None, _flag("device")]
Dtype = Annotated[str | None, _flag("dtype")]
Quantization = Annotated[str | None, _flag("quantization")]
Attention = Annotated[str | None, _flag("attention")]
Engine = Annotated[str | None, _flag("engine")]
Compile = Annotated[str | None, _flag("compile")]
KeepQuantized = Annotated[str | None, _flag("keep_quantized")]
Context = Annotated[int | None, _flag("context")]
Revision = Annotated[str | None, _flag("revision")]
AdminToken = Annotated[str | None, _flag("admin_token")]
ApiKey = Annotated[str | None, _flag("api_key")]
Login = Annotated[str | None, _flag("login")]
Share = Annotated[str | None, _flag("share")]
VisitorAnswers = Annotated[int | None, _flag("visitor_answers")]
VisitorWaiting = Annotated[int | None, _flag("visitor_waiting")]
VisitorTokens = Annotated[int | None, _flag("visitor_tokens")]
AnswerSeconds = Annotated[int | None, _flag("answer_seconds")]
AllowedHosts = Annotated[str | None, _flag("allowed_hosts")]
TrustedProxies = Annotated[str | None, _flag("trusted_proxies")]
Backend = Annotated[str | None, _flag("backend")]
BackendKey = Annotated[str | None, _flag("backend_key")]
BackendModel = Annotated[str | None, _flag("backend_model")]
Beside = Annotated[str | None, _flag("beside")]
BesideKey = Annotated[str | None, _flag("beside_key")]
NoUrl = Annotated[str | None, typer.Option("--url", hidden=True)]
"""For what a server cannot be asked: says so, where the others take the address."""
Url = Annotated[str | None, typer.Option("--url", metavar="URL", help=help_text("backend"), show_default=False)]
UrlKey = Annotated[
    str | None, typer.Option("--url-key", metavar="KEY", help=help_text("backend_key"), show_default=False)
]
IdleMinutes = Annotated[int | None, _flag("idle_minutes")]
Threads = Annotated[int | None, _flag("threads")]
CacheDir = Annotated[Path | None, _flag("cache_dir")]
LogLevel = Annotated[str | None, _flag("log_level")]
ModelToFit = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help="A model of the registry, or a folder. Default: all of them.")
]
ModelToPull = Annotated[str, typer.Argument(metavar="MODEL", help="A model of the registry.")]
Memory = Annotated[
    str | None, typer.Option(help="Memory to plan for, like 24GB. Default: what is free on this machine.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Suite = Annotated[
    str | None,
    typer.Option(
        help="load, decode, ttft, page, several with commas, or all; or limit. Default: all, without page if large."
    ),
]
Users = Annotated[str | None, typer.Option(help="Users at the same time. Default: 1,4,16,64 on a GPU, 1,4 on a CPU.")]
Prompts = Annotated[
    str | None, typer.Option(help="Prompt lengths of ttft. Default: 128,1024,8192 on a GPU, 128,1024 on a CPU.")
]
Tokens = Annotated[
    int | None,
    typer.Option(min=2, max=4096, help="New tokens of each answer. Default: 256 on a GPU, 12 on a CPU."),
]
Rounds = Annotated[int, typer.Option(min=1, max=20, help="Turns of each way; the medians are shown.")]
JsonFile = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write every figure as JSON; - prints it instead of the tables."),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw a picture, such as bench.png. Needs matplotlib.")
]
TensorParallel = Annotated[
    int | None,
    typer.Option(min=2, max=64, metavar="N", help="Measure N processes of torchrun that share the model, beside one."),
]
AnswerFile = Annotated[str, typer.Argument(metavar="FILE", help="An answer saved from the page; - is standard input.")]

Text = Annotated[
    str | None,
    typer.Argument(metavar="TEXT", help="The text. Default: standard input, as with -.", show_default=False),
]
Question = Annotated[str, typer.Argument(metavar="TEXT", help="What both are asked.")]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--raw",
        help="Ask it through the model's chat template, or go on with it as it stands. "
        "Default: chat, where the model has a template.",
        show_default=False,
    ),
]
JsonObject = Annotated[bool, typer.Option("--json", help="Print one JSON object at the end instead of the text.")]
System = Annotated[str, typer.Option(metavar="TEXT", help="The system prompt.", show_default=False)]
Thinking = Annotated[
    str | None, typer.Option(metavar="LEVEL", help="off, low or full, where the model's template knows them.")
]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token (greedy).")]
TopP = Annotated[float, typer.Option(help="Sample from the likeliest tokens of this total.")]
TopK = Annotated[int, typer.Option(help="Sample from this many of the likeliest tokens; 0 is all.")]
MinP = Annotated[float, typer.Option(help="Drop what is less likely than this share of the likeliest.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1 repeats less; 1 is off.")]
MaxTokens = Annotated[int, typer.Option(help="An answer ends here at the latest.")]
Seed = Annotated[int | None, typer.Option(help="The same seed repeats a sampled answer. Default: random.")]
Stop = Annotated[
    list[str] | None, typer.Option(help="The answer is cut before this text; up to four times.", show_default=False)
]
FrequencyPenalty = Annotated[float, typer.Option(help="Above 0 repeats less, each time it was said; 0 is off.")]
PresencePenalty = Annotated[float, typer.Option(help="Above 0 repeats less of what was said at all; 0 is off.")]
Logprobs = Annotated[
    int | None,
    typer.Option(metavar="N", help="With --json, each token's log probability and N alternatives.", show_default=False),
]
Suffix = Annotated[
    str | None, typer.Option(metavar="TEXT", help="With --raw, fill the gap between TEXT and this.", show_default=False)
]
Schema = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The answer is JSON of this JSON schema.", show_default=False)
]
Regex = Annotated[
    str | None, typer.Option(metavar="PATTERN", help="The answer matches this, whole.", show_default=False)
]
Choice = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="The answer is one of these; repeat it.", show_default=False)
]
Alternatives = Annotated[
    int, typer.Option(min=0, max=MAX_ALTERNATIVES, help="So many of the likeliest tokens of each place.")
]
SpecialTokens = Annotated[
    bool, typer.Option("--special-tokens", help="What spells a control token is one. Default: it is plain text.")
]
Reference = Annotated[str, typer.Option(metavar="PRECISION", help="What to compare with.")]
Other = Annotated[
    str,
    typer.Option(metavar="PRECISION", help="What is compared: float32, bfloat16, float16, int8, nf4 or fp4."),
]
CsvFile = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write a line for each token as CSV.")]


def sampling(given: Mapping[str, Any]) -> SamplingParams:
    """The sampling parameters among the flags ``given``. Raises ConfigurationError."""
    values = {field.name: given[field.name] for field in fields(SamplingParams) if given.get(field.name) is not None}
    try:
        return SamplingParams(**values)
    except InvalidRequestError as error:
        raise ConfigurationError(error.user_text) from None


def constraint(schema: Path | None, regex: str | None, choices: list[str] | None) -> Constraint | None:
    """What the answer has to be. Raises ConfigurationError."""
    if sum(value is not None for value in (schema, regex, choices or None)) > 1:
        raise ConfigurationError("Use only one of --schema, --regex and --choice.")
    try:
        if schema is not None:
            return Constraint.from_schema(schema.read_text(encoding="utf-8"))
        if regex is not None:
            return Constraint("regex", pattern=regex)
        return Constraint("choice", choices=tuple(choices)) if choices else None
    except InvalidRequestError as error:
        raise ConfigurationError(error.user_text) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--schema cannot be read: {error}.") from None


def controls(thinking: str | None) -> Controls:
    """The switches that were asked for. Raises ConfigurationError."""
    try:
        return Controls(thinking=thinking)  # type: ignore[arg-type]  # it checks the value
    except InvalidRequestError as error:
        raise ConfigurationError(f"--{error.user_text}") from None
