"""A request as the arguments of a tokenizer's apply_chat_template. Knows what templates read, not how they write it."""

import json
import logging
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from granite_demo.errors import InvalidRequestError
from granite_demo.types.messages import Controls, Message, ToolCall, scrub
from granite_demo.types.prompt_view import Origin
from granite_demo.types.requests import GenerationRequest

log = logging.getLogger(__name__)

Write = Callable[[Origin, str, bool], str]
"""What becomes of each text that somebody wrote, before the template gets it; true for the key of an object."""

MAX_DEPTH = 100
"""Levels of objects and lists in a tool or a call. Python's own limit is higher, but not the same in each version."""


def template_of(tokenizer: Any, tools: bool = False) -> str:
    """The text of the chat template that ``tokenizer`` takes; empty where it has none."""
    if not tokenizer.chat_template:
        return ""
    if isinstance(tokenizer.chat_template, str):
        return str(tokenizer.chat_template)
    return str(tokenizer.get_chat_template(None, [{}] if tools else None))


@lru_cache(maxsize=16)
def variables_of(template: str) -> frozenset[str]:
    """The names that ``template`` reads from outside; none where it cannot be parsed."""
    from jinja2 import TemplateError, meta
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(extensions=[loopcontrols])
    # A tag of transformers' own, which wraps what the model wrote; nothing is left out with it.
    plain = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", template)
    try:
        return frozenset(meta.find_undeclared_variables(environment.parse(plain)))
    except (TemplateError, RecursionError) as error:
        log.warning("A chat template cannot be parsed: %s", error)
        return frozenset()


def template_inputs(
    request: GenerationRequest,
    template: str,
    write: Write = lambda origin, text, key: text,
    objects: bool = False,
) -> dict[str, Any]:
    """The conversation, tools, documents and switches of ``request``; a switch that is not set is not passed.

    ``write`` is given every text that came with the request. ``objects``: arguments that are no JSON object become one.
    """

    def told(title: str) -> str:
        return write("document", title, False)

    tools = [
        {**tool.as_function(), "function": _written(tool.as_function()["function"], write)} for tool in request.tools
    ]
    documents = [
        {"doc_id": number, "title": told(document.title), "text": told(document.text)}
        for number, document in enumerate(request.documents, 1)
    ]
    reasons = "reasoning_content" in template
    return {
        "conversation": [_turn(message, reasons, write, objects) for message in request.messages],
        "tools": tools or None,
        "documents": documents or None,
        **switch_values(request.controls, variables_of(template)),
    }


def _turn(message: Message, reasons: bool, write: Write, objects: bool) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": write(message.role, message.content, False)}
    if message.name:
        turn["name"] = write(message.role, message.name, False)
    if message.thinking and reasons:
        turn["reasoning_content"] = write("assistant", message.thinking, False)
    if message.tool_calls:
        turn["tool_calls"] = [_call(call, write, objects) for call in message.tool_calls]
    return turn


def _call(call: ToolCall, write: Write, objects: bool) -> dict[str, Any]:
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        arguments = {"arguments": call.arguments} if objects else call.arguments
    return {"type": "function", "function": _written({"name": call.name, "arguments": arguments}, write)}


def _written(value: Any, write: Write, level: int = 1) -> Any:
    if isinstance(value, str):
        return write("tool", scrub(value), False)  # JSON can spell what no tokenizer takes
    if not isinstance(value, Mapping | list | tuple):
        return value
    if level > MAX_DEPTH:
        raise InvalidRequestError(f"A tool or a call is nested more than {MAX_DEPTH} deep.")
    if isinstance(value, Mapping):
        return {write("tool", scrub(str(key)), True): _written(item, write, level + 1) for key, item in value.items()}
    return [_written(item, write, level + 1) for item in value]


def switch_values(controls: Controls, variables: frozenset[str]) -> dict[str, Any]:
    """What a template that reads ``variables`` is told of ``controls``: Granite 3's names, or those of 4.2."""
    values: dict[str, Any] = {}
    level = controls.thinking
    if level is not None and "enable_thinking" in variables:
        values["enable_thinking"] = level != "off"
        if level == "low" and "low_effort" in variables:
            values["low_effort"] = True
        elif level == "low" and "reasoning_effort" in variables:
            values["reasoning_effort"] = "low"
    elif level in ("off", "full") and "thinking" in variables:
        values["thinking"] = level == "full"
    if "controls" in variables:
        # The order is that of IBM's own code: the template writes them out as they come. Empty rather than left out:
        # templates look into it.
        wanted = {name: getattr(controls, name) for name in ("citations", "hallucinations", "length", "originality")}
        values["controls"] = {name: value for name, value in wanted.items() if value}
    return values
