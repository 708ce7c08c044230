"""Converts a request into the arguments of ``apply_chat_template``, with the names that the chat template reads."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from granite_demo.errors import InvalidRequestError
from granite_demo.prompts.tokenizer import Tokenizer
from granite_demo.types.messages import Controls, Document, Message, ToolCall, scrub
from granite_demo.types.prompt_view import Origin
from granite_demo.types.requests import GenerationRequest

log = logging.getLogger(__name__)

Write = Callable[[Origin, str, bool], str]
"""Called with the origin and the text of each text in a request, and true for the key of an object.

The template gets the result instead of the text.
"""

JSON_ROLE = "You are a helpful assistant that answers in JSON."
SCHEMA_WORDS = "Here's the json schema you must adhere to:\n<schema>\n{schema}\n</schema>"
"""The words of IBM's model cards of Granite 4.0 and 4.1, with which these models are trained."""
CONTINUE_HERE = "\x7fcontinue\x7f"
"""Marks the end of the last message of the assistant, which the answer continues."""
MAX_NESTING = 100
"""The maximum nesting of objects and lists in a tool or a call. Python's own limit differs between versions."""


def template_of(tokenizer: Tokenizer, tools: bool = False) -> str:
    """Return the text of the chat template that ``tokenizer`` applies, or "" if it has none.

    A tokenizer can have a second template for requests with ``tools``.
    """
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        return str(templates.get("tool_use" if tools and "tool_use" in templates else "default", ""))
    return str(templates or "")


@lru_cache(maxsize=16)
def variables_of(template: str) -> frozenset[str]:
    """Return the names of the variables that ``template`` reads. The set is empty if the template cannot be parsed."""
    from jinja2 import TemplateError, meta

    from granite_demo.prompts import jinja_chat

    try:
        return frozenset(meta.find_undeclared_variables(jinja_chat.parse(template)))
    except (TemplateError, RecursionError) as error:
        log.warning("A chat template cannot be parsed: %s", error)
        return frozenset()


def template_inputs(
    request: GenerationRequest,
    template: str,
    write: Write = lambda origin, text, key: text,
    objects: bool = False,
) -> dict[str, Any]:
    """Return the conversation, tools, documents and switches of ``request``. A switch that is not set is left out.

    Each text in the request passes through ``write``. With ``objects``, call arguments that are not a JSON object are
    put into one. Raises InvalidRequestError for a tool or a call with more than MAX_DEPTH levels.
    """
    # "type" chooses a branch of the template, so it is no text of the request.
    tools = [
        {key: value if key == "type" else _written(value, write) for key, value in tool.as_function().items()}
        for tool in request.tools
    ]
    documents = [
        _written(_document(number, document, template), write, "document")
        for number, document in enumerate(request.documents, 1)
    ]
    reads_reasoning = "reasoning_content" in template
    turns = [_turn(message, reads_reasoning, write, objects) for message in _with_schema(request)]
    if request.continued:
        turns[-1]["content"] += CONTINUE_HERE
    return {
        "conversation": turns,
        **({"add_generation_prompt": False} if request.continued else {}),
        "tools": tools or None,
        "documents": documents or None,
        **switch_values(request.controls, variables_of(template)),
    }


def _with_schema(request: GenerationRequest) -> tuple[Message, ...]:
    """Return the messages, and the JSON schema of the answer in the system message if the request wants it there."""
    constraint, messages = request.sampling.constraint, request.messages
    if not request.controls.schema_in_prompt or constraint is None or constraint.kind != "json_schema":
        return messages
    words = SCHEMA_WORDS.format(schema=constraint.schema)
    if messages[0].role != "system":
        return (Message("system", f"{JSON_ROLE} {words}"), *messages)
    return (replace(messages[0], content=f"{messages[0].content}\n{words}"), *messages[1:])


def _turn(message: Message, reads_reasoning: bool, write: Write, objects: bool) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": write(message.role, message.content, False)}
    if message.name:
        turn["name"] = write(message.role, message.name, False)
    if message.thinking and reads_reasoning:
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


def _document(number: int, document: Document, template: str) -> dict[str, Any]:
    """Return the fields of a document: those that the client gave, and ``doc_id`` where the template needs it."""
    if document.given is None:
        return {"doc_id": number, "title": document.title, "text": document.text}
    needed = {"doc_id": number} if "doc_id" in template and "doc_id" not in document.given else {}
    return {**needed, **document.given}


def _written(value: Any, write: Write, origin: Origin = "tool", level: int = 1) -> Any:
    if isinstance(value, str):
        return write(origin, scrub(value), False)  # JSON escapes can produce lone surrogates
    if not isinstance(value, Mapping | list | tuple):
        return value
    if level > MAX_NESTING:
        raise InvalidRequestError(f"A tool or a call has more than {MAX_NESTING} nested levels.")
    if isinstance(value, Mapping):
        return {
            write(origin, scrub(str(key)), True): _written(item, write, origin, level + 1)
            for key, item in value.items()
        }
    return [_written(item, write, origin, level + 1) for item in value]


def switch_values(controls: Controls, variables: frozenset[str]) -> dict[str, Any]:
    """Return the template variables for ``controls``, by the names of Granite 3 or 4.2 that are in ``variables``."""
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
    if controls.truncate_history_thinking is not None and "truncate_history_thinking" in variables:
        values["truncate_history_thinking"] = controls.truncate_history_thinking
    if "controls" in variables:
        # The template prints the switches in this order, which is that of IBM's code. An empty dict is not left out,
        # because templates read its keys.
        wanted = {name: getattr(controls, name) for name in ("citations", "hallucinations", "length", "originality")}
        values["controls"] = {name: value for name, value in wanted.items() if value}
    return values
