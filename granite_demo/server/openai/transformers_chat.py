"""Additions to OpenAI's API for ``transformers chat``: its generation config, and its wait for the model."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from pydantic import ValidationError

from granite_demo.backend import Backend, ModelControl
from granite_demo.server.openai.errors import RefusedError
from granite_demo.server.openai.protocol import ChatRequest

CONFIG_FIELD = "generation_config"
PARAMETER_NAMES = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
}
SAYS_NOTHING = {"do_sample", "transformers_version", "_from_model_config"}
READY_POLL_SECONDS = 0.2


def with_config(body: ChatRequest) -> ChatRequest:
    """``body`` with the values of its generation config in the fields that it leaves empty. Raises RefusedError."""
    try:
        config = json.loads(body.generation_config or "")
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise RefusedError("generation_config must be the JSON text of an object.", (CONFIG_FIELD,))
    config = {name: value for name, value in config.items() if value is not None}
    for name in config.keys() - PARAMETER_NAMES.keys() - SAYS_NOTHING:
        raise RefusedError(f"{name:.80} is not supported here.", (CONFIG_FIELD, name), "unknown_parameter")
    values = {PARAMETER_NAMES[name]: value for name, value in config.items() if name in PARAMETER_NAMES}
    if config.get("do_sample") is False:
        values["temperature"] = 0.0
    try:
        checked = ChatRequest(messages=body.messages, **values)
    except ValidationError as error:
        first: Any = error.errors()[0]
        raise RefusedError(str(first["ctx"]["error"]), (CONFIG_FIELD, str(first["loc"][0]))) from None
    new = {name: getattr(checked, name) for name in values if getattr(body, name) is None}
    return body.model_copy(update={**new, CONFIG_FIELD: None})


async def load_progress(backend: Backend, control: ModelControl, name: str) -> AsyncGenerator[dict[str, Any]]:
    """Start the load of the model and yield its progress, until it is ready or has failed."""
    control.start()
    while (status := backend.status()).stage != "ready":
        if status.stage == "failed":
            yield {"status": "error", "model": name, "message": status.detail}
            return
        yield {"status": "loading", "model": name, "stage": status.stage}
        await asyncio.sleep(READY_POLL_SECONDS)
    yield {"status": "ready", "model": name, "cached": True}
