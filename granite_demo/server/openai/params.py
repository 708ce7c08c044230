"""The fields that chat and completion bodies share, as values for a ``Backend``."""

import json
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from granite_demo.server.openai.errors import RefusedError, about
from granite_demo.server.openai.protocol import ChatRequest, Sampling, TemplateControls, TemplateKwargs
from granite_demo.types.constraints import Constraint
from granite_demo.types.messages import Controls, Switches, Thinking
from granite_demo.types.model_status import Feature, ModelStatus
from granite_demo.types.sampling_params import MAX_SEED, SamplingParams

TEMPERATURE = 1.0
"""OpenAI's default, which clients expect; the page and the command line have other ones."""
DEFAULT_MODEL = "default"
SAME_NAMES = (
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "seed",
    "stop",
    "frequency_penalty",
    "presence_penalty",
    "thinking_token_budget",
    "logit_bias",
)
"""Fields with the same name in the body and in SamplingParams."""


def served_name(status: ModelStatus) -> str:
    """The name of the model in the API. For a folder on this machine, its last part only."""
    name = status.name or status.model
    return PurePath(name).name if name.startswith(("/", "~", ".")) or "\\" in name else name


def check_model(asked: str, status: ModelStatus) -> None:
    """Raise RefusedError (404) unless ``asked`` names the model that answers."""
    served = served_name(status)
    if asked not in (served, DEFAULT_MODEL, status.model):
        raise RefusedError(
            f"The model {asked!r:.80} is not available here. Use {served!r} or {DEFAULT_MODEL!r}.",
            ("model",),
            "model_not_found",
            404,
        )


def check_able(status: ModelStatus, feature: Feature, *path: str) -> None:
    """Raise RefusedError for the field at ``path`` if the model or its engine lacks ``feature``."""
    if why := status.unable_to(feature):
        raise RefusedError(f"{'.'.join(path)} cannot be used here. {why}", path, "unsupported_parameter")


def check_stream(body: Sampling) -> None:
    """Raise RefusedError for stream options without a stream."""
    if body.stream_options and not body.stream:
        raise RefusedError("stream_options requires stream to be true.", ("stream_options",), "invalid_value")


def sampling_of(body: Sampling, status: ModelStatus, **others: Any) -> SamplingParams:
    """The parameters of the first answer. ``others`` are those that chat and completion bodies write in different ways.

    Raises RefusedError.
    """
    values = {name: value for name in SAME_NAMES if (value := getattr(body, name)) is not None}
    if body.logit_bias:
        check_able(status, "logit bias", "logit_bias")
    if others.get("logprobs") is not None:
        check_able(status, "log probabilities", "logprobs")
    values["temperature"] = TEMPERATURE if body.temperature is None else body.temperature
    return SamplingParams(**values, **others)


def seed_of(sampling: SamplingParams, choice: int) -> int | None:
    """The seed of the answer ``choice``: each answer of a request has another one."""
    return None if sampling.seed is None else (sampling.seed + choice) % (MAX_SEED + 1)


def only_constraint(found: list[tuple[str, Constraint]], status: ModelStatus) -> Constraint | None:
    """The only constraint in ``found``, pairs of (field, constraint); None if there is none.

    Raises RefusedError if there are several, or if the engine has no constraints.
    """
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise RefusedError(f"{names} cannot be used together.", (found[1][0],), "invalid_value")
    for name, constraint in found:
        check_able(status, "constraints", name)
        return constraint
    return None


def constraints_of(body: Sampling) -> Iterator[tuple[str, Constraint]]:
    """Yield (field, constraint) for each of vLLM's fields. Raises RefusedError."""
    if body.guided_regex is not None:
        with about("guided_regex"):
            yield "guided_regex", Constraint("regex", pattern=body.guided_regex)
    if body.guided_choice is not None:
        with about("guided_choice"):
            yield "guided_choice", Constraint("choice", choices=tuple(body.guided_choice))
    if (outputs := body.structured_outputs) is None:
        return
    with about("structured_outputs"):
        if outputs.regex is not None:
            yield "structured_outputs", Constraint("regex", pattern=outputs.regex)
        if outputs.choice is not None:
            yield "structured_outputs", Constraint("choice", choices=tuple(outputs.choice))
        if outputs.json_ is not None:
            yield "structured_outputs", schema_constraint(outputs.json_)


def schema_constraint(schema: Any) -> Constraint:
    """The constraint to ``schema``, a value or JSON text. Raises InvalidRequestError."""
    try:
        return Constraint("json_schema", schema=schema if isinstance(schema, str) else json.dumps(schema))
    except RecursionError:
        raise RefusedError("The schema is nested too deeply.", ("response_format",)) from None


EFFORTS: dict[str, Thinking] = {
    "none": "off",
    "minimal": "low",
    "low": "low",
    "medium": "full",
    "high": "full",
    "xhigh": "full",
}
KWARGS_FIELD = "chat_template_kwargs"


def controls_of(body: ChatRequest, status: ModelStatus) -> Controls:
    """The switches in ``body``. Raises RefusedError for a switch that the model does not have."""
    kwargs = body.chat_template_kwargs or TemplateKwargs()
    level, name = _level(kwargs), KWARGS_FIELD
    if body.reasoning_effort is not None:
        if level is not None:
            raise RefusedError("reasoning_effort and a thinking level cannot be used together.", ("reasoning_effort",))
        level, name = EFFORTS[body.reasoning_effort], "reasoning_effort"
    given = kwargs.controls or TemplateControls()
    lists = bool(given.citations), bool(given.hallucinations)
    controls = Controls(
        level, given.length, given.originality, *lists, kwargs.truncate_history_thinking, bool(kwargs.schema_in_prompt)
    )
    if status.stage == "ready":
        _check(controls, status.switches, name)
    return controls


def _level(kwargs: TemplateKwargs) -> Thinking | None:
    levels: set[Thinking] = set()
    wanted: Any = kwargs.thinking
    if isinstance(wanted, bool):
        wanted = "full" if wanted else "off"
    if wanted is not None:
        levels.add(wanted)
    if kwargs.reasoning_effort is not None:
        levels.add(EFFORTS[kwargs.reasoning_effort])
    if kwargs.low_effort:
        levels.add("low")
    elif kwargs.enable_thinking is not None:
        levels.add("full" if kwargs.enable_thinking else "off")
    if len(levels) > 1 or (kwargs.low_effort and kwargs.enable_thinking is False):
        raise RefusedError("The thinking switches contradict each other.", (KWARGS_FIELD,))
    return levels.pop() if levels else None


def _check(controls: Controls, switches: Switches, name: str) -> None:
    level = controls.thinking
    if level not in (None, "off", *switches.thinking):
        known = f"Its levels: {', '.join(switches.thinking)}." if switches.thinking else "It has no thinking switch."
        raise RefusedError(f"This model has no thinking level {level}. {known}", (name,))
    if controls.schema_in_prompt and switches.dialect != "4.0":
        raise RefusedError("Only Granite 4.0 and 4.1 know schema_in_prompt.", (KWARGS_FIELD, "schema_in_prompt"))
    for control in ("length", "originality", "citations", "hallucinations"):
        if getattr(controls, control) and not getattr(switches, control):
            raise RefusedError(
                f"The chat template of this model does not support {control}.", (KWARGS_FIELD, "controls", control)
            )
