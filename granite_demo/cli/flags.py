"""The flags of the commands, as typer reads them, and the values that they stand for. Knows no command."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import wraps
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from granite_demo.errors import ConfigurationError, InvalidRequestError
from granite_demo.settings import OPTIONS, Settings
from granite_demo.types.constraints import Constraint
from granite_demo.types.messages import Controls
from granite_demo.types.sampling_params import MAX_ALTERNATIVES, SamplingParams

STANDARD_INPUT = "-"
"""The name of a file that stands for standard input."""
USUAL_MAX_TOKENS = 512
"""The default for an answer, as on the page: a base model seldom stops by itself."""

NoUrl = Annotated[str | None, typer.Option("--url", hidden=True)]
"""For a command that cannot use another server, so that it can say so."""
ModelToFit = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="A model from the list of models, or a folder. Default: all models."),
]
ModelToPull = Annotated[str, typer.Argument(metavar="MODEL", help="A model from the list of models.")]
ModelToReplay = Annotated[
    str | None, typer.Option(help="Model that generates the answer. Default: the one that the file names.")
]
Memory = Annotated[
    str | None, typer.Option(help="Memory to plan for, such as 24GB. Default: the free memory of this machine.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Suite = Annotated[
    str | None,
    typer.Option(
        help="load, decode, ttft or page, comma-separated, or all; or limit alone. "
        "Default: all, without page if the model is large."
    ),
]
Users = Annotated[
    str | None,
    typer.Option(help="Numbers of simultaneous users, comma-separated. Default: 1,4,16,64 on a GPU, 1,4 on a CPU."),
]
PromptsOption = Annotated[
    str | None,
    typer.Option(
        help="Prompt lengths for ttft in tokens, comma-separated. Default: 128,1024,8192 on a GPU, 128,1024 on a CPU."
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option(min=2, max=4096, help="New tokens in each answer. Default: 256 on a GPU, 12 on a CPU."),
]
Rounds = Annotated[int, typer.Option(min=1, max=20, help="Number of measurements; the report shows the medians.")]
JsonFile = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write all figures to FILE as JSON; - prints them, without tables."),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw a picture, such as bench.png. Needs matplotlib.")
]
TensorParallel = Annotated[
    int | None,
    typer.Option(
        min=2, max=64, metavar="N", help="Compare N processes of torchrun that share the model with one process."
    ),
]
AnswerFile = Annotated[
    str, typer.Argument(metavar="FILE", help="An answer that was saved from the page; - is standard input.")
]
TextArgument = Annotated[
    str | None,
    typer.Argument(metavar="TEXT", help="The text. Default, and with -: standard input.", show_default=False),
]
Question = Annotated[str, typer.Argument(metavar="TEXT", help="The question for both models.")]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--raw",
        help="Use the model's chat template, or continue the text without changes. "
        "Default: --chat if the model has a template.",
        show_default=False,
    ),
]
JsonObject = Annotated[bool, typer.Option("--json", help="Print one JSON object at the end instead of the text.")]
System = Annotated[str, typer.Option(metavar="TEXT", help="System prompt.", show_default=False)]
ThinkingOption = Annotated[
    str | None, typer.Option(metavar="LEVEL", help="off, low or full, if the model's template has these levels.")
]
Logprobs = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="With --json: the log probability of each token, and N alternatives.", show_default=False
    ),
]
Suffix = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="With --raw: fill the gap between the text and this one.", show_default=False),
]
Schema = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Constrain the answer to JSON of the JSON schema in FILE.", show_default=False),
]
Regex = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN", help="Constrain the answer to text that matches this as a whole.", show_default=False
    ),
]
ChoiceOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT", help="Constrain the answer to one of these texts. Repeat it for each.", show_default=False
    ),
]
Alternatives = Annotated[
    int, typer.Option(min=0, max=MAX_ALTERNATIVES, help="Number of the most likely tokens to show at each position.")
]
SpecialTokens = Annotated[
    bool,
    typer.Option("--special-tokens", help="Parse control tokens in the prompt. By default they are plain text."),
]
Reference = Annotated[str, typer.Option(metavar="PRECISION", help="Precision to compare with.")]
Other = Annotated[
    str,
    typer.Option(metavar="PRECISION", help="Precision to compare: float32, bfloat16, float16, int8, nf4 or fp4."),
]
CsvFile = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write a line for each token as CSV.")]


def with_tables(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the flags of the tables that its parameters ``settings`` and ``sampling`` stand for.

    ``settings`` stands for the options of ``Settings`` that belong to the command of this name; a parameter of the
    command itself takes precedence. ``sampling`` stands for the fields of ``SamplingParams`` that are flags. The
    command gets the checked values. Raises ConfigurationError for a bad one.
    """
    own = dict(inspect.signature(command).parameters)
    tables: dict[str, tuple[list[Parameter], Callable[[Mapping[str, Any]], Any]]] = {}
    if own.pop("sampling", None):
        tables["sampling"] = (sampling_flags(), sampling)
    if own.pop("settings", None):
        tables["settings"] = (
            [flag for flag in setting_flags(command.__name__) if flag.name not in own],
            Settings.resolve,
        )

    @wraps(command)
    def run(**given: Any) -> None:
        values = {
            name: read({flag.name: given.pop(flag.name) for flag in flags}) for name, (flags, read) in tables.items()
        }
        command(**given, **values)

    parameters = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in own.values()]
    parameters += [flag for flags, _ in tables.values() for flag in flags]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    return run


def setting_flags(command: str) -> list[Parameter]:
    """The flags of ``command`` from the table in ``granite_demo.settings``. None: not given."""
    found = []
    for option in OPTIONS:
        if command in option.commands:
            kind = option.kind if option.kind in (int, Path) else str
            default = "none" if option.default == "" else option.default
            text = f"{option.help} Default: {default}. Variable: {option.variable}."
            flag = typer.Option(option.flag(command), help=text, show_default=False)
            found.append(_parameter(option.name, Annotated[kind | None, flag], None))
    return found


def sampling_flags() -> list[Parameter]:
    """The flags of the fields of ``SamplingParams`` that have a help text."""
    found = []
    for field in fields(SamplingParams):
        if "help" in field.metadata:
            kind, default = field.type, USUAL_MAX_TOKENS if field.name == "max_tokens" else field.default
            if field.name == "stop":
                kind, default = list[str] | None, None
            found.append(_parameter(field.name, Annotated[kind, typer.Option(help=field.metadata["help"])], default))
    return found


def _parameter(name: str, annotation: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def sampling(given: Mapping[str, Any]) -> SamplingParams:
    """The sampling parameters of the flags ``given``; None: the default. Raises ConfigurationError."""
    try:
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})
    except InvalidRequestError as error:
        raise ConfigurationError(error.user_text) from None


def constraint(schema: Path | None, regex: str | None, choices: list[str] | None) -> Constraint | None:
    """The constraint of the answer. Raises ConfigurationError."""
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
    """The template's controls. Raises ConfigurationError."""
    try:
        return Controls(thinking=thinking)  # type: ignore[arg-type]  # it checks the value
    except InvalidRequestError as error:
        raise ConfigurationError(f"--{error.user_text}") from None
